//! What of the refcounts the disk does not have, taken out to be written.
//!
//! The rule: what was taken counts as being written until [`Refcounts::written`], or is dirty again by [`Refcounts::lost`].

use super::{Block, Refcounts};
use std::ops::Range;

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
