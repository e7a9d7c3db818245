//! The qcow2 format, versions 2 and 3.

pub mod format;
