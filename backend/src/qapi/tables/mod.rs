//! The tables, by subject.

pub mod bitmaps;
pub mod blkdebug;
pub mod chardevs;
pub mod control;
pub mod create;
pub mod exports;
pub mod fdsets;
pub mod introspect;
pub mod jobs;
pub mod node_commands;
pub mod nodes;
pub mod objects;
pub mod queries;
pub mod sockets;
pub mod transaction;

use super::{Object, object};

/// No members: what a command without arguments takes, and what one without an answer answers.
pub static EMPTY: Object = object("q_empty", &[]);
