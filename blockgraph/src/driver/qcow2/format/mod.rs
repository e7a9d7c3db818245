//! What stands in a qcow2 file, as types that cannot be wrong; no I/O here.
//!
//! The rule: image bytes are checked once, here, and everything above works on the result.

pub mod bytes;
pub mod extensions;
pub mod features;
pub mod header;
