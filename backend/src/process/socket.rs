//! Inherited descriptors as vhost-user sockets, checked to be what they should be.

use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use ring::inherited::Inherited;
use rustix::net::{AddressFamily, SocketType, sockopt};
use thiserror::Error;

/// A descriptor is not the socket it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SocketError {
    /// Not open when the process started, taken by another export, or not a socket. In QSD's words.
    #[error("File descriptor '{0}' is not a socket")]
    NotASocket(RawFd),
    /// A socket of another family or type.
    #[error("File descriptor '{0}' is not a UNIX stream socket")]
    NotUnixStream(RawFd),
    /// Connected or fresh where a listening one is needed.
    #[error("File descriptor '{0}' is not a listening socket")]
    NotListening(RawFd),
    /// Listening or fresh where a connected one is needed.
    #[error("File descriptor '{0}' is not a connected socket")]
    NotConnected(RawFd),
}

/// Takes descriptor `fd` as a socket that front ends connect to.
///
/// # Errors
/// What it is instead; it is closed then.
pub fn listening_socket(inherited: &mut Inherited, fd: RawFd) -> Result<UnixListener, SocketError> {
    let socket = unix_stream(inherited, fd)?;
    match sockopt::socket_acceptconn(&socket) {
        Ok(true) => Ok(socket.into()),
        _ => Err(SocketError::NotListening(fd)),
    }
}

/// Takes descriptor `fd` as a stream socket of any family that clients connect to.
///
/// # Errors
/// What it is instead; it is closed then.
pub fn stream_listener(inherited: &mut Inherited, fd: RawFd) -> Result<OwnedFd, SocketError> {
    let socket = inherited.take(fd).ok_or(SocketError::NotASocket(fd))?;
    let kind = sockopt::socket_type(&socket).map_err(|_| SocketError::NotASocket(fd))?;
    match sockopt::socket_acceptconn(&socket) {
        Ok(true) if kind == SocketType::STREAM => Ok(socket),
        _ => Err(SocketError::NotListening(fd)),
    }
}

/// Takes descriptor `fd` as a socket with a front end at its other end.
///
/// # Errors
/// What it is instead; it is closed then.
pub fn connected_socket(inherited: &mut Inherited, fd: RawFd) -> Result<UnixStream, SocketError> {
    let socket = unix_stream(inherited, fd)?;
    match rustix::net::getpeername(&socket) {
        Ok(_) => Ok(socket.into()),
        Err(_) => Err(SocketError::NotConnected(fd)),
    }
}

/// Takes descriptor `fd` as a stream socket of any family with a server at its other end.
///
/// # Errors
/// What it is instead; it is closed then.
pub fn connected_stream(inherited: &mut Inherited, fd: RawFd) -> Result<OwnedFd, SocketError> {
    let socket = inherited.take(fd).ok_or(SocketError::NotASocket(fd))?;
    let kind = sockopt::socket_type(&socket).map_err(|_| SocketError::NotASocket(fd))?;
    match rustix::net::getpeername(&socket) {
        Ok(_) if kind == SocketType::STREAM => Ok(socket),
        _ => Err(SocketError::NotConnected(fd)),
    }
}

fn unix_stream(inherited: &mut Inherited, fd: RawFd) -> Result<OwnedFd, SocketError> {
    let socket = inherited.take(fd).ok_or(SocketError::NotASocket(fd))?;
    let kind = sockopt::socket_type(&socket).map_err(|_| SocketError::NotASocket(fd))?;
    let domain = sockopt::socket_domain(&socket).map_err(|_| SocketError::NotASocket(fd))?;
    match (domain, kind) {
        (AddressFamily::UNIX, SocketType::STREAM) => Ok(socket),
        _ => Err(SocketError::NotUnixStream(fd)),
    }
}
