//! What is written in an image: each structure parsed into types that cannot be wrong, and back; no I/O here.
//!
//! The rule: image bytes are checked once, here, and everything above works on the result.

pub mod bitmap_dir;
pub mod bitmap_edit;
pub mod bytes;
pub mod entry;
pub mod extensions;
pub mod features;
pub mod header;
pub mod snapshot_table;
