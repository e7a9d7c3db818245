//! Character devices: where a monitor's bytes come from and go to (`--chardev`).
//!
//! The rule: nothing here blocks. A device that has nothing to read, or no room to write, says so and is polled.

mod client;
mod file;
mod ringbuf;
mod shown;
mod sink;
mod socket;
mod stdio;

pub use client::{Connect, Dialer, DialerOptions};
pub use file::FilePort;
pub use ringbuf::Ringbuf;
pub use shown::{Name, Place, Shown};
pub use sink::SinkPort;
pub use socket::{Delayed, Listening, SocketServer, Stream};
pub use stdio::StdioPort;

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::time::Instant;

/// A character device, before somebody has connected to it.
#[derive(Debug)]
pub enum Chardev {
    /// `socket`, `server=on`: one client at a time, the next waits in the queue.
    Server(SocketServer),
    /// `socket` with `reconnect`: connects again and again.
    Client(Dialer),
    /// Open from the beginning, and once it is over, over for good.
    Open(Option<Box<dyn Port>>),
}

impl Chardev {
    /// One that is open from the beginning.
    pub fn open(port: impl Port + 'static) -> Chardev {
        Chardev::Open(Some(Box::new(port)))
    }

    /// What to poll for somebody at the other end.
    pub fn fds(&self) -> Vec<RawFd> {
        match self {
            Chardev::Server(server) => server.fds(),
            Chardev::Client(dialer) => vec![dialer.fd()],
            Chardev::Open(_) => Vec::new(),
        }
    }

    /// When to look again without being woken.
    pub fn due(&self) -> Option<Instant> {
        match self {
            Chardev::Client(dialer) => dialer.due(),
            Chardev::Server(server) if server.has_first() => Some(Instant::now()),
            Chardev::Server(_) | Chardev::Open(_) => None,
        }
    }

    /// Whoever was at the other end is gone.
    pub fn ended(&mut self) {
        if let Chardev::Client(dialer) = self {
            dialer.restart();
        }
    }

    /// Whoever is at the other end now. Errors: WouldBlock if nobody is; out of descriptors.
    pub fn let_in(&mut self) -> io::Result<Box<dyn Port>> {
        match self {
            Chardev::Server(server) => Ok(Box::new(server.accept()?)),
            Chardev::Client(dialer) => Ok(Box::new(dialer.connection()?)),
            Chardev::Open(port) => port.take().ok_or(io::ErrorKind::WouldBlock.into()),
        }
    }
}

/// Is anything to be written once nothing more comes?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterInput {
    /// Whoever read it is gone.
    Over,
    /// As ever: the two ways have nothing to do with each other.
    Written,
}

/// What an open character device does.
pub trait Port: Send + std::fmt::Debug {
    /// What to poll for reading, if it can be.
    fn read_fd(&self) -> Option<RawFd>;

    /// What to poll for writing.
    fn write_fd(&self) -> Option<RawFd>;

    /// What the end of its input means.
    fn after_input(&self) -> AfterInput;

    /// Reads what is there; 0 is the end. Descriptors that came with it are added to `fds`. Errors: WouldBlock if nothing is there.
    fn read(&mut self, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize>;

    /// Writes what there is room for. Errors: WouldBlock if there is none.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;
}
