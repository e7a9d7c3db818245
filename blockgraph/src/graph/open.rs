//! Opens nodes: typed options in, the next generation of the graph out, or nothing.
//!
//! The rule: children first, each checked before its parent is made; whatever fails, nothing of the attempt is left, and
//! no other thread ever saw it. Options are complete: what an inline child inherits has been filled in by whoever wrote
//! them down.

mod filters;
mod journal;
mod named;
pub(super) mod qcow2;

pub use qcow2::{Backing, Qcow2Spec};

pub use filters::{FilterError, FilterSpec};

use super::gate::GateError;
use super::perm::PermError;
use super::{
    Access, Body, Common, Control, Current, Graph, NewNode, Node, Resources, Shape, Sharing,
};
use crate::bitmap::{DirtyBitmap, JournalError, Tracker};
use crate::driver::file::{self, FileError, FileOptions, OpenMode};
use crate::driver::nbd::client::{self, ClientError, NbdOptions};
use crate::driver::null::{Null, Reads};
use crate::driver::qcow2::Qcow2Error;
use crate::driver::raw::{Raw, Window, WindowError};
use crate::driver::snapshot_access::SnapshotAccess;
use crate::filter::delay::Delay;
use crate::io::Io;
use crate::map::DEPTH_MAX;
use crate::node::{FileIdentity, Info, NodeId};
use ring::Errno;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use thiserror::Error;

/// A node to be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSpec {
    /// Its name; without one it gets a generated one.
    pub name: Option<String>,
    /// Options every node has.
    pub common: Common,
    /// What it is.
    pub driver: DriverSpec,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DriverSpec {
    /// `null-co` or `null-aio`.
    Null(NullSpec),
    /// `file` or `host_device`.
    File(FileSpec),
    /// `raw`
    Raw {
        /// Where the bytes are.
        file: Child,
        /// Which of them.
        window: Window,
        /// The file beside it that keeps its bitmaps, if any.
        journal: Option<PathBuf>,
    },
    /// `qcow2`
    Qcow2(Box<Qcow2Spec>),
    /// Other filters.
    Filter(Box<FilterSpec>),
    /// The delay filter.
    Delay {
        /// What it delays.
        file: Child,
        /// By how much.
        latency_ns: u64,
    },
    /// `snapshot-access`
    SnapshotAccess {
        /// The filter that keeps the snapshot.
        file: Child,
    },
    /// `nbd`; `mode` is set from `common.access` unless it is [`OpenMode::Auto`].
    Nbd(Box<NbdOptions>),
}

/// A disk that stores nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NullSpec {
    /// The driver's name: the two are the same to us.
    pub kind: NullKind,
    /// Size in bytes.
    pub size_bytes: u64,
    /// What reads do.
    pub reads: Reads,
    /// How long each request takes.
    pub latency_ns: u64,
}

/// By which name a null node was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NullKind {
    /// `null-co`
    Co,
    /// `null-aio`
    Aio,
}

/// A file. Whether it is opened for writing follows from the node's own options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSpec {
    /// What and how; `mode` is set from `common.access` unless it is [`OpenMode::Auto`].
    pub options: FileOptions,
}

/// A child, by name or written out in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Child {
    /// A node that exists.
    Named(String),
    /// A node to be opened with its parent.
    Inline(Box<NodeSpec>),
}

