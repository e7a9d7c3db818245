//! Opening an image: header and L1 table into memory, each checked; nothing else is read before it is needed.
//!
//! The rule: [`Image::load`] needs the file alone, and says which other children the image has; [`Image::driver`] makes the
//! node's body once they are open.

use super::Qcow2;
use super::bitmaps::{Bitmaps, of, read_directory, stale_warning};
use super::cache::{Cache, CacheOptions, CacheSizes, SizeError, clean_every};
use super::check::{CheckError, read_snapshots};
use super::format::bitmap_dir::{Bitmap, BitmapError, Of};
use super::format::entry::{DataIn, Layout, Words, ZeroFlag};
use super::format::header::{
    Backing, Header, HeaderError, PREFIX_BYTES, Strictness, TableAt, Version,
};
use super::format::snapshot_table::SnapshotError;
use super::geometry::Geometry;
use super::image_file::ImageFile;
use super::meta::Meta;
use super::read::read_or_zeroes;
use super::unpack::Unpacked;
use super::writer::{WriteOptions, Writer};
use crate::driver::{SECTOR_BYTES, SIZE_BYTES_MAX};
use crate::graph::{Access, errno_text};
use crate::hold::Holds;
use crate::io::Io;
use crate::node::{Info, Limits, NodeId};
use ring::{Errno, Mem};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use thiserror::Error;

/// How an image is to be used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// How large the caches are.
    pub cache: CacheOptions,
    /// How it is written.
    pub write: WriteOptions,
    /// Show an internal snapshot, by its id or else by its name, in place of the active disk; only to be read.
    pub snapshot: Option<String>,
}

