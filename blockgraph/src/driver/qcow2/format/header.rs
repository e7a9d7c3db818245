//! The header of a qcow2 file: its first cluster, with extensions and the backing file's name (qcow2.txt, "Header").
//!
//! The rule: a `Header` that was parsed obeys every limit in this file, so nobody above checks its fields again.

mod encode;
mod error;
mod fields;

pub use error::HeaderError;

use super::entry::{DataIn, Layout, Words, ZeroFlag};
use super::extensions::{self, BitmapsAt, Unknown};
use super::features::{Autoclear, Compatible, Incompatible};
use crate::driver::{SECTOR_BYTES, SIZE_BYTES_MAX};
use fields::{Fields, V3Fields, cluster_bits, version};

/// "QFI\xfb"
pub const MAGIC: u32 = 0x5146_49fb;
/// Smallest cluster: 512 bytes.
pub const CLUSTER_BITS_MIN: u32 = 9;
/// Largest cluster: 2 MiB.
pub const CLUSTER_BITS_MAX: u32 = 21;
/// Subclusters of an extended L2 entry.
pub const SUBCLUSTERS: u64 = 32;
/// Bytes enough to learn the cluster size from.
pub const PREFIX_BYTES: usize = 24;
/// QEMU's limit on an L1 table.
pub const L1_BYTES_MAX: u64 = 32 << 20;
/// QEMU's limit on the refcount table.
pub const REFCOUNT_TABLE_BYTES_MAX: u64 = 8 << 20;
/// QEMU's limit on the number of internal snapshots.
pub const SNAPSHOTS_MAX: u32 = 65536;
/// Longest name of a backing file.
pub const BACKING_NAME_BYTES_MAX: usize = 1023;
/// Log 2 of the widest refcount: 64 bits.
const REFCOUNT_ORDER_MAX: u32 = 6;
/// Where the fields of version 2 end.
const V2_BYTES: usize = 72;
/// The least a version 3 header has.
const V3_BYTES_MIN: usize = 104;
/// What we know of a version 3 header: up to the compression type and its padding.
const V3_BYTES: usize = 112;

/// Of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// `compat=0.10`: no feature bits, 16-bit refcounts, no plain zero clusters.
    V2,
    /// `compat=1.1`
    V3,
}

/// How compressed clusters are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Raw deflate with a window of 4 KiB.
    Zlib,
    /// Zstandard frames.
    Zstd,
}

/// How strict to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strictness {
    /// To use the image.
    Open,
    /// To check and repair it: it may lack a refcount table.
    Check,
}

/// The bitmaps extension, with the word of the autoclear bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bitmaps {
    /// None.
    None,
    /// There, and agreeing with the data.
    Valid(BitmapsAt),
    /// There, but somebody wrote without maintaining them. Dropped when the header is written whole.
    Stale,
}

/// A table in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableAt {
    /// Its offset in bytes, a multiple of the cluster size.
    pub at: u64,
    /// L1: entries of 8 bytes. Refcount table: clusters. Snapshot table: snapshots.
    pub count: u32,
}

/// The backing file as the image names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// Its name, at most [`BACKING_NAME_BYTES_MAX`] bytes; not empty.
    pub name: String,
    /// Its format, if stored.
    pub format: Option<String>,
}

/// A whole header. What [`Header::parse`] returns obeys all limits; who changes a field keeps to them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Of the format.
    pub version: Version,
    /// Log 2 of the cluster size: [`CLUSTER_BITS_MIN`] to [`CLUSTER_BITS_MAX`].
    pub cluster_bits: u32,
    /// What the guest sees, in bytes; whole sectors (QEMU drops the rest as well).
    pub size_bytes: u64,
    /// The active L1 table; `count` entries, enough for `size_bytes`.
    pub l1: TableAt,
    /// The refcount table; `count` clusters.
    pub refcount_table: TableAt,
    /// Log 2 of a refcount's width in bits: 0 to 6.
    pub refcount_order: u32,
    /// The snapshot table; `count` snapshots.
    pub snapshots: TableAt,
    /// Bits a program must know.
    pub incompatible: Incompatible,
    /// Bits a program may ignore.
    pub compatible: Compatible,
    /// Bits to clear when writing.
    pub autoclear: Autoclear,
    /// How compressed clusters are packed.
    pub compression: Compression,
    /// The backing file.
    pub backing: Option<Backing>,
    /// The data file's name, if one is stored. The feature bit says whether there is a data file.
    pub data_file: Option<String>,
    /// The bitmaps extension.
    pub bitmaps: Bitmaps,
    /// Extensions without a name here.
    pub unknown: Vec<Unknown>,
    /// Header fields past those known here.
    pub tail: Vec<u8>,
}

impl Header {
    /// The cluster size of the image that begins with `prefix` ([`PREFIX_BYTES`] or more), in bytes. Read that many
    /// (what lies past the end of the file being zero) and [`Header::parse`] them.
    pub fn cluster_bytes_of(prefix: &[u8]) -> Result<usize, HeaderError> {
        version(prefix)?;
        Ok(1 << cluster_bits(prefix)?)
    }

