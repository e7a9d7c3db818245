//! Stream sockets that bytes go to, and come from, without a copy of them being made on the way.
//!
//! The rule: nothing here waits. What a socket does not take or have at once is EAGAIN, and a peer that is gone is an
//! error, never a signal.

use crate::buf::Mem;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Most pieces sent with one call; the rest waits for the next.
pub const PIECES_MAX: usize = 64;

/// A piece of what is to be sent.
#[derive(Clone, Copy, Debug)]
pub enum Piece<'a> {
    /// Bytes in a slice.
    Bytes(&'a [u8]),
    /// Bytes in memory that was read into.
    Mem(&'a Mem),
}

/// Sends the beginning of `pieces`, one after the other; returns how many bytes the socket took.
///
/// # Errors
/// Those of sendmsg(2), EAGAIN if it takes nothing now; EINTR is retried.
pub fn send<'a>(
    socket: BorrowedFd<'_>,
    pieces: impl Iterator<Item = Piece<'a>>,
) -> io::Result<usize> {
    let mut list = [EMPTY; PIECES_MAX];
    let mut count = 0;
    let mut push = |base: *mut libc::c_void, len: usize| {
        if let Some(iov) = list.get_mut(count).filter(|_| len > 0) {
            iov.iov_base = base;
            iov.iov_len = len;
            count += 1;
        }
    };
    for piece in pieces {
        match piece {
            Piece::Bytes(bytes) => push(bytes.as_ptr().cast_mut().cast(), bytes.len()),
            Piece::Mem(mem) => mem.segs().for_each(|s| push(s.host().cast(), s.len())),
        }
    }
    // SAFETY: a msghdr is plain numbers and pointers; all zeroes (null pointers, lengths 0) is a valid one.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = list.as_mut_ptr();
    message.msg_iovlen = count as _;
    retry(|| {
        // SAFETY: every iovec is a slice or a segment of memory that the caller's pieces keep alive over the call, and
        // sendmsg only reads them.
        unsafe {
            libc::sendmsg(
                socket.as_raw_fd(),
                &raw const message,
                libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT,
            )
        }
    })
}

const EMPTY: libc::iovec = libc::iovec {
    iov_base: std::ptr::null_mut(),
    iov_len: 0,
};

/// Receives up to `to.len()` bytes into a slice; 0 means the peer has closed its end.
///
/// # Errors
/// Those of recv(2), EAGAIN if there is nothing now; EINTR is retried.
pub fn receive(socket: BorrowedFd<'_>, to: &mut [u8]) -> io::Result<usize> {
    retry(|| {
        // SAFETY: the slice is ours to write, and its length is passed.
        unsafe {
            libc::recv(
                socket.as_raw_fd(),
                to.as_mut_ptr().cast(),
                to.len(),
                libc::MSG_DONTWAIT,
            )
        }
    })
}

/// Receives up to as many bytes as the first piece of `to` has; 0 means the peer has closed its end.
///
/// # Errors
/// As [`receive`]; EINVAL if `to` is empty.
pub fn receive_mem(socket: BorrowedFd<'_>, to: &Mem) -> io::Result<usize> {
    let Some(seg) = to.segs().next() else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    retry(|| {
        // SAFETY: the segment is mapped and writable while `to` lives, and its length is passed.
        unsafe {
            libc::recv(
                socket.as_raw_fd(),
                seg.host().cast(),
                seg.len(),
                libc::MSG_DONTWAIT,
            )
        }
    })
}

fn retry(mut call: impl FnMut() -> libc::ssize_t) -> io::Result<usize> {
    loop {
        if let Ok(len) = usize::try_from(call()) {
            return Ok(len);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn pieces_arrive_in_order_and_mem_is_filled() {
        let (here, mut there) = UnixStream::pair().expect("a pair");
        let mem = Mem::zeroed(6).expect("memory");
        mem.store(0, b"middle");
        let window = mem.slice(0, 3);
        let pieces = [
            Piece::Bytes(b"<"),
            Piece::Mem(&window),
            Piece::Bytes(b""),
            Piece::Bytes(b">"),
        ];
        assert_eq!(send(here.as_fd(), pieces.into_iter()).expect("sent"), 5);
        let mut got = [0; 5];
        there.read_exact(&mut got).expect("bytes");
        assert_eq!(&got, b"<mid>");
        assert_eq!(
            send(there.as_fd(), [Piece::Bytes(b"xyz")].into_iter()).expect("sent"),
            3
        );
        assert_eq!(
            receive_mem(here.as_fd(), &mem.slice(1, 2)).expect("bytes"),
            2
        );
        let mut rest = [0; 8];
        assert_eq!(receive(here.as_fd(), &mut rest).expect("bytes"), 1);
        let mut all = [0; 6];
        mem.load(0, &mut all);
        assert_eq!(&all, b"mxydle");
    }

    #[test]
    fn a_full_or_an_empty_socket_says_so_and_a_closed_one_is_no_signal() {
        let (here, there) = UnixStream::pair().expect("a pair");
        let error = receive(here.as_fd(), &mut [0; 8]).expect_err("nothing there");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let block = [0; 4096];
        let full = loop {
            if let Err(error) = send(here.as_fd(), [Piece::Bytes(&block)].into_iter()) {
                break error;
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        drop(there);
        let gone = send(here.as_fd(), [Piece::Bytes(&block)].into_iter()).expect_err("gone");
        assert_eq!(gone.kind(), io::ErrorKind::BrokenPipe);
    }
}
