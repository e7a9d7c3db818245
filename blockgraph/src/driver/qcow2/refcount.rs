//! Refcounts in memory: the table whole, blocks as they are needed, and what of both the disk does not have yet.
//!
//! The rule: nothing here does I/O. A block that is not in memory is answered with [`Need::Block`]; the caller loads it
//! and asks again. A block that is dirty, or being written, is never dropped.

use super::width::Width;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// The refcount table may be this long (QEMU's own limit): it is kept in memory whole.
pub(crate) const TABLE_BYTES_MAX: u64 = 8 << 20;

/// What has to be done, with I/O, before an answer can be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Load that refcount block.
    Block(u64),
    /// Make the file at least so long, in bytes.
    Length(u64),
    /// Write dirty metadata: memory for it is used up, or freed clusters are waited for.
    Commit,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lack {
    /// Something can be done about it.
    Need(Need),
    /// The refcount table would grow beyond its limit.
    Full,
    /// Refcounts contradict what is asked: below zero, or a block where none may be.
    Corrupt,
    /// A refcount would grow beyond its width.
    Saturated,
}

/// A block of refcounts.
#[derive(Debug)]
struct Block {
    host: u64,
    bytes: Box<[u8]>,
    /// The bytes that the disk does not have; empty if there are none.
    dirty: Range<usize>,
    writing: bool,
    used: u64,
}

/// The refcounts of an image file.
#[derive(Debug)]
pub(crate) struct Refcounts {
    width: Width,
    cluster_bits: u32,
    table: Vec<u64>,
    /// Where the table is on disk once all is committed, in bytes, and how many clusters it takes.
    table_at: u64,
    table_clusters: u64,
    blocks: BTreeMap<u64, Block>,
    blocks_max: usize,
    clock: u64,
    /// Entries of the table the disk does not have.
    stale: BTreeSet<u64>,
    /// The table as the disk has it is elsewhere.
    moved: bool,
    abandoned: Vec<(u64, u64)>,
}

impl Block {
    fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Widens what is dirty.
    fn touch(&mut self, bytes: Range<usize>) {
        if self.dirty.is_empty() {
            self.dirty = bytes;
        } else {
            self.dirty = self.dirty.start.min(bytes.start)..self.dirty.end.max(bytes.end);
        }
    }
}

/// What of a refcount block is to be written.
#[derive(Clone, Debug)]
pub(crate) struct BlockOut {
    /// Which block.
    pub(crate) index: u64,
    /// Where, in bytes of the file.
    pub(crate) at: u64,
    /// Which bytes of the block.
    pub(crate) within: Range<usize>,
    /// What they are.
    pub(crate) bytes: Vec<u8>,
}

/// Blocks are written in pieces of this, in bytes, or whole where clusters are smaller.
const PIECE_BYTES: usize = 4096;

/// What of the table is to be written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum TableOut {
    /// Nothing.
    #[default]
    None,
    /// Some entries.
    Entries {
        /// Where the table is, in bytes.
        at: u64,
        /// By index.
        entries: Vec<(u64, u64)>,
    },
    /// All of it, at a new place, and then the header.
    Moved {
        /// Where, in bytes.
        at: u64,
        /// How many clusters it takes.
        clusters: u64,
        /// Its entries.
        entries: Vec<u64>,
    },
}

impl Refcounts {
    /// The table as read from disk; blocks above `blocks_max` in memory are dropped when they can be.
    pub(crate) fn new(
        width: Width,
        cluster_bits: u32,
        table: Vec<u64>,
        table_at: u64,
        blocks_max: usize,
    ) -> Refcounts {
        let table_clusters = (table.len() as u64 * 8).div_ceil(1 << cluster_bits);
        Refcounts {
            width,
            cluster_bits,
            table,
            table_at,
            table_clusters,
            blocks: BTreeMap::new(),
            blocks_max: blocks_max.max(4),
            clock: 0,
            stale: BTreeSet::new(),
            moved: false,
            abandoned: Vec::new(),
        }
    }

    /// Of an image whose refcounts were not looked at.
    pub(crate) fn unknown(cluster_bits: u32) -> Refcounts {
        Refcounts::new(Width::default(), cluster_bits, Vec::new(), 0, 0)
    }

    pub(crate) fn width(&self) -> Width {
        self.width
    }

    /// How many clusters a block describes, as a power of two.
    pub(crate) fn block_bits(&self) -> u32 {
        self.width.block_bits(self.cluster_bits)
    }

    /// Which block describes a cluster.
    pub(crate) fn block_of(&self, cluster: u64) -> u64 {
        cluster >> self.block_bits()
    }

    /// How many blocks the table has room for.
    pub(crate) fn table_len(&self) -> u64 {
        self.table.len() as u64
    }

    /// Offset and length of the table in bytes.
    pub(crate) fn table_span(&self) -> (u64, u64) {
        (self.table_at, self.table_clusters << self.cluster_bits)
    }

    /// The table's entries: offsets of blocks in bytes, 0 for none.
    pub(crate) fn table(&self) -> &[u64] {
        &self.table
    }

