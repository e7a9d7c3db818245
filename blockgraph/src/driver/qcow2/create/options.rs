//! What a new image is to be, with QEMU's checks and words.

use crate::driver::SECTOR_BYTES;
use crate::driver::qcow2::format::features::{Autoclear, Compatible, Incompatible};
use crate::driver::qcow2::format::header::{
    BACKING_NAME_BYTES_MAX, Backing, Bitmaps, CLUSTER_BITS_MAX, CLUSTER_BITS_MIN, Compression,
    Header, L1_BYTES_MAX, SUBCLUSTERS, TableAt, Version,
};
use crate::graph::errno_text;
use crate::node::NodeId;
use crate::request::Prealloc;
use ring::Errno;

/// QEMU's limit on any disk: 2^63 bytes less what it aligns requests to.
pub(super) const SIZE_BYTES_MAX: u64 = (1 << 63) - (1 << 30);

/// The options of `BlockdevCreateOptionsQcow2`. Names in comments are those of its members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `size`, in bytes.
    pub size_bytes: u64,
    /// `version`
    pub version: Version,
    /// `cluster-size`, in bytes.
    pub cluster_bytes: u64,
    /// `refcount-bits`
    pub refcount_bits: u64,
    /// `preallocation`
    pub preallocation: Prealloc,
    /// `backing-file`; an empty name is none.
    pub backing_file: Option<String>,
    /// `backing-fmt`
    pub backing_format: Option<String>,
    /// `data-file`
    pub data_file: Option<DataFile>,
    /// `data-file-raw`
    pub data_file_raw: bool,
    /// `extended-l2`
    pub extended_l2: bool,
    /// `lazy-refcounts`
    pub lazy_refcounts: bool,
    /// `compression-type`
    pub compression: Compression,
}

/// Where guest data shall go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataFile {
    /// The node, which is open.
    pub node: NodeId,
    /// The name the image shall remember.
    pub name: String,
}

impl Options {
    /// An image of that size with QEMU's defaults.
    pub fn new(size_bytes: u64) -> Options {
        Options {
            size_bytes,
            version: Version::V3,
            cluster_bytes: 65536,
            refcount_bits: 16,
            preallocation: Prealloc::Off,
            backing_file: None,
            backing_format: None,
            data_file: None,
            data_file_raw: false,
            extended_l2: false,
            lazy_refcounts: false,
            compression: Compression::Zlib,
        }
    }

    /// "The external data file can be read as a consistent raw image without looking at the metadata" only if all the
    /// metadata is there.
    pub(super) fn effective_prealloc(&self) -> Prealloc {
        match (self.preallocation, self.data_file_raw) {
            (Prealloc::Off, true) => Prealloc::Metadata,
            (asked, _) => asked,
        }
    }

    /// The header without its tables' places. Errors in the order in which QEMU finds them.
    pub(super) fn header(&self) -> Result<Header, CreateError> {
        if !self.size_bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(CreateError::Sectors);
        }
        let cluster_bits = self.cluster_bits()?;
        self.check_backing()?;
        let refcount_order = self.refcount_order()?;
        self.check_features()?;
        let header = Header {
            version: self.version,
            cluster_bits,
            size_bytes: self.size_bytes,
            l1: TableAt::default(),
            refcount_table: TableAt::default(),
            refcount_order,
            snapshots: TableAt::default(),
            incompatible: Incompatible {
                data_file: self.data_file.is_some(),
                compression: self.compression != Compression::Zlib,
                extended_l2: self.extended_l2,
                ..Incompatible::default()
            },
            compatible: Compatible {
                lazy_refcounts: self.lazy_refcounts,
                ..Compatible::default()
            },
            autoclear: Autoclear {
                data_file_raw: self.data_file_raw,
                ..Autoclear::default()
            },
            compression: self.compression,
            backing: self.backing()?,
            data_file: self.data_file.as_ref().map(|data| data.name.clone()),
            bitmaps: Bitmaps::None,
            unknown: Vec::new(),
            tail: Vec::new(),
        };
        self.check_size(&header)?;
        Ok(header)
    }

    fn cluster_bits(&self) -> Result<u32, CreateError> {
        let bits = self.cluster_bytes.trailing_zeros();
        let known = CLUSTER_BITS_MIN..=CLUSTER_BITS_MAX;
        if !self.cluster_bytes.is_power_of_two() || !known.contains(&bits) {
            return Err(CreateError::ClusterBytes);
        }
        if self.extended_l2 && self.cluster_bytes < SUBCLUSTERS * SECTOR_BYTES {
            return Err(CreateError::ExtendedL2ClusterBytes);
        }
        Ok(bits)
    }

    fn check_backing(&self) -> Result<(), CreateError> {
        let backing = self.backing_file.is_some();
        if self.preallocation != Prealloc::Off && backing && !self.extended_l2 {
            return Err(CreateError::BackingAndPreallocation);
        }
        if self.backing_format.is_some() && !backing {
            return Err(CreateError::FormatWithoutBacking);
        }
        Ok(())
    }

    fn refcount_order(&self) -> Result<u32, CreateError> {
        if self.version == Version::V2 && self.lazy_refcounts {
            return Err(CreateError::Version2("Lazy refcounts only supported with"));
        }
        if !self.refcount_bits.is_power_of_two() || self.refcount_bits > 64 {
            return Err(CreateError::RefcountBits);
        }
        if self.version == Version::V2 && self.refcount_bits != 16 {
            let what = "Different refcount widths than 16 bits require";
            return Err(CreateError::Version2Or(what));
        }
        Ok(self.refcount_bits.trailing_zeros())
    }

    fn check_features(&self) -> Result<(), CreateError> {
        if self.data_file_raw && self.data_file.is_none() {
            return Err(CreateError::RawWithoutDataFile);
        }
        if self.data_file_raw && self.backing_file.is_some() {
            return Err(CreateError::BackingAndRawDataFile);
        }
        if self.version != Version::V2 {
            return Ok(());
        }
        let refused = [
            (
                self.data_file.is_some(),
                "External data files are only supported with",
            ),
            (
                self.extended_l2,
                "Extended L2 entries are only supported with",
            ),
            (
                self.compression != Compression::Zlib,
                "Non-zlib compression type is only supported with",
            ),
        ];
        match refused.iter().find(|(asked, _)| *asked) {
            Some((_, what)) => Err(CreateError::Version2(what)),
            None => Ok(()),
        }
    }

    fn backing(&self) -> Result<Option<Backing>, CreateError> {
        match &self.backing_file {
            None => Ok(None),
            Some(name) if name.is_empty() => Ok(None),
            Some(name) if name.len() > BACKING_NAME_BYTES_MAX => Err(self.no_backing(Errno::INVAL)),
            Some(name) => Ok(Some(Backing {
                name: name.clone(),
                format: self.backing_format.clone(),
            })),
        }
    }

    /// The header with its names is more than a cluster.
    pub(super) fn does_not_fit(&self) -> CreateError {
        match self.backing_file {
            Some(_) => self.no_backing(Errno::NOSPC),
            None => CreateError::Names,
        }
    }

    fn no_backing(&self, errno: Errno) -> CreateError {
        CreateError::BackingFile {
            name: self.backing_file.clone().unwrap_or_default(),
            format: self.backing_format.clone(),
            errno,
        }
    }

    fn check_size(&self, header: &Header) -> Result<(), CreateError> {
        if self.size_bytes > i64::MAX as u64 {
            return Err(CreateError::Negative);
        }
        if self.size_bytes > SIZE_BYTES_MAX {
            return Err(CreateError::TooLarge(self.size_bytes));
        }
        if header.l1_entries_for(self.size_bytes) * 8 > L1_BYTES_MAX {
            return Err(CreateError::L1TooLarge);
        }
        Ok(())
    }
}

