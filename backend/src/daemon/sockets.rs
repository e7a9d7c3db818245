//! Where front ends knock: paths bound here and unlinked at the end, and sockets passed by whoever started us.

use crate::cli::{ExportAddress, NbdAddress};
use crate::export::Socket;
use crate::process::{connected_socket, error_text, listening_socket, stream_listener};
use ring::inherited::Inherited;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// `sizeof(sun_path)`
const PATH_BYTES_MAX: usize = 108;

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

fn bind(path: &Path) -> Result<(UnixListener, BoundPath), String> {
    let shown = path.display();
    if path.as_os_str().len() > PATH_BYTES_MAX {
        return Err(format!("UNIX socket path '{shown}' is too long"));
    }
    remove_stale(path)
        .map_err(|e| format!("Failed to unlink socket {shown}: {}", error_text(&e)))?;
    let failed = |e| format!("Failed to bind socket to {shown}: {}", error_text(&e));
    let listener = UnixListener::bind(path).map_err(failed)?;
    let bound = BoundPath::new(path).map_err(failed)?;
    Ok((listener, bound))
}

/// A socket left behind by a process that was killed is in the way; anything else at the path is not ours to remove.
fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => fs::remove_file(path),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
