//! NBD: disks that other machines have. The protocol's bytes are here for both ends; the server is the daemon's.

pub mod client;
pub mod wire;
