//! What a node is: a driver that says where its bytes live, or a filter that lets requests pass.
//!
//! The rule: `map` and `ready` are pure lookups that never block; whatever needs I/O, waiting or a change of metadata
//! answers [`Map::Slow`] (or "not ready") and runs as `serve` (or `before`). See `map.rs` for the eight rules.

use crate::driver::file::LockError;
use crate::filter::blkdebug::BlkdebugEvent;
use crate::graph::name::{Described, Short};
use crate::graph::open::DriverSpec;
use crate::graph::perm::Wants;
use crate::graph::{Edge, Role};
use crate::io::Io;
use crate::request::{Dir, Prealloc, Request, Unmap};
use crate::status::Status;
use crate::units::Span;
use ring::{Errno, FileId};
use std::fs::Metadata;
use std::future::Future;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::SystemTime;

/// A future on a queue thread: never leaves it.
pub type Local<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// How a request ends; filters and drivers speak errno, since that is all a guest, an NBD client or a job can be told.
pub type Outcome = Result<(), Errno>;

/// Names a node in one graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);

/// Where the bytes of a span live. `len` is how much of the span, from its start, the answer covers: 1 to `span.len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Map {
    /// Ask that child.
    Below {
        /// Which child.
        to: Role,
        /// Where in it.
        at: u64,
        /// For how many bytes.
        len: u64,
    },
    /// Ask that child, whose own layer has to decide: if it defers to its copy-on-write child, the walk is slow.
    Local {
        /// Which child.
        to: Role,
        /// Where in it.
        at: u64,
        /// For how many bytes.
        len: u64,
    },
    /// The walk ends here.
    File {
        /// Which file.
        file: FileId,
        /// Where in it.
        at: u64,
        /// For how many bytes.
        len: u64,
    },
    /// Reads as zeroes.
    Zero {
        /// For how many bytes.
        len: u64,
    },
    /// Nothing is stored: a write is done at once, a read leaves memory as it is (null without read-zeroes).
    Void {
        /// For how many bytes.
        len: u64,
    },
    /// Needs I/O, waiting, or a change of metadata.
    Slow,
}

/// What a node tells of itself: its size is the present one, its limits do not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// Size in bytes.
    pub size_bytes: u64,
    /// Physical and logical limits, for the guest's topology.
    pub limits: Limits,
}

/// What a node shows instead of what the node it filters does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// Its size in bytes.
    pub size_bytes: Option<u64>,
    /// Its limits.
    pub limits: Option<Limits>,
}

/// What transfers suit a node. All in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Smallest addressable unit underneath (a power of two, at least 512).
    pub logical_block_bytes: u32,
    /// Unit the storage writes without reading first (a power of two, at least the logical block).
    pub physical_block_bytes: u32,
    /// Best unit for a discard, 0 if discards do nothing.
    pub discard_bytes: u32,
    /// Preferred size of a streaming transfer, 0 if unknown.
    pub optimal_io_bytes: u32,
}

impl Limits {
    /// A disk of which nothing is known.
    pub const PLAIN: Limits = Limits {
        logical_block_bytes: 512,
        physical_block_bytes: 512,
        discard_bytes: 512,
        optimal_io_bytes: 0,
    };
}

/// What a write of zeroes comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeroing {
    /// A note that the range is zero, or that it is nowhere.
    Fast,
    /// As many bytes as there are zeroes.
    Written,
    /// Whatever it is to that child.
    Below(Role),
}

/// How the transfers of a node's files wish to be carried out (QEMU's `aio=`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Whatever is best here.
    Any,
    /// A pool of threads.
    Threads,
    /// The kernel's own asynchronous I/O; io_uring serves it.
    Native,
    /// io_uring or nothing.
    Uring,
}

/// The file that a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Its name, as it was opened.
    pub path: PathBuf,
    /// Which file that was, whatever its names are now.
    pub identity: FileIdentity,
    /// When somebody had last written to it then; `None` for a device, of which nobody knows.
    pub written: Option<SystemTime>,
}

