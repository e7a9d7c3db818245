//! What shows a node to the outside: one file for each type of export.

pub mod nbd;
mod vhost_user_blk;

pub use vhost_user_blk::{Socket, VhostUserBlk, VhostUserBlkError};
