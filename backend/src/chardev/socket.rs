//! Stream sockets as character devices.

use super::shown::Name;
use super::{AfterInput, Port};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendFlags,
    SocketFlags, accept_with, recvmsg, sendmsg,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

/// Descriptors that one message may bring (Linux: SCM_MAX_FD is 253; QEMU takes 16).
const FDS_MAX: usize = 16;

/// Listening sockets of one address.
#[derive(Debug)]
pub struct SocketServer {
    listeners: Vec<Listening>,
    name: Name,
    delay: Delayed,
    /// Let in before anybody asked.
    first: Option<Stream>,
}

/// May small pieces be held back to be sent together?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delayed {
    /// They may, or the family has no such thing.
    Maybe,
    /// They may not.
    Never,
}

/// A listening socket of either family; its path, if it has one, is its owner's to remove.
#[derive(Debug)]
pub struct Listening(pub OwnedFd);

impl SocketServer {
    /// Takes listening stream sockets. Errors: they cannot be made non-blocking.
    pub fn new(listeners: Vec<Listening>, name: Name, delay: Delayed) -> io::Result<SocketServer> {
        for listener in &listeners {
            ring::sock::set_nonblocking(listener.0.as_fd())?;
        }
        Ok(SocketServer {
            listeners,
            name,
            delay,
            first: None,
        })
    }

    /// What to poll for clients.
    pub fn fds(&self) -> Vec<RawFd> {
        let fds = self.listeners.iter();
        fds.map(|listener| listener.0.as_raw_fd()).collect()
    }

    /// Is somebody in already, whom nobody has asked for?
    pub(super) fn has_first(&self) -> bool {
        self.first.is_some()
    }

    /// Lets the next client in, to be the first that [`SocketServer::accept`] gives away. Errors: as there.
    pub fn accept_early(&mut self) -> io::Result<()> {
        self.first = Some(self.accept()?);
        Ok(())
    }

    /// Lets the next client in. Errors: WouldBlock if nobody is there; out of descriptors.
    pub fn accept(&mut self) -> io::Result<Stream> {
        if let Some(first) = self.first.take() {
            return Ok(first);
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let mut failure = io::ErrorKind::WouldBlock.into();
        for listener in &self.listeners {
            match accept_with(&listener.0, flags) {
                Ok(socket) => return Stream::new(socket, self.name.clone(), self.delay),
                Err(error) => failure = error.into(),
            }
        }
        Err(failure)
    }
}

/// A connected stream socket.
#[derive(Debug)]
pub struct Stream {
    socket: OwnedFd,
    name: Name,
}

impl Stream {
    /// Takes a connected stream socket. Errors: it cannot be made non-blocking.
    pub fn new(socket: OwnedFd, name: Name, delay: Delayed) -> io::Result<Stream> {
        ring::sock::set_nonblocking(socket.as_fd())?;
        if delay == Delayed::Never {
            // Somebody who has left already has no use for it.
            let _ = rustix::net::sockopt::set_tcp_nodelay(&socket, true);
        }
        name.connected(&socket);
        Ok(Stream { socket, name })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.name.disconnected();
    }
}

impl Port for Stream {
    fn read_fd(&self) -> Option<RawFd> {
        Some(self.socket.as_raw_fd())
    }

    fn write_fd(&self) -> Option<RawFd> {
        Some(self.socket.as_raw_fd())
    }

    fn after_input(&self) -> AfterInput {
        AfterInput::Over
    }

    fn read(&mut self, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(&self.socket, &mut slices, &mut control, flags)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        Ok(received.bytes)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut none = SendAncillaryBuffer::default();
        let slices = [IoSlice::new(bytes)];
        Ok(sendmsg(
            &self.socket,
            &slices,
            &mut none,
            SendFlags::NOSIGNAL,
        )?)
    }
}
