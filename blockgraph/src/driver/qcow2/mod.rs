//! qcow2: guest clusters anywhere in a file, found by two levels of tables (QEMU's docs/interop/qcow2.txt).

mod alloc;
pub mod cache;
pub mod format;
mod free;
pub mod geometry;
mod meta;
mod plan;
mod refcount;
mod together;
mod users;
mod width;
