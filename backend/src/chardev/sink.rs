//! Ports at which nothing ever comes in: those of `null`, which forgets what is written, and of `ringbuf`, which keeps it.

use super::{AfterInput, Port, Ringbuf};
use std::io;
use std::os::fd::{OwnedFd, RawFd};

/// Where what is written goes.
#[derive(Debug)]
pub enum SinkPort {
    /// Nowhere.
    Null,
    /// There.
    Ringbuf(Ringbuf),
}

impl Port for SinkPort {
    fn read_fd(&self) -> Option<RawFd> {
        None
    }

    fn write_fd(&self) -> Option<RawFd> {
        None
    }

    fn after_input(&self) -> AfterInput {
        AfterInput::Written
    }

    fn read(&mut self, _: &mut [u8], _: &mut Vec<OwnedFd>) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            SinkPort::Null => {}
            SinkPort::Ringbuf(ring) => ring.write(bytes),
        }
        Ok(bytes.len())
    }
}
