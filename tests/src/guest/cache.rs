//! The directory `ci/setup.sh` fills with the guest's kernel, and the lock that lets one guest run at a time.
//!
//! The rule to know: time limits hold only because guests do not share the machine's few processors with each other.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// The cache, locked until dropped.
#[derive(Debug)]
pub(super) struct GuestCache {
    directory: PathBuf,
    // Held for its lock only.
    _lock: File,
}

impl GuestCache {
    /// Finds the cache and waits for other guests on this machine to end.
    ///
    /// # Errors
    /// `NotFound` where `ci/setup.sh` did not run; what locking says.
    pub(super) fn open() -> io::Result<GuestCache> {
        let directory = find()?;
        let lock = File::create(directory.join("lock"))?;
        lock.lock()?;
        Ok(GuestCache {
            directory,
            _lock: lock,
        })
    }

    /// The directory itself.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }
}

/// The build directory is an ancestor of every test's executable.
fn find() -> io::Result<PathBuf> {
    let executable = std::env::current_exe()?;
    let mut places = executable.ancestors().map(|a| a.join("guest-cache"));
    let message = "no guest-cache beside the build: run ci/setup.sh";
    let missing = || io::Error::new(io::ErrorKind::NotFound, message);
    places.find(|p| p.is_dir()).ok_or_else(missing)
}
