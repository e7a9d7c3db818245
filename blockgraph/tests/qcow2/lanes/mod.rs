//! qcow2 images that several lanes write, whose snapshots and size change meanwhile, and whose disk loses power or fails.

#![allow(unreachable_pub, reason = "its modules are for each other")]

use crate::support;

mod admin;
mod crash;
mod discard;
mod errors;
mod killed;
mod model;
mod sizes;
mod traffic;
mod world;
