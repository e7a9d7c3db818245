//! The header of a qcow2 file: its first cluster, with extensions and the backing file's name (qcow2.txt, "Header").
//!
//! The rule: a `Header` that was parsed obeys every limit in this file, so nobody above checks its fields again.

use super::bytes::{slice_at, u8_at, u32_at, u64_at};
use super::entry::{DataIn, Layout, Words, ZeroFlag};
use super::extensions::{self, BitmapsAt, Extensions, Unknown};
use super::features::{self, Autoclear, Compatible, Incompatible};
use crate::driver::{SECTOR_BYTES, SIZE_BYTES_MAX};

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

/// Why a header is refused. The words are QEMU's where it has any.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each message is the documentation
pub enum HeaderError {
    #[error("Image is not in qcow2 format")]
    Magic,
    #[error("Unsupported qcow2 version {0}")]
    Version(u32),
    #[error("Unsupported cluster size: 2^{0}")]
    ClusterBits(u32),
    #[error("qcow2 header too short")]
    TooShort,
    #[error("qcow2 header exceeds cluster size")]
    TooLong,
    #[error("Invalid backing file offset")]
    BackingOffset,
    #[error("Backing file name too long")]
    BackingTooLong,
    #[error("ERROR: ext_backing_format: len={0} too large (>=16)")]
    BackingFormatTooLong(usize),
    #[error("Header extension too large")]
    ExtensionTooLarge,
    #[error("The {0} in the image is not valid UTF-8")]
    NotText(&'static str),
    #[error("Unsupported qcow2 feature(s): {0}")]
    Features(String),
    #[error("Reference count entry width too large; may not exceed 64 bits")]
    RefcountOrder,
    #[error("Encrypted images are not supported (encryption method {0})")]
    Encrypted(u32),
    #[error("Unsupported encryption method {0}")]
    EncryptionMethod(u32),
    #[error("CRYPTO header extension only expected with LUKS encryption method")]
    StrayEncryption,
    #[error("Unsupported subcluster size: {0}")]
    SubclusterBytes(u64),
    #[error("qcow2: unknown compression type: {0}")]
    Compression(u8),
    #[error("qcow2: Compression type incompatible feature bit must be set")]
    CompressionBitMissing,
    #[error("qcow2: Compression type incompatible feature bit must not be set")]
    CompressionBitStray,
    #[error("data-file-raw requires a data file")]
    RawWithoutDataFile,
    #[error("Image is too big")]
    TooBig,
    #[error("L1 table is too small")]
    L1TooSmall,
    #[error("{0} too large")]
    TableTooLarge(&'static str),
    #[error("{0} offset invalid")]
    TableOffset(&'static str),
    #[error("Image does not contain a reference count table")]
    NoRefcountTable,
    #[error("bitmaps_ext: Invalid extension length")]
    BitmapsLength,
    #[error("bitmaps_ext: Reserved field is not zero")]
    BitmapsReserved,
    #[error(
        "bitmaps_ext: Image has {0} bitmaps, exceeding the QEMU supported maximum of {max}",
        max = extensions::BITMAPS_MAX
    )]
    BitmapsCount(u32),
    #[error("found bitmaps extension with zero bitmaps")]
    BitmapsNone,
    #[error("bitmaps_ext: invalid bitmap directory offset")]
    BitmapsOffset,
    #[error(
        "bitmaps_ext: bitmap directory size ({0}) exceeds the maximum supported size ({max})",
        max = extensions::BITMAP_DIRECTORY_BYTES_MAX
    )]
    BitmapsDirectoryTooLarge(u64),
    #[error("Requested bitmap directory size is zero")]
    BitmapsDirectoryEmpty,
    #[error("the header does not fit in one cluster")]
    DoesNotFit,
}

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

    /// The first cluster as it shall stand in the file: `cluster_bytes` long. Error: `DoesNotFit`.
    pub fn encode(&self) -> Result<Vec<u8>, HeaderError> {
        let cluster_bytes = self.cluster_bytes() as usize;
        let names = features::name_table();
        let v3 = self.version == Version::V3;
        let out = match self.encode_with(if v3 { &names } else { &[] }) {
            // The names are a courtesy: left out where the cluster is too small for them.
            Ok(out) if out.len() > cluster_bytes => self.encode_with(&[])?,
            other => other?,
        };
        if out.len() > cluster_bytes {
            return Err(HeaderError::DoesNotFit);
        }
        let mut out = out;
        out.resize(cluster_bytes, 0);
        Ok(out)
    }

    fn encode_with(&self, feature_names: &[u8]) -> Result<Vec<u8>, HeaderError> {
        let extensions = Extensions {
            backing_format: self.backing.as_ref().and_then(|b| b.format.clone()),
            data_file: self.data_file.clone(),
            unknown: self.unknown.clone(),
            ..Extensions::default()
        };
        let bitmaps = match self.bitmaps {
            Bitmaps::Valid(at) => Some(at),
            Bitmaps::None | Bitmaps::Stale => None,
        };
        let extensions = extensions::encode(&extensions, bitmaps, feature_names);
        let name = self.backing.as_ref().map_or("", |b| b.name.as_str());
        if name.len() > BACKING_NAME_BYTES_MAX {
            return Err(HeaderError::BackingTooLong);
        }
        let fields_bytes = match self.version {
            Version::V2 => V2_BYTES,
            Version::V3 => V3_BYTES + self.tail.len(),
        };
        let name_at = match name {
            "" => 0,
            _ => fields_bytes + extensions.len(),
        };
        let mut out = self.encode_fields(name_at as u64, name.len() as u32);
        out.extend_from_slice(&extensions);
        out.extend_from_slice(name.as_bytes());
        Ok(out)
    }

    fn encode_fields(&self, name_at: u64, name_bytes: u32) -> Vec<u8> {
        let mut out = Vec::with_capacity(V3_BYTES);
        let mut word = |bytes: &[u8]| out.extend_from_slice(bytes);
        word(&MAGIC.to_be_bytes());
        word(&if self.version == Version::V2 { 2u32 } else { 3 }.to_be_bytes());
        word(&name_at.to_be_bytes());
        word(&name_bytes.to_be_bytes());
        word(&self.cluster_bits.to_be_bytes());
        word(&self.size_bytes.to_be_bytes());
        word(&0u32.to_be_bytes());
        word(&self.l1.count.to_be_bytes());
        word(&self.l1.at.to_be_bytes());
        word(&self.refcount_table.at.to_be_bytes());
        word(&self.refcount_table.count.to_be_bytes());
        word(&self.snapshots.count.to_be_bytes());
        word(&self.snapshots.at.to_be_bytes());
        if self.version == Version::V3 {
            word(&self.incompatible.bits().to_be_bytes());
            word(&self.compatible.bits().to_be_bytes());
            word(&self.autoclear.bits().to_be_bytes());
            word(&self.refcount_order.to_be_bytes());
            word(&((V3_BYTES + self.tail.len()) as u32).to_be_bytes());
            let compression = match self.compression {
                Compression::Zlib => 0u8,
                Compression::Zstd => 1,
            };
            word(&[compression, 0, 0, 0, 0, 0, 0, 0]);
            word(&self.tail);
        }
        out
    }
}

