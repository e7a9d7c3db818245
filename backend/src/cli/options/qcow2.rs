//! `qcow2`'s options.

use super::ChildRef;

/// `qcow2`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qcow2Options {
    /// Where the image is.
    pub file: ChildRef,
    /// What is below it.
    pub backing: Backing,
    /// Where its guest data is, for an image with a data file; `None`: where the image says.
    pub data_file: Option<ChildRef>,
    /// Refcounts may be behind while the image is open; `None`: as the image says.
    pub lazy_refcounts: Option<bool>,
    /// Whether a guest's discards give space back to the host: where `discard=unmap`, unless said.
    pub pass_discard_request: bool,
    /// Whether what a deleted snapshot held is given back.
    pub pass_discard_snapshot: bool,
    /// Whether whatever else is freed is given back.
    pub pass_discard_other: bool,
    /// Whether a discarded cluster keeps its place in the file.
    pub discard_no_unref: bool,
    /// Which metadata a write is checked against.
    pub overlap_check: OverlapChecks,
    /// How much metadata is kept in memory.
    pub cache: Qcow2CacheOptions,
    /// `x-snapshot`, our own: an internal snapshot, by its id or else by its name, in place of the active disk.
    pub snapshot: Option<String>,
    /// `x-image-names`, our own: what the image, and those it names, may name.
    pub image_names: ImageNames,
    /// `x-probe-backing`, our own: whether a backing file whose format is not stored is looked at.
    pub probe_backing: bool,
    /// `x-bitmap-journal`, our own: the file that keeps its bitmaps through a crash.
    pub bitmap_journal: Option<String>,
}

/// `x-image-names=`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageNames {
    /// Files and block devices, by their paths.
    Paths,
    /// Also `json:` and protocols.
    Any,
}

/// `backing=`
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backing {
    /// Not said.
    AsTheImageSays,
    /// `null`: whatever the image says, it stands alone.
    Nothing,
    /// This, whatever the image says.
    Child(ChildRef),
}

/// The sizes of `qcow2`'s caches; `None`: as much as is needed, within bounds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Qcow2CacheOptions {
    /// `cache-size`: both caches together.
    pub size_bytes: Option<u64>,
    /// `l2-cache-size`
    pub l2_size_bytes: Option<u64>,
    /// `l2-cache-entry-size`
    pub l2_entry_size_bytes: Option<u64>,
    /// `refcount-cache-size`
    pub refcount_size_bytes: Option<u64>,
    /// `cache-clean-interval`: what was not used for so long is let go; 0: never.
    pub clean_interval_s: Option<u32>,
}

/// `overlap-check`, its template applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverlapChecks {
    /// The image's header.
    pub main_header: bool,
    /// The L1 table.
    pub active_l1: bool,
    /// L2 tables that the L1 table refers to.
    pub active_l2: bool,
    /// The refcount table.
    pub refcount_table: bool,
    /// Refcount blocks.
    pub refcount_block: bool,
    /// The table of snapshots.
    pub snapshot_table: bool,
    /// L1 tables of snapshots.
    pub inactive_l1: bool,
    /// L2 tables of snapshots.
    pub inactive_l2: bool,
    /// The directory of bitmaps.
    pub bitmap_directory: bool,
}