/// Says of two files whether they are one: links and copies of a device node do not matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileIdentity {
    /// A regular file.
    File {
        /// The file system's device number.
        device: u64,
        /// The inode.
        inode: u64,
    },
    /// A block device, by its number.
    Device(u64),
}

impl FileIdentity {
    /// Of an open file, or of what a path led to.
    pub fn of(about: &Metadata) -> FileIdentity {
        match about.file_type().is_block_device() {
            false => FileIdentity::File {
                device: about.dev(),
                inode: about.ino(),
            },
            true => FileIdentity::Device(about.rdev()),
        }
    }

    /// Of what a path leads to now, if it leads anywhere.
    pub fn of_path(path: &Path) -> Option<FileIdentity> {
        path.metadata().ok().map(|about| FileIdentity::of(&about))
    }
}

/// What became of the discards that reached a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Discards {
    /// Those that were done.
    pub done: u64,
    /// Those that failed.
    pub failed: u64,
    /// Bytes of those that were done.
    pub bytes: u64,
}

/// A node that knows where its bytes live. Copy `driver/null.rs` to begin a new one.
pub trait Driver: Send + Sync + std::fmt::Debug {
    /// Where `span` lives, for a transfer in direction `dir`. Pure; may always answer `Slow`. `span` is not empty and
    /// lies within the node's size.
    fn map(&self, dir: Dir, span: Span) -> Map;

    /// Does the request, whatever it takes; comes back through `io` for what lies below. `io` knows the node's children.
    fn serve<'a>(&'a self, io: &'a Io, request: Request) -> Local<'a, Outcome>;

    /// What is known of the beginning of `span` (see `status.rs`).
    fn status<'a>(&'a self, io: &'a Io, span: Span) -> Local<'a, Result<Status, Errno>>;

    /// Size and limits. A driver that filters a child is not asked once it is in the graph: what the child says counts, and
    /// [`Driver::shown`].
    fn info(&self) -> Info;

    /// The size that [`Driver::info`] tells, by itself: the mapped path asks for nothing else.
    fn size_bytes(&self) -> u64 {
        self.info().size_bytes
    }

    /// The parent tells what it is about to do ([`Io::event`]); only blkdebug cares.
    fn event(&self, _event: BlkdebugEvent) {}

    /// What a driver that filters a child shows instead of what that child does ([`crate::graph::Shape::Filter`]).
    fn shown(&self) -> Shown {
        Shown::default()
    }

    /// What it allocates at once, in bytes (a power of two): copies into it are best made of whole ones.
    fn unit_bytes(&self) -> u64 {
        1
    }

    /// Does it take [`crate::request::Kind::WriteCompressed`]?
    fn compresses(&self) -> bool {
        false
    }

    /// What it needs and shares of a child when its own users ask for `above`; the same unless it says otherwise.
    fn wants(&self, _edge: &Edge, above: Wants) -> Wants {
        above
    }

    /// The same while it has no users at all.
    fn wants_unused(&self, edge: &Edge) -> Wants {
        self.wants(edge, Wants::NOTHING)
    }

    /// Its users now need and share this: tell other processes, or say why it may not be. Called on the control thread.
    fn permit(&self, _wants: Wants) -> Result<(), LockError> {
        Ok(())
    }

    /// What a write of zeroes comes to, as far as is known: whoever has not tried yet answers fast.
    fn zeroing(&self, _unmap: Unmap) -> Zeroing {
        Zeroing::Fast
    }

    /// How its files wish to be driven; of no meaning for a node without files.
    fn engine(&self) -> Engine {
        Engine::Any
    }

    /// What there is to say about its name. `kind` is the node's `driver=`: some drivers have several names.
    fn described(&self, _kind: &str) -> Described {
        Described::plainly(Short::Storage)
    }

