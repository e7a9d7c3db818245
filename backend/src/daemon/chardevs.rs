//! Opens character devices.

use super::inet;
use super::sockets::{self, BoundPath};
use crate::chardev::{
    Chardev, Connect, Delayed, Dialer, DialerOptions, FilePort, Listening, Name, Place, Ringbuf,
    Shown, SinkPort, SocketServer, StdioPort, Stream,
};
use crate::cli::{
    ChardevAddress, ChardevBackend, ChardevOptions, Delay, InetAddress, PROGRAM_NAME, Tight, Wait,
};
use crate::process::{connected_stream, error_text, stream_listener};
use ring::inherited::Inherited;
use rustix::net::{SocketAddrAny, SocketAddrUnix, getsockname};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

/// A character device that exists.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) id: String,
    /// Until a monitor has it.
    pub(super) device: Option<Chardev>,
    pub(super) shown: Shown,
    /// If that is what it is.
    pub(super) ringbuf: Option<Ringbuf>,
    /// Its socket, if we bound it; gone when this is.
    path: Option<BoundPath>,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Stdio,
    Other,
}

impl Held {
    fn new(id: &str, device: Chardev, shown: Shown) -> Held {
        Held {
            id: id.to_owned(),
            device: Some(device),
            shown,
            ringbuf: None,
            path: None,
            kind: Kind::Other,
        }
    }

    pub(super) fn is_stdio(&self) -> bool {
        self.kind == Kind::Stdio
    }

    pub(super) fn unlink(&mut self) {
        self.path = None;
    }
}

/// Opens a character device. Whoever has to wait for a client stops once `stop` is readable. Errors: in QSD's words.
pub(super) fn open(
    options: &ChardevOptions,
    inherited: &mut Inherited,
    stop: Option<RawFd>,
) -> Result<Held, String> {
    let id = &options.id;
    Ok(match &options.backend {
        ChardevBackend::Server { at, wait } => {
            let mut opened = listen(id, at, inherited)?;
            if *wait == Wait::Yes {
                wait_for_client(&mut opened, &options.origin, stop)?;
            }
            opened
        }
        ChardevBackend::Client { at, reconnect } => client(id, at, *reconnect, inherited, stop)?,
        ChardevBackend::Stdio { signal } => Held {
            kind: Kind::Stdio,
            ..Held::new(
                id,
                Chardev::open(StdioPort::open(*signal)),
                Shown::always("stdio"),
            )
        },
        ChardevBackend::Null => Held::new(id, Chardev::open(SinkPort::Null), Shown::always("null")),
        ChardevBackend::File { path, mode, input } => {
            let opened = FilePort::open(path, *mode, input.as_deref());
            let port = opened.map_err(|(path, error)| {
                format!(
                    "Could not open '{}': {}",
                    path.display(),
                    error_text(&error)
                )
            })?;
            Held::new(id, Chardev::open(port), Shown::always("file"))
        }
        ChardevBackend::Ringbuf { name, size_bytes } => {
            let ring = Ringbuf::new(*size_bytes);
            let device = Chardev::open(SinkPort::Ringbuf(ring.clone()));
            Held {
                ringbuf: Some(ring),
                ..Held::new(id, device, Shown::always(name))
            }
        }
    })
}

fn delayed(at: &ChardevAddress) -> Delayed {
    match at {
        ChardevAddress::Inet {
            delay: Delay::No, ..
        } => Delayed::Never,
        _ => Delayed::Maybe,
    }
}

fn listen(id: &str, at: &ChardevAddress, inherited: &mut Inherited) -> Result<Held, String> {
    let mut path = None;
    let (listeners, address) = match at {
        ChardevAddress::Unix(at) => {
            let (listener, bound) = sockets::bind(at)?;
            path = Some(bound);
            (vec![listener.into()], format!("unix:{}", at.display()))
        }
        ChardevAddress::Abstract { name, tight } => {
            let listener = sockets::bind_abstract(name, *tight)?;
            (vec![listener], abstract_name(name, *tight))
        }
        ChardevAddress::Inet { address, .. } => {
            let listeners = inet::listen(address)?;
            let bound = listeners.first().and_then(inet_address);
            let shown = bound.unwrap_or_else(|| format!("tcp:{}:{}", address.host, address.port));
            (listeners, shown)
        }
        ChardevAddress::Fd(fd) => {
            let listener = stream_listener(inherited, *fd).map_err(|e| e.to_string())?;
            let bound = inet_address(&listener).or_else(|| unix_address(&listener));
            (vec![listener], bound.unwrap_or_else(|| format!("fd:{fd}")))
        }
    };
    let name = Name::new(address, Place::Server);
    let shown = name.shown();
    let listeners = listeners.into_iter().map(Listening).collect();
    let server = SocketServer::new(listeners, name, delayed(at)).map_err(|e| e.to_string())?;
    Ok(Held {
        path,
        ..Held::new(id, Chardev::Server(server), shown)
    })
}

