//! What is written in an image: each structure parsed into types that cannot be wrong, and back.

pub mod entry;
