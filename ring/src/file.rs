//! An open file as the ring sees it: a descriptor and what the kernel wants of its transfers.
//!
//! The rule: alignment is the file's property, learned once at open; the ring bounces memory that does not fit it, and
//! refuses offsets that do not (those need a read-modify-write, which is its caller's business).

use crate::op::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Names a file in a process; never reused while the file is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub u32);

/// What transfers on the file must be multiples of, in bytes; 1 where anything goes (the page cache).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Align {
    /// Of memory addresses and the length of each memory segment.
    pub memory_bytes: u32,
    /// Of file offsets and total lengths.
    pub offset_bytes: u32,
}

impl Align {
    /// The page cache takes anything.
    pub const NONE: Align = Align {
        memory_bytes: 1,
        offset_bytes: 1,
    };

    /// True if a transfer of `len_bytes` bytes at `at` needs no read-modify-write.
    pub fn takes(&self, at: u64, len_bytes: u64) -> bool {
        let mask = u64::from(self.offset_bytes) - 1;
        (at | len_bytes) & mask == 0
    }
}

/// Are writes that must be durable written so?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syncs {
    /// When asked to.
    Asked,
    /// Never: the file is worth nothing after a crash of the host, and its user said so.
    Never,
}

/// An open file.
#[derive(Debug)]
pub struct File {
    id: FileId,
    fd: OwnedFd,
    align: Align,
    syncs: Syncs,
    lost: AtomicBool,
    written_end_bytes: AtomicU64,
}

impl File {
    /// Takes over `fd`. Alignments that are not powers of two become a page.
    pub fn new(id: FileId, fd: OwnedFd, align: Align) -> File {
        let sane = |bytes: u32| if bytes.is_power_of_two() { bytes } else { 4096 };
        File {
            id,
            fd,
            align: Align {
                memory_bytes: sane(align.memory_bytes),
                offset_bytes: sane(align.offset_bytes),
            },
            syncs: Syncs::Asked,
            lost: AtomicBool::new(false),
            written_end_bytes: AtomicU64::new(0),
        }
    }

    /// Where the highest write that was begun so far ends; 0 if there was none.
    pub fn written_end_bytes(&self) -> u64 {
        self.written_end_bytes.load(Ordering::Relaxed)
    }

    /// A write that ends there begins. A line of the cache that all threads read, and write only while the file grows.
    #[inline]
    pub(crate) fn writes_to(&self, end_bytes: u64) {
        if end_bytes > self.written_end_bytes.load(Ordering::Relaxed) {
            self.written_end_bytes
                .fetch_max(end_bytes, Ordering::Relaxed);
        }
    }

    /// The same file, with writes that must be durable taken for ordinary ones.
    pub fn never_synced(self) -> File {
        File {
            syncs: Syncs::Never,
            ..self
        }
    }

    /// Are writes that must be durable written so?
    pub fn syncs(&self) -> Syncs {
        self.syncs
    }

    /// True once a write that was to be durable ended with EIO, on any ring. Such a write syncs the file, and the kernel
    /// tells of a write-back that failed just once for each open file: a later sync may know nothing of it, though what
    /// was lost may have been another's.
    pub fn lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Notes how a write that was to be durable ended. (ENOSPC mostly is this write's own, and may pass.)
    pub(crate) fn note_end(&self, errno: Errno) {
        if errno == Errno::IO {
            self.lost.store(true, Ordering::Release);
        }
    }

    /// Its name.
    pub fn id(&self) -> FileId {
        self.id
    }

    /// What its transfers must be multiples of.
    pub fn align(&self) -> Align {
        self.align
    }
}

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for File {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
