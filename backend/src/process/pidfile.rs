//! The pid file: written once everything is up, locked as QSD locks it, gone at the end.
//!
//! The one rule: the lock is on the file that is at the path. Another daemon may remove the file between opening and locking; then it is tried again.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, fcntl_lock};
use thiserror::Error;

use super::error_text;

/// How often the path may change under us before that is an error.
const ATTEMPTS_MAX: usize = 100;

/// A pid file cannot be made. In QSD's words.
#[derive(Debug, Error)]
#[error("cannot create PID file: {what}: {}", error_text(.cause))]
pub struct PidFileError {
    what: String,
    cause: io::Error,
}

/// Held while the process serves; dropping it removes the file.
#[derive(Debug)]
pub struct PidFile {
    /// Absolute, since the working directory may change.
    path: PathBuf,
    /// Open because the lock lasts as long as it is.
    file: File,
}

impl PidFile {
    /// Writes this process's id to `path` and keeps the file locked.
    ///
    /// # Errors
    /// The file cannot be made, or another process has it locked.
    pub fn create(path: &Path) -> Result<Self, PidFileError> {
        let what = |what: &'static str| {
            move |cause| PidFileError {
                what: what.to_owned(),
                cause,
            }
        };
        let file = locked(path)?;
        file.set_len(0)
            .map_err(what("Failed to truncate pid file"))?;
        writeln!(&file, "{}", std::process::id()).map_err(what("Failed to write pid file"))?;
        let path = path
            .canonicalize()
            .map_err(what("Cannot resolve PID file path"))?;
        Ok(Self { path, file })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Whoever replaced the file keeps it.
        if is_at(&self.file, &self.path).unwrap_or(false) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The file at `path`, created if need be, locked.
fn locked(path: &Path) -> Result<File, PidFileError> {
    for _ in 0..ATTEMPTS_MAX {
        let file = open(path).map_err(|cause| PidFileError {
            what: format!("Could not create '{}'", path.display()),
            cause,
        })?;
        fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|errno| {
            PidFileError {
                what: "Cannot lock pid file".to_owned(),
                cause: errno.into(),
            }
        })?;
        if is_at(&file, path).unwrap_or(false) {
            return Ok(file);
        }
    }
    Err(PidFileError {
        what: "Cannot lock pid file".to_owned(),
        cause: io::ErrorKind::ResourceBusy.into(),
    })
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let (ours, theirs) = (file.metadata()?, fs::metadata(path)?);
    Ok((ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn the_pid_file_holds_the_pid_and_is_gone_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        fs::write(&path, "a longer text from before\n").unwrap();
        let pid_file = PidFile::create(&path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("{}\n", std::process::id()));
        drop(pid_file);
        assert!(!path.exists());
    }

    #[test]
    fn a_replaced_pid_file_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        let pid_file = PidFile::create(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "7\n").unwrap();
        drop(pid_file);
        assert_eq!(fs::read_to_string(&path).unwrap(), "7\n");
    }

    #[test]
    fn what_is_wrong_with_the_path_is_said_as_qsd_says_it() {
        let error = PidFile::create(Path::new("/nonexistent/p")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot create PID file: Could not create '/nonexistent/p': No such file or directory"
        );
    }

    #[test]
    fn a_pid_file_locked_by_qsd_is_refused_in_its_words() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        let pid_file = fs::File::create(&path).unwrap();
        let mut qsd = std::process::Command::new("qemu-storage-daemon")
            .args(["--chardev", "stdio,id=c", "--monitor", "c", "--pidfile"])
            .arg(&path)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        drop(pid_file);
        // Its id stands in the file once the file is locked.
        let until = Instant::now() + Duration::from_secs(20);
        while fs::read_to_string(&path).unwrap().is_empty() {
            assert!(Instant::now() < until, "QSD writes no pid file");
            std::thread::sleep(Duration::from_millis(2));
        }
        let error = PidFile::create(&path).unwrap_err();
        qsd.kill().unwrap();
        qsd.wait().unwrap();
        assert_eq!(
            error.to_string(),
            "cannot create PID file: Cannot lock pid file: Resource temporarily unavailable"
        );
    }
}