fn version(bytes: &[u8]) -> Result<Version, HeaderError> {
    if u32_at(bytes, 0) != Some(MAGIC) {
        return Err(HeaderError::Magic);
    }
    match u32_at(bytes, 4).ok_or(HeaderError::TooShort)? {
        2 => Ok(Version::V2),
        3 => Ok(Version::V3),
        other => Err(HeaderError::Version(other)),
    }
}

fn cluster_bits(bytes: &[u8]) -> Result<u32, HeaderError> {
    let bits = u32_at(bytes, 20).ok_or(HeaderError::TooShort)?;
    match bits {
        CLUSTER_BITS_MIN..=CLUSTER_BITS_MAX => Ok(bits),
        _ => Err(HeaderError::ClusterBits(bits)),
    }
}

/// The fields both versions have.
struct Fields {
    backing_at: u64,
    backing_bytes: u32,
    size_bytes: u64,
    encryption: u32,
    l1: TableAt,
    refcount_table: TableAt,
    snapshots: TableAt,
    header_bytes: u32,
}

impl Fields {
    fn read(bytes: &[u8]) -> Option<Fields> {
        Some(Fields {
            backing_at: u64_at(bytes, 8)?,
            backing_bytes: u32_at(bytes, 16)?,
            size_bytes: u64_at(bytes, 24)?,
            encryption: u32_at(bytes, 32)?,
            l1: TableAt {
                count: u32_at(bytes, 36)?,
                at: u64_at(bytes, 40)?,
            },
            refcount_table: TableAt {
                at: u64_at(bytes, 48)?,
                count: u32_at(bytes, 56)?,
            },
            snapshots: TableAt {
                count: u32_at(bytes, 60)?,
                at: u64_at(bytes, 64)?,
            },
            header_bytes: u32_at(bytes, 100)?,
        })
    }

