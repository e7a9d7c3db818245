//! What people and tools outside see: the command line, the monitor and the NBD server, byte by byte.
//!
//! One program, as each one costs seconds to build; a module is a subject.

#![allow(
    missing_docs,
    unreachable_pub,
    reason = "its modules are for each other"
)]

mod cli_errors;
mod cli_execution;
mod graph_view;
mod nbd_cli;
mod nbd_wire;
mod qmp_chardevs;
mod qmp_fdsets;
mod qmp_wire;
mod queries;
