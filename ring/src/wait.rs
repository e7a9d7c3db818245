//! How long a turn of the ring may wait, and the bell that ends a wait from another thread.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

/// How long a turn waits for ends of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    Not,
    /// Until there is one.
    One,
    /// Until there is one, at most this many nanoseconds.
    AtMost(u64),
    /// Until there are that many, but after so many nanoseconds one is enough.
    Batch {
        /// How many ends are hoped for.
        count: u32,
        /// For how long, in nanoseconds.
        patience_ns: u64,
    },
}

/// Wakes a ring's thread from another. An eventfd; cheap to clone.
#[derive(Clone, Debug)]
pub struct Bell(Arc<File>);

impl Bell {
    /// A bell nobody has rung. Errors: out of descriptors.
    pub fn new() -> std::io::Result<Bell> {
        Ok(Bell(Arc::new(File::from(crate::sys::eventfd()?))))
    }

    /// Wakes whoever waits, or the next who does.
    pub fn ring(&self) {
        // The descriptor does not block: a full counter means the bell rings already.
        let _ = (&*self.0).write(&1u64.to_ne_bytes());
    }

    /// Silences it until it is rung again.
    pub fn hush(&self) {
        let _ = (&*self.0).read(&mut [0; 8]);
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Bell {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl From<OwnedFd> for Bell {
    fn from(fd: OwnedFd) -> Bell {
        Bell(Arc::new(File::from(fd)))
    }
}
