//! Descriptors that the process was started with, made into owned ones.
//!
//! The one rule: [`Inherited::capture`] is the first thing `main` does. Only then is it certain that a number found open has no owner in this
//! process yet; that is why it can be done once, by a process with one thread.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// The standard streams are 0 to 2 and belong to std.
const FIRST_FD: RawFd = 3;

static CAPTURED: AtomicBool = AtomicBool::new(false);

/// The numbers of inherited descriptors that nobody has taken yet.
#[derive(Debug)]
pub struct Inherited {
    untaken: BTreeSet<RawFd>,
}

impl Inherited {
    /// Notes every descriptor that is open now, above the standard streams. To be called at the start of `main`, before anything is opened.
    ///
    /// # Errors
    /// `AlreadyExists` the second time; `ResourceBusy` when the process has more than one thread; what reading /proc/self/fd gives.
    pub fn capture() -> io::Result<Self> {
        if std::fs::read_dir("/proc/self/task")?.count() != 1 {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        if CAPTURED.swap(true, Ordering::Relaxed) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let mut listed = BTreeSet::new();
        for entry in std::fs::read_dir("/proc/self/fd")? {
            let name = entry?.file_name();
            listed.extend(name.to_str().and_then(|name| name.parse::<RawFd>().ok()));
        }
        // The directory itself was open while it was read.
        listed.retain(|fd| *fd >= FIRST_FD && is_open(*fd));
        Ok(Self { untaken: listed })
    }

    /// None at all: for whoever serves without taking any.
    pub fn none() -> Self {
        Self {
            untaken: BTreeSet::new(),
        }
    }

    /// The descriptor, if the process was started with it and it was not taken before.
    pub fn take(&mut self, fd: RawFd) -> Option<OwnedFd> {
        if !self.untaken.remove(&fd) {
            return None;
        }
        // SAFETY: the number was open before anything in this process opened or owned a descriptor (the rule above), and it is handed out once.
        Some(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

fn is_open(fd: RawFd) -> bool {
    // SAFETY: no pointer is passed; a number that is not open is an error.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}
