//! A connected socket, in the clear or encrypted, that never waits.
//!
//! The rule: `WouldBlock` means that the socket has to be polled first; `Ok(0)` of a receive means that the peer is done.

use ring::Mem;
use ring::stream::{self, Piece};
use rustls::{ServerConfig, ServerConnection};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// What is encrypted at once; more waits until the socket has taken it.
const TLS_STEP_BYTES: usize = 256 << 10;
/// The largest TLS record, and so what is copied at once.
const RECORD_BYTES: usize = 16 << 10;

/// A connection's way of sending and receiving.
#[derive(Debug)]
pub(super) enum Transport {
    /// In the clear.
    Plain(OwnedFd),
    /// Encrypted.
    Tls(Box<Tls>),
}

/// An encrypted connection.
#[derive(Debug)]
pub(super) struct Tls {
    socket: OwnedFd,
    session: ServerConnection,
    scratch: Vec<u8>,
}

/// A socket as the TLS library wants it.
struct Raw<'a>(BorrowedFd<'a>);

impl Read for Raw<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        stream::receive(self.0, buf)
    }
}

impl Write for Raw<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        stream::send(self.0, [Piece::Bytes(buf)].into_iter())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Transport {
    /// The socket, to be polled.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        match self {
            Transport::Plain(socket) => socket.as_fd(),
            Transport::Tls(tls) => tls.socket.as_fd(),
        }
    }

    /// Is it encrypted?
    pub(super) fn is_encrypted(&self) -> bool {
        matches!(self, Transport::Tls(_))
    }

    /// The same socket, encrypted from here on; the TLS handshake is still to be done ([`Transport::shake_hands`]).
    /// Errors: the library's.
    pub(super) fn into_tls(self, config: Arc<ServerConfig>) -> io::Result<Transport> {
        let Transport::Plain(socket) = self else {
            return Ok(self);
        };
        let mut session = ServerConnection::new(config).map_err(io::Error::other)?;
        session.set_buffer_limit(Some(TLS_STEP_BYTES));
        Ok(Transport::Tls(Box::new(Tls {
            socket,
            session,
            scratch: vec![0; RECORD_BYTES],
        })))
    }

    /// Goes on with the TLS handshake; done when it says so. Errors: EOF, and what the peer did wrong.
    pub(super) fn shake_hands(&mut self) -> io::Result<()> {
        let Transport::Tls(tls) = self else {
            return Ok(());
        };
        while tls.session.is_handshaking() {
            tls.flush()?;
            if tls.session.is_handshaking() && !tls.pull()? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        tls.flush()
    }

    /// Receives into a slice.
    pub(super) fn receive(&mut self, to: &mut [u8]) -> io::Result<usize> {
        match self {
            Transport::Plain(socket) => stream::receive(socket.as_fd(), to),
            Transport::Tls(tls) => tls.receive(to),
        }
    }

    /// Receives into memory.
    pub(super) fn receive_mem(&mut self, to: &Mem) -> io::Result<usize> {
        match self {
            Transport::Plain(socket) => stream::receive_mem(socket.as_fd(), to),
            Transport::Tls(tls) => {
                let mut scratch = std::mem::take(&mut tls.scratch);
                let len = to.len().min(scratch.len());
                let received = tls.receive(&mut scratch[..len]);
                if let Ok(len) = received {
                    to.store(0, &scratch[..len]);
                }
                tls.scratch = scratch;
                received
            }
        }
    }

    /// Takes over the beginning of `pieces`; returns how many bytes. What was taken over and is still here goes out with
    /// [`Transport::flush`].
    pub(super) fn send<'a>(
        &mut self,
        pieces: impl Iterator<Item = Piece<'a>>,
    ) -> io::Result<usize> {
        match self {
            Transport::Plain(socket) => stream::send(socket.as_fd(), pieces),
            Transport::Tls(tls) => tls.send(pieces),
        }
    }

    /// Sends what was taken over.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        match self {
            Transport::Plain(_) => Ok(()),
            Transport::Tls(tls) => tls.flush(),
        }
    }

    /// Was everything that was taken over sent?
    pub(super) fn is_flushed(&self) -> bool {
        match self {
            Transport::Plain(_) => true,
            Transport::Tls(tls) => !tls.session.wants_write(),
        }
    }

    /// Says goodbye, if that can be done at once: a peer that hears it knows that nothing was cut off.
    pub(super) fn say_goodbye(&mut self) {
        if let Transport::Tls(tls) = self {
            tls.session.send_close_notify();
            // The socket is closed next, whether or not that went out.
            let _ = tls.flush();
        }
    }
}

impl Tls {
    /// Receives one bite of the socket's bytes; false at their end.
    fn pull(&mut self) -> io::Result<bool> {
        let len = self.session.read_tls(&mut Raw(self.socket.as_fd()))?;
        let taken = self.session.process_new_packets();
        if let Err(error) = taken {
            // The alert that says why; the peer may be gone already.
            let _ = self.flush();
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        Ok(len > 0)
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            self.session.write_tls(&mut Raw(self.socket.as_fd()))?;
        }
        Ok(())
    }

    fn receive(&mut self, to: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.session.reader().read(to) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !self.pull()? {
                        return Ok(0);
                    }
                }
                done => return done,
            }
        }
    }

    fn send<'a>(&mut self, pieces: impl Iterator<Item = Piece<'a>>) -> io::Result<usize> {
        self.flush()?;
        let mut sent = 0;
        for piece in pieces {
            let (len, whole) = match piece {
                Piece::Bytes(bytes) => (self.session.writer().write(bytes)?, bytes.len()),
                Piece::Mem(mem) => (self.encrypt(mem)?, mem.len()),
            };
            sent += len;
            if len < whole {
                break;
            }
        }
        match self.flush() {
            // Taken over all the same; `is_flushed` tells.
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(sent),
        }
    }

    fn encrypt(&mut self, mem: &Mem) -> io::Result<usize> {
        let mut done = 0;
        while done < mem.len() {
            let len = mem.load(done, &mut self.scratch);
            let taken = self.session.writer().write(&self.scratch[..len])?;
            done += taken;
            if taken < len {
                break;
            }
        }
        Ok(done)
    }
}
