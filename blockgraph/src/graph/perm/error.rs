//! Why a node may not be used so. The rule: both sides of a conflict are named, in QEMU's words.

use super::Perms;
use crate::driver::file::LockError;
use thiserror::Error;

/// Why a node may not be used so; the texts are QEMU's.
#[derive(Debug, Error)]
pub enum PermError {
    /// Two users disagree.
    #[error(
        "Permission conflict on node '{node}': permissions '{perms}' are both required by {needs} and unshared by \
         {refuses}."
    )]
    Conflict {
        /// On which node.
        node: String,
        /// About what.
        perms: Perms,
        /// Who needs it.
        needs: String,
        /// Who does not let others have it.
        refuses: String,
    },
    /// A writer on a node that takes no writes.
    #[error("Block node is read-only")]
    ReadOnly,
    /// It takes no writes any more, and has writers.
    #[error("Read-only block node '{0}' cannot support read-write users")]
    BecomesReadOnly(String),
    /// An active parent on an inactive child.
    #[error("Inactive '{child}' can't be a {option} child of active '{parent}'")]
    Inactive {
        /// The child.
        child: String,
        /// As what.
        option: &'static str,
        /// Of whom.
        parent: String,
    },
    /// A user that needs an active node.
    #[error("Operation not permitted")]
    NotIdle,
    /// There is no such node any more.
    #[error("Failed to find node")]
    Gone,
    /// Another process disagrees.
    #[error(transparent)]
    Lock(#[from] LockError),
}

impl PermError {
    /// What QEMU prints on a line of its own below the message, if anything.
    pub fn hint(&self) -> Option<String> {
        match self {
            PermError::Lock(lock) => Some(lock.hint()),
            _ => None,
        }
    }
}
