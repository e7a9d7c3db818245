//! The daemon: executes what the command line asks for, then serves until it is told to stop.
//!
//! The rule: this is the control thread; it may wait for queue threads and sessions, and none of them ever waits for it.

mod control;
mod engines;
mod executor;
mod inet;
mod nbd;
mod shutdown;
mod sockets;

pub use control::{Ending, serve};
pub use executor::Daemon;
