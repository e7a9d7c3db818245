//! The command line, compatible with `qemu-storage-daemon`: arguments in, a list of typed commands out, in strict order.
//!
//! Nothing here opens a file or a socket; executing the commands is the daemon's work.

mod error;
mod options;

pub use error::Refusal;
pub use options::*;
