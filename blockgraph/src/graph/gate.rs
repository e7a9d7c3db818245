//! The gate: what an image names (its backing file, its data file) becomes a node to be opened, or a refusal.
//!
//! The rule: an image is written by whoever had it last, often a guest's owner, so what it names is not what our user
//! asked for. A name is a plain path unless the user allowed more, a backing file has the format that is stored beside its
//! name and is never looked at to guess one unless the user asked, `raw` is never guessed, everything is opened
//! read-only, and nothing may be below itself. (CVE-2024-4467 is what comes of taking more.)

use super::open::{Backing, Child, DriverSpec, FileSpec, NodeSpec, Qcow2Spec};
use super::{Access, Common, DetectZeroes, DiscardPolicy, FdSets, Graph, Role};
use crate::driver::file::{Cache, FileKind, FileOptions, Flushes, Locking, OpenMode};
use crate::driver::qcow2::Options;
use crate::driver::raw::Window;
use crate::map::DEPTH_MAX;
use crate::node::{Engine, FileIdentity, NodeId, Origin};
use std::fmt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// How what an image names is opened; handed down the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Through the page cache or not, as the image itself.
    pub cache: Cache,
    /// What flushes do, as for the image itself.
    pub flushes: Flushes,
    /// Which names are taken.
    pub names: Names,
    /// What becomes of a backing file whose format is not stored.
    pub unknown_format: UnknownFormat,
}

impl Default for Named {
    fn default() -> Named {
        Named {
            cache: Cache::Page,
            flushes: Flushes::Sync,
            names: Names::Paths,
            unknown_format: UnknownFormat::Refuse,
        }
    }
}

/// Which names in an image are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Names {
    /// Paths of files and block devices.
    Paths,
    /// Also `json:` and protocols, as that parser reads them.
    Any(Parser),
}

/// Reads a name that is no path. It is the embedding program that knows JSON and the addresses of protocols.
#[derive(Clone, Copy)]
pub struct Parser(pub fn(name: &str, inherited: &Inherited) -> Result<Parsed, String>);

/// What a name that is no path stands for.
#[derive(Debug)]
pub enum Parsed {
    /// A whole node, its format among it (`json:`).
    Node(NodeSpec),
    /// Where the bytes are; the format is on top of it (`nbd:`).
    Storage(NodeSpec),
}

impl fmt::Debug for Parser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Parser")
    }
}

/// There is one parser; where functions are in memory says nothing.
impl PartialEq for Parser {
    fn eq(&self, _: &Parser) -> bool {
        true
    }
}

impl Eq for Parser {}

/// What a node that an image names has where its name says nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inherited {
    /// Options every node has.
    pub common: Common,
    /// Through the page cache or not.
    pub cache: Cache,
    /// What flushes do.
    pub flushes: Flushes,
}

/// What becomes of a backing file whose format is not stored in the image that names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownFormat {
    /// The image is refused.
    Refuse,
    /// It is taken for qcow2 if it begins like one, and refused if it does not.
    Probe,
}

/// Why what an image names is not opened.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum GateError {
    /// Not a path.
    #[error(
        "The image names '{0}', which is not a plain file name; say 'x-image-names=any' for images that may name anything"
    )]
    NotAPath(String),
    /// The parser did not like it.
    #[error("{0}")]
    Name(String),
    /// Nobody knows the format.
    #[error(
        "The format of the backing file '{0}' is not stored in the image, and formats are not guessed; say 'backing', or \
         'x-probe-backing=on' for images that may be probed"
    )]
    NoFormat(String),
    /// Guessing was asked for and came to nothing.
    #[error(
        "The format of the backing file '{0}' is not stored in the image, it does not look like qcow2, and raw is never guessed"
    )]
    NotProbed(String),
    /// A format without a driver.
    #[error("Unknown driver '{0}'")]
    Format(String),
    /// Known, and without a driver here.
    #[error("driver '{0}' is not supported by this version")]
    Unsupported(String),
    /// A relative name, and the image is in no directory.
    #[error("Cannot generate a base directory for {0} nodes")]
    NoDirectory(&'static str),
    /// An image in its own backing chain.
    #[error("'{0}' is in its own backing chain")]
    Loop(String),
}

/// The formats that QEMU's tools store for backing files.
const OTHER_FORMATS: &[&str] = &[
    "blkdebug",
    "bochs",
    "cloop",
    "dmg",
    "luks",
    "nbd",
    "parallels",
    "qcow",
    "qed",
    "vdi",
    "vhdx",
    "vmdk",
    "vpc",
    "vvfat",
];

/// The formats a backing file may have here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Raw,
    Qcow2,
    /// The name of a protocol driver: the bytes as they are.
    File,
}

impl Format {
    pub(super) fn stored(name: &str) -> Result<Format, GateError> {
        match name {
            "raw" => Ok(Format::Raw),
            "qcow2" => Ok(Format::Qcow2),
            "file" | "host_device" => Ok(Format::File),
            other if OTHER_FORMATS.contains(&other) => Err(GateError::Unsupported(other.into())),
            other => Err(GateError::Format(other.into())),
        }
    }

    /// Is `spec` of that format already?
    fn is_of(self, spec: &NodeSpec) -> bool {
        match self {
            Format::Raw => matches!(spec.driver, DriverSpec::Raw { .. }),
            Format::Qcow2 => matches!(spec.driver, DriverSpec::Qcow2(_)),
            Format::File => true,
        }
    }
}

