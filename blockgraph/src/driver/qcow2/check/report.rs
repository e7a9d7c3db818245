//! What a check finds, counted in full and told in part.

use crate::driver::qcow2::format::bitmap_dir::BitmapError;
use crate::driver::qcow2::format::entry::Malformed;
use crate::driver::qcow2::format::snapshot_table::SnapshotError;
use std::ops::Range;

/// Findings that are told; all are counted.
const FINDINGS_MAX: usize = 1000;
/// Runs of freed clusters that are remembered, to be given back to the host.
const FREED_MAX: usize = 1 << 20;

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Finding {
    /// Space that nothing uses.
    #[error("Leaked cluster {cluster} refcount={disk} reference={expected}")]
    Leak {
        /// Which host cluster.
        cluster: u64,
        /// Its refcount.
        disk: u64,
        /// How often it is referred to.
        expected: u64,
    },
    /// Space in use that may be given away.
    #[error("ERROR cluster {cluster} refcount={disk} reference={expected}")]
    TooLow {
        /// Which host cluster.
        cluster: u64,
        /// Its refcount.
        disk: u64,
        /// How often it is referred to.
        expected: u64,
    },
    /// A copied flag that is wrong.
    #[error("ERROR OFLAG_COPIED: offset={at:#x} refcount={refcount}")]
    Copied {
        /// The table or cluster it is about.
        at: u64,
        /// Its refcount.
        refcount: u64,
    },
    /// A reference to nowhere.
    #[error(
        "ERROR: reference to a region that exceeds the end of the file: offset {at:#x} size {len:#x}"
    )]
    PastEnd {
        /// Offset in bytes.
        at: u64,
        /// Length in bytes.
        len: u64,
    },
    /// An L1 entry that no image may hold.
    #[error("ERROR L1 entry {0}: {1}")]
    L1Entry(u64, Malformed),
    /// An L2 entry that no image may hold.
    #[error("ERROR in L2 table at {0:#x}: {1}")]
    L2Entry(u64, Malformed),
    /// A cluster of an external data file that is not where the guest sees it. The words are those with which QEMU marks
    /// such an image corrupt.
    #[error(
        "ERROR External data file host cluster offset {host:#x} does not match guest cluster offset: {guest:#x}"
    )]
    Moved {
        /// Where the entry says it is.
        host: u64,
        /// Where it has to be.
        guest: u64,
    },
    /// A word of the refcount table that cannot be.
    #[error(
        "ERROR refcount block {0} is not cluster aligned; refcount table entry corrupted ({1:#x})"
    )]
    BlockEntry(u64, u64),
    /// A refcount block past the end.
    #[error("ERROR refcount block {0} is outside image")]
    BlockOutside(u64),
    /// A refcount block that something else uses too.
    #[error("ERROR refcount block {0} refcount={1}")]
    BlockShared(u64, u64),
    /// A snapshot without the fields that version 3 wants.
    #[error("ERROR snapshot table entry {0} is incomplete")]
    SnapshotIncomplete(usize),
    /// A snapshot whose tables are nowhere.
    #[error("ERROR snapshot {0}: {1}; snapshot table entry corrupted")]
    SnapshotTable(usize, SnapshotError),
    /// A word of a bitmap's table.
    #[error("ERROR {0}")]
    Bitmap(BitmapError),
}

/// What a check found. The figures are those of `qemu-img check`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What may lose or mix up data.
    pub corruptions: u64,
    /// Clusters that nothing uses.
    pub leaks: u64,
    /// Corruptions that there were before the repair.
    pub corruptions_fixed: u64,
    /// Leaks that there were before the repair.
    pub leaks_fixed: u64,
    /// Guest clusters of the disk.
    pub total_clusters: u64,
    /// Those that have a host cluster.
    pub allocated_clusters: u64,
    /// Those that are compressed.
    pub compressed_clusters: u64,
    /// Those that do not follow the one before.
    pub fragmented_clusters: u64,
    /// Where the last host cluster in use ends, in bytes.
    pub image_end_offset: u64,
    /// The first of what was found.
    pub findings: Vec<Finding>,
    pub(super) image_end_clusters: u64,
    /// References that could not be read: what they mean to keep must not be given away.
    pub(super) unreadable: u64,
    /// The refcounts cannot be set right in place.
    pub(super) needs_rebuild: bool,
    /// A writer need not care.
    pub(super) harmless: u64,
    /// Host clusters that a repair has freed, as runs; those above [`FREED_MAX`] are not told.
    pub(super) freed: Vec<Range<u64>>,
}

impl Report {
    pub(super) fn found(&mut self, finding: Finding) {
        match &finding {
            Finding::Leak { .. } => self.leaks += 1,
            _ => self.corruptions += 1,
        }
        match &finding {
            Finding::L1Entry(..)
            | Finding::L2Entry(..)
            | Finding::PastEnd { .. }
            | Finding::SnapshotTable(..)
            | Finding::Bitmap(_) => self.unreadable += 1,
            Finding::BlockEntry(..) | Finding::BlockOutside(_) | Finding::BlockShared(..) => {
                self.needs_rebuild = true;
            }
            // A writer that meets such a cluster stops there.
            Finding::SnapshotIncomplete(_) | Finding::Moved { .. } => self.harmless += 1,
            Finding::Leak { .. } | Finding::TooLow { .. } | Finding::Copied { .. } => {}
        }
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        }
    }

    /// A host cluster has no reference any more, nor a refcount.
    pub(super) fn freed(&mut self, cluster: u64) {
        let room = self.freed.len() < FREED_MAX;
        match self.freed.last_mut() {
            Some(last) if last.end == cluster => last.end += 1,
            _ if room => self.freed.push(cluster..cluster + 1),
            _ => {}
        }
    }

    /// True if nothing was found.
    pub fn is_clean(&self) -> bool {
        self.corruptions == 0 && self.leaks == 0
    }

    /// True if the image may be written: what is left cannot make a writer damage it.
    pub fn is_writable(&self) -> bool {
        self.corruptions == self.harmless
    }
}