/// Why an image cannot be opened. The words are QEMU's where it has any.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Qcow2Error {
    /// The header is refused.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The file cannot be read.
    #[error("Could not read {what}: {errno}")]
    Read {
        /// What of it.
        what: &'static str,
        /// Why.
        errno: Errno,
    },
    /// A table is not in the file.
    #[error("{0} is past the end of the file")]
    PastEnd(&'static str),
    /// Its metadata is known to be wrong.
    #[error("qcow2: Image is corrupt; cannot be opened read/write")]
    Corrupt,
    /// It was left dirty, and its refcounts cannot be set right.
    #[error("{0}")]
    Repair(CheckError),
    /// The internal snapshots cannot be read.
    #[error("Could not read snapshots: {0}")]
    Snapshots(CheckError),
    /// The bitmap directory.
    #[error(transparent)]
    Bitmaps(#[from] BitmapError),
    /// The bitmaps it has.
    #[error(transparent)]
    BitmapMemory(crate::bitmap::BitmapError),
    /// It cannot be said that they are in use.
    #[error("Can't update bitmap directory: {}", errno_text(&(*.0).into()))]
    BitmapsInUse(Errno),
    /// There is none of that id or name.
    #[error("Can't find snapshot '{0}'")]
    NoSnapshot(String),
    /// Its L1 table is not where one may be.
    #[error(transparent)]
    SnapshotTable(#[from] SnapshotError),
    /// Internal snapshots do not change.
    #[error("An internal snapshot can only be opened read-only")]
    SnapshotReadOnly,
    /// The data file is missing.
    #[error("'data-file' is required for this image")]
    DataFileRequired,
    /// A data file for an image without one.
    #[error("'data-file' can only be set for images with an external data file")]
    DataFileStray,
    /// The caches' sizes.
    #[error(transparent)]
    Cache(#[from] SizeError),
    /// The system has no room for the caches.
    #[error("Could not allocate the metadata caches: {0}")]
    Caches(String),
}

/// An image's header and L1 table, checked.
#[derive(Debug)]
pub struct Image {
    header: Header,
    l1: Vec<u64>,
    geometry: Geometry,
    sizes: CacheSizes,
    write: WriteOptions,
    shown: Shown,
    bitmaps: Vec<Bitmap>,
}

/// What the guest sees of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Active,
    Snapshot,
}

/// The disk that is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shown {
    what: What,
    size_bytes: u64,
    l1: TableAt,
}

impl Image {
    /// Reads an image from `file`. Errors: what the file answers, and whatever is wrong with the image or the options.
    pub async fn load(io: &Io, file: NodeId, options: &Options) -> Result<Image, Qcow2Error> {
        let header = load_header(io, file).await?;
        let shown = match &options.snapshot {
            None => Shown {
                what: What::Active,
                size_bytes: header.size_bytes,
                l1: header.l1,
            },
            Some(name) => find_snapshot(io, file, &header, name).await?,
        };
        let (geometry, sizes) = geometry(&header, shown.size_bytes, options)?;
        let l1 = load_l1(io, file, shown.l1).await?;
        let bitmaps = match shown.what {
            What::Active => load_bitmaps(io, file, &header).await?,
            What::Snapshot => Vec::new(),
        };
        Ok(Image {
            header,
            l1,
            geometry,
            sizes,
            write: options.write,
            shown,
            bitmaps,
        })
    }

    /// Does `file` begin like an image?
    pub async fn is_one(io: &Io, file: NodeId) -> Result<bool, Errno> {
        let mem = Mem::zeroed(PREFIX_BYTES).ok_or(Errno::NOMEM)?;
        read_or_zeroes(io, file, 0, mem.clone()).await?;
        let mut prefix = [0; PREFIX_BYTES];
        mem.load(0, &mut prefix);
        Ok(!matches!(
            Header::cluster_bytes_of(&prefix),
            Err(HeaderError::Magic)
        ))
    }

    /// Did its last writer not close it? Then its refcounts are not to be trusted. (A corrupt image is not repaired unasked.)
    pub fn needs_repair(&self) -> bool {
        self.header.incompatible.dirty && !self.header.incompatible.corrupt
    }

    /// Is its guest data in another file?
    pub fn has_data_file(&self) -> bool {
        self.header.incompatible.data_file
    }

    /// The name of that file, if it is stored.
    pub fn data_file(&self) -> Option<&str> {
        self.header.data_file.as_deref()
    }

    /// What its directory says of its bitmaps, and what they are measured by.
    pub(crate) fn bitmaps(&self) -> (Vec<Bitmap>, Of) {
        (self.bitmaps.clone(), of(&self.header))
    }

    /// The backing file it names.
    pub fn backing(&self) -> Option<&Backing> {
        self.header.backing.as_ref()
    }

    /// The driver, for an image of which `storage` is known (the node that guest data is in). Errors: ENOMEM for the caches;
    /// a corrupt image that is to be written.
    pub fn driver(self, storage: Info, access: Access) -> Result<Qcow2, Qcow2Error> {
        let Image {
            header,
            l1,
            geometry,
            sizes,
            write,
            shown,
            bitmaps,
        } = self;
        if access == Access::ReadWrite && header.incompatible.corrupt {
            return Err(Qcow2Error::Corrupt);
        }
        if access == Access::ReadWrite && shown.what == What::Snapshot {
            return Err(Qcow2Error::SnapshotReadOnly);
        }
        if let Some(words) = stale_warning(&header) {
            tracing::warn!(
                "{words}. Some clusters may be leaked, run 'qemu-img check -r' on the image file to fix."
            );
        }
        let failed = |error: std::io::Error| Qcow2Error::Caches(errno_text(&error));
        let l2 = Arc::new(Cache::new(geometry, sizes.l2_slices).map_err(failed)?);
        let every = |s| clean_every(&l2, Duration::from_secs(u64::from(s)));
        let cleaning = sizes.clean_interval_s.map(every).transpose();
        let cleaning = cleaning.map_err(failed)?;
        let discard_bytes = geometry.cluster_bytes() as u32;
        let slices = shown.size_bytes.div_ceil(geometry.slice_guest_bytes());
        Ok(Qcow2 {
            geometry,
            size_bytes: AtomicU64::new(shown.size_bytes),
            limits: Limits {
                discard_bytes,
                ..storage.limits
            },
            access,
            l2,
            _cleaning: cleaning,
            unpacked: Unpacked::new(header.compression, geometry.cluster_bytes()),
            writer: Writer::new(&header, write, &sizes, slices),
            state: Mutex::new(Meta::new(header, l1)),
            sparse: super::sparse::Sparse::default(),
            holds: Holds::default(),
            users: super::users::Users::default(),
            may_map_writes: AtomicBool::new(false),
            traffic: super::traffic::Traffic::default(),
            retired: AtomicBool::new(false),
            bitmaps: Bitmaps::new(bitmaps),
            told: super::damage::Told::default(),
        })
    }
}

async fn load_header(io: &Io, file: NodeId) -> Result<Header, Qcow2Error> {
    let what = "qcow2 header";
    let prefix = load(io, file, 0, PREFIX_BYTES, what).await?;
    let cluster_bytes = Header::cluster_bytes_of(&prefix)?;
    let cluster = load(io, file, 0, cluster_bytes, what).await?;
    Ok(Header::parse(&cluster, Strictness::Open)?)
}

/// The bitmaps, of which those that can be trusted fit the disk.
async fn load_bitmaps(io: &Io, file: NodeId, header: &Header) -> Result<Vec<Bitmap>, Qcow2Error> {
    let what = "bitmap directory";
    let read = read_directory(&ImageFile::new(io, file), header).await;
    let bitmaps = read.map_err(|errno| Qcow2Error::Read { what, errno })??;
    match bitmaps.iter().find(|bitmap| !bitmap.fits(of(header))) {
        None => Ok(bitmaps),
        Some(bitmap) => Err(BitmapError::TableSize(bitmap.text()).into()),
    }
}

/// The snapshot of that id, or else of that name (as `qemu-img convert -l`).
async fn find_snapshot(
    io: &Io,
    file: NodeId,
    header: &Header,
    name: &str,
) -> Result<Shown, Qcow2Error> {
    let table = read_snapshots(&ImageFile::new(io, file), header).await;
    let (table, _) = table.map_err(Qcow2Error::Snapshots)?;
    let by_id = table.iter().find(|snapshot| snapshot.id == name.as_bytes());
    let by_name = || {
        let mut all = table.iter();
        all.find(|snapshot| snapshot.name == name.as_bytes())
    };
    let found = by_id.or_else(by_name);
    let found = found.ok_or_else(|| Qcow2Error::NoSnapshot(name.to_owned()))?;
    found.check_l1(header.cluster_bytes())?;
    let size_bytes = found.size_bytes.unwrap_or(header.size_bytes) & !(SECTOR_BYTES - 1);
    if size_bytes > SIZE_BYTES_MAX {
        return Err(HeaderError::TooBig.into());
    }
    if u64::from(found.l1.count) < header.l1_entries_for(size_bytes) {
        return Err(HeaderError::L1TooSmall.into());
    }
    Ok(Shown {
        what: What::Snapshot,
        size_bytes,
        l1: found.l1,
    })
}

async fn load_l1(io: &Io, file: NodeId, l1: TableAt) -> Result<Vec<u64>, Qcow2Error> {
    let what = "L1 table";
    // At most 32 MiB: the header is checked.
    let len = l1.count as usize * 8;
    let file_bytes = io.graph().info(file).map_or(0, |info| info.size_bytes);
    if len > 0 && l1.at >= file_bytes {
        return Err(Qcow2Error::PastEnd(what));
    }
    let bytes = load(io, file, l1.at, len, what).await?;
    let words = bytes.as_chunks().0.iter();
    Ok(words.map(|word| u64::from_be_bytes(*word)).collect())
}

/// `len` bytes from `at` on; zeroes past the end.
async fn load(
    io: &Io,
    file: NodeId,
    at: u64,
    len: usize,
    what: &'static str,
) -> Result<Vec<u8>, Qcow2Error> {
    if len == 0 {
        return Ok(Vec::new());
    }
    let failed = |errno| Qcow2Error::Read { what, errno };
    let mem = Mem::zeroed(len).ok_or(failed(Errno::NOMEM))?;
    let read = read_or_zeroes(io, file, at, mem.clone()).await;
    read.map_err(failed)?;
    let mut bytes = vec![0; len];
    mem.load(0, &mut bytes);
    Ok(bytes)
}

fn geometry(
    header: &Header,
    size_bytes: u64,
    options: &Options,
) -> Result<(Geometry, CacheSizes), SizeError> {
    let layout = Layout {
        cluster_bits: header.cluster_bits,
        words: match header.incompatible.extended_l2 {
            false => Words::One,
            true => Words::Two,
        },
        data: match header.incompatible.data_file {
            false => DataIn::Image,
            true => DataIn::DataFile,
        },
        zero_flag: match header.version {
            Version::V2 => ZeroFlag::Unknown,
            Version::V3 => ZeroFlag::Known,
        },
    };
    let any = Geometry::new(layout, header.cluster_bits);
    let sizes = options.cache.sizes(&any, size_bytes)?;
    Ok((Geometry::new(layout, sizes.slice_bits), sizes))
}
