//! What the command line means, as plain structs: every default filled in, every inheritance between a node and its inline children applied.
//!
//! The one rule: a value of these types has passed every check that needs no execution. What is left for the executor is what depends on the
//! world: files, sockets, nodes that exist or do not, identifiers already taken.

mod chardev;
mod create;
mod filters;
mod nbd;
mod nbd_client;
mod qcow2;

use std::path::PathBuf;

use super::error::Refusal;
use super::visit::Spelling;
pub use chardev::*;
pub use create::*;
pub use filters::*;
pub use nbd::*;
pub use nbd_client::*;
pub use qcow2::*;
use serde_json::{Map, Value};

/// The whole command line, once help, version and wrong options are out of the way.
#[derive(Debug)]
pub struct Invocation {
    /// In the order given. Execute one after the other and stop at the first error, whether from parsing or from executing:
    /// a wrong option is reported only after everything before it has been done.
    pub steps: Vec<Step>,
    /// Where to write the process id once everything is up.
    pub pidfile: Option<PathBuf>,
    /// Whether to leave the terminal once everything is up.
    pub daemonize: Daemonize,
    /// Lines for stderr before anything runs (for instance which format `--blk-file` took).
    pub notices: Vec<String>,
}

/// Whether the process goes to the background.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Daemonize {
    /// Stay.
    Foreground,
    /// The parent exits with the start-up status of the child.
    Background,
}

/// One argument that does something, with the words the user wrote.
#[derive(Debug)]
pub struct Step {
    /// The option and its argument as written (`--blockdev driver=file,…`): the prefix of every message about this step.
    pub origin: String,
    /// For stderr, before it is done or refused.
    pub warnings: Vec<String>,
    /// What to do, or why it cannot be done.
    pub command: Result<Command, Refusal>,
}

/// A command, checked but not executed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// `--object`
    Object(ObjectOptions),
    /// `--blockdev`
    Blockdev(BlockdevOptions),
    /// `--export`
    Export(ExportOptions),
    /// `--nbd-server`
    NbdServer(NbdServerOptions),
    /// `--chardev`
    Chardev(ChardevOptions),
    /// `--monitor`
    Monitor(MonitorOptions),
    /// `--object help`: print this on stdout and end with success, whatever was done before.
    ShowHelp(String),
}

/// `--object`
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObjectOptions {
    /// `iothread`
    Iothread(IothreadOptions),
    /// `throttle-group`
    ThrottleGroup(ThrottleGroupOptions),
    /// `tls-creds-x509`
    TlsCredsX509(TlsCredsX509Options),
}

/// `--object iothread`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IothreadOptions {
    /// Well formed, not known to be free.
    pub id: String,
    /// How long a thread may poll before it sleeps; 0 turns polling off.
    pub poll_max_ns: u64,
    /// What that time is multiplied with while polling pays; 0: the program's choice.
    pub poll_grow: u64,
    /// What it is divided by when polling does not pay; 0: polling ends at once.
    pub poll_shrink: u64,
}

/// `--blockdev`, and every inline child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockdevOptions {
    /// Always there for `--blockdev` itself; a child without one gets a generated name (`#block123`).
    pub node_name: Option<String>,
    /// What every node has.
    pub common: NodeCommon,
    /// What this driver has.
    pub driver: DriverOptions,
    /// The same as it was given, inline children included.
    pub given: Given,
}

/// Options as they were given: what was said and what was not.
#[derive(Debug, Clone)]
pub struct Given {
    /// How leaves are spelled.
    pub spelling: Spelling,
    /// What was said.
    pub members: Map<String, Value>,
}

/// Two ways to say the same are no difference.
impl PartialEq for Given {
    fn eq(&self, _: &Given) -> bool {
        true
    }
}

impl Eq for Given {}

impl Given {
    /// Nothing was said: somebody else wrote the options down.
    pub fn nothing() -> Given {
        Given {
            spelling: Spelling::Json,
            members: Map::new(),
        }
    }

    /// Was that option said? `file.driver` is `driver` of the inline child `file`, and that child itself.
    pub fn says(&self, option: &str) -> bool {
        let first = option.split('.').next().unwrap_or(option);
        self.members.contains_key(first)
    }
}

/// Options of every node. An inline child has inherited what it did not say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeCommon {
    /// `discard`: `ignore` for a root node, `unmap` for an inline child, unless said.
    pub discard: Discard,
    /// `cache.direct`: O_DIRECT.
    pub cache_direct: bool,
    /// `cache.no-flush`: flushes are not passed to the kernel.
    pub cache_no_flush: bool,
    /// `active`: off for an image that another process has.
    pub active: bool,
    /// `read-only`
    pub read_only: bool,
    /// `auto-read-only`: open read-only where writing is not permitted.
    pub auto_read_only: bool,
    /// `force-share`: take no locks; only with `read-only`.
    pub force_share: bool,
    /// `detect-zeroes`
    pub detect_zeroes: DetectZeroes,
}

