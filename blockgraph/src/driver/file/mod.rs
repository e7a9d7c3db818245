//! file and host_device: a disk in a regular file or on a block device.
//!
//! The rule: what fits the file's alignment is mapped straight to it. What does not (O_DIRECT, 4096-byte sectors) is
//! served: read in whole blocks, or read, changed and written back while the blocks are held, so that no other write to
//! the same block is lost.

mod blocks;
mod create;
mod locks;
mod open;
mod size;
mod space;

pub use create::{CopyOnWrite, CreateError, CreateOptions, create};
pub use locks::{LockError, Locking};
pub use open::{FileError, FileOptions, Kind as FileKind, OpenMode, open, open_with, reopen};

use crate::blocking::blocking;
use crate::graph::name::{Described, Setting, Short};
use crate::graph::perm::Wants;
use crate::hold::Holds;
use crate::io::Io;
use crate::node::{
    Discards, Driver, Engine, Info, Limits, Local, Map, NodeId, Origin, Outcome, Zeroing,
};
use crate::request::{Dir, Kind, Prealloc, Request, Unmap};
use crate::status::{Content, Mapping, Status};
use crate::units::Span;
use locks::Locks;
use ring::sys::disk::{Extent, extent};
use ring::{Durability, Errno, File, Op, SyncLevel};
use std::io::{Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// Where the kernel keeps what was written until it is synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// In the page cache.
    Page,
    /// In the device alone (`cache.direct=on`).
    Direct,
}

/// What a flush does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushes {
    /// It syncs the file.
    Sync,
    /// Nothing (`cache.no-flush=on`): the disk does not survive a crash of the host.
    Nothing,
}

/// What a file driver is made of, whoever opened the file.
#[derive(Debug)]
pub struct FileParts {
    /// The open file.
    pub file: Arc<File>,
    /// Regular file or block device.
    pub kind: FileKind,
    /// Size in bytes at the beginning, whole sectors.
    pub size_bytes: u64,
    /// What transfers suit it.
    pub limits: Limits,
    /// Where writes go first.
    pub cache: Cache,
    /// What a flush does.
    pub flushes: Flushes,
}

/// A disk in a file.
#[derive(Debug)]
pub struct FileDriver {
    parts: FileParts,
    /// Size in bytes now, whole sectors.
    size_bytes: AtomicU64,
    /// Whoever changes the size holds the first byte of this.
    resizing: Holds,
    engine: Engine,
    locks: Option<Arc<Locks>>,
    /// The same file as it was open before, until that is closed.
    before: Option<(Arc<Locks>, Weak<File>)>,
    /// `None` for a file that somebody else opened.
    origin: Option<Origin>,
    /// Blocks that are being read, changed and written back.
    holds: Holds,
    /// The errno of the first sync that failed in the page cache: nobody knows any more what the disk holds.
    sync_failed: AtomicI32,
    /// The file cannot deallocate.
    no_punch: AtomicBool,
    /// The file cannot zero a range by itself.
    no_zero: AtomicBool,
    discarded: Discarded,
}

/// Counts of discards; served requests only, so a shared line of the cache is no matter.
#[derive(Debug, Default)]
struct Discarded {
    done: AtomicU64,
    failed: AtomicU64,
    bytes: AtomicU64,
}

