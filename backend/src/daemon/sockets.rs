//! Where front ends knock: paths bound here and unlinked at the end, and sockets passed by whoever started us.

use crate::cli::ExportAddress;
use crate::export::Socket;
use crate::process::{connected_socket, error_text, listening_socket};
use ring::inherited::Inherited;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// `sizeof(sun_path)`
const PATH_BYTES_MAX: usize = 108;

/// A path we bound; unlinked when dropped.
#[derive(Debug)]
pub(super) struct BoundPath(PathBuf);

impl Drop for BoundPath {
    fn drop(&mut self) {
        // Somebody else may have taken it away already.
        let _ = fs::remove_file(&self.0);
    }
}

/// Opens an export's socket. Errors: in QSD's words.
pub(super) fn open(
    address: &ExportAddress,
    inherited: &mut Inherited,
) -> Result<(Socket, Option<BoundPath>), String> {
    match address {
        ExportAddress::Unix(path) => {
            let listener = bind(path)?;
            Ok((Socket::Listening(listener), Some(BoundPath(path.clone()))))
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

fn bind(path: &Path) -> Result<UnixListener, String> {
    let shown = path.display();
    if path.as_os_str().len() > PATH_BYTES_MAX {
        return Err(format!("UNIX socket path '{shown}' is too long"));
    }
    remove_stale(path)
        .map_err(|e| format!("Failed to unlink socket {shown}: {}", error_text(&e)))?;
    UnixListener::bind(path)
        .map_err(|e| format!("Failed to bind socket to {shown}: {}", error_text(&e)))
}

/// A socket left behind by a process that was killed is in the way; anything else at the path is not ours to remove.
fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => fs::remove_file(path),
        _ => Ok(()),
    }
}