/// Why there is no new image. The words are QEMU's where it has any.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each message is the documentation
pub enum CreateError {
    #[error("Image size must be a multiple of 512 bytes")]
    Sectors,
    #[error("Cluster size must be a power of two between 512 and 2048k")]
    ClusterBytes,
    #[error("Extended L2 entries are only supported with cluster sizes of at least 16384 bytes")]
    ExtendedL2ClusterBytes,
    #[error(
        "Backing file and preallocation can only be used at the same time if extended_l2 is on"
    )]
    BackingAndPreallocation,
    #[error("Backing format cannot be used without backing file")]
    FormatWithoutBacking,
    #[error("{0} compatibility level 1.1 and above (use version=v3 or greater)")]
    Version2(&'static str),
    #[error("{0} compatibility level 1.1 or above (use version=v3 or greater)")]
    Version2Or(&'static str),
    #[error("Refcount width must be a power of two and may not exceed 64 bits")]
    RefcountBits,
    #[error("data-file-raw requires data-file")]
    RawWithoutDataFile,
    #[error("Backing file and data-file-raw cannot be used at the same time")]
    BackingAndRawDataFile,
    #[error("Could not resize image: Image size cannot be negative")]
    Negative,
    #[error("Could not resize image: offset({0}) exceeds maximum({SIZE_BYTES_MAX})")]
    TooLarge(u64),
    #[error("Could not resize image: Failed to grow the L1 table: File too large")]
    L1TooLarge,
    #[error("Could not resize image: Failed to grow the refcount table: File too large")]
    TooManyRefcounts,
    #[error("Could not assign backing file '{name}'{}: {}", format_text(.format), text(.errno))]
    BackingFile {
        name: String,
        format: Option<String>,
        errno: Errno,
    },
    #[error("Could not write qcow2 header: the names in it do not fit in one cluster")]
    Names,
    #[error("No such node")]
    NoNode,
    #[error("Block node is read-only")]
    ReadOnly,
    #[error("The data file cannot be the image file itself")]
    SameFile,
    #[error("Could not resize image: Failed to resize underlying file: {}", text(.0))]
    Resize(Errno),
    #[error(
        "Could not resize image: Failed to resize underlying file: Could not preallocate new data: {}",
        text(.0)
    )]
    Preallocate(Errno),
    #[error("Could not write refcount table: {}", text(.0))]
    Refcounts(Errno),
    #[error("Could not write L1 table: {}", text(.0))]
    L1(Errno),
    #[error("Could not write L2 tables: {}", text(.0))]
    L2(Errno),
    #[error("Could not write qcow2 header: {}", text(.0))]
    Header(Errno),
    #[error("Could not flush the new image: {}", text(.0))]
    Flush(Errno),
}

impl CreateError {
    /// What a failure to size the file means, for that preallocation.
    pub(super) fn resize(how: Prealloc) -> impl Fn(Errno) -> CreateError {
        move |errno| match how {
            Prealloc::Off | Prealloc::Metadata => CreateError::Resize(errno),
            Prealloc::Falloc | Prealloc::Full => CreateError::Preallocate(errno),
        }
    }
}

fn format_text(format: &Option<String>) -> String {
    let format = format.as_ref();
    format.map_or(String::new(), |format| format!(" with format '{format}'"))
}

fn text(errno: &Errno) -> String {
    errno_text(&(*errno).into())
}