/// Is `name` more than a path? A colon before the first slash makes it so (QEMU's rule).
fn has_protocol(name: &str) -> bool {
    let first = name.split('/').next().unwrap_or_default();
    first.contains(':')
}

/// The full name of the backing file that the image in `storage` names: relative paths begin at the image's directory.
pub(super) fn full_name(graph: &Graph, storage: NodeId, name: &str) -> Result<PathBuf, GateError> {
    if name.starts_with('/') || has_protocol(name) {
        return Ok(name.into());
    }
    let image = &origin(graph, storage)?.path;
    // Joined as text would be: what symbolic links there are in it is the kernel's to follow.
    let directory = image.parent().unwrap_or(Path::new(""));
    Ok(directory.join(name))
}

/// The file that an image is in, past filters and formats on the way.
pub(super) fn origin(graph: &Graph, storage: NodeId) -> Result<&Origin, GateError> {
    let mut id = storage;
    for _ in 0..DEPTH_MAX {
        let Some(node) = graph.node(id) else { break };
        if let Some(origin) = node.origin() {
            return Ok(origin);
        }
        let shape = node.shape();
        let roles = [Role::Filtered, Role::Image, Role::Metadata];
        match roles.into_iter().find_map(|role| shape.child(role)) {
            Some(below) => id = below,
            None => return Err(GateError::NoDirectory(node.kind())),
        }
    }
    Err(GateError::NoDirectory("unknown"))
}

/// What is behind a backing file's name.
pub(super) fn backing(
    graph: &Graph,
    storage: NodeId,
    name: &str,
    inherited: &Inherited,
    named: &Named,
) -> Result<Parsed, GateError> {
    if !has_protocol(name) {
        let path = full_name(graph, storage, name)?;
        return Ok(Parsed::Storage(file(path, inherited)));
    }
    match &named.names {
        Names::Paths => Err(GateError::NotAPath(name.to_owned())),
        Names::Any(Parser(parse)) => parse(name, inherited).map_err(GateError::Name),
    }
}

/// Errors: the file that `spec` would open is one of those `above`, or none that an image may name. Only looks; whoever opens it looks again.
pub(super) fn check_loop(spec: &NodeSpec, above: &[FileIdentity]) -> Result<(), GateError> {
    let DriverSpec::File(FileSpec { options }) = &spec.driver else {
        return Ok(());
    };
    let name = options.filename.display().to_string();
    // Descriptors were passed for whoever asks for them by a command, not for images.
    if FdSets::is_name(&name) {
        return Err(GateError::NotAPath(name));
    }
    let identity = FileIdentity::of_path(&options.filename);
    match identity.is_some_and(|identity| above.contains(&identity)) {
        true => Err(GateError::Loop(name)),
        false => Ok(()),
    }
}

/// What is behind a data file's name: always a plain path, and relative to the working directory, both as in QEMU.
pub(super) fn data_storage(name: &str, inherited: &Inherited) -> NodeSpec {
    file(name.into(), inherited)
}

/// A file or block device, whichever the path leads to; `file::open` looks again.
fn file(path: PathBuf, inherited: &Inherited) -> NodeSpec {
    let is_device = |path: &Path| {
        path.metadata()
            .is_ok_and(|m| m.file_type().is_block_device())
    };
    let kind = match is_device(&path) {
        true => FileKind::Device,
        false => FileKind::Regular,
    };
    let options = FileOptions {
        filename: path,
        kind,
        mode: match inherited.common.access {
            Access::ReadOnly => OpenMode::ReadOnly,
            Access::ReadWrite => OpenMode::ReadWrite,
        },
        cache: inherited.cache,
        flushes: inherited.flushes,
        locking: Locking::Auto,
        engine: Engine::Any,
    };
    NodeSpec {
        name: None,
        common: inherited.common,
        driver: DriverSpec::File(FileSpec { options }),
    }
}

/// What a name stands for, with that format: it is put on top of what is only storage.
pub(super) fn formatted(
    parsed: Parsed,
    format: Format,
    inherited: &Inherited,
    named: &Named,
) -> NodeSpec {
    match parsed {
        Parsed::Node(spec) | Parsed::Storage(spec) if format.is_of(&spec) => spec,
        Parsed::Node(spec) | Parsed::Storage(spec) => {
            on(Child::Inline(Box::new(spec)), format, inherited, named)
        }
    }
}

/// A node of that format on `storage`.
pub(super) fn on(storage: Child, format: Format, inherited: &Inherited, named: &Named) -> NodeSpec {
    let driver = match format {
        Format::Raw | Format::File => DriverSpec::Raw {
            file: storage,
            window: Window::default(),
            journal: None,
        },
        Format::Qcow2 => DriverSpec::Qcow2(Box::new(Qcow2Spec {
            file: storage,
            data_file: None,
            backing: Backing::Stored,
            options: Options::default(),
            named: named.clone(),
            journal: None,
        })),
    };
    NodeSpec {
        name: None,
        common: inherited.common,
        driver,
    }
}

impl Inherited {
    /// What a backing node has of the image that names it: never written to, its cache mode, and discards as any child.
    pub(super) fn backing(above: Common, named: &Named) -> Inherited {
        Inherited::child(
            Common {
                access: Access::ReadOnly,
                ..above
            },
            named,
        )
    }

    /// What a data file has of its image.
    pub(super) fn child(above: Common, named: &Named) -> Inherited {
        Inherited {
            common: Common {
                discard: DiscardPolicy::Unmap,
                detect_zeroes: DetectZeroes::Off,
                ..above
            },
            cache: named.cache,
            flushes: named.flushes,
        }
    }
}
