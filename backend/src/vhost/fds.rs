//! What kind of descriptor a front end has sent us.
//!
//! The rule: a descriptor of the wrong kind is refused before anything reads, writes or maps it: /dev/zero as a kick
//! never runs dry, a pipe as a call blocks, a FIFO cannot be mapped.

use std::fs::{File, read_link};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

/// True if it is an eventfd.
pub(super) fn is_eventfd(fd: BorrowedFd<'_>) -> bool {
    read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
        .is_ok_and(|target| target.as_os_str() == "anon_inode:[eventfd]")
}

/// What there is to know of a file that is to be mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MemoryFile {
    pub(super) len_bytes: u64,
    /// What offsets and lengths of mappings must be multiples of: the huge page size on hugetlbfs.
    pub(super) page_bytes: u64,
}

/// The largest page there is (x86-64: 1 GiB); a file system that claims more is not believed.
const PAGE_BYTES_MAX: u64 = 1 << 30;
pub(super) const PAGE_BYTES: u64 = 4096;

impl MemoryFile {
    /// Looks at a descriptor; `None` if it is not a regular file (a memfd, hugetlbfs and tmpfs are).
    pub(super) fn of(fd: &OwnedFd) -> io::Result<Option<MemoryFile>> {
        let file = File::from(fd.as_fd().try_clone_to_owned()?);
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Ok(None);
        }
        // hugetlbfs reports its page size as the block size; other file systems are content with rounding to theirs.
        let block = metadata.blksize();
        let sound = block.is_power_of_two() && (PAGE_BYTES..=PAGE_BYTES_MAX).contains(&block);
        Ok(Some(MemoryFile {
            len_bytes: metadata.len(),
            page_bytes: if sound { block } else { PAGE_BYTES },
        }))
    }
}
