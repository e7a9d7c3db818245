//! virtioblkd as a process among processes: how it starts, serves, meets trouble and ends. Needs strace, prlimit and
//! QEMU's tools.
//!
//! The rule: what is asserted is a count, a status or a text; times are printed and never asserted.
#![allow(
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub,
    reason = "a test stops where it is surprised"
)]

mod ending;
mod idle;
mod killed;
mod locks;
mod nbd_client;
mod nbd_iothread;
mod program;
mod starting;
mod support;
mod trouble;
