//! What kind of descriptor a front end has sent us.
//!
//! The rule: a descriptor of the wrong kind is refused before anything reads, writes or maps it: /dev/zero as a kick
//! never runs dry, a pipe as a call blocks, a FIFO cannot be mapped.

use std::fs::{File, read_link, read_to_string};
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
    /// Looks at a descriptor; `None` if it is not a regular file of this machine (a memfd, hugetlbfs and tmpfs are).
    pub(super) fn of(fd: &OwnedFd) -> io::Result<Option<MemoryFile>> {
        // Before anything else: a file server may let even the question for a file's size hang.
        if is_served_by_others(fd)? {
            return Ok(None);
        }
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

/// True for a file whose pages another process or machine hands out, or withholds: every access to such memory could
/// hang, and the front end may be that process.
fn is_served_by_others(fd: &OwnedFd) -> io::Result<bool> {
    let info = read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    let Some(mount) = mount.map(str::trim) else {
        return Ok(false);
    };
    // A memfd is on a mount of the kernel's own, which is not in the list.
    let mounts = read_to_string("/proc/self/mountinfo")?;
    Ok(mounts.lines().any(|line| is_remote_mount(line, mount)))
}

/// True if the line of mountinfo (proc_pid_mountinfo(5)) is that mount's, and of a file system that asks others.
fn is_remote_mount(line: &str, mount: &str) -> bool {
    let Some((place, kind)) = line.split_once(" - ") else {
        return false;
    };
    let kind = kind.split(' ').next().unwrap_or_default();
    let family = kind.split('.').next().unwrap_or_default();
    let remote = [
        "fuse", "fuseblk", "virtiofs", "9p", "nfs", "nfs4", "cifs", "smb3", "ceph", "afs",
    ];
    place.split(' ').next() == Some(mount) && remote.contains(&family)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_remote_by_its_own_line_and_kind() {
        let line = |id: &str, kind: &str| {
            format!("{id} 27 0:21 / /mnt rw,nosuid shared:7 - {kind} server rw")
        };
        assert!(is_remote_mount(&line("36", "fuse.sshfs"), "36"));
        assert!(is_remote_mount(&line("36", "nfs4"), "36"));
        assert!(!is_remote_mount(&line("136", "fuse"), "36"));
        for kind in ["tmpfs", "hugetlbfs", "ext4", "fusectl"] {
            assert!(!is_remote_mount(&line("36", kind), "36"), "{kind}");
        }
        assert!(!is_remote_mount("", "36"));
    }
}