impl Discarded {
    fn count(&self, span: Span, outcome: Outcome) {
        match outcome {
            Ok(()) => {
                self.done.fetch_add(1, Ordering::Relaxed);
                self.bytes.fetch_add(span.len, Ordering::Relaxed);
            }
            Err(_) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Also of a driver that was never closed, as that of a node whose opening failed.
impl Drop for FileDriver {
    fn drop(&mut self) {
        self.unlock();
    }
}

impl FileDriver {
    /// Gives up the locks for good. They would go with the file, but that may stay open after the driver is gone: a
    /// ring's files are closed some time after its process has ended, and a child process that is being made has copies
    /// of all of them.
    fn unlock(&self) {
        if let Some(locks) = &self.locks {
            locks.end(self.parts.file.as_fd());
        }
    }

    /// A driver on an open file. It takes no locks; see [`open`] for one that does.
    pub fn from_parts(parts: FileParts) -> FileDriver {
        FileDriver {
            size_bytes: AtomicU64::new(parts.size_bytes),
            resizing: Holds::default(),
            parts,
            engine: Engine::Any,
            origin: None,
            locks: None,
            before: None,
            holds: Holds::default(),
            sync_failed: AtomicI32::new(0),
            no_punch: AtomicBool::new(false),
            no_zero: AtomicBool::new(false),
            discarded: Discarded::default(),
        }
    }

    /// The open file.
    pub fn file(&self) -> &Arc<File> {
        &self.parts.file
    }

    /// Looks how long the file is now: it may have grown since it was opened, through another descriptor.
    pub(crate) fn measure(&self) -> std::io::Result<()> {
        let file = self.parts.file.as_fd().try_clone_to_owned()?;
        let size = std::fs::File::from(file).seek(SeekFrom::End(0))?;
        self.size_bytes
            .store(super::whole_sectors(size), Ordering::Release);
        Ok(())
    }

    /// Takes over from the same file open in another way: what its locks say, and that the kernel lost what was written.
    fn succeed(&mut self, before: &FileDriver) {
        let locks = before.locks.clone();
        self.before = locks.map(|locks| (locks, Arc::downgrade(&before.parts.file)));
        if self.parts.cache == Cache::Page {
            let failed = before.sync_failed.load(Ordering::Acquire);
            self.sync_failed = AtomicI32::new(failed);
        }
    }

    async fn perform(&self, io: &Io, request: Request) -> Outcome {
        let Request { kind, span, mem } = request;
        match kind {
            Kind::Read => self.read(io, span, &mem).await,
            Kind::Write(durability) => self.write(io, span, &mem, self.asked(durability)).await,
            Kind::WriteZeroes(unmap, durability) => {
                self.write_zeroes(io, span, unmap).await?;
                match self.asked(durability) {
                    Durability::Cached => Ok(()),
                    Durability::Through => self.sync(io).await,
                }
            }
            Kind::WriteCompressed => Err(Errno::NOTSUP),
            Kind::Discard => {
                let outcome = self.discard(io, span).await;
                self.discarded.count(span, outcome);
                outcome
            }
            Kind::Flush => self.sync(io).await,
        }
    }

    /// Without flushes nothing is written through either.
    fn asked(&self, durability: Durability) -> Durability {
        match self.parts.flushes {
            Flushes::Sync => durability,
            Flushes::Nothing => Durability::Cached,
        }
    }

    /// Once a sync has failed in the page cache, the kernel forgets what it could not write and the next sync would
    /// succeed: so all later ones fail here. With O_DIRECT nothing was forgotten, and it may recover.
    async fn sync(&self, io: &Io) -> Outcome {
        if self.parts.flushes == Flushes::Nothing {
            return Ok(());
        }
        let failed = self.sync_failed.load(Ordering::Acquire);
        if failed != 0 {
            return Err(Errno(failed));
        }
        if self.parts.cache == Cache::Page && self.parts.file.lost() {
            return Err(Errno::IO);
        }
        let file = self.parts.file.id();
        let level = SyncLevel::Data;
        let outcome = io.file(Op::Sync { file, level }, ring::Mem::none()).await;
        if let (Err(errno), Cache::Page) = (outcome, self.parts.cache) {
            self.sync_failed.store(errno.0, Ordering::Release);
        }
        outcome
    }

    fn status_of(&self, node: NodeId, span: Span, found: std::io::Result<Extent>) -> Status {
        let (end, content, mapping) = match found {
            Ok(Extent::Hole { end }) => (end, Content::Zero, Mapping::None),
            // The last sector may be there in part, and counts as a whole.
            Ok(Extent::Data { end }) => (
                Some(super::whole_sectors(end)),
                Content::Data,
                Mapping::At(node, span.at),
            ),
            // Files that do not know holes are data all over.
            Err(_) => (None, Content::Data, Mapping::At(node, span.at)),
        };
        Status {
            len: end.map_or(span.len, |end| span.len.min(end - span.at)),
            content,
            mapping,
        }
    }
}

/// Bytes of storage behind a file.
fn space_of(file: BorrowedFd<'_>) -> std::io::Result<u64> {
    let file = std::fs::File::from(file.try_clone_to_owned()?);
    // st_blocks counts units of 512 bytes, whatever the file system's blocks are.
    Ok(file.metadata()?.blocks() * 512)
}

impl Driver for FileDriver {
    #[inline]
    fn map(&self, dir: Dir, span: Span) -> Map {
        let file = &self.parts.file;
        let fits = file.align().takes(span.at, span.len);
        if !fits || (dir == Dir::Write && !self.holds.free(span)) {
            return Map::Slow;
        }
        Map::File {
            file: file.id(),
            at: span.at,
            len: span.len,
        }
    }

    fn serve<'a>(&'a self, io: &'a Io, request: Request) -> Local<'a, Outcome> {
        Box::pin(self.perform(io, request))
    }

    fn status<'a>(&'a self, io: &'a Io, span: Span) -> Local<'a, Result<Status, Errno>> {
        let file = self.parts.file.clone();
        Box::pin(async move {
            let found = blocking(move || extent(file.as_fd(), span.at)).await?;
            Ok(self.status_of(io.here(), span, found))
        })
    }

    fn allocated<'a>(&'a self, _io: &'a Io) -> Local<'a, Result<u64, Errno>> {
        let file = self.parts.file.clone();
        Box::pin(async move {
            let found = blocking(move || space_of(file.as_fd())).await?;
            found.map_err(|error| error.raw_os_error().map_or(Errno::IO, Errno))
        })
    }

    fn info(&self) -> Info {
        Info {
            size_bytes: self.size_bytes.load(Ordering::Acquire),
            limits: self.parts.limits,
        }
    }

    fn truncate<'a>(&'a self, io: &'a Io, size_bytes: u64, how: Prealloc) -> Local<'a, Outcome> {
        Box::pin(self.resize(io, size_bytes, how))
    }

    /// Of a file that somebody else opened nobody knows the name.
    fn described(&self, _kind: &str) -> Described {
        let Some(origin) = &self.origin else {
            return Described::plainly(Short::None);
        };
        let name = origin.path.display().to_string();
        Described {
            settings: vec![("filename".to_owned(), Setting::Text(name.clone()))],
            short: Short::Own(name),
        }
    }

    fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref()
    }

    fn discards(&self) -> Option<Discards> {
        let counted = &self.discarded;
        Some(Discards {
            done: counted.done.load(Ordering::Relaxed),
            failed: counted.failed.load(Ordering::Relaxed),
            bytes: counted.bytes.load(Ordering::Relaxed),
        })
    }

    fn zeroing(&self, unmap: Unmap) -> Zeroing {
        self.zeroing_of(unmap)
    }

    fn engine(&self) -> Engine {
        self.engine
    }

    fn close<'a>(&'a self, _io: &'a Io) -> Local<'a, Outcome> {
        self.unlock();
        Box::pin(async { Ok(()) })
    }

    fn permit(&self, wants: Wants) -> Result<(), LockError> {
        let fd = self.parts.file.as_fd();
        let before = self.before.as_ref();
        let before = before.filter(|(locks, _)| !locks.is_over());
        let before = before.and_then(|(locks, file)| Some((locks, file.upgrade()?)));
        match (&self.locks, before) {
            (Some(locks), Some((before, file))) => {
                before.update(file.as_fd(), wants)?;
                locks.copy(fd, wants)
            }
            (Some(locks), _) => locks.update(fd, wants),
            (None, _) => Ok(()),
        }
    }

    fn as_file(&self) -> Option<&FileDriver> {
        Some(self)
    }
}
