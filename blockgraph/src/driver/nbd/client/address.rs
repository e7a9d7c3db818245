//! Where a server is, and how to get there without waiting for ever.

use super::error::ClientError;
use super::transport::{Woken, wait_for};
use crate::graph::errno_text;
use ring::Bell;
use rustix::event::{PollFd, PollFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with, sockopt};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Server {
    /// A unix socket.
    Unix(PathBuf),
    /// An internet address.
    Inet(Inet),
    /// A connected socket by number, which the control thread was given for this ([`crate::graph::Resources`]).
    Passed(i32),
    /// A socket that was connected by somebody else; once lost, it cannot be had again.
    Connected(Connected),
}

/// An internet address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inet {
    /// A name or a number.
    pub host: String,
    /// A number; a service's name is not looked up.
    pub port: String,
    /// Whether the host may be a name.
    pub lookup: Lookup,
    /// Which of the host's addresses to try.
    pub family: Family,
    /// Whether a host that vanished is missed while nothing is asked of it.
    pub keep_alive: KeepAlive,
}

/// Whether hosts have names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// They may.
    Names,
    /// Only numbers.
    Never,
}

/// Whether idle connections are probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepAlive {
    /// After a minute.
    On,
    /// Never.
    Off,
}

/// Which internet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Whichever answers.
    Any,
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
}

/// A socket passed to us, to be used once.
#[derive(Clone, Debug)]
pub struct Connected(pub Arc<OwnedFd>);

impl PartialEq for Connected {
    fn eq(&self, other: &Connected) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Connected {}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Server::Unix(path) => write!(f, "{}", path.display()),
            Server::Inet(inet) => write!(f, "{}:{}", inet.host, inet.port),
            Server::Passed(fd) => write!(f, "{fd}"),
            Server::Connected(socket) => write!(f, "{}", socket.0.as_raw_fd()),
        }
    }
}

/// An idle connection is probed after this long: a host that vanished is noticed within a minute and a half.
const KEEP_IDLE: Duration = Duration::from_secs(60);
const KEEP_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_PROBES: u32 = 3;

impl Server {
    /// May a lost connection be made again?
    pub(super) fn can_reconnect(&self) -> bool {
        !matches!(self, Server::Connected(_) | Server::Passed(_))
    }

    /// Connects by `deadline`, or until `stop` rings. Errors: in QEMU's words.
    pub(super) fn connect(&self, stop: &Bell, deadline: Instant) -> Result<OwnedFd, ClientError> {
        let refusal = |cause: io::Error| ClientError::Connect {
            to: self.to_string(),
            cause,
        };
        match self {
            Server::Unix(path) => {
                let address =
                    rustix::net::SocketAddrUnix::new(path).map_err(|e| refusal(e.into()))?;
                attempt(AddressFamily::UNIX, &address, stop, deadline).map_err(refusal)
            }
            Server::Inet(inet) => {
                let mut last = io::ErrorKind::NotFound.into();
                for address in inet.resolve()? {
                    match inet.connect(address, stop, deadline) {
                        Ok(socket) => return Ok(socket),
                        Err(error) => last = error,
                    }
                }
                Err(refusal(last))
            }
            Server::Connected(socket) => socket.0.try_clone().map_err(refusal),
            Server::Passed(fd) => {
                let text = format!("File descriptor '{fd}' is not a socket");
                Err(ClientError::Unusable(text))
            }
        }
    }
}

impl Inet {
    fn resolve(&self) -> Result<Vec<SocketAddr>, ClientError> {
        let refusal = |why: String| ClientError::Resolve {
            to: format!("{}:{}", self.host, self.port),
            why,
        };
        let Ok(port) = self.port.parse::<u16>() else {
            return Err(refusal("Servname not supported for ai_socktype".to_owned()));
        };
        if self.lookup == Lookup::Never && self.host.parse::<IpAddr>().is_err() {
            return Err(refusal("Name or service not known".to_owned()));
        }
        let found = (self.host.as_str(), port).to_socket_addrs();
        let found = found.map_err(|error| {
            let text = errno_text(&error);
            let prefix = "failed to lookup address information: ";
            refusal(text.strip_prefix(prefix).unwrap_or(&text).to_owned())
        })?;
        let wanted = |address: &SocketAddr| match self.family {
            Family::Any => true,
            Family::V4 => address.is_ipv4(),
            Family::V6 => address.is_ipv6(),
        };
        let found: Vec<SocketAddr> = found.filter(wanted).collect();
        match found.is_empty() {
            true => Err(refusal(
                "Address family for hostname not supported".to_owned(),
            )),
            false => Ok(found),
        }
    }

    fn connect(&self, to: SocketAddr, stop: &Bell, deadline: Instant) -> io::Result<OwnedFd> {
        let family = match to {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let socket = attempt(family, &to, stop, deadline)?;
        sockopt::set_tcp_nodelay(&socket, true)?;
        if self.keep_alive == KeepAlive::On {
            sockopt::set_socket_keepalive(&socket, true)?;
            sockopt::set_tcp_keepidle(&socket, KEEP_IDLE)?;
            sockopt::set_tcp_keepintvl(&socket, KEEP_INTERVAL)?;
            sockopt::set_tcp_keepcnt(&socket, KEEP_PROBES)?;
        }
        Ok(socket)
    }
}

fn attempt(
    family: AddressFamily,
    address: &impl rustix::net::addr::SocketAddrArg,
    stop: &Bell,
    deadline: Instant,
) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let protocol = match family {
        AddressFamily::UNIX => None,
        _ => Some(ipproto::TCP),
    };
    let socket = socket_with(family, SocketType::STREAM, flags, protocol)?;
    loop {
        match rustix::net::connect(&socket, address) {
            Ok(()) => return Ok(socket),
            Err(rustix::io::Errno::INPROGRESS | rustix::io::Errno::INTR) => break,
            // A unix socket whose backlog is full says so instead of being in progress.
            Err(rustix::io::Errno::AGAIN) => pause(stop, deadline)?,
            Err(error) => return Err(error.into()),
        }
    }
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::OUT),
            PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
        ];
        if wait_for(&mut fds, Some(deadline))? == Woken::Late {
            return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
        }
        if !fds[1].revents().is_empty() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        if !fds[0].revents().is_empty() {
            sockopt::socket_error(&socket)??;
            return Ok(socket);
        }
    }
}

/// A little while, unless `stop` rings. Errors: it rang, or it is too late.
fn pause(stop: &Bell, deadline: Instant) -> io::Result<()> {
    let end = deadline.min(Instant::now() + Duration::from_millis(20));
    let mut fds = [PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN)];
    match wait_for(&mut fds, Some(end))? {
        Woken::Maybe => Err(io::ErrorKind::Interrupted.into()),
        Woken::Late if end == deadline => Err(io::Error::from_raw_os_error(libc::ETIMEDOUT)),
        Woken::Late => Ok(()),
    }
}
