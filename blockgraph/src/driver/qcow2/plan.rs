//! What a commit writes, and in which order; pure, so that the order can be tested.
//!
//! The rule: nothing on disk refers to what is not on disk. First whatever nothing refers to yet, and refcounts, which
//! may be too high but never too low; then where the refcounts are; then what refers to clusters. A sync between each.

use super::alloc::Content;
use super::meta::NewTable;
use super::refcount::{BlockOut, TableOut};
use std::collections::BTreeMap;

/// Patches are joined up to this length, in bytes.
const PATCH_BYTES_MAX: usize = 1 << 20;

/// Bytes to be written at an offset of the image file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Patch {
    /// Offset in bytes.
    pub(crate) at: u64,
    /// The bytes.
    pub(crate) bytes: Vec<u8>,
}

/// A slice of an L2 table as it is to be on disk.
#[derive(Clone, Debug)]
pub(crate) struct SliceOut {
    /// L1 index of its table.
    pub(crate) table: usize,
    /// Where in the table it begins, in bytes.
    pub(crate) within: u64,
    /// What it is.
    pub(crate) bytes: Vec<u8>,
}

/// What is ahead of the disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ahead<'a> {
    /// Changed refcount blocks, new ones among them.
    pub(crate) blocks: &'a [BlockOut],
    /// What of the refcount table has changed.
    pub(crate) table_out: &'a TableOut,
    /// By L1 index: tables that are to be reachable.
    pub(crate) new_tables: &'a BTreeMap<usize, NewTable>,
    /// By L1 index: where tables are that are reachable, or were written earlier; in bytes.
    pub(crate) tables: &'a BTreeMap<usize, u64>,
    /// Changed slices.
    pub(crate) slices: &'a [SliceOut],
    /// The L1 entries that change, as they are to be.
    pub(crate) l1: &'a BTreeMap<usize, u64>,
    /// Where the L1 table is, in bytes.
    pub(crate) l1_at: u64,
    /// Size of a cluster in bytes.
    pub(crate) cluster_bytes: u64,
}

/// The phases of a commit. All of one may be written in any order; a sync ends each. An empty one needs none, but for
/// the first: its sync is the guest's data's too.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Phases {
    /// Refcounts, and tables that nothing refers to yet.
    pub(crate) unreachable: Vec<Patch>,
    /// Where refcount blocks are, and where their table is.
    pub(crate) refcounts: Vec<Patch>,
    /// L2 and L1 entries.
    pub(crate) mapping: Vec<Patch>,
}

/// The phases for what is ahead. `copies` are the contents of the tables that new ones are copies of, by L1 index.
pub(crate) fn phases(ahead: Ahead<'_>, copies: &BTreeMap<usize, Vec<u8>>) -> Phases {
    let mut phases = Phases::default();
    for block in ahead.blocks {
        let (at, bytes) = (block.at, block.bytes.clone());
        phases.unreachable.push(Patch { at, bytes });
    }
    table_patches(&ahead, &mut phases);
    for (index, table) in ahead.new_tables {
        new_table_patches(&ahead, *index, *table, copies.get(index), &mut phases);
    }
    for slice in ahead.slices {
        if let Some(table_at) = ahead.tables.get(&slice.table) {
            let (at, bytes) = (table_at + slice.within, slice.bytes.clone());
            phases.mapping.push(Patch { at, bytes });
        }
    }
    for (index, word) in ahead.l1 {
        let at = ahead.l1_at + 8 * *index as u64;
        let bytes = word.to_be_bytes().to_vec();
        phases.mapping.push(Patch { at, bytes });
    }
    phases.unreachable = joined(phases.unreachable);
    phases.refcounts = joined(phases.refcounts);
    phases.mapping = joined(phases.mapping);
    phases
}

fn table_patches(ahead: &Ahead<'_>, phases: &mut Phases) {
    match ahead.table_out {
        TableOut::None => {}
        TableOut::Entries { at, entries } => {
            phases
                .refcounts
                .extend(entries.iter().map(|(index, entry)| Patch {
                    at: at + 8 * index,
                    bytes: entry.to_be_bytes().to_vec(),
                }));
        }
        TableOut::Moved {
            at,
            clusters,
            entries,
        } => {
            let mut bytes: Vec<u8> = entries.iter().flat_map(|at| at.to_be_bytes()).collect();
            bytes.resize((clusters * ahead.cluster_bytes) as usize, 0);
            phases.unreachable.push(Patch { at: *at, bytes });
            phases.refcounts.push(header_table(*at, *clusters));
        }
    }
}

/// The header's fields for the refcount table: offset at byte 48 and clusters at byte 56 (qcow2.txt, "Header").
fn header_table(at: u64, clusters: u64) -> Patch {
    let mut bytes = at.to_be_bytes().to_vec();
    bytes.extend_from_slice(&(clusters as u32).to_be_bytes());
    Patch { at: 48, bytes }
}

fn new_table_patches(
    ahead: &Ahead<'_>,
    index: usize,
    table: NewTable,
    copy: Option<&Vec<u8>>,
    phases: &mut Phases,
) {
    let slices = ahead.slices.iter().filter(|slice| slice.table == index);
    if copy.is_none() && table.content == Content::Zeroes {
        phases.unreachable.extend(slices.map(|slice| Patch {
            at: table.at + slice.within,
            bytes: slice.bytes.clone(),
        }));
        return;
    }
    let mut bytes = copy.cloned().unwrap_or_default();
    bytes.resize(ahead.cluster_bytes as usize, 0);
    for slice in slices {
        let within = slice.within as usize;
        bytes[within..within + slice.bytes.len()].copy_from_slice(&slice.bytes);
    }
    let at = table.at;
    phases.unreachable.push(Patch { at, bytes });
}

