//! Nodes of every other kind, and the graph they form: drivers, filters, edits, sizes, locks, NBD.
//!
//! One program, as each one costs seconds to build; a module is a subject.

#![allow(unreachable_pub, reason = "its modules are for each other")]

#[path = "../support/mod.rs"]
mod support;

mod copy_on_read;
mod device;
mod edit;
mod file;
mod file_size;
mod filters;
mod filters_qcow2;
mod gate;
mod locks;
mod model;
mod nbd_client;
mod nbd_hostile;
mod nbd_hostile_replies;
mod nbd_reconnect;
mod pins;
mod reopen;
mod resize;
mod simulated;
mod status;
mod tls;