    /// The file it is, for a node that is one.
    fn origin(&self) -> Option<&Origin> {
        None
    }

    /// Bytes of storage that it takes up, without what is below it in a backing chain. Errors: ENOTSUP where nobody knows.
    fn allocated<'a>(&'a self, _io: &'a Io) -> Local<'a, Result<u64, Errno>> {
        Box::pin(async { Err(Errno::NOTSUP) })
    }

    /// Changes the size. Errors: ENOTSUP where the node has no say in it.
    fn truncate<'a>(&'a self, _io: &'a Io, _size_bytes: u64, _how: Prealloc) -> Local<'a, Outcome> {
        Box::pin(async { Err(Errno::NOTSUP) })
    }

    /// Somebody cannot wait any longer (a disk is taken away, the process ends): what is under way ends soon, with an error.
    /// Of no meaning for a node that waits for nobody but this machine.
    fn cancel(&self) {}

    /// Nobody wants to wait any longer for a server to come back: requests that do end with an error; others are left alone.
    fn hurry(&self) {}

    /// The layer down to which nobody may take the chain below it apart, by name.
    fn frozen_until(&self) -> Option<&str> {
        None
    }

    /// A node that is no child and that its requests use all the same: whoever waits for what is under way there waits for them.
    fn uses_besides(&self) -> Option<NodeId> {
        None
    }

    /// Could it be written to, if it were to be?
    fn writable(&self) -> bool {
        true
    }

    /// Some of the options in `spec`, which is of its own kind, are new to it: takes over those that it looks at anew for
    /// every request. Nothing of its own is in flight then.
    fn adjust(&self, _spec: &DriverSpec) {}

    /// The file, for what only files have.
    fn as_file(&self) -> Option<&crate::driver::file::FileDriver> {
        None
    }

    /// What became of discards, for a node that counts them.
    fn discards(&self) -> Option<Discards> {
        None
    }

    /// What it is, for what only copy-on-read does.
    fn as_copy_on_read(&self) -> Option<&crate::filter::copy_on_read::CopyOnRead> {
        None
    }

    /// The image, for what only qcow2 has.
    fn as_qcow2(&self) -> Option<&crate::driver::qcow2::Qcow2> {
        None
    }

    /// The filter, for whoever reads the snapshot it keeps.
    fn as_copy_before_write(&self) -> Option<&crate::filter::copy_before_write::CopyBeforeWrite> {
        None
    }

    /// Before it is gone for good: make everything durable that a close should. Nothing of its own is in flight then.
    fn close<'a>(&'a self, _io: &'a Io) -> Local<'a, Outcome> {
        Box::pin(async { Ok(()) })
    }
}

/// A filter may delay, observe or refuse. It has no way to move or change data. Copy `filter/delay.rs` to begin one.
pub trait Filter: Send + Sync + std::fmt::Debug {
    /// May it pass right now? Pure.
    fn ready(&self, dir: Dir, span: Span) -> bool;

    /// Makes it so. An error refuses the request.
    fn before<'a>(&'a self, io: &'a Io, dir: Dir, span: Span) -> Local<'a, Outcome>;

    /// What there is to say about its name.
    fn described(&self) -> Described {
        Described::plainly(Short::None)
    }

    /// Once, when it passes.
    fn begin(&self, dir: Dir, span: Span);

    /// Once, after it is done and before anybody is told.
    fn end(&self, dir: Dir, span: Span, outcome: Outcome);

    /// What it needs and shares of what it filters when its own users ask for `above`; the same unless it says otherwise.
    fn wants(&self, above: Wants) -> Wants {
        above
    }

    /// The layer down to which nobody may take the chain below it apart, by name.
    fn frozen_until(&self) -> Option<&str> {
        None
    }

    /// The throttle group it belongs to, for a filter that throttles.
    fn throttle_group(&self) -> Option<&std::sync::Arc<crate::filter::throttle::Group>> {
        None
    }
}