    /// Takes apart the first cluster of an image.
    pub fn parse(cluster: &[u8], how: Strictness) -> Result<Header, HeaderError> {
        let version = version(cluster)?;
        let cluster_bits = cluster_bits(cluster)?;
        let cluster_bytes = 1u64 << cluster_bits;
        let fields = Fields::read(cluster).ok_or(HeaderError::TooShort)?;
        let end = fields.header_bytes(version, cluster_bytes)?;
        if fields.backing_at > cluster_bytes {
            return Err(HeaderError::BackingOffset);
        }
        let area_end = match fields.backing_at {
            0 => cluster.len(),
            at => cluster.len().min(at as usize),
        };
        let extensions = extensions::parse(cluster.get(end..area_end).unwrap_or_default())?;
        let v3 = V3Fields::read(cluster, version, end, &extensions.feature_names)?;
        fields.check_encryption(&extensions)?;
        if v3.incompatible.extended_l2 && cluster_bytes / SUBCLUSTERS < SECTOR_BYTES {
            return Err(HeaderError::SubclusterBytes(cluster_bytes / SUBCLUSTERS));
        }
        if v3.autoclear.data_file_raw && !v3.incompatible.data_file {
            return Err(HeaderError::RawWithoutDataFile);
        }
        let backing = fields.backing(cluster, cluster_bytes, extensions.backing_format)?;
        let bitmaps = match extensions.bitmaps {
            None => Bitmaps::None,
            Some(_) if !v3.autoclear.bitmaps => Bitmaps::Stale,
            Some(bytes) => Bitmaps::Valid(extensions::parse_bitmaps(&bytes, cluster_bytes)?),
        };
        let header = Header {
            version,
            cluster_bits,
            size_bytes: fields.size_bytes & !(SECTOR_BYTES - 1),
            l1: fields.l1,
            refcount_table: fields.refcount_table,
            refcount_order: v3.refcount_order,
            snapshots: fields.snapshots,
            incompatible: v3.incompatible,
            compatible: v3.compatible,
            autoclear: v3.autoclear,
            compression: v3.compression,
            backing,
            data_file: extensions.data_file,
            bitmaps,
            unknown: extensions.unknown,
            tail: v3.tail,
        };
        header.check_tables(how)?;
        Ok(header)
    }

    /// Size of a cluster in bytes.
    pub fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Size of an L2 entry in bytes.
    pub fn l2_entry_bytes(&self) -> u64 {
        if self.incompatible.extended_l2 { 16 } else { 8 }
    }

    /// Guest bytes behind one L1 entry.
    pub fn l1_entry_covers(&self) -> u64 {
        // At most 2^21 * 2^18.
        self.cluster_bytes() / self.l2_entry_bytes() * self.cluster_bytes()
    }

    /// L1 entries a disk of `size_bytes` needs.
    pub fn l1_entries_for(&self, size_bytes: u64) -> u64 {
        size_bytes.div_ceil(self.l1_entry_covers())
    }

    /// What its L2 entries look like.
    pub fn entry_layout(&self) -> Layout {
        Layout {
            cluster_bits: self.cluster_bits,
            words: match self.incompatible.extended_l2 {
                true => Words::Two,
                false => Words::One,
            },
            data: match self.incompatible.data_file {
                true => DataIn::DataFile,
                false => DataIn::Image,
            },
            zero_flag: match self.version {
                Version::V3 => ZeroFlag::Known,
                Version::V2 => ZeroFlag::Unknown,
            },
        }
    }

    fn check_tables(&self, how: Strictness) -> Result<(), HeaderError> {
        let needed = self.l1_entries_for(self.size_bytes);
        if self.size_bytes > SIZE_BYTES_MAX || needed > i32::MAX as u64 {
            return Err(HeaderError::TooBig);
        }
        let refcounts = u64::from(self.refcount_table.count) * self.cluster_bytes();
        let what = "Reference count table";
        if self.refcount_table.count == 0 && how == Strictness::Open {
            return Err(HeaderError::NoRefcountTable);
        }
        self.check_table(
            self.refcount_table,
            refcounts,
            REFCOUNT_TABLE_BYTES_MAX,
            what,
        )?;
        // The shortest entry of a snapshot table is 40 bytes.
        let snapshots = u64::from(self.snapshots.count) * 40;
        let snapshots_max = u64::from(SNAPSHOTS_MAX) * 40;
        self.check_table(self.snapshots, snapshots, snapshots_max, "Snapshot table")?;
        let l1 = u64::from(self.l1.count) * 8;
        self.check_table(self.l1, l1, L1_BYTES_MAX, "Active L1 table")?;
        if u64::from(self.l1.count) < needed {
            return Err(HeaderError::L1TooSmall);
        }
        Ok(())
    }

    fn check_table(
        &self,
        table: TableAt,
        len_bytes: u64,
        max_bytes: u64,
        what: &'static str,
    ) -> Result<(), HeaderError> {
        if len_bytes > max_bytes {
            return Err(HeaderError::TableTooLarge(what));
        }
        if !table.at.is_multiple_of(self.cluster_bytes())
            || table.at > i64::MAX as u64 - len_bytes
            // Offset 0 is the header itself; QEMU opens such an image and trips over it later.
            || (table.at == 0 && len_bytes > 0)
        {
            return Err(HeaderError::TableOffset(what));
        }
        Ok(())
    }
}
