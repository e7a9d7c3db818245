//! Blocks in memory: which are there, and which are dropped.
//!
//! The rule: a block that is dirty, or being written, stays.

use super::Refcounts;
use crate::driver::qcow2::overlap::{Region, Section};
use std::ops::Range;

/// A block of refcounts.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) host: u64,
    pub(super) bytes: Box<[u8]>,
    /// The bytes that the disk does not have; empty if there are none.
    pub(super) dirty: Range<usize>,
    pub(super) writing: bool,
    pub(super) used: u64,
}

impl Block {
    pub(super) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Widens what is dirty.
    pub(super) fn touch(&mut self, bytes: Range<usize>) {
        if self.dirty.is_empty() {
            self.dirty = bytes;
        } else {
            self.dirty = self.dirty.start.min(bytes.start)..self.dirty.end.max(bytes.end);
        }
    }
}

impl Refcounts {
    /// How many blocks are in memory that cannot be dropped.
    pub(crate) fn unclean(&self) -> usize {
        let unclean = |block: &&Block| block.is_dirty() || block.writing;
        self.blocks.values().filter(unclean).count()
    }

    /// True if no further block should be made dirty before some are written.
    pub(crate) fn crowded(&self) -> bool {
        self.unclean() >= self.blocks_max
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
    pub(super) fn shrink(&mut self) {
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
        let len = bytes.len() as u64;
        self.added
            .push(Region::new(Section::RefcountBlock, host, len));
        self.stale.insert(index);
        let all = 0..bytes.len();
        self.insert(index, host, bytes, all);
    }
}
