//! qcow2 images: read, written, checked, damaged, and compared with what qemu-img says of them.
//!
//! One program, as each one costs seconds to build; a module is a subject.

#![allow(unreachable_pub, reason = "its modules are for each other")]

#[path = "../support/mod.rs"]
mod support;

mod check_data_file;
mod damaged;
mod disk;
mod events;
mod fuzz;
mod header;
mod interop_admin;
mod interop_check;
mod interop_create;
mod killed;
mod lanes;
mod overlap;
mod overlap_later;
mod read;
mod sharing;
mod threads;
mod write;
mod write_crash;
mod write_errors;
mod write_kinds;
