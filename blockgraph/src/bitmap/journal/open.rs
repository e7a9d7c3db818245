//! Opening a journal's file, and what may be wrong with one.
//!
//! The rule: a file that is something else is never written to, and one daemon alone has a journal.

use super::format::MAP_WORDS;
use super::{Beside, Content, Home, Journal, Stage, State, region_bits};
use crate::hold::Holds;
use crate::node::FileIdentity;
use ring::{Align, Errno, File, FileId};
use std::fs::{OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use thiserror::Error;

/// A daemon that was killed has its files for a moment more.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_STEP: Duration = Duration::from_millis(10);

/// Why a node cannot have that journal.
#[derive(Debug, Error)]
pub enum JournalError {
    /// No such file, or none that may be opened.
    #[error("Could not open bitmap journal '{}': {}", .path.display(), crate::graph::errno_text(.source))]
    Open {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another node or process has it.
    #[error("Bitmap journal '{}' is in use by another node or process", .0.display())]
    Locked(PathBuf),
    /// It is a file of another kind.
    #[error("'{}' is not a bitmap journal", .0.display())]
    NotOne(PathBuf),
    /// Its bytes are not what was written.
    #[error("Bitmap journal '{}' is damaged: remove it to go on without its bitmaps", .0.display())]
    Damaged(PathBuf),
    /// It cannot be read.
    #[error("Could not read bitmap journal '{}': {}", .path.display(), crate::graph::errno_text(&(*.errno).into()))]
    Read {
        /// Where.
        path: PathBuf,
        /// Why.
        errno: Errno,
    },
    /// It cannot be written.
    #[error("Could not write bitmap journal '{}': {}", .path.display(), crate::graph::errno_text(&(*.errno).into()))]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        errno: Errno,
    },
    /// Its bitmaps are too large.
    #[error("The bitmaps of journal '{}' would need too much memory", .0.display())]
    Memory(PathBuf),
}

/// What is done with the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// It is made if it is not there, and nobody else has it.
    Keep,
    /// It is read, if it is there.
    Look,
}

/// The file of a journal, as it was opened.
#[derive(Clone, Debug)]
pub(crate) struct JournalFile {
    pub(super) file: Arc<File>,
    /// How long it was; `None` where nobody knows.
    pub(super) len_bytes: Option<u64>,
    /// What was to be done with it.
    pub(super) used: Use,
}

impl JournalFile {
    /// One that somebody else opened, to be kept up.
    pub(crate) fn given(file: Arc<File>) -> JournalFile {
        JournalFile {
            file,
            len_bytes: None,
            used: Use::Keep,
        }
    }
}

/// Opens the file of a journal of a disk in the file `disk`; `None` if there is none and it is only looked at.
pub(crate) fn open(
    id: FileId,
    path: &Path,
    disk: Option<&Path>,
    wanted: Use,
) -> Result<Option<JournalFile>, JournalError> {
    let error = |source| JournalError::Open {
        path: path.to_owned(),
        source,
    };
    let mut options = OpenOptions::new();
    options.read(true);
    if wanted == Use::Keep {
        options.write(true).create(true).truncate(false);
    }
    let file = match options.open(path) {
        Ok(file) => file,
        Err(found) if wanted == Use::Look && found.kind() == io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(found) => return Err(error(found)),
    };
    let about = file.metadata().map_err(error)?;
    let of_disk = disk.and_then(FileIdentity::of_path);
    if !about.is_file() || of_disk == Some(FileIdentity::of(&about)) {
        return Err(JournalError::NotOne(path.to_owned()));
    }
    if wanted == Use::Keep {
        lock(&file, path)?;
        // Its name must be there after a power cut, or what it says is not.
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        let dir = std::fs::File::open(dir.unwrap_or(Path::new("."))).map_err(error)?;
        dir.sync_all().map_err(error)?;
    }
    Ok(Some(JournalFile {
        file: Arc::new(File::new(id, file.into(), Align::NONE)),
        len_bytes: Some(about.len()),
        used: wanted,
    }))
}

fn lock(file: &std::fs::File, path: &Path) -> Result<(), JournalError> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(LOCK_STEP);
            }
            Err(TryLockError::WouldBlock) => return Err(JournalError::Locked(path.to_owned())),
            Err(TryLockError::Error(source)) => {
                let path = path.to_owned();
                return Err(JournalError::Open { path, source });
            }
        }
    }
}

impl Journal {
    /// Nobody else has it from now on. Errors: somebody has, or it was opened to be looked at.
    pub(crate) fn relock(&self) -> Result<(), JournalError> {
        let error = |source| JournalError::Open {
            path: self.path.clone(),
            source,
        };
        let file = std::os::fd::AsFd::as_fd(&*self.file).try_clone_to_owned();
        lock(&std::fs::File::from(file.map_err(error)?), &self.path)
    }

    /// Somebody else may have it.
    pub(crate) fn unlock(&self) {
        // A copy of the descriptor has the same lock.
        let file = std::os::fd::AsFd::as_fd(&*self.file).try_clone_to_owned();
        if let Ok(file) = file {
            // It is gone with the last descriptor at the latest.
            let _ = std::fs::File::from(file).unlock();
        }
    }

    /// The journal in `file`, of a disk of `size_bytes` in the file `disk`. Nothing is known of it yet.
    pub(crate) fn new(
        file: JournalFile,
        path: PathBuf,
        beside: &Beside,
        disk: Option<PathBuf>,
        size_bytes: u64,
    ) -> Journal {
        let (home, offset_bytes) = match *beside {
            Beside::Raw(offset_bytes) => (Home::Journal, offset_bytes),
            Beside::Image => (Home::Image, 0),
        };
        let JournalFile {
            file,
            len_bytes,
            used,
        } = file;
        Journal {
            file,
            len_bytes,
            used,
            path,
            home,
            offset_bytes,
            disk,
            region_bits: region_bits(size_bytes),
            covered: [const { AtomicU64::new(0) }; MAP_WORDS],
            served: Default::default(),
            state: Mutex::new(State {
                stage: Stage::AtRest,
                epoch: 0,
                from_epoch: 0,
                sequence: 0,
                content: Content::default(),
                content_in_doubt: None,
                wanted: Vec::new(),
                since: None,
                grace: None,
                regions_before: 0,
                dated: None,
            }),
            mapping: Holds::default(),
            storing: Holds::default(),
        }
    }
}
