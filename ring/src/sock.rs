//! Unix sockets that carry file descriptors, and the three calls around them that std does not have.
//!
//! The rule: a descriptor that arrives is owned from the first instant, so that whatever happens next closes it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Most descriptors taken with one call. The kernel closes those beyond and says so ([`Received::truncated`]).
pub const FDS_MAX: usize = 16;

/// `struct cmsghdr`: a `usize` length, then level and type.
const CMSG_HEADER_BYTES: usize = size_of::<libc::cmsghdr>();
const CONTROL_BYTES: usize = CMSG_HEADER_BYTES + FDS_MAX * size_of::<i32>();
const _: () = assert!(
    CMSG_HEADER_BYTES == size_of::<usize>() + 2 * size_of::<i32>(),
    "read_control reads the header by hand"
);

/// What one receive call brought.
#[derive(Debug, Default)]
pub struct Received {
    /// Bytes put into the buffer; 0 means the peer has closed its end.
    pub len_bytes: usize,
    /// Descriptors that came with them, close-on-exec.
    pub fds: Vec<OwnedFd>,
    /// The peer sent more descriptors than [`FDS_MAX`], or more than this process may have open.
    pub truncated: bool,
}

#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

/// Receives up to `buf.len()` bytes and the descriptors sent with them, waiting for at least one byte.
///
/// # Errors
/// Those of recvmsg(2), except EINTR, which is retried.
pub fn receive(socket: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<Received> {
    let mut control = Control([0; CONTROL_BYTES]);
    let mut iov = libc::iovec {
        iov_base: buf.as_mut_ptr().cast(),
        iov_len: buf.len(),
    };
    // SAFETY: a msghdr is plain numbers and pointers; all zeroes (null pointers, lengths 0) is a valid one.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    loop {
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = CONTROL_BYTES as _;
        // SAFETY: `message` points at one iovec over `buf` and at `control`, with their true lengths; all outlive it.
        let len =
            unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
        if let Ok(len_bytes) = usize::try_from(len) {
            let used = (message.msg_controllen as usize).min(CONTROL_BYTES);
            return Ok(Received {
                len_bytes,
                fds: read_control(&control.0[..used]),
                truncated: message.msg_flags & libc::MSG_CTRUNC != 0,
            });
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Takes ownership of every descriptor in the control messages the kernel wrote.
fn read_control(mut control: &[u8]) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    while let Some((header, _)) = control.split_at_checked(CMSG_HEADER_BYTES) {
        let (len, kind) = header.split_at(size_of::<usize>());
        let len = usize::from_ne_bytes(len.try_into().unwrap_or_default()).min(control.len());
        let rights = kind[..4] == libc::SOL_SOCKET.to_ne_bytes()
            && kind[4..] == libc::SCM_RIGHTS.to_ne_bytes();
        if len < CMSG_HEADER_BYTES {
            break;
        }
        for number in control[CMSG_HEADER_BYTES..len].chunks_exact(size_of::<i32>()) {
            if rights {
                let number = i32::from_ne_bytes(number.try_into().unwrap_or_default());
                // SAFETY: the kernel has just installed this descriptor for us, and nobody else knows its number.
                fds.push(unsafe { OwnedFd::from_raw_fd(number) });
            }
        }
        let next = len.next_multiple_of(size_of::<usize>());
        control = control.get(next..).unwrap_or_default();
    }
    fds
}

/// The process that connected the other end of a Unix stream socket (SO_PEERCRED).
///
/// # Errors
/// Those of getsockopt(2).
pub fn peer_pid(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut peer = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `peer` and `len` are ours, and `len` is the size of `peer`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut len,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    u32::try_from(peer.pid).map_err(io::Error::other)
}

/// Makes reads and writes of a descriptor return at once. Whoever shares the open file sees it too.
///
/// # Errors
/// Those of fcntl(2).
pub fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: F_GETFL takes no pointer.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    if flags & libc::O_NONBLOCK != 0 {
        return Ok(());
    }
    // SAFETY: F_SETFL takes an integer.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_message_without_descriptors_brings_none() {
        let (mut here, there) = UnixStream::pair().unwrap();
        here.write_all(b"abc").unwrap();
        let mut buf = [0; 8];
        let got = receive(there.as_fd(), &mut buf).unwrap();
        assert_eq!((got.len_bytes, got.fds.len(), got.truncated), (3, 0, false));
        assert_eq!(&buf[..3], b"abc");
    }

    #[test]
    fn a_closed_peer_reads_as_zero_bytes() {
        let (here, there) = UnixStream::pair().unwrap();
        drop(here);
        assert_eq!(receive(there.as_fd(), &mut [0; 8]).unwrap().len_bytes, 0);
    }

    #[test]
    fn the_peer_of_a_pair_is_this_process() {
        let (here, _there) = UnixStream::pair().unwrap();
        assert_eq!(peer_pid(here.as_fd()).unwrap(), std::process::id());
    }

    #[test]
    fn a_nonblocking_socket_with_nothing_to_read_says_so() {
        let (mut here, _there) = UnixStream::pair().unwrap();
        set_nonblocking(here.as_fd()).unwrap();
        set_nonblocking(here.as_fd()).unwrap();
        let error = here.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn control_bytes_cut_anywhere_are_no_panic() {
        // A header that claims more than there is, and every prefix of it: no descriptor is made up.
        let mut bytes = 4096usize.to_ne_bytes().to_vec();
        bytes.extend([1u8, 0, 0, 0, 7, 0, 0, 0, 9, 9]);
        for cut in 0..=bytes.len() {
            assert!(read_control(&bytes[..cut]).is_empty());
        }
    }
}