    /// Where a block is, in bytes; `None` if there is none.
    pub(crate) fn block_at(&self, index: u64) -> Option<u64> {
        // qcow2.txt, refcount table entry: bits 9 to 63 are the offset, the rest is reserved.
        let at = self.table.get(usize::try_from(index).ok()?)? & !511;
        (at != 0).then_some(at)
    }

    /// True if refcounts of the cluster can be set without a new block.
    pub(crate) fn describes(&self, cluster: u64) -> bool {
        self.block_at(self.block_of(cluster)).is_some()
    }

    /// How many clusters may be asked for at once without more blocks in memory than there should be.
    pub(crate) fn reach(&self) -> u64 {
        ((self.blocks_max as u64 / 4).max(1)) << self.block_bits()
    }

    /// How many blocks are in memory that cannot be dropped.
    pub(crate) fn unclean(&self) -> usize {
        let unclean = |block: &&Block| block.is_dirty() || block.writing;
        self.blocks.values().filter(unclean).count()
    }

    /// True if no further block should be made dirty before some are written.
    pub(crate) fn crowded(&self) -> bool {
        self.unclean() >= self.blocks_max
    }

    /// The last block that there is, before block `end`.
    pub(crate) fn last_block(&self, end: u64) -> Option<u64> {
        let end = self
            .table
            .len()
            .min(usize::try_from(end).unwrap_or(usize::MAX));
        let last = self.table[..end].iter().rposition(|at| at & !511 != 0)?;
        Some(last as u64)
    }

    /// True if a block is in memory.
    pub(crate) fn has(&self, index: u64) -> bool {
        self.blocks.contains_key(&index)
    }

    /// A block was read. One that is in memory already is newer and stays.
    pub(crate) fn loaded(&mut self, index: u64, bytes: Box<[u8]>) {
        let Some(host) = self.block_at(index) else {
            return;
        };
        self.insert(index, host, bytes, 0..0);
        self.shrink();
    }

    fn insert(&mut self, index: u64, host: u64, bytes: Box<[u8]>, dirty: Range<usize>) {
        self.clock += 1;
        let used = self.clock;
        self.blocks.entry(index).or_insert(Block {
            host,
            bytes,
            dirty,
            writing: false,
            used,
        });
    }

    /// Drops clean blocks above the limit, but never so many that what is asked for at once is not in memory at once.
    fn shrink(&mut self) {
        let clean = |block: &&Block| !block.is_dirty() && !block.writing;
        let mut left = self.blocks.values().filter(clean).count();
        while self.blocks.len() > self.blocks_max && left > self.at_once() {
            let blocks = self.blocks.iter().filter(|(_, block)| clean(block));
            let Some((&oldest, _)) = blocks.min_by_key(|(_, block)| block.used) else {
                return;
            };
            self.blocks.remove(&oldest);
            left -= 1;
        }
    }

    /// So many blocks are looked at at once: those of a run of [`Refcounts::reach`], and those behind it.
    fn at_once(&self) -> usize {
        self.blocks_max / 4 + 4
    }

    /// A new block of zeroes at `host`, for clusters nobody described so far. The table has room for it. Nothing is dropped
    /// for it: what the caller found in memory is still there.
    pub(crate) fn add_block(&mut self, index: u64, host: u64) {
        let bytes = vec![0; 1 << self.cluster_bits].into_boxed_slice();
        self.table[index as usize] = host;
        self.stale.insert(index);
        let all = 0..bytes.len();
        self.insert(index, host, bytes, all);
    }

    /// The table is longer from now on, and will be written at `at`; the old one's clusters are free once that is durable
    /// ([`Refcounts::take_abandoned`]).
    pub(crate) fn move_table(&mut self, at: u64) {
        self.abandoned.push(self.table_span());
        self.table_at = at;
        self.table_clusters = (self.table.len() as u64 * 8).div_ceil(1 << self.cluster_bits);
        self.moved = true;
    }

