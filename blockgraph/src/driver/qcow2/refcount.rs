//! Refcounts in memory: the table whole, blocks as they are needed, and what of both the disk does not have yet.
//!
//! The rule: nothing here does I/O. A block that is not in memory is answered with [`Need::Block`]; the caller loads it
//! and asks again. A block that is dirty, or being written, is never dropped.

mod blocks;
mod out;

pub(crate) use out::{BlockOut, TableOut};

use super::overlap::{Region, Section};
use super::width::Width;
use blocks::Block;
use std::collections::{BTreeMap, BTreeSet};

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
    added: Vec<Region>,
}

/// Blocks are written in pieces of this, in bytes, or whole where clusters are smaller.
const PIECE_BYTES: usize = 4096;

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
            added: Vec::new(),
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

    /// The last block that there is, before block `end`.
    pub(crate) fn last_block(&self, end: u64) -> Option<u64> {
        let end = self
            .table
            .len()
            .min(usize::try_from(end).unwrap_or(usize::MAX));
        let last = self.table[..end].iter().rposition(|at| at & !511 != 0)?;
        Some(last as u64)
    }

    /// The table is longer from now on, and will be written at `at`; the old one's clusters are free once that is durable
    /// ([`Refcounts::take_abandoned`]).
    pub(crate) fn move_table(&mut self, at: u64) {
        self.abandoned.push(self.table_span());
        self.table_at = at;
        self.table_clusters = (self.table.len() as u64 * 8).div_ceil(1 << self.cluster_bits);
        self.moved = true;
        let (at, len) = self.table_span();
        self.added
            .push(Region::new(Section::RefcountTable, at, len));
    }

    /// Blocks and tables that were given a place since the last call.
    pub(crate) fn take_added(&mut self) -> Vec<Region> {
        std::mem::take(&mut self.added)
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

    /// The one reference to a cluster, whatever there were once. It is described.
    pub(crate) fn claim_over(&mut self, cluster: u64) -> Result<(), Lack> {
        match self.get(cluster)? {
            1 => Ok(()),
            _ => self.put(cluster, 1),
        }
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
}
