//! Raw vhost-user messages over a unix socket: any header, payload and descriptors out; replies in, with a deadline.
//!
//! Nothing is checked on the way out: a hostile front end is the point.

use std::io::{self, Read, Write};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::patience;

/// Message numbers of the vhost-user protocol ("Front-end message types").
#[allow(missing_docs, reason = "the names are the protocol's own")]
pub mod req {
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const RESET_OWNER: u32 = 4;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_LOG_BASE: u32 = 6;
    pub const SET_LOG_FD: u32 = 7;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const SEND_RARP: u32 = 19;
    pub const NET_SET_MTU: u32 = 20;
    pub const SET_BACKEND_REQ_FD: u32 = 21;
    pub const IOTLB_MSG: u32 = 22;
    pub const SET_VRING_ENDIAN: u32 = 23;
    pub const GET_CONFIG: u32 = 24;
    pub const SET_CONFIG: u32 = 25;
    pub const POSTCOPY_ADVISE: u32 = 28;
    pub const GET_INFLIGHT_FD: u32 = 31;
    pub const SET_INFLIGHT_FD: u32 = 32;
    pub const RESET_DEVICE: u32 = 34;
    pub const VRING_KICK: u32 = 35;
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
    pub const SET_STATUS: u32 = 39;
    pub const GET_STATUS: u32 = 40;
    pub const SET_DEVICE_STATE_FD: u32 = 42;
}

/// Header flags: the version every message carries, and the two bits beside it.
pub const VERSION_1: u32 = 1;
/// Set in replies.
pub const REPLY: u32 = 4;
/// Asks for an acknowledgement of a message that has no reply of its own.
pub const NEED_REPLY: u32 = 8;

/// Bytes of a message header: request, flags, payload size.
pub const HEADER_BYTES: usize = 12;

/// A reply as it came, unchecked.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The message number it answers.
    pub request: u32,
    /// Header flags.
    pub flags: u32,
    /// The payload.
    pub payload: Vec<u8>,
}

impl Reply {
    /// The payload as a little-endian u64, or the four bytes at `offset` of it.
    pub fn u64(&self) -> io::Result<u64> {
        match self.payload.first_chunk::<8>() {
            Some(bytes) => Ok(u64::from_le_bytes(*bytes)),
            None => Err(io::Error::other(format!(
                "reply to {} is {} bytes, wanted 8",
                self.request,
                self.payload.len()
            ))),
        }
    }
}

/// One connection to a back end.
#[derive(Debug)]
pub struct Wire {
    socket: UnixStream,
}

impl Wire {
    /// Connects to the listening socket at `path`.
    pub fn connect(path: &Path) -> io::Result<Wire> {
        let socket = UnixStream::connect(path)?;
        socket.set_read_timeout(Some(patience()))?;
        socket.set_write_timeout(Some(patience()))?;
        Ok(Wire { socket })
    }

    /// Sends bytes as they are, with `fds` attached to the first of them.
    pub fn send_raw(&self, bytes: &[u8], fds: &[RawFd]) -> io::Result<()> {
        if fds.is_empty() {
            return (&self.socket).write_all(bytes);
        }
        let sent = self
            .socket
            .send_with_fds(&[bytes], fds)
            .map_err(|e| io::Error::from_raw_os_error(e.errno()))?;
        (&self.socket).write_all(&bytes[sent..])
    }

    /// Sends one message whose header tells the truth about its payload.
    pub fn send(&self, request: u32, flags: u32, payload: &[u8], fds: &[RawFd]) -> io::Result<()> {
        self.send_raw(
            &message(request, VERSION_1 | flags, payload.len() as u32, payload),
            fds,
        )
    }

    /// Receives one message. `UnexpectedEof` or `ConnectionReset` mean closed, `WouldBlock` that the time was up.
    pub fn recv(&self) -> io::Result<Reply> {
        let mut header = [0u8; HEADER_BYTES];
        (&self.socket).read_exact(&mut header)?;
        self.rest(header)
    }

    fn rest(&self, header: [u8; HEADER_BYTES]) -> io::Result<Reply> {
        let word = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let size_bytes = word(8) as usize;
        if size_bytes > 4096 {
            return Err(io::Error::other(format!("reply of {size_bytes} bytes")));
        }
        let mut payload = vec![0u8; size_bytes];
        (&self.socket).read_exact(&mut payload)?;
        Ok(Reply {
            request: word(0),
            flags: word(4),
            payload,
        })
    }

    /// Receives one message and a descriptor that may come with it.
    pub fn recv_with_fd(&self) -> io::Result<(Reply, Option<OwnedFd>)> {
        let mut header = [0u8; HEADER_BYTES];
        let (got, file) = self.socket.recv_with_fd(&mut header)?;
        (&self.socket).read_exact(&mut header[got..])?;
        Ok((self.rest(header)?, file.map(OwnedFd::from)))
    }

    /// Waits at most `limit` for the peer to close; bytes that come first are thrown away.
    pub fn closed_within(&self, limit: Duration) -> bool {
        self.socket.set_read_timeout(Some(limit)).unwrap();
        let mut sink = [0u8; 512];
        let closed = loop {
            match (&self.socket).read(&mut sink) {
                Ok(0) => break true,
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => break e.kind() == io::ErrorKind::ConnectionReset,
            }
        };
        self.socket.set_read_timeout(Some(patience())).unwrap();
        closed
    }

    /// Says that nothing more will come; the peer reads end of file.
    pub fn stop_talking(&self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Write);
    }

    /// Sends messages until the peer takes no more, and reads none of its replies.
    pub fn flood(&self, bytes: &[u8]) {
        self.socket.set_nonblocking(true).unwrap();
        while (&self.socket).write_all(bytes).is_ok() {}
        self.socket.set_nonblocking(false).unwrap();
    }
}

impl std::os::fd::AsRawFd for Wire {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Whether an error says that the back end closed the connection.
pub fn is_closed(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe)
}

/// The bytes of a message whose header says what it is told to.
pub fn message(request: u32, flags: u32, size_bytes: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = words32(&[request, flags, size_bytes]);
    bytes.extend_from_slice(payload);
    bytes
}

/// Little-endian bytes of 32-bit words.
pub fn words32(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// Little-endian bytes of 64-bit words.
pub fn words64(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// Payload of GET_CONFIG and SET_CONFIG.
pub fn config_payload(offset: u32, flags: u32, bytes: &[u8]) -> Vec<u8> {
    let mut payload = words32(&[offset, bytes.len() as u32, flags]);
    payload.extend_from_slice(bytes);
    payload
}
