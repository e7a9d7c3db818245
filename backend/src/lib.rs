//! The daemon `virtioblkd`: guests in front, operators at the side. It does not know what qcow2 is.

pub mod cli;
pub mod process;
pub mod vhost;
pub mod virtio_blk;
