//! What `query-chardev` calls a character device: its address, and whether somebody is at the other end.

use rustix::net::{SocketAddrAny, SocketAddrUnix, getpeername, getsockname};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

/// The name, as seen from any thread.
#[derive(Clone, Debug)]
pub struct Shown(Arc<Mutex<String>>);

impl Shown {
    /// One that is never anything else.
    pub fn always(name: &str) -> Shown {
        Shown(Arc::new(Mutex::new(name.to_owned())))
    }

    /// As it is now.
    pub fn get(&self) -> String {
        let name = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        name.clone()
    }

    fn set(&self, text: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }
}

/// Which end of a socket is ours?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Others connect to us.
    Server,
    /// We connect.
    Client,
}

impl Place {
    fn suffix(self) -> &'static str {
        match self {
            Place::Server => ",server=on",
            Place::Client => "",
        }
    }
}

/// The name of a socket.
#[derive(Clone, Debug)]
pub struct Name {
    shown: Shown,
    /// `unix:/path`
    address: String,
    place: Place,
}

impl Name {
    /// Nobody is connected yet.
    pub fn new(address: String, place: Place) -> Name {
        let name = Name {
            shown: Shown::always(""),
            address,
            place,
        };
        name.disconnected();
        name
    }

    /// Where to look it up.
    pub fn shown(&self) -> Shown {
        self.shown.clone()
    }

    /// Nobody is there.
    pub(super) fn disconnected(&self) {
        let suffix = self.place.suffix();
        self.shown
            .set(format!("disconnected:{}{suffix}", self.address));
    }

    /// Somebody is.
    pub(super) fn connected(&self, socket: &OwnedFd) {
        let suffix = self.place.suffix();
        let ours = getsockname(socket).ok();
        let theirs = getpeername(socket).ok().flatten();
        let inet = |address: Option<SocketAddrAny>| SocketAddr::try_from(address?).ok();
        let ours_inet = inet(ours.clone());
        self.shown.set(match (ours_inet, inet(theirs)) {
            (Some(ours), Some(theirs)) => {
                format!("tcp:{}{suffix} <-> {}", Inet(ours), Inet(theirs))
            }
            _ => format!("unix:{}{suffix}", path(ours)),
        });
    }
}

/// The path a socket is bound to; an unbound and an abstract one have none.
fn path(address: Option<SocketAddrAny>) -> String {
    let address = address.and_then(|address| SocketAddrUnix::try_from(address).ok());
    let path = address.as_ref().and_then(|unix| unix.path());
    path.map_or(String::new(), |path| path.to_string_lossy().into_owned())
}

/// An address and a port.
struct Inet(SocketAddr);

impl std::fmt::Display for Inet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.ip() {
            IpAddr::V4(ip) => write!(f, "{ip}:{}", self.0.port()),
            IpAddr::V6(ip) => write!(f, "[{ip}]:{}", self.0.port()),
        }
    }
}