/// Why a node cannot be opened; the texts are QEMU's.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Not a name for a node.
    #[error("Invalid node-name: '{0}'")]
    BadName(String),
    /// Longer than any client expects.
    #[error("Node name too long")]
    LongName,
    /// Taken.
    #[error("Duplicate nodes with node-name='{0}'")]
    Duplicate(String),
    /// Nobody has that name.
    #[error("Cannot find device='{0}' nor node-name='{0}'")]
    NotFound(String),
    /// More nodes on top of each other than a walk goes down.
    #[error("Block graph is deeper than {DEPTH_MAX} nodes")]
    TooDeep,
    /// `force-share` is for readers.
    #[error("force-share=on can only be used with read-only images")]
    ForceShare,
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The filter.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The window on it.
    #[error(transparent)]
    Window(#[from] WindowError),
    /// The server.
    #[error(transparent)]
    Nbd(#[from] ClientError),
    /// The image.
    #[error(transparent)]
    Qcow2(#[from] Qcow2Error),
    /// What the image names.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// The file beside it.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// What is below it.
    #[error("Could not open backing file: {0}")]
    Backing(Box<OpenError>),
    /// Who uses what.
    #[error(transparent)]
    Perm(#[from] PermError),
}

impl OpenError {
    /// The same of a backing file. What is wrong with a chain as a whole is said once, and not for each of its images.
    fn of_backing(self) -> OpenError {
        match self {
            OpenError::TooDeep | OpenError::Gate(GateError::Loop(_)) => self,
            other => OpenError::Backing(Box::new(other)),
        }
    }

    /// What QEMU prints on a line of its own below the message, if anything.
    pub fn hint(&self) -> Option<String> {
        match self {
            OpenError::Perm(error) => error.hint(),
            OpenError::Backing(below) => below.hint(),
            OpenError::Nbd(error) => error.hint(),
            _ => None,
        }
    }
}

/// Longest node-name (QEMU: 31 bytes and a terminator).
const NAME_BYTES_MAX: usize = 31;

/// Opens a node and its inline children and publishes the generation that has them. What a driver has to read first it
/// reads through `control`.
pub fn open(
    current: &Arc<Current>,
    spec: NodeSpec,
    control: &mut Control,
) -> Result<(NodeId, Arc<Graph>), OpenError> {
    let mut opening = Opening {
        graph: (*current.get()).clone(),
        opened: Vec::new(),
        above: Vec::new(),
        bitmaps: Vec::new(),
        control,
    };
    match opening.node(spec, 0) {
        Ok(id) => {
            opening.graph.asked_for.insert(id);
            opening.graph.note_made(id, &opening.opened);
            Ok((id, current.publish(opening.graph)))
        }
        Err(error) => {
            opening.undo();
            Err(error)
        }
    }
}

impl Graph {
    /// The name of a new node: the one that was asked for, or one of its own. Errors: it is no name, or somebody has it.
    pub fn name_for(&self, wanted: Option<&str>) -> Result<String, OpenError> {
        match wanted {
            Some(name) => check_name(self, name).map(|()| name.to_owned()),
            None => Ok(generated_name(self)),
        }
    }
}

/// The name of a node that asked for none: no name a user can give begins so.
fn generated_name(graph: &Graph) -> String {
    let names = (0u32..).map(|n| format!("#block{n:03}"));
    let mut free = names.filter(|name| graph.find(name).is_none());
    free.next().unwrap_or_default()
}

fn check_name(graph: &Graph, name: &str) -> Result<(), OpenError> {
    let mut bytes = name.bytes();
    let begins_well = bytes.next().is_some_and(|b| b.is_ascii_alphabetic());
    let goes_on_well = bytes.all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    if !begins_well || !goes_on_well {
        return Err(OpenError::BadName(name.to_owned()));
    }
    if graph.find(name).is_some() {
        return Err(OpenError::Duplicate(name.to_owned()));
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(OpenError::LongName);
    }
    Ok(())
}

/// What a driver's own part of opening came to.
struct Made {
    kind: &'static str,
    body: Body,
    shape: Shape,
    files: Vec<Arc<ring::File>>,
    access: Access,
}

/// A generation in the making.
struct Opening<'a> {
    graph: Graph,
    control: &'a mut Control,
    /// The nodes that are new in it, children first.
    opened: Vec<NodeId>,
    /// The files of the images whose backing or data file is being opened.
    above: Vec<FileIdentity>,
    /// The bitmaps of the image that is being made a node, the newest first.
    bitmaps: Vec<Arc<DirtyBitmap>>,
}

impl Opening<'_> {
    fn node(&mut self, spec: NodeSpec, depth: usize) -> Result<NodeId, OpenError> {
        if depth >= DEPTH_MAX {
            return Err(OpenError::TooDeep);
        }
        let kept = Arc::new(spec.clone());
        let NodeSpec {
            name,
            common,
            driver,
        } = spec;
        if common.sharing == Sharing::Forced && common.access != Access::ReadOnly {
            return Err(OpenError::ForceShare);
        }
        if let Some(name) = &name {
            check_name(&self.graph, name)?;
        }
        let made = self.make(driver, common, depth)?;
        self.insert(name, common, &kept, made)
    }

    /// What a driver was made into becomes a node. Never inlined, as other parts of opening: nodes below are opened from
    /// within those above, 250 deep at the most.
    #[inline(never)]
    fn insert(
        &mut self,
        name: Option<String>,
        common: Common,
        kept: &Arc<NodeSpec>,
        made: Made,
    ) -> Result<NodeId, OpenError> {
        // Asked again: an inline child may have taken the name meanwhile.
        if let Some(name) = &name {
            check_name(&self.graph, name)?;
        }
        let name = name.unwrap_or_else(|| generated_name(&self.graph));
        let journal = self.journal_for(&kept.driver, &made, common)?;
        let Made {
            kind,
            body,
            shape,
            mut files,
            access,
        } = made;
        files.extend(journal.as_ref().map(|journal| journal.file().clone()));
        let id = self.graph.insert(NewNode {
            name,
            kind,
            common: Common { access, ..common },
            body,
            shape,
            files,
        });
        self.graph.keep_spec(id, kept.clone());
        let bitmaps = std::mem::take(&mut self.bitmaps);
        let tracker = journal.map_or_else(Tracker::default, Tracker::journaled);
        self.graph.set_bitmaps(id, tracker.with(bitmaps));
        self.opened.push(id);
        self.take_up_journal(id)?;
        if self.graph.depth(id) > DEPTH_MAX {
            return Err(OpenError::TooDeep);
        }
        self.graph.users.connect(&self.graph, id)?;
        self.begin_journal(id)?;
        self.record_bitmaps(id)?;
        Ok(id)
    }

    fn make(
        &mut self,
        driver: DriverSpec,
        common: Common,
        depth: usize,
    ) -> Result<Made, OpenError> {
        match driver {
            DriverSpec::Null(spec) => Ok(make_null(&spec, common)),
            DriverSpec::Nbd(options) => make_nbd(*options, common, &mut self.control.resources),
            DriverSpec::File(spec) => self.make_file(spec, common),
            DriverSpec::Raw { file, window, .. } => {
                let (child, below) = self.child(file, depth)?;
                Ok(Made {
                    kind: "raw",
                    body: Body::Driver(Arc::new(Raw::new(below, window)?)),
                    shape: Shape::image(child),
                    files: Vec::new(),
                    access: common.access,
                })
            }
            DriverSpec::Qcow2(spec) => self.make_qcow2(*spec, common, depth),
            DriverSpec::Filter(spec) => self.make_filter(*spec, common, depth),
            DriverSpec::SnapshotAccess { file } => {
                let (child, below) = self.child(file, depth)?;
                Ok(Made {
                    kind: "snapshot-access",
                    body: Body::Driver(Arc::new(SnapshotAccess::new(below))),
                    shape: Shape::image(child),
                    files: Vec::new(),
                    access: common.access,
                })
            }
            DriverSpec::Delay { file, latency_ns } => {
                let (child, _) = self.child(file, depth)?;
                Ok(Made {
                    kind: "x-delay",
                    body: Body::Filter(Arc::new(Delay::new(latency_ns))),
                    shape: Shape::filter(child),
                    files: Vec::new(),
                    access: common.access,
                })
            }
        }
    }

    #[inline(never)]
    fn make_file(&mut self, spec: FileSpec, common: Common) -> Result<Made, OpenError> {
        let mut options = spec.options;
        options.mode = asked(common.access, options.mode);
        let id = self.graph.new_file_id();
        let sets = &self.control.resources.fd_sets;
        let (opened, access) = file::open_with(id, &options, sets)?;
        Ok(Made {
            kind: options.kind.name(),
            files: vec![opened.file().clone()],
            body: Body::Driver(Arc::new(opened)),
            shape: Shape::Leaf,
            access,
        })
    }

    fn child(&mut self, child: Child, depth: usize) -> Result<(NodeId, Info), OpenError> {
        let id = match child {
            Child::Named(name) => match self.graph.find(&name) {
                Some(id) => id,
                None => return Err(OpenError::NotFound(name)),
            },
            Child::Inline(spec) => self.node(*spec, depth + 1)?,
        };
        let info = self.graph.info(id).ok_or(OpenError::TooDeep)?;
        Ok((id, info))
    }

    /// Runs what a driver has to do while it is opened, as the node `here` of the generation in the making sees it: usually
    /// a child that is open already. Errors: EIO if the control thread's ring is gone.
    fn run<T: 'static, F: Future<Output = T> + 'static>(
        &mut self,
        here: NodeId,
        work: impl FnOnce(Io) -> F,
    ) -> Result<T, Errno> {
        let graph = Arc::new(self.graph.clone());
        let ran = self.control.run(&graph, here, work);
        ran.map_err(|error| error.raw_os_error().map_or(Errno::IO, Errno))
    }

    /// Forgets what the new nodes asked of their children, parents first, and the names of their files.
    fn undo(self) {
        for id in self.opened.iter().rev() {
            self.graph.users.disconnect(&self.graph, *id);
        }
        let opened = self.opened.iter().filter_map(|id| self.graph.node(*id));
        self.control.forget(opened.flat_map(Node::files));
    }
}

#[inline(never)]
fn make_nbd(
    mut options: NbdOptions,
    common: Common,
    resources: &mut Resources,
) -> Result<Made, OpenError> {
    options.mode = asked(common.access, options.mode);
    let (client, access) = client::open(&options, resources)?;
    Ok(Made {
        kind: "nbd",
        body: Body::Driver(Arc::new(client)),
        shape: Shape::Leaf,
        files: Vec::new(),
        access,
    })
}

/// A node that is read-only opens what it is on for reading, whatever else it might.
pub(super) fn asked(access: Access, mode: OpenMode) -> OpenMode {
    match (access, mode) {
        (Access::ReadOnly, _) => OpenMode::ReadOnly,
        (Access::ReadWrite, OpenMode::Auto) => OpenMode::Auto,
        (Access::ReadWrite, _) => OpenMode::ReadWrite,
    }
}

fn make_null(spec: &NullSpec, common: Common) -> Made {
    let null = Null::new(spec.size_bytes, spec.reads, spec.latency_ns);
    Made {
        kind: match spec.kind {
            NullKind::Co => "null-co",
            NullKind::Aio => "null-aio",
        },
        body: Body::Driver(Arc::new(null)),
        shape: Shape::Leaf,
        files: Vec::new(),
        access: common.access,
    }
}