    /// Where the fields end and extensions begin.
    fn header_bytes(&self, version: Version, cluster_bytes: u64) -> Result<usize, HeaderError> {
        let bytes = match version {
            Version::V2 => return Ok(V2_BYTES),
            Version::V3 => self.header_bytes as usize,
        };
        if bytes < V3_BYTES_MIN {
            return Err(HeaderError::TooShort);
        }
        if bytes as u64 > cluster_bytes {
            return Err(HeaderError::TooLong);
        }
        Ok(bytes)
    }

    fn check_encryption(&self, extensions: &Extensions) -> Result<(), HeaderError> {
        match self.encryption {
            0 if extensions.encryption.is_some() => Err(HeaderError::StrayEncryption),
            0 => Ok(()),
            1 | 2 => Err(HeaderError::Encrypted(self.encryption)),
            other => Err(HeaderError::EncryptionMethod(other)),
        }
    }

    fn backing(
        &self,
        cluster: &[u8],
        cluster_bytes: u64,
        format: Option<String>,
    ) -> Result<Option<Backing>, HeaderError> {
        let len = self.backing_bytes as usize;
        if self.backing_at == 0 {
            return Ok(None);
        }
        if len > BACKING_NAME_BYTES_MAX || len as u64 > cluster_bytes - self.backing_at {
            return Err(HeaderError::BackingTooLong);
        }
        let name = slice_at(cluster, self.backing_at as usize, len);
        let name = extensions::text(name.ok_or(HeaderError::TooShort)?, "backing file name")?;
        Ok((!name.is_empty()).then_some(Backing { name, format }))
    }
}

/// The fields of version 3, with what version 2 means by not having them.
struct V3Fields {
    incompatible: Incompatible,
    compatible: Compatible,
    autoclear: Autoclear,
    refcount_order: u32,
    compression: Compression,
    tail: Vec<u8>,
}

impl V3Fields {
    fn read(
        bytes: &[u8],
        version: Version,
        end: usize,
        feature_names: &[u8],
    ) -> Result<V3Fields, HeaderError> {
        if version == Version::V2 {
            return Ok(V3Fields {
                incompatible: Incompatible::default(),
                compatible: Compatible::default(),
                autoclear: Autoclear::default(),
                refcount_order: 4,
                compression: Compression::Zlib,
                tail: Vec::new(),
            });
        }
        let word = |at| u64_at(bytes, at).ok_or(HeaderError::TooShort);
        let (incompatible, unknown) = Incompatible::parse(word(72)?);
        if unknown != 0 {
            let text = features::describe_incompatible(unknown, feature_names);
            return Err(HeaderError::Features(text));
        }
        let refcount_order = u32_at(bytes, 96).ok_or(HeaderError::TooShort)?;
        if refcount_order > REFCOUNT_ORDER_MAX {
            return Err(HeaderError::RefcountOrder);
        }
        // qcow2.txt: byte 104, "Not present if header_length < 105".
        let stored = if end > V3_BYTES_MIN {
            u8_at(bytes, 104)
        } else {
            None
        };
        Ok(V3Fields {
            incompatible,
            compatible: Compatible::parse(word(80)?),
            autoclear: Autoclear::parse(word(88)?),
            refcount_order,
            compression: compression(stored.unwrap_or(0), incompatible)?,
            tail: bytes.get(V3_BYTES..end).unwrap_or_default().to_vec(),
        })
    }
}

fn compression(stored: u8, incompatible: Incompatible) -> Result<Compression, HeaderError> {
    match (stored, incompatible.compression) {
        (0, false) => Ok(Compression::Zlib),
        (0, true) => Err(HeaderError::CompressionBitStray),
        (1, true) => Ok(Compression::Zstd),
        (1, false) => Err(HeaderError::CompressionBitMissing),
        (other, _) => Err(HeaderError::Compression(other)),
    }
}
