//! Where front ends knock: paths bound here and unlinked at the end, and sockets passed by whoever started us.

use crate::cli::{ExportAddress, NbdAddress, Tight};
use crate::export::Socket;
use crate::process::{connected_socket, error_text, listening_socket, stream_listener};
use ring::inherited::Inherited;
use rustix::io::Errno;
use rustix::net::addr::SocketAddrArg;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// `sizeof(sun_path)`
const PATH_BYTES_MAX: usize = 108;
/// Clients that may wait to be let in.
const BACKLOG: i32 = 128;
/// How long to wait for a place in a server's queue before asking again.
const FULL_QUEUE_PAUSE: Duration = Duration::from_millis(20);

/// A path we bound; unlinked when dropped, unless somebody else has bound it since.
#[derive(Debug)]
pub(super) struct BoundPath {
    /// Absolute, since the working directory may change.
    path: PathBuf,
    /// Device and inode.
    socket: (u64, u64),
}

impl BoundPath {
    /// Errors: those of getcwd(2) and stat(2).
    fn new(path: &Path) -> io::Result<BoundPath> {
        let path = std::path::absolute(path)?;
        let socket = identity(&path)?;
        Ok(BoundPath { path, socket })
    }
}

impl Drop for BoundPath {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.socket) {
            // Somebody else may have taken it away already.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

/// Opens an export's socket. Errors: in QSD's words.
pub(super) fn open(
    address: &ExportAddress,
    inherited: &mut Inherited,
) -> Result<(Socket, Option<BoundPath>), String> {
    match address {
        ExportAddress::Unix(path) => {
            let (listener, bound) = bind(path)?;
            Ok((Socket::Listening(listener), Some(bound)))
        }
        ExportAddress::ListeningFd(fd) => {
            let listener = listening_socket(inherited, *fd).map_err(|e| e.to_string())?;
            Ok((Socket::Listening(listener), None))
        }
        ExportAddress::ConnectedFd(fd) => {
            let stream = connected_socket(inherited, *fd).map_err(|e| e.to_string())?;
            Ok((Socket::Connected(stream), None))
        }
    }
}

/// Opens the sockets that NBD clients knock at. Errors: in QSD's words.
pub(super) fn listen(
    address: &NbdAddress,
    inherited: &mut Inherited,
) -> Result<(Vec<OwnedFd>, Option<BoundPath>), String> {
    match address {
        NbdAddress::Unix(path) => {
            let (listener, bound) = bind(path)?;
            Ok((vec![listener.into()], Some(bound)))
        }
        NbdAddress::Inet(address) => Ok((super::inet::listen(address)?, None)),
        NbdAddress::ListeningFd(fd) => {
            let listener = stream_listener(inherited, *fd).map_err(|e| e.to_string())?;
            Ok((vec![listener], None))
        }
    }
}

pub(super) fn bind(path: &Path) -> Result<(UnixListener, BoundPath), String> {
    let shown = path.display();
    if path.as_os_str().len() > PATH_BYTES_MAX {
        return Err(too_long(&shown, PATH_BYTES_MAX));
    }
    remove_stale(path)
        .map_err(|e| format!("Failed to unlink socket {shown}: {}", error_text(&e)))?;
    let failed = |e| format!("Failed to bind socket to {shown}: {}", error_text(&e));
    let listener = UnixListener::bind(path).map_err(failed)?;
    let bound = BoundPath::new(path).map_err(failed)?;
    Ok((listener, bound))
}

/// Listens at a name without a file. Errors: in QSD's words.
pub(super) fn bind_abstract(name: &str, tight: Tight) -> Result<OwnedFd, String> {
    let address = abstract_address(name, tight)?;
    let bind = || -> io::Result<OwnedFd> {
        let socket = unix_socket(SocketFlags::CLOEXEC)?;
        net::bind(&socket, &address)?;
        net::listen(&socket, BACKLOG)?;
        Ok(socket)
    };
    bind().map_err(|e| format!("Failed to bind socket to {name}: {}", error_text(&e)))
}

/// Connects to a path. Errors: in QSD's words.
pub(super) fn connect(path: &Path, stop: Option<RawFd>) -> Result<OwnedFd, String> {
    let shown = path.display();
    if path.as_os_str().len() > PATH_BYTES_MAX {
        return Err(too_long(&shown, PATH_BYTES_MAX));
    }
    let connect = || connect_to(&SocketAddrUnix::new(path)?, stop);
    connect().map_err(|e| format!("Failed to connect to '{shown}': {}", error_text(&e)))
}

/// Connects to a name without a file. Errors: in QSD's words.
pub(super) fn connect_abstract(
    name: &str,
    tight: Tight,
    stop: Option<RawFd>,
) -> Result<OwnedFd, String> {
    let address = abstract_address(name, tight)?;
    let connected = connect_to(&address, stop);
    connected.map_err(|e| format!("Failed to connect to '{name}': {}", error_text(&e)))
}

fn abstract_address(name: &str, tight: Tight) -> Result<SocketAddrUnix, String> {
    // The NUL before it takes one.
    if name.len() >= PATH_BYTES_MAX {
        return Err(too_long(&name, PATH_BYTES_MAX - 1));
    }
    let mut bytes = name.as_bytes().to_vec();
    if tight == Tight::No {
        bytes.resize(PATH_BYTES_MAX - 1, 0);
    }
    SocketAddrUnix::new_abstract_name(&bytes).map_err(|e| error_text(&e.into()))
}

fn too_long(path: &dyn std::fmt::Display, bytes_max: usize) -> String {
    format!("UNIX socket path '{path}' is too long\nPath must be less than {bytes_max} bytes")
}

fn unix_socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    Ok(socket)
}

/// Connects, however long that takes, or until `stop` is readable. Errors: those of connect(2), Interrupted by `stop`.
pub(super) fn connect_to(address: &impl SocketAddrArg, stop: Option<RawFd>) -> io::Result<OwnedFd> {
    let family = address_family(address);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = net::socket_with(family, SocketType::STREAM, flags, None)?;
    loop {
        match net::connect(&socket, address) {
            Ok(()) | Err(Errno::ISCONN) => return Ok(socket),
            Err(Errno::INPROGRESS | Errno::ALREADY) => {
                wait(&[socket.as_raw_fd()], libc::POLLOUT, stop, None)?;
                sockopt::socket_error(&socket)??;
            }
            // A UNIX socket whose queue is full: there is nothing to poll.
            Err(Errno::AGAIN) => wait(&[], 0, stop, Some(FULL_QUEUE_PAUSE))?,
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn address_family(address: &impl SocketAddrArg) -> AddressFamily {
    address.as_any().address_family()
}

/// Waits until one of `fds` is ready or the time is over. Errors: Interrupted once `stop` is readable.
pub(super) fn wait(
    fds: &[RawFd],
    events: i16,
    stop: Option<RawFd>,
    timeout: Option<Duration>,
) -> io::Result<()> {
    let pollfd = |fd, events| libc::pollfd {
        fd,
        events,
        revents: 0,
    };
    let mut polled: Vec<_> = fds.iter().map(|fd| pollfd(*fd, events)).collect();
    polled.extend(stop.map(|fd| pollfd(fd, libc::POLLIN)));
    ring::sys::poll(&mut polled, timeout)?;
    let stopped = polled.iter().skip(fds.len()).any(|p| p.revents != 0);
    match stopped {
        true => Err(io::ErrorKind::Interrupted.into()),
        false => Ok(()),
    }
}

/// A socket left behind by a process that was killed is in the way; anything else at the path is not ours to remove.
fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => fs::remove_file(path),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
