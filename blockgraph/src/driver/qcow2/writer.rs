//! What a writable image needs besides what reading it takes: metadata ahead of the disk, and who changes what just now.
//!
//! The rule: guest clusters are changed by whoever holds them; the lock on [`Meta`] guards everything else, and is never
//! held across an await.

use super::Qcow2;
use super::alloc::{Run, Want};
use super::cache::CacheSizes;
use super::format::header::{Header, Version};
use super::meta::{Freed, Meta, Why};
use super::overlap::{OverlapChecks, Ranges};
use super::refcount::{Lack, Need};
use crate::filter::blkdebug::BlkdebugEvent;
use crate::hold::{Hold, Holds};
use crate::io::Io;
use crate::node::{NodeId, Outcome};
use crate::request::Prealloc;
use crate::units::Span;
use ring::{Errno, Mem};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// A request waits for metadata at most this often; each time something was read, grown or committed.
const TRIES_MAX: u32 = 100_000;
/// More slices than this are never dirty at once.
const DIRTY_MAX: usize = 1024;
/// More freed spans than this are not left waiting for a flush.
const FREED_MAX: usize = 65536;

/// Which freed clusters the host is told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassDiscard {
    /// `pass-discard-request`
    pub request: bool,
    /// `pass-discard-snapshot`
    pub snapshot: bool,
    /// `pass-discard-other`
    pub other: bool,
}

impl PassDiscard {
    pub(crate) fn passes(self, why: Why) -> bool {
        match why {
            Why::Request => self.request,
            Why::Snapshot => self.snapshot,
            Why::Other => self.other,
            Why::Unused => false,
        }
    }
}

/// What becomes of the host cluster of a discarded guest cluster (`discard-no-unref`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unref {
    /// It is freed.
    #[default]
    Free,
    /// It stays where it is, for the guest cluster to be written again.
    Keep,
}

impl Default for PassDiscard {
    /// QEMU's. (Its default for requests is whether the node takes discards; if it does not, none come.)
    fn default() -> PassDiscard {
        PassDiscard {
            request: true,
            snapshot: true,
            other: false,
        }
    }
}

/// Options of writing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// Which freed clusters the host is told of.
    pub pass_discard: PassDiscard,
    /// What becomes of the host clusters of discarded ones.
    pub unref: Unref,
    /// What writes are checked against.
    pub overlap_checks: OverlapChecks,
    /// Refcounts may be written late (`lazy-refcounts`); unsaid, as the image says.
    pub lazy_refcounts: Option<bool>,
}

/// May the image be written?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Gate {
    /// Once its header says so.
    Shut,
    /// Yes.
    Open,
    /// No longer: its metadata is impossible.
    Corrupt,
}

/// Commits go one after the other; those who ask while one is under way share the next.
#[derive(Debug)]
pub(crate) struct Commits {
    turn: Holds,
    state: Mutex<Numbers>,
}

#[derive(Debug)]
struct Numbers {
    begun: u64,
    ended: u64,
    last: Outcome,
}

impl Commits {
    fn new() -> Commits {
        Commits {
            turn: Holds::default(),
            state: Mutex::new(Numbers {
                begun: 0,
                ended: 0,
                last: Ok(()),
            }),
        }
    }

    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of the first commit that has not begun.
    pub(crate) fn next(&self) -> u64 {
        self.numbers().begun + 1
    }

    /// Waits for a turn to commit; if commit `wanted`, or a later one, has meanwhile been made: how it ended.
    pub(crate) async fn turn(&self, wanted: u64) -> Result<Hold<'_>, Outcome> {
        let turn = self.turn.hold(Span { at: 0, len: 1 }).await;
        let mut numbers = self.numbers();
        if numbers.begun >= wanted {
            return Err(numbers.last);
        }
        numbers.begun += 1;
        Ok(turn)
    }

    /// Waits for a turn to write metadata that is no commit.
    pub(crate) async fn alone(&self) -> Hold<'_> {
        self.turn.hold(Span { at: 0, len: 1 }).await
    }

    /// The commit whose turn it is has ended.
    pub(crate) fn end(&self, outcome: Outcome) {
        let mut numbers = self.numbers();
        numbers.ended = numbers.begun;
        numbers.last = outcome;
    }

    /// True if none is under way.
    pub(crate) fn is_idle(&self) -> bool {
        let numbers = self.numbers();
        numbers.begun == numbers.ended
    }
}

/// The write side of an image.
#[derive(Debug)]
pub(crate) struct Writer {
    gate: AtomicU8,
    /// One at a time opens the gate.
    pub(crate) opening: Holds,
    /// One at a time makes the file longer.
    growth: Holds,
    /// By number: refcount blocks that are being read.
    loads: Holds,
    pub(crate) commits: Commits,
    pub(crate) options: WriteOptions,
    /// Where metadata was when the gate was opened.
    pub(crate) overlaps: OnceLock<Ranges>,
    /// Refcounts may be written late.
    may_be_lazy: bool,
    /// The dirty bit is set on disk, by us.
    lazy: AtomicBool,
    /// So many refcount blocks may be in memory.
    pub(crate) blocks_max: usize,
    /// So many slices may be dirty before a commit.
    dirty_max: usize,
}

