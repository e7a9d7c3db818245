//! Byte locks that belong to an open file description (OFD): the ones image tools use to keep out of each other's way.
//!
//! The rule: only shared locks are ever taken; whether somebody else holds one is asked by testing for an exclusive one.
//! A lock lives until it is given up or the last descriptor of the open file is closed.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Takes a shared lock on one byte; never waits. Errors: EAGAIN while somebody holds it exclusively, EINVAL on kernels
/// and file systems without such locks, ENOLCK.
pub fn share(fd: BorrowedFd<'_>, byte: u64) -> io::Result<()> {
    control(fd, libc::F_OFD_SETLK, libc::F_RDLCK, byte).map(|_| ())
}

/// Gives up what this open file holds on one byte.
pub fn release(fd: BorrowedFd<'_>, byte: u64) -> io::Result<()> {
    control(fd, libc::F_OFD_SETLK, libc::F_UNLCK, byte).map(|_| ())
}

/// Does another open file hold any lock on the byte?
pub fn held_by_others(fd: BorrowedFd<'_>, byte: u64) -> io::Result<bool> {
    let found = control(fd, libc::F_OFD_GETLK, libc::F_WRLCK, byte)?;
    Ok(i32::from(found) != libc::F_UNLCK)
}

fn control(fd: BorrowedFd<'_>, command: i32, kind: i32, byte: u64) -> io::Result<libc::c_short> {
    let l_start =
        libc::off_t::try_from(byte).map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))?;
    let mut lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start,
        l_len: 1,
        // fcntl(2), open file description locks: l_pid "must be set to zero".
        l_pid: 0,
    };
    // SAFETY: the struct is ours and outlives the call.
    let ret = unsafe { libc::fcntl(fd.as_raw_fd(), command, &raw mut lock) };
    if ret < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(lock.l_type)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn shared_locks_are_seen_by_others_and_not_by_their_holder() {
        let one = tempfile::NamedTempFile::new().expect("a file");
        let other = File::open(one.path()).expect("opened again");
        let (a, b) = (one.as_file().as_fd(), other.as_fd());
        share(a, 101).expect("taken");
        assert!(held_by_others(b, 101).expect("asked"));
        assert!(!held_by_others(a, 101).expect("asked"));
        assert!(!held_by_others(b, 100).expect("asked"));
        share(b, 101).expect("shared with the first");
        release(a, 101).expect("given up");
        assert!(!held_by_others(b, 101).expect("asked"));
        assert!(held_by_others(a, 101).expect("asked"));
    }
}
