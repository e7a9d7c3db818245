//! What the tests of two crates or of a real peer share: daemons under test, guests, the host's view of a disk.

pub mod daemon;
pub mod disk_file;
pub mod guest;
