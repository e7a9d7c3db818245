//! What the kernel says of a file or block device as a place for a disk: sizes, alignments, holes.
//!
//! The rule: every answer is about the open descriptor, never about a name, so nothing can change between the two.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

// linux/fs.h: _IO(0x12, n); they carry an int or unsigned int whatever their type says.
const BLKSSZGET: libc::Ioctl = 0x1268;
const BLKIOOPT: libc::Ioctl = 0x1279;
const BLKPBSZGET: libc::Ioctl = 0x127b;

/// A block device's own units, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockUnits {
    /// Smallest addressable unit.
    pub logical_bytes: u32,
    /// Unit it writes without reading first.
    pub physical_bytes: u32,
    /// Preferred size of a streaming transfer, 0 if it does not say.
    pub optimal_bytes: u32,
}

/// Asks a block device for its units. Errors: ENOTTY for anything else.
pub fn block_units(fd: BorrowedFd<'_>) -> io::Result<BlockUnits> {
    Ok(BlockUnits {
        logical_bytes: ask(fd, BLKSSZGET)?,
        physical_bytes: ask(fd, BLKPBSZGET)?,
        optimal_bytes: ask(fd, BLKIOOPT)?,
    })
}

fn ask(fd: BorrowedFd<'_>, what: libc::Ioctl) -> io::Result<u32> {
    let mut answer: libc::c_uint = 0;
    // SAFETY: each of the three requests writes one int to where the pointer shows, and that is `answer`.
    let ret = unsafe { libc::ioctl(fd.as_raw_fd(), what, &raw mut answer) };
    if ret < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(answer)
}

/// What direct I/O on a file must be multiples of, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectUnits {
    /// Memory addresses.
    pub memory_bytes: u32,
    /// File offsets and lengths.
    pub offset_bytes: u32,
}

/// What the file says of direct I/O (STATX_DIOALIGN); `None` where kernel or file system do not say (before Linux 6.1)
/// or the file does not support it.
pub fn direct_units(fd: BorrowedFd<'_>) -> Option<DirectUnits> {
    let mut about = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: an empty name with AT_EMPTY_PATH means the descriptor itself; the struct is ours to fill.
    let ret = unsafe {
        libc::statx(
            fd.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            about.as_mut_ptr(),
        )
    };
    // SAFETY: plain integers, all zero to begin with: valid whatever the kernel did.
    let about = unsafe { about.assume_init() };
    let told = ret == 0 && about.stx_mask & libc::STATX_DIOALIGN != 0;
    (told && about.stx_dio_offset_align != 0).then_some(DirectUnits {
        memory_bytes: about.stx_dio_mem_align,
        offset_bytes: about.stx_dio_offset_align,
    })
}

/// Where the file is, at an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Data up to there (at least one byte).
    Data {
        /// One past the last byte.
        end: u64,
    },
    /// A hole up to there (at least one byte), or to the end of the file and beyond.
    Hole {
        /// One past the last byte; `None`: there is no data any more.
        end: Option<u64>,
    },
}

/// Is there data at `at`, and for how long is that so? May block on metadata, and moves the descriptor's position,
/// which nothing else here uses. Errors: EINVAL where the file does not know holes.
pub fn extent(fd: BorrowedFd<'_>, at: u64) -> io::Result<Extent> {
    let data = match seek(fd, at, libc::SEEK_DATA) {
        Ok(data) => data,
        // lseek(2): "ENXIO: whence is SEEK_DATA, and offset is within a hole at the end of the file" or beyond it.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
            return Ok(Extent::Hole { end: None });
        }
        Err(error) => return Err(error),
    };
    if data > at {
        return Ok(Extent::Hole { end: Some(data) });
    }
    let hole = seek(fd, at, libc::SEEK_HOLE)?;
    // A file cut short between the two calls, or a special file that answers anything at all.
    if data < at || hole <= at {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    Ok(Extent::Data { end: hole })
}

fn seek(fd: BorrowedFd<'_>, at: u64, whence: i32) -> io::Result<u64> {
    let at =
        libc::off_t::try_from(at).map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))?;
    // SAFETY: no pointer is passed.
    let found = unsafe { libc::lseek(fd.as_raw_fd(), at, whence) };
    u64::try_from(found).map_err(|_| io::Error::last_os_error())
}

/// Makes the file that long (ftruncate); may block. Errors: EINVAL for what has no size of its own or is open for reading
/// only, EFBIG, ENOSPC, EPERM for a sealed file.
pub fn set_size(fd: BorrowedFd<'_>, size_bytes: u64) -> io::Result<()> {
    let size =
        libc::off_t::try_from(size_bytes).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    // SAFETY: no pointer is passed.
    let ret = unsafe { libc::ftruncate(fd.as_raw_fd(), size) };
    if ret < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Turns O_NONBLOCK off again: io_uring would take it for "never wait", even on files that always can be waited for.
pub fn set_blocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointer is passed.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: no pointer is passed.
    let ret = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags & !libc::O_NONBLOCK) };
    if ret < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    #[test]
    fn extents_tell_data_from_holes_and_the_end() {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(1 << 20).expect("sparse");
        file.write_all_at(&[1; 4096], 64 << 10).expect("written");
        let at = |at| extent(file.as_fd(), at).expect("an answer");
        assert_eq!(
            at(0),
            Extent::Hole {
                end: Some(64 << 10)
            }
        );
        assert_eq!(
            at(64 << 10),
            Extent::Data {
                end: (64 << 10) + 4096
            }
        );
        assert_eq!(at(128 << 10), Extent::Hole { end: None });
        assert_eq!(at(1 << 30), Extent::Hole { end: None });
    }

    #[test]
    fn a_regular_file_has_no_block_units_and_a_pipe_no_extents() {
        let file = tempfile::tempfile().expect("a file");
        assert!(block_units(file.as_fd()).is_err());
        let null = File::open("/dev/null").expect("open");
        assert!(extent(null.as_fd(), 4096).is_err());
    }
}
