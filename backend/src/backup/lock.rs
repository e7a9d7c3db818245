//! One backup to a directory at a time.
//!
//! The rule: the lock is the kernel's and goes with the process, so nobody ever has to remove one by hand.

use super::error::BackupError;
use std::fs::{File, TryLockError};
use std::path::Path;

/// Nobody else writes to the directory while this lives.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "held, not read")] File);

impl Lock {
    pub(super) fn take(dir: &Path) -> Result<Lock, BackupError> {
        let path = dir.join(".lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(BackupError::file(&path, "cannot be opened"))?;
        match file.try_lock() {
            Ok(()) => Ok(Lock(file)),
            Err(TryLockError::WouldBlock) => Err(BackupError::Busy),
            Err(TryLockError::Error(error)) => {
                Err(BackupError::file(&path, "cannot be locked")(error))
            }
        }
    }
}
