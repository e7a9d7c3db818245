//! The kinds of metadata that writes are checked against.

use super::OverlapChecks;
use std::fmt;

/// A kind of metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Section {
    Header,
    ActiveL1,
    ActiveL2,
    RefcountTable,
    RefcountBlock,
    SnapshotTable,
    InactiveL1,
    InactiveL2,
    BitmapDirectory,
}

impl Section {
    /// Is it one that writes are checked against?
    pub(super) fn is_checked(self, checks: &OverlapChecks) -> bool {
        match self {
            Section::Header => checks.main_header,
            Section::ActiveL1 => checks.active_l1,
            Section::ActiveL2 => checks.active_l2,
            Section::RefcountTable => checks.refcount_table,
            Section::RefcountBlock => checks.refcount_block,
            Section::SnapshotTable => checks.snapshot_table,
            Section::InactiveL1 => checks.inactive_l1,
            Section::InactiveL2 => checks.inactive_l2,
            Section::BitmapDirectory => checks.bitmap_directory,
        }
    }
}

/// As in QEMU's messages.
impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Section::Header => "qcow2_header",
            Section::ActiveL1 => "active L1 table",
            Section::ActiveL2 => "active L2 table",
            Section::RefcountTable => "refcount table",
            Section::RefcountBlock => "refcount block",
            Section::SnapshotTable => "snapshot table",
            Section::InactiveL1 => "inactive L1 table",
            Section::InactiveL2 => "inactive L2 table",
            Section::BitmapDirectory => "bitmap directory",
        })
    }
}

/// Where metadata is: first byte and the one past the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) section: Section,
    pub(crate) from: u64,
    pub(crate) end: u64,
}

impl Region {
    /// `len` bytes at `at`.
    pub(crate) fn new(section: Section, at: u64, len: u64) -> Region {
        Region {
            section,
            from: at,
            end: at.saturating_add(len),
        }
    }

    /// The clusters that it touches.
    pub(super) fn whole(self, cluster: u64) -> Region {
        let end = self.end.checked_next_multiple_of(cluster);
        Region {
            section: self.section,
            from: self.from & !(cluster - 1),
            end: end.unwrap_or(u64::MAX),
        }
    }
}
