//! Opens an image: what it is, how large, and what its transfers must be multiples of.
//!
//! The rule: open first without blocking, then look at what the descriptor is; a name is never looked at twice.

use super::{Cache, FileDriver, FileParts, Flushes, Locking, locks::Locks};
use crate::driver::{SECTOR_BYTES, whole_sectors};
use crate::graph::{Access, FdSetError, FdSets, errno_text};
use crate::node::{Engine, FileIdentity, Limits, Origin};
use ring::sys::disk;
use ring::{Align, File, FileId};
use rustix::fs::OFlags;
use std::fs::{Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;

/// What the driver's name promises the file to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `file`: a regular file.
    Regular,
    /// `host_device`: a block device.
    Device,
}

impl Kind {
    /// The driver's name.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Regular => "file",
            Kind::Device => "host_device",
        }
    }
}

/// How to open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// For reading only.
    ReadOnly,
    /// For writing, or not at all.
    ReadWrite,
    /// For writing, or for reading only where that is not permitted (`auto-read-only=on`).
    Auto,
}

/// What to open and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileOptions {
    /// Its name, relative to the working directory.
    pub filename: PathBuf,
    /// Regular file or device.
    pub kind: Kind,
    /// For reading or writing.
    pub mode: OpenMode,
    /// Through the page cache or not.
    pub cache: Cache,
    /// What flushes do.
    pub flushes: Flushes,
    /// Locks or none.
    pub locking: Locking,
    /// How its transfers wish to be carried out.
    pub engine: Engine,
}

/// Why a file cannot be a disk; the texts are QEMU's.
#[derive(Debug, Error)]
pub enum FileError {
    /// No name at all.
    #[error("The '{driver}' block driver requires a file name")]
    NoName {
        /// The driver.
        driver: &'static str,
    },
    /// The kernel refused. (The text is complete, so the cause is not repeated as a source.)
    #[error("Could not open '{path}': {}", errno_text(cause))]
    Open {
        /// The name.
        path: String,
        /// Why.
        cause: io::Error,
    },
    /// No O_DIRECT there.
    #[error("Could not open '{path}': filesystem does not support O_DIRECT")]
    NoDirect {
        /// The name.
        path: String,
    },
    /// `file` wants a regular file.
    #[error("'file' driver requires '{path}' to be a regular file")]
    NotRegular {
        /// The name.
        path: String,
    },
    /// `host_device` wants a device.
    #[error("'host_device' driver requires '{path}' to be either a character or block device")]
    NotDevice {
        /// The name.
        path: String,
    },
    /// It has no size.
    #[error("Could not refresh total sector count: {}", errno_text(.0))]
    Size(io::Error),
    /// No such descriptor was passed.
    #[error(transparent)]
    FdSet(#[from] FdSetError),
    /// `aio=native` in the page cache.
    #[error("aio=native was specified, but it requires cache.direct=on, which was not specified.")]
    NativeCached,
}

/// Opens a file, naming it `id`; also says whether it may be written. Errors: see [`FileError`].
pub fn open(id: FileId, options: &FileOptions) -> Result<(FileDriver, Access), FileError> {
    open_or_take(id, options, &options.filename, None)
}

/// The same file as that of `before`, whatever its name leads to by now, opened anew. It takes over `before`'s locks.
pub fn reopen(
    id: FileId,
    options: &FileOptions,
    before: &FileDriver,
) -> Result<(FileDriver, Access), FileError> {
    let same = format!("/proc/self/fd/{}", before.file().as_fd().as_raw_fd());
    let (mut opened, access) = open_or_take(id, options, Path::new(&same), None)?;
    opened.succeed(before);
    Ok((opened, access))
}

/// The same, where `/dev/fdset/N` is a name of one of these sets.
pub fn open_with(
    id: FileId,
    options: &FileOptions,
    sets: &FdSets,
) -> Result<(FileDriver, Access), FileError> {
    let name = options.filename.to_str();
    let set = name.filter(|name| FdSets::is_name(name));
    let set = set.map(|name| (name, sets));
    open_or_take(id, options, &options.filename, set)
}

fn open_or_take(
    id: FileId,
    options: &FileOptions,
    at: &Path,
    set: Option<(&str, &FdSets)>,
) -> Result<(FileDriver, Access), FileError> {
    let driver = options.kind.name();
    if options.filename.as_os_str().is_empty() {
        return Err(FileError::NoName { driver });
    }
    if options.engine == Engine::Native && options.cache == Cache::Page {
        return Err(FileError::NativeCached);
    }
    let path = options.filename.display().to_string();
    let (mut file, access) = match set {
        None => open_file(options, at).map_err(|cause| refusal(options, cause))?,
        Some((name, sets)) => take_file(options, name, sets)?,
    };
    let about = file.metadata().map_err(FileError::Size)?;
    check_kind(options.kind, &about, &path)?;
    disk::set_blocking(file.as_fd()).map_err(FileError::Size)?;
    let size_bytes = file.seek(SeekFrom::End(0)).map_err(FileError::Size)?;
    let size_bytes = whole_sectors(size_bytes);
    let limits = limits(options.kind, &file, &about);
    let align = match options.cache {
        Cache::Page => Align::NONE,
        Cache::Direct => direct_align(&file, options.kind, limits),
    };
    let file = File::new(id, file.into(), align);
    let file = match options.flushes {
        Flushes::Sync => file,
        Flushes::Nothing => file.never_synced(),
    };
    let mut opened = FileDriver::from_parts(FileParts {
        file: Arc::new(file),
        kind: options.kind,
        size_bytes,
        limits,
        cache: options.cache,
        flushes: options.flushes,
    });
    opened.engine = options.engine;
    opened.locks = Locks::new(path, options.locking).map(Arc::new);
    opened.origin = Some(Origin {
        path: options.filename.clone(),
        identity: FileIdentity::of(&about),
        written: about.modified().ok().filter(|_| about.is_file()),
    });
    Ok((opened, access))
}

fn open_file(options: &FileOptions, at: &Path) -> io::Result<(std::fs::File, Access)> {
    let direct = match options.cache {
        Cache::Page => 0,
        Cache::Direct => libc::O_DIRECT,
    };
    let open = |access: Access| {
        let mut how = OpenOptions::new();
        // Without O_NONBLOCK, opening a FIFO would wait for its other end before we can see that it is one.
        how.read(true).custom_flags(libc::O_NONBLOCK | direct);
        how.write(access == Access::ReadWrite);
        Ok((how.open(at)?, access))
    };
    match options.mode {
        OpenMode::ReadOnly => open(Access::ReadOnly),
        OpenMode::ReadWrite => open(Access::ReadWrite),
        OpenMode::Auto => match open(Access::ReadWrite) {
            Err(error) if not_permitted(&error) => open(Access::ReadOnly),
            opened => opened,
        },
    }
}

/// A duplicate out of a set, opened as it is wanted.
fn take_file(
    options: &FileOptions,
    name: &str,
    sets: &FdSets,
) -> Result<(std::fs::File, Access), FileError> {
    let direct = match options.cache {
        Cache::Page => OFlags::empty(),
        Cache::Direct => OFlags::DIRECT,
    };
    let take = |access: Access| {
        let way = match access {
            Access::ReadOnly => OFlags::RDONLY,
            Access::ReadWrite => OFlags::RDWR,
        };
        let fd = sets.open(name, way | direct)?;
        Ok((std::fs::File::from(fd), access))
    };
    match options.mode {
        OpenMode::ReadOnly => take(Access::ReadOnly),
        OpenMode::ReadWrite => take(Access::ReadWrite),
        OpenMode::Auto => match take(Access::ReadWrite) {
            Err(FileError::FdSet(FdSetError::NoneFits(_))) => take(Access::ReadOnly),
            taken => taken,
        },
    }
}

fn not_permitted(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EACCES | libc::EROFS | libc::EPERM)
    )
}

