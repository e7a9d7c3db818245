//! What needs two crates or a real peer: the guest's side of vhost-user-blk, real guests, hostile front ends, benchmarks.

pub mod bench;
pub mod blockdev;
pub mod cells;
pub mod client;
pub mod daemon;
pub mod disk_file;
pub mod guest;
pub mod operator;
pub mod qemu_img;
pub mod qmp;