    /// Spans, in bytes, that earlier tables took. Free once the newest one is durable.
    pub(crate) fn take_abandoned(&mut self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.abandoned)
    }

    /// Makes room for `clusters` clusters' worth of table entries, in memory; [`Refcounts::move_table`] has to follow.
    pub(crate) fn widen_table(&mut self, clusters: u64) {
        let entries = (clusters << self.cluster_bits) / 8;
        self.table.resize(entries as usize, 0);
    }

    fn block(&mut self, cluster: u64) -> Result<(&mut Block, usize), Lack> {
        let index = self.block_of(cluster);
        let within = (cluster & ((1 << self.block_bits()) - 1)) as usize;
        self.clock += 1;
        let block = self.blocks.get_mut(&index);
        let block = block.ok_or(Lack::Need(Need::Block(index)))?;
        block.used = self.clock;
        Ok((block, within))
    }

    /// How often a cluster is referred to.
    pub(crate) fn get(&mut self, cluster: u64) -> Result<u64, Lack> {
        if !self.describes(cluster) {
            return Ok(0);
        }
        let width = self.width;
        let (block, within) = self.block(cluster)?;
        Ok(width.get(&block.bytes, within))
    }

    /// Changes a refcount that is described.
    fn put(&mut self, cluster: u64, value: u64) -> Result<(), Lack> {
        let width = self.width;
        let (block, within) = self.block(cluster)?;
        width.set(&mut block.bytes, within, value);
        let at = within * width.bits() as usize / 8;
        let piece = PIECE_BYTES.min(block.bytes.len());
        let first = at / piece * piece;
        block.touch(first..first + piece);
        Ok(())
    }

    /// One reference more; returns how many there are then.
    pub(crate) fn increment(&mut self, cluster: u64) -> Result<u64, Lack> {
        let value = self.get(cluster)?;
        if value >= self.width.max() {
            return Err(Lack::Saturated);
        }
        self.put(cluster, value + 1)?;
        Ok(value + 1)
    }

    /// One reference less; returns how many are left.
    pub(crate) fn decrement(&mut self, cluster: u64) -> Result<u64, Lack> {
        let value = self.get(cluster)?;
        let left = value.checked_sub(1).ok_or(Lack::Corrupt)?;
        self.put(cluster, left)?;
        Ok(left)
    }

    /// The first reference to `count` clusters from `first`, all of them free. All or nothing.
    pub(crate) fn claim(&mut self, first: u64, count: u64) -> Result<(), Lack> {
        for cluster in first..first + count {
            if self.get(cluster)? != 0 {
                return Err(Lack::Corrupt);
            }
            self.block(cluster)?;
        }
        (first..first + count).try_for_each(|cluster| self.put(cluster, 1))
    }

    /// Runs of free clusters among those block `index` describes, from cluster `from` on and below `end`.
    pub(crate) fn free_runs(
        &mut self,
        index: u64,
        from: u64,
        end: u64,
    ) -> Result<Vec<(u64, u64)>, Lack> {
        let first = (index << self.block_bits()).max(from);
        let end = ((index + 1) << self.block_bits()).min(end);
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for cluster in first..end {
            if self.get(cluster)? != 0 {
                continue;
            }
            match runs.last_mut() {
                Some((at, len)) if *at + *len == cluster => *len += 1,
                _ => runs.push((cluster, 1)),
            }
        }
        Ok(runs)
    }

    /// The last cluster of block `index` that is in use.
    pub(crate) fn last_used(&mut self, index: u64) -> Result<Option<u64>, Lack> {
        let first = index << self.block_bits();
        for cluster in (first..first + (1 << self.block_bits())).rev() {
            if self.get(cluster)? != 0 {
                return Ok(Some(cluster));
            }
        }
        Ok(None)
    }

    /// Copies out what is dirty; from here until [`Refcounts::written`] the blocks count as being written.
    pub(crate) fn take_dirty(&mut self) -> Vec<BlockOut> {
        let dirty = self.blocks.iter_mut().filter(|(_, block)| block.is_dirty());
        dirty
            .map(|(&index, block)| {
                let within = std::mem::take(&mut block.dirty);
                block.writing = true;
                BlockOut {
                    index,
                    at: block.host + within.start as u64,
                    bytes: block.bytes[within.clone()].to_vec(),
                    within,
                }
            })
            .collect()
    }

    /// The blocks that were taken are on disk.
    pub(crate) fn written(&mut self, out: &[BlockOut]) {
        for out in out {
            if let Some(block) = self.blocks.get_mut(&out.index) {
                block.writing = false;
            }
        }
        self.shrink();
    }

    /// The blocks that were taken were not written: they are dirty again.
    pub(crate) fn lost(&mut self, out: &[BlockOut]) {
        for out in out {
            if let Some(block) = self.blocks.get_mut(&out.index) {
                block.writing = false;
                block.touch(out.within.clone());
            }
        }
    }

    /// What of the table the disk does not have; from here on it counts as written.
    pub(crate) fn take_table(&mut self) -> TableOut {
        let stale = std::mem::take(&mut self.stale);
        let (at, clusters) = (self.table_at, self.table_clusters);
        if std::mem::take(&mut self.moved) {
            let entries = self.table.clone();
            return TableOut::Moved {
                at,
                clusters,
                entries,
            };
        }
        if stale.is_empty() {
            return TableOut::None;
        }
        let entry = |index: u64| (index, self.table[index as usize]);
        let entries = stale.into_iter().map(entry).collect();
        TableOut::Entries { at, entries }
    }

    /// What was taken was not written after all.
    pub(crate) fn table_lost(&mut self, out: &TableOut) {
        match out {
            TableOut::None => {}
            TableOut::Entries { entries, .. } => {
                self.stale.extend(entries.iter().map(|(index, _)| *index));
            }
            TableOut::Moved { .. } => self.moved = true,
        }
    }

    /// True if some refcount is newer than the disk's.
    pub(crate) fn is_dirty(&self) -> bool {
        self.moved || !self.stale.is_empty() || self.blocks.values().any(Block::is_dirty)
    }
}
