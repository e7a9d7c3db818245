//! Filters: nodes that delay, observe or refuse requests and never move or change data. A new one starts as a copy of
//! `delay.rs`.

pub mod blkdebug;
pub mod commit_top;
pub mod compress;
pub mod copy_before_write;
pub mod copy_on_read;
pub mod delay;
pub mod dirty;
pub mod preallocate;
pub mod throttle;
pub mod write_blocking;
