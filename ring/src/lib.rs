//! Moves bytes between files and memory: one io_uring per thread, and the guest's virtqueue.
//!
//! This crate does not know what a disk is. It is the only crate with I/O `unsafe`; what it hands out is safe to use.

pub mod seg;
pub mod vring;

pub use seg::Seg;
