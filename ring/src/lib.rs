//! Moves bytes between files and memory: one io_uring per thread, and the guest's virtqueue.
//!
//! This crate does not know what a disk is. It is the only crate with I/O `unsafe`; what it hands out is safe to use.

pub mod buf;
pub mod file;
pub mod op;
pub mod seg;
pub mod vring;

pub use buf::{Buf, Mem};
pub use file::{Align, File, FileId};
pub use op::{Done, Durability, Errno, Op, OpId, SyncLevel};
pub use seg::Seg;