/// Clusters that were handed out and that nothing refers to yet. Dropped, they are free again.
#[derive(Debug)]
pub(crate) struct Prepared<'a> {
    image: &'a Qcow2,
    freed: Option<Freed>,
}

impl Prepared<'_> {
    /// Something refers to them now.
    pub(crate) fn keep(mut self) {
        self.freed = None;
    }
}

impl Drop for Prepared<'_> {
    fn drop(&mut self) {
        if let Some(freed) = self.freed {
            // Not at once: the kernel may still be writing to them if the request was given up in mid-flight.
            self.image.meta().free(freed);
        }
    }
}

impl Writer {
    pub(crate) fn new(header: &Header, options: WriteOptions, sizes: &CacheSizes) -> Writer {
        let asked = options.lazy_refcounts;
        let asked = asked.unwrap_or(header.compatible.lazy_refcounts);
        Writer {
            may_be_lazy: asked && header.version == Version::V3,
            blocks_max: sizes.refcount_blocks,
            overlaps: OnceLock::new(),
            gate: AtomicU8::new(Gate::Shut as u8),
            opening: Holds::default(),
            growth: Holds::default(),
            loads: Holds::default(),
            commits: Commits::new(),
            options,
            lazy: AtomicBool::new(false),
            dirty_max: (sizes.l2_slices / 2).clamp(1, DIRTY_MAX),
        }
    }

    /// May it be written? Never waits.
    pub(crate) fn gate(&self) -> Gate {
        match self.gate.load(Ordering::Acquire) {
            0 => Gate::Shut,
            1 => Gate::Open,
            _ => Gate::Corrupt,
        }
    }

    pub(crate) fn set_gate(&self, gate: Gate) {
        self.gate.store(gate as u8, Ordering::Release);
    }

    /// True if refcounts on disk may be out of date, as the dirty bit there says.
    pub(crate) fn is_lazy(&self) -> bool {
        self.lazy.load(Ordering::Acquire)
    }

    pub(crate) fn set_lazy(&self, lazy: bool) {
        self.lazy.store(lazy, Ordering::Release);
    }
}

impl Qcow2 {
    /// True if a commit should not wait for the guest's next flush.
    pub(crate) fn is_full(&self) -> bool {
        let meta = self.meta();
        meta.dirty.len() >= self.writer.dirty_max || meta.freed.len() >= FREED_MAX
    }