/// What a discard does to the host file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discard {
    /// Nothing; the request succeeds.
    Ignore,
    /// Punches a hole.
    Unmap,
}

/// Whether written zeroes are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DetectZeroes {
    /// No.
    Off,
    /// They become write-zeroes requests.
    On,
    /// They become write-zeroes requests that may unmap; only with `discard=unmap`.
    Unmap,
}

/// Options of one driver, by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DriverOptions {
    /// `file`: a regular file.
    File(FileOptions),
    /// `host_device`: a block device.
    HostDevice(FileOptions),
    /// `raw`: a window on a child.
    Raw(RawOptions),
    /// `null-co`: completes in the submitter.
    NullCo(NullOptions),
    /// `null-aio`: the same, completed asynchronously.
    NullAio(NullOptions),
    /// `x-delay`: our own filter; every request waits before it passes.
    Delay(DelayOptions),
    /// `qcow2`: an image.
    Qcow2(Box<Qcow2Options>),
    /// `copy-on-read`: what is read from below is kept.
    CopyOnRead(CopyOnReadOptions),
    /// `copy-before-write`: what guests replace is copied first.
    CopyBeforeWrite(CopyBeforeWriteOptions),
    /// `snapshot-access`: what such a filter keeps.
    SnapshotAccess(SnapshotAccessOptions),
    /// `throttle`: not more than a group's limits.
    Throttle(ThrottleOptions),
    /// `compress`: writes are stored compressed.
    Compress(CompressOptions),
    /// `preallocate`: files grow in large steps.
    Preallocate(PreallocateOptions),
    /// `blkdebug`: errors made to order.
    Blkdebug(Box<BlkdebugOptions>),
    /// `nbd`: a disk that a server has.
    Nbd(Box<NbdClientOptions>),
}

/// `file` and `host_device`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileOptions {
    /// As given; relative to the working directory.
    pub filename: PathBuf,
    /// `None`: io_uring, and a thread pool where the kernel refuses it.
    pub aio: Option<Aio>,
    /// `locking`
    pub locking: Locking,
}

/// `aio=`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aio {
    /// A thread pool.
    Threads,
    /// Served by io_uring; only with `cache.direct=on`, as in QEMU.
    Native,
    /// io_uring or a clear failure.
    IoUring,
}

/// `locking=`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Locking {
    /// Take no locks.
    Off,
    /// Take them or fail.
    On,
    /// Take them where the kernel has OFD locks.
    Auto,
}

/// `raw`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawOptions {
    /// Where the bytes are.
    pub file: ChildRef,
    /// Where the window starts, in bytes.
    pub offset_bytes: u64,
    /// How long it is; `None`: to the end.
    pub size_bytes: Option<u64>,
    /// `x-bitmap-journal`, our own: the file that keeps its bitmaps.
    pub bitmap_journal: Option<String>,
}

/// `null-co` and `null-aio`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NullOptions {
    /// 1 GiB unless said.
    pub size_bytes: u64,
    /// How long each request takes.
    pub latency_ns: u64,
    /// Whether reads fill the buffer with zeroes; else they leave it alone.
    pub read_zeroes: bool,
}

/// `snapshot-access`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotAccessOptions {
    /// The filter that keeps the snapshot.
    pub file: ChildRef,
}

/// `x-delay`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DelayOptions {
    /// The filtered child.
    pub file: ChildRef,
    /// How long each request waits.
    pub latency_ns: u64,
}

impl DriverOptions {
    /// `x-bitmap-journal`, if it is said.
    pub fn bitmap_journal(&self) -> Option<&str> {
        match self {
            Self::Raw(raw) => raw.bitmap_journal.as_deref(),
            Self::Qcow2(image) => image.bitmap_journal.as_deref(),
            _ => None,
        }
    }

