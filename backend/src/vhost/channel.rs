//! The back end's own channel to the front end (SET_BACKEND_REQ_FD): tells it that the configuration space changed.
//!
//! The rule: nothing is ever awaited here. The messages ask for no reply, and a channel that is full is left alone.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use super::wire::Header;

/// VHOST_USER_BACKEND_CONFIG_CHANGE_MSG.
const CONFIG_CHANGE: u32 = 2;

/// The front end's socket for our requests.
#[derive(Debug)]
pub(super) struct Channel {
    socket: UnixStream,
}

impl Channel {
    /// Takes a descriptor sent with SET_BACKEND_REQ_FD.
    ///
    /// # Errors
    /// If it is not a Unix socket.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Channel> {
        let socket = UnixStream::from(fd);
        // Fails for any other kind of descriptor, and for a socket of another family.
        socket.peer_addr()?;
        ring::sock::set_nonblocking(socket.as_fd())?;
        Ok(Channel { socket })
    }

    /// Says that the configuration space changed. A front end that has not read the last ones reads it when it does.
    ///
    /// # Errors
    /// If the front end has closed the channel.
    pub(super) fn config_changed(&mut self) -> io::Result<()> {
        let header = Header::request(CONFIG_CHANGE, 0);
        // Twelve bytes are one buffer of the socket: they go whole or not at all.
        match self.socket.write(&header.to_bytes()) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }
}
