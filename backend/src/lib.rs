//! The daemon `virtioblkd`: guests in front, operators at the side. It does not know what qcow2 is.

pub mod backup;
pub mod chardev;
pub mod cli;
pub mod daemon;
pub mod export;
#[cfg(test)]
mod fuzz;
pub mod graph_view;
pub mod json;
pub mod open;
pub mod process;
pub mod qapi;
pub mod qmp;
pub mod qmp_client;
pub mod queue;
pub mod stats;
mod units;
pub mod vhost;
pub mod virtio_blk;