    fn prepared(&self, at: u64, len: u64) -> Prepared<'_> {
        let why = Why::Unused;
        let freed = Some(Freed { at, len, why });
        Prepared { image: self, freed }
    }

    /// The node that has the metadata.
    pub(crate) fn file(&self, io: &Io) -> Result<NodeId, Errno> {
        io.child(self.metadata_role())
    }

    /// The node that has the guest's data.
    pub(crate) fn data(&self, io: &Io) -> Result<NodeId, Errno> {
        io.child(self.data_role())
    }

    /// Asks the metadata, and meets what it needs until there is an answer. Errors: ENOSPC, EFBIG, EIO for impossible
    /// metadata, and those of the file.
    pub(crate) async fn meet<T>(
        &self,
        io: &Io,
        mut ask: impl FnMut(&mut Meta) -> Result<T, Lack>,
    ) -> Result<T, Errno> {
        for _ in 0..TRIES_MAX {
            // The lock is let go before anything is awaited.
            let answer = ask(&mut self.meta());
            match answer {
                Ok(answer) => return Ok(answer),
                Err(Lack::Need(Need::Block(index))) => self.load_block(io, index).await?,
                Err(Lack::Need(Need::Length(length))) => self.grow(io, length).await?,
                Err(Lack::Need(Need::Commit)) => self.commit_refcounts(io).await?,
                Err(Lack::Full) => return Err(Errno(libc::EFBIG)),
                Err(Lack::Saturated) => return Err(Errno::INVAL),
                Err(Lack::Corrupt) => {
                    self.corrupt(io).await;
                    return Err(Errno::IO);
                }
            }
        }
        Err(Errno::IO)
    }

    /// Asks the metadata what refcount blocks alone can answer. Errors: EIO for impossible metadata, and those of the file.
    pub(crate) async fn meet_loaded<T>(
        &self,
        io: &Io,
        mut ask: impl FnMut(&mut Meta) -> Result<T, Lack>,
    ) -> Result<T, Errno> {
        for _ in 0..TRIES_MAX {
            let answer = ask(&mut self.meta());
            match answer {
                Ok(answer) => return Ok(answer),
                Err(Lack::Need(Need::Block(index))) => self.load_block(io, index).await?,
                Err(_) => {
                    self.corrupt(io).await;
                    return Err(Errno::IO);
                }
            }
        }
        Err(Errno::IO)
    }

    /// Hands out clusters of the image file.
    pub(crate) async fn allocate(&self, io: &Io, want: Want) -> Result<(Run, Prepared<'_>), Errno> {
        self.tell(io, BlkdebugEvent::ClusterAlloc);
        self.begin_allocating(io).await?;
        let run = self
            .meet(io, |meta| meta.alloc.take(want, &mut meta.refs))
            .await?;
        let bits = self.geometry.cluster_bits();
        let prepared = self.prepared(run.first << bits, run.count << bits);
        self.check_run(io, run).await?;
        Ok((run, prepared))
    }

    /// Room for compressed bytes in the image file; returns where.
    pub(crate) async fn pack(&self, io: &Io, len: u64) -> Result<(u64, Prepared<'_>), Errno> {
        self.tell(io, BlkdebugEvent::ClusterAllocBytes);
        self.begin_allocating(io).await?;
        let at = self
            .meet(io, |meta| meta.alloc.pack(len, &mut meta.refs))
            .await?;
        let prepared = self.prepared(at, len);
        self.check_write(io, at, len).await?;
        Ok((at, prepared))
    }

    /// Makes sure that slices of that L2 table may be changed.
    pub(crate) async fn own_table(&self, io: &Io, index: usize) -> Outcome {
        let owned = self.meta().owns_table(index);
        match owned {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(_) => {
                self.corrupt(io).await;
                return Err(Errno::IO);
            }
        }
        self.tell(io, BlkdebugEvent::ClusterAlloc);
        self.begin_allocating(io).await?;
        self.meet(io, |meta| match meta.owns_table(index) {
            Ok(true) => Ok(()),
            _ => {
                meta.own_table(index)?;
                self.check_table(meta, index)
            }
        })
        .await
    }

    /// The first time clusters are wanted: says on disk that refcounts will be late, if they may be, and learns where what
    /// is used ends.
    async fn begin_allocating(&self, io: &Io) -> Outcome {
        if self.writer.may_be_lazy && !self.writer.is_lazy() {
            self.set_dirty_bit(io).await?;
        }
        if self.meta().alloc.knows_end() {
            return Ok(());
        }
        self.meet(io, |meta| {
            let Meta { alloc, refs, .. } = meta;
            alloc.find_end(refs)
        })
        .await
    }

    async fn load_block(&self, io: &Io, index: u64) -> Outcome {
        let _load = self.writer.loads.hold(Span { at: index, len: 1 }).await;
        let at = {
            let meta = self.meta();
            if meta.refs.has(index) {
                return Ok(());
            }
            meta.refs.block_at(index).ok_or(Errno::IO)?
        };
        self.tell(io, BlkdebugEvent::RefblockLoad);
        let bytes = self
            .read_metadata(io, at, self.geometry.cluster_bytes())
            .await?;
        self.meta().refs.loaded(index, bytes.into_boxed_slice());
        Ok(())
    }

    /// Reads `len` bytes of metadata; what lies past the end of the file is zero.
    pub(crate) async fn read_metadata(&self, io: &Io, at: u64, len: u64) -> Result<Vec<u8>, Errno> {
        let file = self.file(io)?;
        let mem = Mem::zeroed(len as usize).ok_or(Errno::NOMEM)?;
        let file_bytes = io.graph().info(file).ok_or(Errno::IO)?.size_bytes;
        let there = file_bytes.saturating_sub(at).min(len) as usize;
        if there == 0 {
            return Err(Errno::IO);
        }
        io.read(file, at, &mem.slice(0, there)).await?;
        let mut bytes = vec![0; len as usize];
        mem.load(0, &mut bytes);
        Ok(bytes)
    }

    /// Makes the image file at least `needed` bytes long, or has freed clusters used instead.
    async fn grow(&self, io: &Io, needed: u64) -> Outcome {
        let _growth = self.writer.growth.hold(Span { at: 0, len: 1 }).await;
        let (length, step, was_stuck) = {
            let meta = self.meta();
            let alloc = &meta.alloc;
            (alloc.length(), alloc.step(needed), alloc.is_stuck())
        };
        if length >= needed {
            return Ok(());
        }
        if was_stuck {
            return self.last_resort(io).await;
        }
        let file = self.file(io)?;
        let mut grown = Err(Errno::NOSPC);
        for size in [step, needed] {
            grown = io.truncate(file, size, Prealloc::Off).await;
            if grown.is_ok() {
                self.meta().alloc.grown(size);
                return Ok(());
            }
        }
        match grown {
            // A device, or a full file system: what was freed may do.
            Err(Errno(libc::EFBIG | libc::ENOSPC | libc::EOPNOTSUPP | libc::EINVAL)) => {
                self.meta().alloc.set_stuck(true);
                Ok(())
            }
            other => other,
        }
    }

    /// Neither the file nor the free clusters give what is needed: what waits for a commit might.
    async fn last_resort(&self, io: &Io) -> Outcome {
        let waiting = {
            let mut meta = self.meta();
            meta.alloc.set_stuck(false);
            !meta.freed.is_empty()
        };
        if !waiting {
            return Err(Errno::NOSPC);
        }
        self.commit(io).await
    }
}
