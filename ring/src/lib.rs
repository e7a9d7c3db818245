//! Moves bytes between files and memory: one io_uring per thread, and the guest's virtqueue.
//!
//! This crate does not know what a disk is. It is the only crate with I/O `unsafe`; what it hands out is safe to use.

pub mod buf;
mod engine;
pub mod file;
mod handle;
pub mod inherited;
pub mod op;
mod ring;
pub mod seg;
pub mod sim;
mod slots;
pub mod sock;
pub mod stream;
pub mod sys;
mod tasks;
mod transfer;
pub mod vring;
mod wait;
pub mod words;

pub use buf::{Buf, Mem};
pub use engine::uring::Flavour;
pub use file::{Align, File, FileId, Syncs};
pub use handle::{Handle, Running};
pub use op::{Done, Durability, Errno, Op, OpId, SyncLevel};
pub use ring::{Choice, Holding, Ring, SLOTS};
pub use seg::Seg;
pub use tasks::{Task, Tasks};
pub use wait::{Bell, Wait};
pub use words::Words;