/// Neighbours become one patch.
fn joined(mut patches: Vec<Patch>) -> Vec<Patch> {
    patches.sort_unstable_by_key(|patch| patch.at);
    let mut out: Vec<Patch> = Vec::with_capacity(patches.len());
    for patch in patches {
        match out.last_mut() {
            Some(last)
                if last.at + last.bytes.len() as u64 == patch.at
                    && last.bytes.len() + patch.bytes.len() <= PATCH_BYTES_MAX =>
            {
                last.bytes.extend_from_slice(&patch.bytes);
            }
            _ => out.push(patch),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: u64 = 65536;

    fn patch(at: u64, bytes: Vec<u8>) -> Patch {
        Patch { at, bytes }
    }

    fn slice(table: usize, within: u64, byte: u8) -> SliceOut {
        let bytes = vec![byte; 4096];
        SliceOut {
            table,
            within,
            bytes,
        }
    }

    fn block(at: u64) -> BlockOut {
        BlockOut {
            index: 0,
            at,
            within: 0..4096,
            bytes: vec![9; 4096],
        }
    }

    struct Case {
        blocks: Vec<BlockOut>,
        table_out: TableOut,
        new_tables: BTreeMap<usize, NewTable>,
        slices: Vec<SliceOut>,
        l1: BTreeMap<usize, u64>,
        copies: BTreeMap<usize, Vec<u8>>,
    }

    impl Default for Case {
        fn default() -> Case {
            Case {
                blocks: Vec::new(),
                table_out: TableOut::None,
                new_tables: BTreeMap::new(),
                slices: Vec::new(),
                l1: BTreeMap::new(),
                copies: BTreeMap::new(),
            }
        }
    }

    impl Case {
        fn phases(&self) -> Phases {
            let tables = BTreeMap::from([(0, 0x40000)]);
            let ahead = Ahead {
                blocks: &self.blocks,
                table_out: &self.table_out,
                new_tables: &self.new_tables,
                tables: &tables,
                slices: &self.slices,
                l1: &self.l1,
                l1_at: 0x30000,
                cluster_bytes: CLUSTER,
            };
            phases(ahead, &self.copies)
        }
    }

    #[test]
    fn refcounts_go_before_what_refers_to_clusters() {
        let phases = Case {
            blocks: vec![block(0x50000)],
            slices: vec![slice(0, 8192, 3)],
            ..Case::default()
        }
        .phases();
        assert_eq!(phases.unreachable, [patch(0x50000, vec![9; 4096])]);
        assert_eq!(phases.refcounts, []);
        assert_eq!(phases.mapping, [patch(0x42000, vec![3; 4096])]);
    }

    #[test]
    fn a_new_refcount_block_goes_before_the_entry_that_refers_to_it() {
        let phases = Case {
            blocks: vec![block(0x60000)],
            table_out: TableOut::Entries {
                at: 0x10000,
                entries: vec![(1, 0x60000)],
            },
            ..Case::default()
        }
        .phases();
        assert_eq!(phases.unreachable, [patch(0x60000, vec![9; 4096])]);
        let entry = 0x60000u64.to_be_bytes().to_vec();
        assert_eq!(phases.refcounts, [patch(0x10008, entry)]);
    }

    #[test]
    fn a_new_refcount_table_goes_before_the_header_that_refers_to_it() {
        let phases = Case {
            table_out: TableOut::Moved {
                at: 0x10000,
                clusters: 1,
                entries: vec![0x50000, 0x60000],
            },
            ..Case::default()
        }
        .phases();
        assert_eq!(phases.unreachable[0].at, 0x10000);
        assert_eq!(phases.unreachable[0].bytes.len() as u64, CLUSTER);
        let fields = vec![0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1];
        assert_eq!(phases.refcounts, [patch(48, fields)]);
    }

    #[test]
    fn a_new_l2_table_goes_before_the_l1_entry_that_refers_to_it() {
        let new = |content, copy_of| NewTable {
            at: 0x70000,
            content,
            copy_of,
        };
        let case = |table| Case {
            new_tables: [(2, table)].into(),
            slices: vec![slice(2, 4096, 7)],
            l1: [(2, 0x70000 | 1 << 63)].into(),
            copies: [(2, vec![5; CLUSTER as usize])].into(),
            ..Case::default()
        };
        let entry = patch(0x30010, (0x70000u64 | 1 << 63).to_be_bytes().to_vec());
        let phases = case(new(Content::Stale, Some(0x20000))).phases();
        let mut bytes = vec![5; CLUSTER as usize];
        bytes[4096..8192].fill(7);
        assert_eq!(phases.unreachable, [patch(0x70000, bytes)]);
        assert_eq!(phases.mapping, std::slice::from_ref(&entry));
        let mut zeroed = case(new(Content::Zeroes, None));
        zeroed.copies.clear();
        let phases = zeroed.phases();
        assert_eq!(phases.unreachable, [patch(0x71000, vec![7; 4096])]);
        let mut stale = case(new(Content::Stale, None));
        stale.copies.clear();
        let phases = stale.phases();
        assert_eq!(phases.unreachable[0].bytes.len() as u64, CLUSTER);
        assert_eq!(phases.unreachable[0].bytes[0], 0);
    }

    #[test]
    fn neighbours_are_written_at_once() {
        let slices = (0..16).rev().map(|n| slice(0, n * 4096, n as u8));
        let slices = slices.collect();
        let phases = Case {
            slices,
            ..Case::default()
        }
        .phases();
        assert_eq!(phases.mapping.len(), 1);
        assert_eq!(phases.mapping[0].bytes.len() as u64, CLUSTER);
    }
}
