//! A disk as a front end sees it: requests, their ends, rings, figures, and what is read is what was written.
//!
//! One program, as each one costs seconds to build; a module is a subject.

#![allow(
    missing_docs,
    unreachable_pub,
    reason = "its modules are for each other"
)]

mod batching;
mod descriptor;
mod lifecycle;
mod model;
mod nbd;
mod queue_thread;
mod requests;
mod statistics;
