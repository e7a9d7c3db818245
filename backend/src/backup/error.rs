//! What may go wrong with a backup.

use crate::qmp_client::ClientError;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why a backup was not made, or not restored.
#[derive(Debug, Error)]
pub enum BackupError {
    /// The daemon cannot be reached, or refused.
    #[error(transparent)]
    Monitor(#[from] ClientError),
    /// A file or directory.
    #[error("{}: {what}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// What the directory says of itself makes no sense.
    #[error("{}: {why}", path.display())]
    Catalogue {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// It is another node's directory.
    #[error("the directory has backups of node '{theirs}', not of '{asked}'")]
    OtherNode {
        /// Whose they are.
        theirs: String,
        /// Whose were asked for.
        asked: String,
    },
    /// Another process has it.
    #[error("another backup to this directory is under way")]
    Busy,
    /// The daemon has no such node.
    #[error("Failed to find node with node-name='{0}'")]
    NoNode(String),
    /// What was left by a backup that was cut off is in use.
    #[error("the daemon does not let go of {0}")]
    Stuck(String),
    /// Opening, reading or writing an image.
    #[error("{0}")]
    Image(String),
    /// The image is not what the snapshot is.
    #[error("the backup differs from the snapshot at byte {0}")]
    Differs(u64),
    /// A backup has been changed since it was made.
    #[error("{} is not what it was when it was made", .0.display())]
    Damaged(PathBuf),
    /// There is none of that number.
    #[error("there is no backup {0}")]
    NoPoint(u64),
    /// There is none at all.
    #[error("there are no backups in {}", .0.display())]
    Empty(PathBuf),
    /// Somebody asked for it to end.
    #[error("interrupted; nothing was kept")]
    Interrupted,
}

impl BackupError {
    /// For `map_err`: what was tried with which file.
    pub(super) fn file(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> BackupError {
        let path = path.to_owned();
        move |source| BackupError::File { path, what, source }
    }
}
