//! What of an image's metadata is in memory and ahead of the disk, but for the L2 slices themselves.
//!
//! The rule: one lock guards all of it, and the right to change L2 words; it is never held across an await. Memory is the
//! truth; commits (`commit.rs`) bring the disk after it.

use super::alloc::{Alloc, Content, Run, Want};
use super::format::entry::{L1Entry, L2Entry, Malformed};
use super::format::header::Header;
use super::map_log::{Change, MapLog};
use super::overlap::{Region, Section};
use super::refcount::{Lack, Refcounts};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Why clusters were freed: the pass-discard options tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Why {
    /// A guest's discard, or a write of zeroes that may give space back.
    Request,
    /// A snapshot was deleted, or the table of snapshots replaced.
    Snapshot,
    /// The disk was made smaller: the host is always told.
    Cut,
    /// Anything else.
    Other,
    /// They were never of use, or are soon used again: the host is not told.
    Unused,
}

/// Bytes of the image file that nothing refers to once the commit that is to come is durable. Each host cluster that they
/// touch has one reference less then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Freed {
    /// Offset in bytes.
    pub(crate) at: u64,
    /// Length in bytes.
    pub(crate) len: u64,
    /// Why.
    pub(crate) why: Why,
}

/// An L2 table that the L1 table on disk does not refer to yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NewTable {
    /// Where it will be.
    pub(crate) at: u64,
    /// What is there now.
    pub(crate) content: Content,
    /// The shared table it is to be a copy of.
    pub(crate) copy_of: Option<u64>,
}

/// An image's metadata in memory.
#[derive(Debug)]
pub(crate) struct Meta {
    /// As on disk.
    pub(crate) header: Header,
    /// The active L1 table, or a snapshot's.
    pub(crate) l1: Vec<u64>,
    /// The L1 entries that the disk does not have.
    pub(crate) l1_stale: BTreeSet<usize>,
    /// Refcounts and what is free; nothing is known of either before the image is written for the first time.
    pub(crate) refs: Refcounts,
    pub(crate) alloc: Alloc,
    /// L2 slices with changes that no commit has taken up.
    pub(crate) dirty: BTreeSet<u64>,
    /// Metadata that stays where it is until the image is restructured.
    pub(crate) fixed: Vec<Region>,
    /// L2 tables that were given a place since the overlap check was told.
    added: Vec<Region>,
    /// By L1 index.
    pub(crate) new_tables: BTreeMap<usize, NewTable>,
    pub(crate) freed: Vec<Freed>,
    /// Who keeps what is ahead of the disk, besides.
    pub(crate) logs: Vec<Arc<dyn MapLog>>,
}

impl Meta {
    /// Of an image of which nothing else was read.
    pub(crate) fn new(header: Header, l1: Vec<u64>) -> Meta {
        let refs = Refcounts::unknown(header.cluster_bits);
        let alloc = Alloc::new(header.cluster_bits, 0);
        Meta {
            header,
            l1,
            l1_stale: BTreeSet::new(),
            refs,
            alloc,
            dirty: BTreeSet::new(),
            fixed: Vec::new(),
            added: Vec::new(),
            new_tables: BTreeMap::new(),
            freed: Vec::new(),
            logs: Vec::new(),
        }
    }

    /// The L2 table of an L1 entry as reads see it.
    pub(crate) fn l2_table(&self, index: usize) -> Result<L1Entry, Malformed> {
        let word = self.l1.get(index).copied().unwrap_or(0);
        L1Entry::decode(word, self.header.cluster_bits)
    }

    /// May slices of that table be changed?
    pub(crate) fn owns_table(&self, index: usize) -> Result<bool, Malformed> {
        let copied = matches!(self.l2_table(index)?, L1Entry::Table { copied: true, .. });
        Ok(copied || self.new_tables.contains_key(&index))
    }

    /// Sets aside a cluster for a table that may be changed.
    pub(crate) fn own_table(&mut self, index: usize) -> Result<(), Lack> {
        let copy_of = match self.l2_table(index) {
            Ok(L1Entry::Table { at, .. }) => Some(at),
            Ok(L1Entry::Absent) => None,
            Err(_) => return Err(Lack::Corrupt),
        };
        let Run { first, content, .. } = self.alloc.take(Want::Exactly(1), &mut self.refs)?;
        let table = NewTable {
            at: first << self.header.cluster_bits,
            content,
            copy_of,
        };
        self.new_tables.insert(index, table);
        let len = 1 << self.header.cluster_bits;
        self.added
            .push(Region::new(Section::ActiveL2, table.at, len));
        Ok(())
    }

    /// Metadata that was given a place since the last call.
    pub(crate) fn take_added(&mut self) -> Vec<Region> {
        let mut added = std::mem::take(&mut self.added);
        added.extend(self.refs.take_added());
        added
    }

    /// Nothing refers to the clusters of `entry` once what is in memory now is durable.
    pub(crate) fn free_entry(&mut self, entry: L2Entry, why: Why) {
        let cluster = 1u64 << self.header.cluster_bits;
        let (at, len) = match entry {
            L2Entry::Compressed { host, len_bytes } => (host, len_bytes),
            _ => match entry.host_cluster() {
                Some(host) => (host, cluster),
                None => return,
            },
        };
        self.free(Freed { at, len, why });
    }

    /// Nothing refers to these bytes once what is in memory now is durable.
    pub(crate) fn free(&mut self, freed: Freed) {
        match self.freed.last_mut() {
            // Neighbours are kept as one where each cluster still counts once.
            Some(last)
                if last.at + last.len == freed.at
                    && last.why == freed.why
                    && (last.at | last.len | freed.len) & ((1 << self.header.cluster_bits) - 1)
                        == 0 =>
            {
                last.len += freed.len;
            }
            _ => self.freed.push(freed),
        }
    }

    /// An entry in memory has changed.
    pub(crate) fn log(&self, change: Change) {
        self.logs.iter().for_each(|log| log.append(change));
    }

    /// True if something that the guest wrote is not to be found on disk yet.
    pub(crate) fn is_ahead(&self) -> bool {
        !self.dirty.is_empty() || !self.new_tables.is_empty() || !self.l1_stale.is_empty()
    }
}
