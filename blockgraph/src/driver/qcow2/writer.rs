//! What a writable image needs besides what reading it takes: metadata ahead of the disk, and who changes what just now.
//!
//! The rule: guest clusters are changed by whoever holds them; the lock on `Meta` guards everything else, and is never
//! held across an await.

mod handout;
mod needs;
mod options;
mod turns;

pub(crate) use handout::Prepared;
pub use options::{PassDiscard, Unref, WriteOptions};

use super::Qcow2;
use super::cache::CacheSizes;
use super::format::header::{Header, Version};
use super::overlap::Ranges;
use crate::hold::Holds;
use crate::io::Io;
use crate::node::NodeId;
use ring::Errno;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use turns::Commits;

/// More slices than this are never dirty at once: a commit writes them all.
const DIRTY_MAX: usize = 4096;
/// More freed spans than this are not left waiting for a flush.
const FREED_MAX: usize = 65536;

/// May the image be written? Later ones are not followed by earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Gate {
    /// Once its header says so.
    Shut,
    /// Its metadata, but nothing that the guest sees.
    Metadata,
    /// Yes.
    Open,
    /// No longer: its metadata is impossible.
    Corrupt,
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
    /// Where metadata is that writes are checked against.
    pub(crate) overlaps: Ranges,
    /// Refcounts may be written late.
    may_be_lazy: bool,
    /// The dirty bit is set on disk, by us.
    lazy: AtomicBool,
    /// So many refcount blocks may be in memory.
    pub(crate) blocks_max: usize,
    /// So many slices may be dirty before a commit.
    dirty_max: usize,
}

impl Writer {
    /// `slices` is how many the disk has.
    pub(crate) fn new(
        header: &Header,
        options: WriteOptions,
        sizes: &CacheSizes,
        slices: u64,
    ) -> Writer {
        let asked = options.lazy_refcounts;
        let asked = asked.unwrap_or(header.compatible.lazy_refcounts);
        Writer {
            may_be_lazy: asked && header.version == Version::V3,
            blocks_max: sizes.refcount_blocks,
            overlaps: Ranges::default(),
            gate: AtomicU8::new(Gate::Shut as u8),
            opening: Holds::default(),
            growth: Holds::default(),
            loads: Holds::default(),
            commits: Commits::new(),
            options,
            lazy: AtomicBool::new(false),
            dirty_max: dirty_max(sizes.l2_slices, slices),
        }
    }

    /// May it be written? Never waits.
    pub(crate) fn gate(&self) -> Gate {
        match self.gate.load(Ordering::Acquire) {
            0 => Gate::Shut,
            1 => Gate::Metadata,
            2 => Gate::Open,
            _ => Gate::Corrupt,
        }
    }

    /// What the guest sees is written no more before the gate is opened again.
    pub(crate) fn step_back(&self) {
        let (open, metadata) = (Gate::Open as u8, Gate::Metadata as u8);
        // Nothing to be done where it is not open.
        let _ = self
            .gate
            .compare_exchange(open, metadata, Ordering::AcqRel, Ordering::Acquire);
    }

    /// It never goes back but for that: an image that is corrupt stays so.
    pub(crate) fn advance(&self, gate: Gate) {
        self.gate.fetch_max(gate as u8, Ordering::AcqRel);
    }

    /// True if refcounts on disk may be out of date, as the dirty bit there says.
    pub(crate) fn is_lazy(&self) -> bool {
        self.lazy.load(Ordering::Acquire)
    }

    pub(crate) fn set_lazy(&self, lazy: bool) {
        self.lazy.store(lazy, Ordering::Release);
    }
}

/// Where all slices are cached for good, none has to be written to make room for another: the guest says when.
fn dirty_max(cached: usize, slices: u64) -> usize {
    match slices <= cached as u64 {
        true => DIRTY_MAX,
        false => (cached / 2).clamp(1, DIRTY_MAX),
    }
}

impl Qcow2 {
    /// True if a commit should not wait for the guest's next flush.
    pub(crate) fn is_full(&self) -> bool {
        let meta = self.meta();
        meta.dirty.len() >= self.writer.dirty_max
            || meta.freed.len() >= FREED_MAX
            || meta.logs.iter().any(|log| log.is_filling())
    }

    /// The node that has the metadata.
    pub(crate) fn file(&self, io: &Io) -> Result<NodeId, Errno> {
        io.child(self.metadata_role())
    }

    /// The node that has the guest's data.
    pub(crate) fn data(&self, io: &Io) -> Result<NodeId, Errno> {
        io.child(self.data_role())
    }
}
