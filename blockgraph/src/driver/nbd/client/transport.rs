//! A connected socket, plain or with TLS on it, that never blocks.
//!
//! The rule: `recv` and `send` move what can be moved now; who has to wait polls for what [`Transport::interest`] says.

use crate::tls::TlsClient;
use ring::Bell;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};
use rustls::ClientConnection;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

/// A way to a server.
#[derive(Debug)]
pub(super) struct Transport {
    socket: OwnedFd,
    tls: Option<Box<ClientConnection>>,
}

/// What a wait was ended by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Woken {
    /// The socket can go on, or time is over, or the bell rang.
    Maybe,
    /// The deadline.
    Late,
}

/// The socket as std's traits see it, for TLS.
struct Plain<'a>(&'a OwnedFd);

impl Read for Plain<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::net::recv(self.0, to, RecvFlags::DONTWAIT)?.0)
    }
}

impl Write for Plain<'_> {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(from)])
    }

    fn write_vectored(&mut self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let mut nothing = SendAncillaryBuffer::default();
        Ok(rustix::net::sendmsg(self.0, from, &mut nothing, flags)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn later(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

impl Transport {
    pub(super) fn new(socket: OwnedFd) -> Transport {
        Transport { socket, tls: None }
    }

    /// Speaks TLS from here on; the handshake happens with the first bytes. Errors: the library's.
    pub(super) fn start_tls(&mut self, tls: &TlsClient) -> Result<(), rustls::Error> {
        self.tls = Some(Box::new(tls.session()?));
        Ok(())
    }

    /// Is the TLS handshake still to be done?
    pub(super) fn is_shaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_handshaking())
    }

    /// Goes on with the TLS handshake as far as that goes now. Errors: as [`Transport::recv`].
    pub(super) fn shake(&mut self) -> io::Result<()> {
        self.push()?;
        while self.is_shaking() {
            if !self.read_tls()? {
                return Ok(());
            }
            self.push()?;
        }
        Ok(())
    }

    /// Reads some of what TLS is made of; false: not now.
    fn read_tls(&mut self) -> io::Result<bool> {
        let Some(tls) = &mut self.tls else {
            return Ok(false);
        };
        match tls.read_tls(&mut Plain(&self.socket)) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if later(&error) => return Ok(false),
            Err(error) => return Err(error),
        }
        if let Err(error) = tls.process_new_packets() {
            // Tell the server why, if it still listens.
            let _ = tls.write_tls(&mut Plain(&self.socket));
            return Err(io::Error::new(ErrorKind::InvalidData, error));
        }
        Ok(true)
    }

    /// Some bytes; `None`: not now. Errors: recv(2)'s, `UnexpectedEof` at the end, `InvalidData` of TLS.
    pub(super) fn recv(&mut self, to: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            let Some(tls) = &mut self.tls else {
                return match Plain(&self.socket).read(to) {
                    Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
                    Ok(len) => Ok(Some(len)),
                    Err(error) if later(&error) => Ok(None),
                    Err(error) => Err(error),
                };
            };
            match tls.reader().read(to) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(len) => return Ok(Some(len)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if !self.read_tls()? {
                return Ok(None);
            }
        }
    }

    /// Takes some bytes of `parts`, from their beginning; 0: not now. Errors: sendmsg(2)'s.
    pub(super) fn send(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match &mut self.tls {
            None => match Plain(&self.socket).write_vectored(parts) {
                Err(error) if later(&error) => Ok(0),
                sent => sent,
            },
            Some(tls) => {
                let taken = tls.writer().write_vectored(parts)?;
                self.push()?;
                Ok(taken)
            }
        }
    }

    /// Sends what TLS has ready, as far as that goes now. Errors: sendmsg(2)'s.
    pub(super) fn push(&mut self) -> io::Result<()> {
        let Some(tls) = &mut self.tls else {
            return Ok(());
        };
        while tls.wants_write() {
            match tls.write_tls(&mut Plain(&self.socket)) {
                Ok(_) => {}
                Err(error) if later(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What to poll for: always to read; to write if `more` is to be sent, or TLS has something of its own.
    fn interest(&self, more: bool) -> PollFlags {
        let tls = self.tls.as_ref().is_some_and(|tls| tls.wants_write());
        match more || tls {
            true => PollFlags::IN | PollFlags::OUT,
            false => PollFlags::IN,
        }
    }

    /// Waits until the socket can go on, `bell` rings, or `deadline`. Errors: poll(2)'s.
    pub(super) fn wait(
        &self,
        more: bool,
        bell: &Bell,
        deadline: Option<Instant>,
    ) -> io::Result<Woken> {
        let interest = self.interest(more);
        let mut fds = [
            PollFd::from_borrowed_fd(self.socket.as_fd(), interest),
            PollFd::from_borrowed_fd(bell.as_fd(), PollFlags::IN),
        ];
        wait_for(&mut fds, deadline)
    }

    /// The end of TLS and of the connection, as far as the peer listens.
    pub(super) fn close(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
        }
        // Nothing can be done about a peer that is gone.
        let _ = self.push();
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }
}

/// poll(2) with a deadline. Errors: its own but EINTR.
pub(super) fn wait_for(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<Woken> {
    let timeout = match deadline {
        None => None,
        Some(deadline) => {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Woken::Late);
            }
            Some(Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            })
        }
    };
    match poll(fds, timeout.as_ref()) {
        Ok(0) => Ok(Woken::Late),
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(Woken::Maybe),
        Err(error) => Err(error.into()),
    }
}
