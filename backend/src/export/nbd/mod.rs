//! Nodes shown to NBD clients: one server, any number of exports, connections on threads of their own or
//! on an iothread.
//!
//! The rule: a client may send anything, at any speed, and read its replies or not; it never keeps a guest, the control
//! thread or another client waiting, and what it can make us hold is bounded (`budget.rs`, `line.rs`, `outbox.rs`).

mod admit;
mod budget;
mod desk;
mod exports;
mod handshake;
mod input;
mod intake;
mod line;
mod options;
mod outbox;
mod payload;
mod pool;
mod seat;
mod serve;
mod server;
mod session;
mod status;
mod transport;

pub use exports::{AllocationDepth, NbdExportOptions, Runs, Writes};
pub use server::{NbdServer, NbdServerOptions, NbdStillBusy, Removed};
