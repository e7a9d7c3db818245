//! A connection during the handshake: reads and writes that wait, but not for ever.
//!
//! The rule: exactly what was asked for is read and not a byte more, so that nothing a client sent in the clear can be
//! taken for something it sent encrypted, or for a request.

use super::transport::Transport;
use ring::stream::Piece;
use rustls::ServerConfig;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Why a handshake ended without agreement.
#[derive(Debug, thiserror::Error)]
pub(super) enum Gone {
    /// The client closed, or the socket failed.
    #[error("the connection broke off: {0}")]
    Broken(#[from] io::Error),
    /// It took too long.
    #[error("the handshake took longer than it may")]
    TooSlow,
    /// The server closes.
    #[error("the server is going")]
    Stopped,
    /// The client said goodbye.
    #[error("the client aborted")]
    Aborted,
    /// The client did what none may, or what cannot be answered.
    #[error("{0}")]
    Protocol(String),
}

/// What is thrown away at once.
const SKIP_BYTES: usize = 16 << 10;

/// A connection during the handshake.
#[derive(Debug)]
pub(super) struct Line {
    transport: Transport,
    deadline: Option<Instant>,
    /// Readable once the connection is to end.
    bell: RawFd,
}

impl Line {
    /// Until `deadline`, or until `bell` (kept open by the caller) rings.
    pub(super) fn new(transport: Transport, deadline: Option<Instant>, bell: RawFd) -> Line {
        Line {
            transport,
            deadline,
            bell,
        }
    }

    /// The handshake is over.
    pub(super) fn into_transport(self) -> Transport {
        self.transport
    }

    /// Is it encrypted?
    pub(super) fn is_encrypted(&self) -> bool {
        self.transport.is_encrypted()
    }

    /// Encrypts from here on. Errors: whatever the two ends could not agree on.
    pub(super) fn start_tls(mut self, config: Arc<ServerConfig>) -> Result<Line, Gone> {
        self.transport = self.transport.into_tls(config)?;
        loop {
            match self.transport.shake_hands() {
                Ok(()) => return Ok(self),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let output = !self.transport.is_flushed();
                    self.wait(if output { libc::POLLOUT } else { libc::POLLIN })?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    pub(super) fn read(&mut self, mut to: &mut [u8]) -> Result<(), Gone> {
        while !to.is_empty() {
            match self.transport.receive(to) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(len) => to = &mut to[len..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(libc::POLLIN)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    pub(super) fn skip(&mut self, len_bytes: u64) -> Result<(), Gone> {
        let mut scratch = [0; SKIP_BYTES];
        let mut left = len_bytes;
        while left > 0 {
            let len = left.min(SKIP_BYTES as u64) as usize;
            self.read(&mut scratch[..len])?;
            left -= len as u64;
        }
        Ok(())
    }

    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<(), Gone> {
        while !bytes.is_empty() {
            match self.transport.send([Piece::Bytes(bytes)].into_iter()) {
                Ok(len) => bytes = &bytes[len..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(libc::POLLOUT)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        while !self.transport.is_flushed() {
            match self.transport.flush() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(libc::POLLOUT)?;
                }
                done => done?,
            }
        }
        Ok(())
    }

    fn wait(&self, events: libc::c_short) -> Result<(), Gone> {
        let timeout = match self.deadline {
            None => None,
            Some(deadline) => match deadline.saturating_duration_since(Instant::now()) {
                Duration::ZERO => return Err(Gone::TooSlow),
                left => Some(left),
            },
        };
        let entry = |fd, events| libc::pollfd {
            fd,
            events,
            revents: 0,
        };
        let socket = self.transport.socket().as_raw_fd();
        let mut fds = [entry(socket, events), entry(self.bell, libc::POLLIN)];
        match ring::sys::poll(&mut fds, timeout) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error.into()),
            _ if fds[1].revents != 0 => Err(Gone::Stopped),
            _ => Ok(()),
        }
    }
}
