//! qcow2: guest clusters anywhere in a file, found by two levels of tables (QEMU's docs/interop/qcow2.txt).

mod alloc;
pub mod format;
mod free;
mod refcount;
mod width;
