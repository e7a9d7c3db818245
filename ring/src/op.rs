//! What can be asked of a ring: a closed set of operations, and how each ends.
//!
//! The rule: an operation ends exactly once, wholly done or with an error; short transfers, EINTR and a full queue
//! are finished inside the ring and nobody above sees them.

use crate::file::FileId;
use std::os::fd::RawFd;

/// Names one operation in flight on one ring. The generation makes a stale name harmless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpId {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

/// When a write must be durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// At the next sync.
    Cached,
    /// Before it completes (RWF_DSYNC).
    Through,
}

/// How much a sync makes durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncLevel {
    /// Data and what is needed to read it back (fdatasync).
    Data,
    /// That and the file's times (fsync).
    All,
}

/// One operation. Memory of transfers is passed beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Fill the memory from the file. Bytes past the end of the file read as zeroes.
    Read {
        /// Where from.
        file: FileId,
        /// Offset in bytes.
        at: u64,
    },
    /// Write the memory to the file.
    Write {
        /// Where to.
        file: FileId,
        /// Offset in bytes.
        at: u64,
        /// When it must be durable.
        durability: Durability,
    },
    /// Make what was written durable.
    Sync {
        /// Which file.
        file: FileId,
        /// How much of it.
        level: SyncLevel,
    },
    /// Deallocate; reads as zeroes afterwards (FALLOC_FL_PUNCH_HOLE). The file's size stays.
    Punch {
        /// Which file.
        file: FileId,
        /// Offset in bytes.
        at: u64,
        /// Length in bytes.
        len_bytes: u64,
    },
    /// Make it read as zeroes and keep it allocated (FALLOC_FL_ZERO_RANGE). The file's size stays.
    Zero {
        /// Which file.
        file: FileId,
        /// Offset in bytes.
        at: u64,
        /// Length in bytes.
        len_bytes: u64,
    },
    /// Make the file that long (ftruncate). What is cut off is gone, what is added reads as zeroes; durable at the next sync.
    /// EOPNOTSUPP where the kernel's ring cannot (before Linux 6.9): [`crate::sys::disk::set_size`] can, and may block.
    Truncate {
        /// Which file.
        file: FileId,
        /// Its size from now on, in bytes.
        len_bytes: u64,
    },
    /// Complete each time the descriptor becomes readable, until cancelled. An eventfd's counter is left alone.
    Poll {
        /// The descriptor; the caller keeps it open until the operation has ended.
        fd: RawFd,
    },
    /// Add one to an eventfd. Always ends well: there is nothing to do about a full counter, its reader is awake anyway.
    Signal {
        /// The eventfd, which must be non-blocking; the caller keeps it open until a turn has left nothing unsubmitted
        /// ([`crate::Ring::has_unsubmitted`]).
        fd: RawFd,
    },
    /// Complete after this many nanoseconds.
    Timeout {
        /// How long.
        ns: u64,
    },
    /// Ask that another operation end early, with ECANCELED unless it is too late. Always ends well.
    Cancel {
        /// Which one.
        target: OpId,
    },
}

impl Op {
    /// Where it ends, if it writes: data of `len_bytes`, or zeroes.
    #[inline]
    pub(crate) fn written_end(&self, len_bytes: usize) -> Option<u64> {
        match *self {
            Op::Write { at, .. } => Some(at.saturating_add(len_bytes as u64)),
            Op::Zero { at, len_bytes, .. } => Some(at.saturating_add(len_bytes)),
            _ => None,
        }
    }
}

/// An errno value from the kernel (or of its kind); shown as the system's own text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// An input or output error without a better name.
    pub const IO: Errno = Errno(libc::EIO);
    /// Not supported by this file, node or kernel.
    pub const NOTSUP: Errno = Errno(libc::EOPNOTSUPP);
    /// No space left.
    pub const NOSPC: Errno = Errno(libc::ENOSPC);
    /// Ended on request.
    pub const CANCELED: Errno = Errno(libc::ECANCELED);
    /// Out of memory.
    pub const NOMEM: Errno = Errno(libc::ENOMEM);
    /// A request that makes no sense here.
    pub const INVAL: Errno = Errno(libc::EINVAL);
    /// Not permitted.
    pub const PERM: Errno = Errno(libc::EPERM);
    /// Write to something read-only.
    pub const RDONLY: Errno = Errno(libc::EROFS);
}

impl std::fmt::Display for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

impl std::error::Error for Errno {}

impl From<Errno> for std::io::Error {
    fn from(errno: Errno) -> std::io::Error {
        std::io::Error::from_raw_os_error(errno.0)
    }
}

/// The end of an operation that was started with a token.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    /// What the caller gave at the start.
    pub token: u64,
    /// How it ended.
    pub result: Result<(), Errno>,
}