    /// Every child, in the order of the options.
    pub fn children(&self) -> impl Iterator<Item = &ChildRef> {
        let (first, more) = match self {
            Self::File(_) | Self::HostDevice(_) | Self::NullCo(_) | Self::NullAio(_) => {
                (None, [None, None])
            }
            Self::Nbd(_) => (None, [None, None]),
            Self::Raw(raw) => (Some(&raw.file), [None, None]),
            Self::Delay(delay) => (Some(&delay.file), [None, None]),
            Self::CopyOnRead(filter) => (Some(&filter.file), [None, None]),
            Self::CopyBeforeWrite(filter) => (Some(&filter.file), [Some(&filter.target), None]),
            Self::SnapshotAccess(snapshot) => (Some(&snapshot.file), [None, None]),
            Self::Throttle(filter) => (Some(&filter.file), [None, None]),
            Self::Compress(filter) => (Some(&filter.file), [None, None]),
            Self::Preallocate(filter) => (Some(&filter.file), [None, None]),
            Self::Blkdebug(filter) => (Some(&filter.image), [None, None]),
            Self::Qcow2(image) => {
                let backing = match &image.backing {
                    Backing::Child(child) => Some(child),
                    Backing::AsTheImageSays | Backing::Nothing => None,
                };
                (Some(&image.file), [backing, image.data_file.as_ref()])
            }
        };
        first.into_iter().chain(more.into_iter().flatten())
    }
}

impl DriverOptions {
    /// Every child that is there, with the name of its option.
    pub fn named_children(&mut self) -> Vec<(&'static str, &mut ChildRef)> {
        match self {
            Self::File(_) | Self::HostDevice(_) | Self::NullCo(_) | Self::NullAio(_) => Vec::new(),
            Self::Nbd(_) => Vec::new(),
            Self::Raw(raw) => vec![("file", &mut raw.file)],
            Self::Delay(delay) => vec![("file", &mut delay.file)],
            Self::CopyOnRead(filter) => vec![("file", &mut filter.file)],
            Self::CopyBeforeWrite(filter) => {
                vec![("file", &mut filter.file), ("target", &mut filter.target)]
            }
            Self::SnapshotAccess(snapshot) => vec![("file", &mut snapshot.file)],
            Self::Throttle(filter) => vec![("file", &mut filter.file)],
            Self::Compress(filter) => vec![("file", &mut filter.file)],
            Self::Preallocate(filter) => vec![("file", &mut filter.file)],
            Self::Blkdebug(filter) => vec![("image", &mut filter.image)],
            Self::Qcow2(image) => {
                let Qcow2Options {
                    file,
                    backing,
                    data_file,
                    ..
                } = &mut **image;
                let mut children = vec![("file", file)];
                if let Backing::Child(child) = backing {
                    children.push(("backing", child));
                }
                children.extend(data_file.as_mut().map(|data| ("data-file", data)));
                children
            }
        }
    }
}

/// A child, by name or written out in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChildRef {
    /// A node defined before.
    Node(String),
    /// A node defined here.
    Inline(Box<BlockdevOptions>),
}

/// `--export`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportOptions {
    /// Well formed, not known to be free.
    pub id: String,
    /// The node to export.
    pub node_name: String,
    /// `writable`: off unless said.
    pub writable: bool,
    /// `writethrough`: each write is stable before it is answered.
    pub writethrough: bool,
    /// `iothread`: the queues run on that thread; `None`: one thread per started queue.
    pub iothread: Option<String>,
    /// `allow-inactive`: goes on while its node is inactive.
    pub allow_inactive: bool,
    /// `fixed-iothread`: failing to use `iothread` is an error.
    pub fixed_iothread: bool,
    /// What this type of export has.
    pub kind: ExportKind,
}

/// Options of one type of export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExportKind {
    /// `vhost-user-blk`
    VhostUserBlk(VhostUserBlkOptions),
    /// `nbd`
    Nbd(NbdOptions),
}

/// `--export vhost-user-blk`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VhostUserBlkOptions {
    /// Where front ends come from.
    pub addr: ExportAddress,
    /// A power of two, 512 to 2 MiB; `None`: what the node has (512 unless its device says more).
    pub logical_block_size_bytes: Option<u32>,
    /// 1 to [`NUM_QUEUES_MAX`].
    pub num_queues: u16,
    /// What GET_ID answers; `None`: the export's id.
    pub serial: Option<String>,
    /// `require-safe-del`, our own: whether a front end that is connected is a reason not to delete it in mode `safe`.
    pub require_safe_del: bool,
}

/// `num-queues` when not given: QEMU's front end asks for one per vCPU and fails when there are fewer.
pub const NUM_QUEUES_DEFAULT: u16 = 16;
/// A kick, call or error message names its ring in eight bits (vhost-user, "A vring file descriptor").
pub const NUM_QUEUES_MAX: u16 = 256;

/// Where a vhost-user front end comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExportAddress {
    /// `addr.type=unix`: listen on this path.
    Unix(PathBuf),
    /// `addr.type=fd`: an inherited listening socket, by number.
    ListeningFd(i32),
    /// `addr.type=connected-fd`: an inherited connected socket, by number; the export ends with the connection.
    ConnectedFd(i32),
}