/// As `query-chardev` spells it.
fn inet_address(socket: &OwnedFd) -> Option<String> {
    let address = SocketAddr::try_from(getsockname(socket).ok()?).ok()?;
    Some(format!("tcp:{}:{}", address.ip(), address.port()))
}

fn unix_address(socket: &OwnedFd) -> Option<String> {
    let address: SocketAddrAny = getsockname(socket).ok()?;
    let address = SocketAddrUnix::try_from(address).ok()?;
    let path = address.path()?.to_string_lossy().into_owned();
    Some(format!("unix:{path}"))
}

fn abstract_name(name: &str, tight: Tight) -> String {
    let tight = match tight {
        Tight::Yes => ",tight=on",
        Tight::No => "",
    };
    format!("unix:{name},abstract=on{tight}")
}

/// Errors: nobody came before the process was told to end.
fn wait_for_client(held: &mut Held, origin: &str, stop: Option<RawFd>) -> Result<(), String> {
    let shown = held.shown.get();
    eprintln!("{PROGRAM_NAME}: {origin}: info: QEMU waiting for connection on: {shown}");
    let Some(Chardev::Server(server)) = &mut held.device else {
        return Ok(());
    };
    loop {
        match server.accept_early() {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(format!("cannot let a client in: {error}")),
        }
        sockets::wait(&server.fds(), libc::POLLIN, stop, None)
            .map_err(|_| "told to end before a client was there".to_owned())?;
    }
}

fn client(
    id: &str,
    at: &ChardevAddress,
    reconnect: Option<Duration>,
    inherited: &mut Inherited,
    stop: Option<RawFd>,
) -> Result<Held, String> {
    let name = Name::new(client_name(at), Place::Client);
    let shown = name.shown();
    let delay = delayed(at);
    if let Some(pause) = reconnect {
        let at = at.clone();
        let connect: Connect = Arc::new(move || connect(&at, None));
        let dialer = Dialer::new(DialerOptions {
            id: id.to_owned(),
            connect,
            name,
            delay,
            pause,
        });
        let dialer = dialer.map_err(|e| e.to_string())?;
        return Ok(Held::new(id, Chardev::Client(dialer), shown));
    }
    let socket = match at {
        ChardevAddress::Fd(fd) => connected_stream(inherited, *fd).map_err(|e| e.to_string())?,
        _ => connect(at, stop)?,
    };
    let stream = Stream::new(socket, name, delay).map_err(|e| e.to_string())?;
    Ok(Held::new(id, Chardev::open(stream), shown))
}

fn client_name(at: &ChardevAddress) -> String {
    match at {
        ChardevAddress::Unix(path) => format!("unix:{}", path.display()),
        ChardevAddress::Abstract { name, tight } => abstract_name(name, *tight),
        ChardevAddress::Inet { address, .. } => format!("tcp:{}:{}", address.host, address.port),
        ChardevAddress::Fd(fd) => format!("fd:{fd}"),
    }
}

/// Connects, however long that takes, or until `stop` is readable. Errors: in QSD's words.
fn connect(at: &ChardevAddress, stop: Option<RawFd>) -> Result<OwnedFd, String> {
    match at {
        ChardevAddress::Unix(path) => sockets::connect(path, stop),
        ChardevAddress::Abstract { name, tight } => sockets::connect_abstract(name, *tight, stop),
        ChardevAddress::Inet { address, .. } => connect_inet(address, stop),
        ChardevAddress::Fd(fd) => Err(format!("File descriptor '{fd}' is used up")),
    }
}

fn connect_inet(address: &InetAddress, stop: Option<RawFd>) -> Result<OwnedFd, String> {
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for target in inet::targets(address)? {
        match sockets::connect_to(&target, stop) {
            Ok(socket) => return Ok(socket),
            Err(error) => failure = error,
        }
    }
    let (host, port) = (&address.host, &address.port);
    let why = error_text(&failure);
    Err(format!("Failed to connect to '{host}:{port}': {why}"))
}
