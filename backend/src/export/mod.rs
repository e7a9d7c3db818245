//! What shows a node to the outside: one file for each type of export.

mod map_keeper;
pub mod nbd;
mod vhost_user_blk;

pub use map_keeper::MapKeeper;
pub use vhost_user_blk::{Socket, VhostUserBlk, VhostUserBlkError};
