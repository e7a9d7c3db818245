//! The private connection to the protocol crate, which can only connect to a path.
//!
//! The rule: nothing is left in the file system. The socket is made in a fresh directory of our own, opened, and
//! unlinked with it; the crate connects through /proc/self/fd, and whoever connects must be this very process.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vhost_user_backend::VhostUserDaemon;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use super::handler::Handler;
use super::session::Session;
use super::vring::making;

/// A listening socket only this process knows.
#[derive(Debug)]
pub(super) struct Private {
    listener: UnixListener,
    /// The unlinked socket's inode (O_PATH).
    inode: File,
}

/// One connection of the crate, and the thread that serves it. Dropping it ends both.
pub(super) struct Backend {
    pub(super) socket: UnixStream,
    daemon: VhostUserDaemon<Handler>,
}

/// Why the protocol crate could not be set up.
#[derive(Debug, thiserror::Error)]
pub(super) enum PrivateError {
    #[error("cannot make a private socket")]
    Socket(#[source] io::Error),
    #[error("cannot set up the vhost-user handler: {0}")]
    Daemon(String),
}

impl Private {
    /// Makes the socket. Later sessions need no place in the file system.
    pub(super) fn new() -> Result<Private, PrivateError> {
        let mut first = None;
        for parent in parents() {
            match Private::in_directory(&parent) {
                Ok(private) => return Ok(private),
                Err(error) => first = first.or(Some(error)),
            }
        }
        Err(PrivateError::Socket(first.unwrap_or_else(|| {
            io::Error::from(io::ErrorKind::NotFound)
        })))
    }

    fn in_directory(parent: &Path) -> io::Result<Private> {
        let directory = fresh_directory(parent)?;
        let made = bind_and_unlink(&directory.join("s"));
        std::fs::remove_dir(&directory)?;
        let (listener, inode) = made?;
        Ok(Private { listener, inode })
    }

    /// A new handler for a session, on a connection of its own.
    pub(super) fn connect(&self, session: &Arc<Session>) -> Result<Backend, PrivateError> {
        let handler = Handler {
            session: Arc::clone(session),
        };
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let name = "vhost-handler".to_owned();
        let daemon = making(session, || VhostUserDaemon::new(name, handler, memory));
        let mut daemon = daemon.map_err(|error| PrivateError::Daemon(error.to_string()))?;
        let path = format!("/proc/self/fd/{}", self.inode.as_raw_fd());
        daemon
            .start_client(&path)
            .map_err(|error| PrivateError::Daemon(error.to_string()))?;
        let socket = self.accept_own().map_err(PrivateError::Socket)?;
        Ok(Backend { socket, daemon })
    }

    /// The connection this process has just made; those of others are closed.
    fn accept_own(&self) -> io::Result<UnixStream> {
        loop {
            let (socket, _) = self.listener.accept()?;
            if ring::sock::peer_pid(socket.as_fd())? == std::process::id() {
                return Ok(socket);
            }
            tracing::warn!("another process connected to a private socket; closed it");
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.daemon.request_shutdown();
        // Joins the crate's thread. How it ended was said when it did.
        let _ = self.daemon.wait();
    }
}

fn bind_and_unlink(path: &Path) -> io::Result<(UnixListener, File)> {
    let listener = UnixListener::bind(path)?;
    let inode = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_NOFOLLOW)
        .open(path);
    std::fs::remove_file(path)?;
    Ok((listener, inode?))
}

/// Where a socket may be made for a moment: a sandbox may leave us only one of them.
fn parents() -> impl Iterator<Item = PathBuf> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let others = ["/dev/shm", "/run", "/tmp"].map(PathBuf::from);
    [std::env::temp_dir()]
        .into_iter()
        .chain(runtime)
        .chain(others)
}

/// A directory of mode 0700 that did not exist before.
fn fresh_directory(parent: &Path) -> io::Result<PathBuf> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    /// More than enough for names another process may have left behind.
    const TRIES: u32 = 100;
    let mut last = io::Error::from(io::ErrorKind::AlreadyExists);
    for _ in 0..TRIES {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("virtioblkd-{}-{count}", std::process::id());
        let path = parent.join(name);
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}
