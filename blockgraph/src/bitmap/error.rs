//! What cannot be done with a bitmap.

use super::memory::MEMORY_BYTES_MAX;
use crate::driver::qcow2::{NotKept, StoreError};
use ring::Errno;
use thiserror::Error;

/// Why something cannot be done with a bitmap; the texts are QEMU's where it has one.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BitmapError {
    /// No such node.
    #[error("Node '{0}' not found")]
    NoNode(String),
    /// The same where a bitmap is to be added.
    #[error("Cannot find device='{0}' nor node-name='{0}'")]
    NoNodeToAddTo(String),
    /// The node has none of that name.
    #[error("Dirty bitmap '{0}' not found")]
    NotFound(String),
    /// Nor has any node below it in the backing chain.
    #[error("Bitmap '{0}' is not found")]
    NotFoundBelow(String),
    /// The node has one of that name.
    #[error("Bitmap already exists: {0}")]
    Exists(String),
    /// No name at all.
    #[error("Bitmap name cannot be empty")]
    EmptyName,
    /// Longer than can be stored.
    #[error("Bitmap name too long: {0}")]
    NameTooLong(String),
    /// No power of two, or too small.
    #[error("Granularity must be power of 2 and at least 512")]
    Granularity,
    /// There is nowhere to store it.
    #[error("Can't store persistent bitmaps to {0}: Operation not supported")]
    NotStorable(String),
    /// It cannot be stored where others can.
    #[error("Can't make bitmap '{name}' persistent in '{node}': {reason}")]
    NotKept {
        /// Its name.
        name: String,
        /// The image's.
        node: String,
        /// Why.
        reason: NotKept,
    },
    /// It cannot be taken out of its image.
    #[error(transparent)]
    Store(StoreError),
    /// Its image has it as it is, and is not written.
    #[error("Bitmap '{0}' is readonly and cannot be modified")]
    ReadOnly(String),
    /// An export or a job has it.
    #[error("Bitmap '{0}' is currently in use by another operation and cannot be used")]
    Busy(String),
    /// It misses something that was written.
    #[error("Bitmap '{0}' is inconsistent and cannot be used")]
    Inconsistent(String),
    /// It would change under a client that was told that nothing does.
    #[error("Enabled bitmap '{0}' incompatible with readonly export")]
    EnabledOnReadOnly(String),
    /// Of nodes of different sizes.
    #[error(
        "Bitmaps are of different sizes (destination size is {target}, source size is {source_size}) and can't be merged"
    )]
    Sizes {
        /// Where to.
        target: u64,
        /// Where from.
        source_size: u64,
    },
    /// Too large, or too many.
    #[error("Bitmaps would need more than {} MiB of memory", MEMORY_BYTES_MAX >> 20)]
    NoMemory,
    /// What a crash would leave is what it was before.
    #[error("Could not write bitmap journal '{path}': {}", crate::graph::errno_text(&(*.errno).into()))]
    Journal {
        /// Where.
        path: String,
        /// Why.
        errno: Errno,
    },
    /// Some disk is stuck: what was under way before might be missed.
    #[error("Requests under way did not end in time")]
    StillUsed,
}
