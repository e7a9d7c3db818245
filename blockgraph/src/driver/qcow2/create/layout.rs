//! Where everything goes in a new image, before a byte is written.
//!
//! The rule: header, refcount table, refcount blocks, L1 table, L2 tables, guest clusters, in that order and without a gap;
//! so every cluster up to the end has a refcount of one.

use crate::driver::qcow2::format::header::{Header, REFCOUNT_TABLE_BYTES_MAX, TableAt};

/// Clusters in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Run {
    /// Offset of the first.
    pub(super) at: u64,
    /// How many.
    pub(super) clusters: u64,
}

/// The places of a new image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) refcount_table: Run,
    pub(super) refcount_blocks: Run,
    pub(super) l1: Run,
    pub(super) l2: Run,
    pub(super) data: Run,
    /// How many clusters all of it is, header and all.
    pub(super) clusters: u64,
}

/// What the image is to have from the beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filled {
    /// No L2 tables.
    Nothing,
    /// All L2 tables, their data elsewhere.
    Tables,
    /// All L2 tables and guest clusters.
    TablesAndData,
}

impl Layout {
    /// Lays out an image of which `header` says size, cluster and refcount width. `None`: its refcounts would not fit
    /// the largest refcount table, or its bytes a file.
    pub(super) fn new(header: &Header, filled: Filled) -> Option<Layout> {
        let cluster = header.cluster_bytes();
        let l1_entries = header.l1_entries_for(header.size_bytes);
        let l1 = (l1_entries * 8).div_ceil(cluster);
        let (l2, data) = match filled {
            Filled::Nothing => (0, 0),
            Filled::Tables => (l1_entries, 0),
            Filled::TablesAndData => (l1_entries, header.size_bytes.div_ceil(cluster)),
        };
        let others = 1 + l1 + l2 + data;
        let (table, blocks) = refcounts(header, others)?;
        let clusters = others + table + blocks;
        if clusters > i64::MAX as u64 / cluster {
            return None;
        }
        let mut next = 1;
        let mut run = |clusters: u64| {
            let at = next * cluster;
            next += clusters;
            Run { at, clusters }
        };
        Some(Layout {
            refcount_table: run(table),
            refcount_blocks: run(blocks),
            l1: run(l1),
            l2: run(l2),
            data: run(data),
            clusters,
        })
    }

    /// The L1 table as the header tells of it; an empty one is nowhere.
    pub(super) fn l1_table(&self, header: &Header) -> TableAt {
        match header.l1_entries_for(header.size_bytes) {
            0 => TableAt::default(),
            entries => TableAt {
                at: self.l1.at,
                count: entries as u32,
            },
        }
    }
}

/// Refcounts in one cluster.
pub(super) fn refcounts_per_block(header: &Header) -> u64 {
    (header.cluster_bytes() * 8) >> header.refcount_order
}

/// Clusters of refcount table and refcount blocks that count `others`, the table and the blocks themselves.
fn refcounts(header: &Header, others: u64) -> Option<(u64, u64)> {
    let (cluster, per_block) = (header.cluster_bytes(), refcounts_per_block(header));
    let (mut table, mut blocks) = (1u64, 1u64);
    // Each round counts what the last one added, which is less each time: a block counts 64 clusters at the least.
    loop {
        let needed = (others + table + blocks).div_ceil(per_block);
        let table_needed = (needed.max(blocks) * 8).div_ceil(cluster);
        if table_needed * cluster > REFCOUNT_TABLE_BYTES_MAX {
            return None;
        }
        if needed <= blocks && table_needed <= table {
            return Some((table, blocks));
        }
        blocks = blocks.max(needed);
        table = table.max(table_needed);
    }
}