fn refusal(options: &FileOptions, cause: io::Error) -> FileError {
    let path = options.filename.display().to_string();
    // open(2): "EINVAL: The filesystem does not support the O_DIRECT flag."
    if options.cache == Cache::Direct && cause.raw_os_error() == Some(libc::EINVAL) {
        return FileError::NoDirect { path };
    }
    FileError::Open { path, cause }
}

fn check_kind(kind: Kind, about: &Metadata, path: &str) -> Result<(), FileError> {
    let path = || path.to_owned();
    match kind {
        Kind::Regular if !about.is_file() => Err(FileError::NotRegular { path: path() }),
        // QEMU also takes character devices here, for tapes and SCSI generic; those are no disks to us.
        Kind::Device if !about.file_type().is_block_device() => {
            Err(FileError::NotDevice { path: path() })
        }
        _ => Ok(()),
    }
}

/// A device says what it is. A file takes any sector, but its file system writes and frees whole blocks: those are what
/// a guest should align to.
fn limits(kind: Kind, file: &std::fs::File, about: &Metadata) -> Limits {
    let power = |bytes: u32, or: u32| match bytes.is_power_of_two() && bytes >= 512 {
        true => bytes,
        false => or,
    };
    match (kind, disk::block_units(file.as_fd())) {
        (Kind::Device, Ok(units)) => {
            let logical = power(units.logical_bytes, 512);
            Limits {
                logical_block_bytes: logical,
                physical_block_bytes: power(units.physical_bytes, logical).max(logical),
                discard_bytes: discard_granularity(about.rdev()).unwrap_or(logical),
                optimal_io_bytes: units.optimal_bytes,
            }
        }
        _ => {
            let block = power(u32::try_from(about.blksize()).unwrap_or(0), 4096).min(4096);
            Limits {
                logical_block_bytes: 512,
                physical_block_bytes: block,
                discard_bytes: block,
                optimal_io_bytes: 0,
            }
        }
    }
}

/// What the kernel says of a block device's discards: 0 if it takes none. A partition has its queue one level up.
fn discard_granularity(rdev: u64) -> Option<u32> {
    let device = format!("/sys/dev/block/{}:{}", libc::major(rdev), libc::minor(rdev));
    ["queue", "../queue"].iter().find_map(|queue| {
        let file = Path::new(&device).join(queue).join("discard_granularity");
        std::fs::read_to_string(file).ok()?.trim().parse().ok()
    })
}

/// What O_DIRECT wants. The kernel checks the length of each piece of memory against the device's block as well, so
/// memory is held to the larger of the two.
fn direct_align(file: &std::fs::File, kind: Kind, limits: Limits) -> Align {
    let offset_bytes = match (disk::direct_units(file.as_fd()), kind) {
        (Some(units), _) => units.offset_bytes.max(units.memory_bytes),
        (None, Kind::Device) => limits.logical_block_bytes,
        (None, Kind::Regular) => probed_align(file),
    };
    Align {
        memory_bytes: offset_bytes,
        offset_bytes,
    }
}

/// The smallest read that works, where nobody says: 512 or a page.
fn probed_align(file: &std::fs::File) -> u32 {
    let mut memory = vec![0u8; 3 * 4096];
    let skip = memory.as_ptr().align_offset(4096);
    let sector = memory.get_mut(skip..skip + SECTOR_BYTES as usize);
    match sector.map(|sector| file.read_at(sector, 0)) {
        Some(Ok(_)) => 512,
        _ => 4096,
    }
}
