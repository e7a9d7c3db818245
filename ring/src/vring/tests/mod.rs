//! The ring against a driver of our own, the reference walk, garbage and a second thread.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod basics;
mod damage;
mod garbage;
mod guest;
mod inflight;
mod litmus;
mod memory;
mod notify;
mod reference;
mod stress;
