//! Messages as bytes and descriptors on a socket.
//!
//! The rule: a message is read exactly, header then body, and never more than its header says; descriptors are owned
//! from the moment they arrive.

use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use ring::sock;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::CONFIG_BYTES_MAX;

/// The longest body any message we know may have: a configuration access.
pub(super) const BODY_BYTES_MAX: usize = 12 + CONFIG_BYTES_MAX;

const HEADER_BYTES: usize = 12;
// vhost-user.rst, "Message Specification": "Lower 2 bits are the version (currently 0x01); Bit 2 is the reply flag;
// Bit 3 is the need_reply flag".
const FLAG_VERSION: u32 = 0x1;
const FLAG_REPLY: u32 = 0x4;
const FLAG_NEED_REPLY: u32 = 0x8;

/// A message's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) code: u32,
    pub(super) flags: u32,
    pub(super) body_bytes: u32,
}

impl Header {
    /// Of a request that wants no acknowledgement.
    pub(super) fn request(code: u32, body_bytes: u32) -> Header {
        let flags = FLAG_VERSION;
        Header {
            code,
            flags,
            body_bytes,
        }
    }

    /// As `request`, with an acknowledgement.
    pub(super) fn request_with_ack(code: u32, body_bytes: u32) -> Header {
        let flags = FLAG_VERSION | FLAG_NEED_REPLY;
        Header {
            code,
            flags,
            body_bytes,
        }
    }

    /// Of the reply to a request.
    pub(super) fn reply(code: u32, body_bytes: u32) -> Header {
        let flags = FLAG_VERSION | FLAG_REPLY;
        Header {
            code,
            flags,
            body_bytes,
        }
    }

    pub(super) fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&self.code.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.flags.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.body_bytes.to_ne_bytes());
        bytes
    }

    fn from_bytes(bytes: [u8; HEADER_BYTES]) -> Header {
        let word = |at: usize| {
            u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        Header {
            code: word(0),
            flags: word(4),
            body_bytes: word(8),
        }
    }

    /// True if its flags are those of a request: the version, and perhaps a wish for an acknowledgement.
    pub(super) fn is_request(&self) -> bool {
        self.flags & !FLAG_NEED_REPLY == FLAG_VERSION
    }

    pub(super) fn wants_ack(&self) -> bool {
        self.flags & FLAG_NEED_REPLY != 0
    }

    /// True if it replies to a request with that code.
    pub(super) fn replies_to(&self, code: u32) -> bool {
        self.code == code && self.flags == FLAG_VERSION | FLAG_REPLY
    }
}

/// A message as it came.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) header: Header,
    pub(super) body: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
}

/// Why no message could be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReceiveError {
    #[error("the peer hung up")]
    HungUp,
    #[error("the peer hung up in the middle of a message")]
    Partial,
    #[error("message {code} has a body of {body_bytes} bytes")]
    TooLong { code: u32, body_bytes: u32 },
    #[error("message {code} has flags {flags:#x}")]
    Flags { code: u32, flags: u32 },
    #[error("message {code} brings descriptors with its body, or too many")]
    StrayFds { code: u32 },
    #[error("cannot read from the socket")]
    Io(#[source] io::Error),
}

/// Reads one request, waiting for it.
pub(super) fn receive(socket: &UnixStream) -> Result<Message, ReceiveError> {
    let mut bytes = [0; HEADER_BYTES];
    let first = fill(socket, &mut bytes)?;
    let header = Header::from_bytes(bytes);
    let code = header.code;
    if first.stray {
        return Err(ReceiveError::StrayFds { code });
    }
    if !header.is_request() {
        let flags = header.flags;
        return Err(ReceiveError::Flags { code, flags });
    }
    let body = receive_body(socket, &header)?;
    Ok(Message {
        header,
        body,
        fds: first.fds,
    })
}

/// Reads the reply to a request with `code`; descriptors are not expected with one.
pub(super) fn receive_reply(socket: &UnixStream, code: u32) -> Result<Vec<u8>, ReceiveError> {
    let mut bytes = [0; HEADER_BYTES];
    fill(socket, &mut bytes)?;
    let header = Header::from_bytes(bytes);
    if !header.replies_to(code) {
        let (code, flags) = (header.code, header.flags);
        return Err(ReceiveError::Flags { code, flags });
    }
    receive_body(socket, &header)
}

fn receive_body(socket: &UnixStream, header: &Header) -> Result<Vec<u8>, ReceiveError> {
    let (code, body_bytes) = (header.code, header.body_bytes);
    if body_bytes as usize > BODY_BYTES_MAX {
        return Err(ReceiveError::TooLong { code, body_bytes });
    }
    let mut body = vec![0; body_bytes as usize];
    if body.is_empty() {
        return Ok(body);
    }
    let filled = fill(socket, &mut body).map_err(|error| match error {
        ReceiveError::HungUp => ReceiveError::Partial,
        other => other,
    })?;
    // Descriptors come with a message's first byte (libvhost-user drops any others).
    if filled.stray || !filled.fds.is_empty() {
        return Err(ReceiveError::StrayFds { code });
    }
    Ok(body)
}

#[derive(Debug, Default)]
struct Filled {
    fds: Vec<OwnedFd>,
    /// Descriptors came with a later byte than the first, or more than fit.
    stray: bool,
}

fn fill(socket: &UnixStream, buf: &mut [u8]) -> Result<Filled, ReceiveError> {
    let mut filled = Filled::default();
    let mut done = 0;
    while done < buf.len() {
        let got = sock::receive(socket.as_fd(), &mut buf[done..]).map_err(ReceiveError::Io)?;
        match (got.len_bytes, done) {
            (0, 0) => return Err(ReceiveError::HungUp),
            (0, _) => return Err(ReceiveError::Partial),
            (_, 0) => filled.fds = got.fds,
            _ => filled.stray |= !got.fds.is_empty(),
        }
        filled.stray |= got.truncated;
        done += got.len_bytes;
    }
    Ok(filled)
}

/// Sends a message, descriptors with its first byte. They stay the caller's.
pub(super) fn send(
    mut socket: &UnixStream,
    header: Header,
    body: &[u8],
    fds: &[OwnedFd],
) -> io::Result<()> {
    debug_assert_eq!(header.body_bytes as usize, body.len());
    let mut bytes = header.to_bytes().to_vec();
    bytes.extend_from_slice(body);
    if fds.is_empty() {
        return socket.write_all(&bytes);
    }
    let numbers: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let sent = socket.send_with_fds(&[&bytes[..]], &numbers)?;
    socket.write_all(&bytes[sent..])
}
