//! Makes new files: the work of `blockdev-create` for `file`, and so of raw images.
//!
//! The rule: the file is locked before it loses what it had, so nobody's disk is emptied under him.

use super::{Cache, FileKind, FileOptions, Flushes, LockError, Locking, OpenMode, open};
use crate::blocking::blocking;
use crate::graph::perm::{Perms, Wants};
use crate::graph::{Body, Common, Graph, NewNode, Shape, errno_text};
use crate::io::Io;
use crate::node::{Driver, Engine, NodeId};
use crate::request::Prealloc;
use ring::Errno;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The options of `BlockdevCreateOptionsFile`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// `filename`, relative to the working directory.
    pub filename: PathBuf,
    /// `size`, in bytes.
    pub size_bytes: u64,
    /// `preallocation`
    pub preallocation: Prealloc,
    /// `nocow`
    pub copy_on_write: CopyOnWrite,
}

/// What the file system does when a block of the file is written again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyOnWrite {
    /// As it likes.
    Usual,
    /// It writes in place, if it can be told so.
    Off,
}

/// Why there is no new file; the texts are QEMU's.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The system refused. (The text is complete, so the cause is not repeated as a source.)
    #[error("Could not create '{path}': {}", errno_text(cause))]
    Create {
        /// The name.
        path: String,
        /// Why.
        cause: io::Error,
    },
    /// Somebody uses it.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A file has no metadata of its own.
    #[error("Unsupported preallocation mode: metadata")]
    Metadata,
    /// It cannot be that long.
    #[error("Could not resize file: {}", errno_text(&(*.0).into()))]
    Resize(Errno),
    /// The space cannot be had.
    #[error("Could not preallocate new data: {}", errno_text(&(*.0).into()))]
    Preallocate(Errno),
}

/// Makes the file, or empties and sizes the one that is there. Errors: see [`CreateError`].
pub async fn create(io: &Io, options: CreateOptions) -> Result<(), CreateError> {
    if options.preallocation == Prealloc::Metadata {
        return Err(CreateError::Metadata);
    }
    let path = options.filename.clone();
    let how = options.copy_on_write;
    let made = blocking(move || touch(&path, how)).await;
    let refused = |cause| CreateError::Create {
        path: options.filename.display().to_string(),
        cause,
    };
    made.map_err(|errno| refused(errno.into()))?
        .map_err(refused)?;
    let (graph, node) = open_locked(io, &options, refused)?;
    let io = io.on(Arc::new(graph), node);
    let sized = set_size(&io, node, &options).await;
    // Its name will be another file's.
    io.forget_files(node);
    sized
}

async fn set_size(io: &Io, node: NodeId, options: &CreateOptions) -> Result<(), CreateError> {
    let sized = io.truncate(node, 0, Prealloc::Off).await;
    sized.map_err(CreateError::Resize)?;
    let sized = io
        .truncate(node, options.size_bytes, options.preallocation)
        .await;
    sized.map_err(|errno| match options.preallocation {
        Prealloc::Off | Prealloc::Metadata => CreateError::Resize(errno),
        Prealloc::Falloc | Prealloc::Full => CreateError::Preallocate(errno),
    })
}

/// The file as a node of a generation that nobody else sees.
fn open_locked(
    io: &Io,
    options: &CreateOptions,
    refused: impl Fn(io::Error) -> CreateError,
) -> Result<(Graph, NodeId), CreateError> {
    let mut graph = (**io.graph()).clone();
    let opening = FileOptions {
        filename: options.filename.clone(),
        kind: FileKind::Regular,
        mode: OpenMode::ReadWrite,
        cache: Cache::Page,
        flushes: Flushes::Sync,
        locking: Locking::Auto,
        engine: Engine::Any,
    };
    let opened = open(graph.new_file_id(), &opening);
    let (driver, access) = opened.map_err(|error| refused(io::Error::other(error.to_string())))?;
    let wants = Wants {
        needs: Perms::READ_WRITE.or(Perms::RESIZE).without(Perms::READ),
        shares: Perms::ALL.without(Perms::RESIZE),
    };
    driver.permit(wants)?;
    let common = Common {
        access,
        ..Common::default()
    };
    let files = vec![driver.file().clone()];
    let node = graph.insert(NewNode {
        name: String::from("#create"),
        kind: FileKind::Regular.name(),
        common,
        body: Body::Driver(Arc::new(driver)),
        shape: Shape::Leaf,
        files,
    });
    Ok((graph, node))
}

/// Makes sure there is a regular file of that name, without looking into it.
fn touch(path: &Path, how: CopyOnWrite) -> io::Result<()> {
    let mut opening = OpenOptions::new();
    opening.read(true).write(true).create(true).mode(0o644);
    // Not waiting for the other end of a FIFO.
    let file = opening.custom_flags(libc::O_NONBLOCK).open(path)?;
    if how == CopyOnWrite::Off
        && let Ok(flags) = rustix::fs::ioctl_getflags(&file)
    {
        // Advice: file systems that never copy do not know the flag.
        let _ = rustix::fs::ioctl_setflags(&file, flags | rustix::fs::IFlags::NOCOW);
    }
    Ok(())
}
