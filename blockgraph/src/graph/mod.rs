//! The graph: nodes, edges with roles, immutable generations.
//!
//! The rule: a generation never changes. An edit builds generation n+1 and publishes it whole, or nothing; queue threads
//! adopt it between batches.

pub mod control;
pub(crate) mod current;
mod edge;
pub mod edit;

pub mod gate;
pub mod open;
pub mod perm;
mod resources;
pub mod status;
mod walk;

pub use control::Control;
pub use current::Current;
pub use edge::{Edge, Role, Shape};
pub use resources::{Resources, TlsUnavailable};

use crate::filter::throttle::ThrottleGroups;
use crate::node::{Driver, Filter, Info, NodeId, Origin, Shown};
use ring::{File, FileId};
use std::collections::BTreeSet;
use std::sync::Arc;

/// May guests and jobs change the node?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads only.
    ReadOnly,
    /// Reads and writes.
    ReadWrite,
}

/// What becomes of a discard (QEMU's `discard=`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiscardPolicy {
    /// Dropped: the default.
    Ignore,
    /// Passed down.
    Unmap,
}

/// What becomes of a write whose bytes are all zero (QEMU's `detect-zeroes=`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DetectZeroes {
    /// Written like any other.
    Off,
    /// A write-zeroes that keeps the space.
    On,
    /// A write-zeroes that may give the space back.
    Unmap,
}

/// Do a node's users have to let other processes do as they like (QEMU's `force-share=`)?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// As each of them says.
    Asked,
    /// Always; only for nodes that are read.
    Forced,
}

/// Options every node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Common {
    /// `read-only=`
    pub access: Access,
    /// `discard=`
    pub discard: DiscardPolicy,
    /// `detect-zeroes=`
    pub detect_zeroes: DetectZeroes,
    /// `force-share=`
    pub sharing: Sharing,
}

impl Default for Common {
    fn default() -> Common {
        Common {
            access: Access::ReadWrite,
            discard: DiscardPolicy::Ignore,
            detect_zeroes: DetectZeroes::Off,
            sharing: Sharing::Asked,
        }
    }
}

/// What a node does. Generations share it: the same body may have other children in the next one.
#[derive(Clone, Debug)]
pub enum Body {
    /// It knows where its bytes live.
    Driver(Arc<dyn Driver>),
    /// It lets requests pass to another node.
    Filter(Arc<dyn Filter>),
}

/// A node of the graph.
#[derive(Clone, Debug)]
pub struct Node {
    name: String,
    kind: &'static str,
    common: Common,
    body: Body,
    shape: Shape,
    files: Vec<Arc<File>>,
}

/// What a new node is made of.
#[derive(Debug)]
pub struct NewNode {
    /// Its node-name.
    pub name: String,
    /// Its driver's name, as in `driver=`.
    pub kind: &'static str,
    /// Options every node has.
    pub common: Common,
    /// What it does.
    pub body: Body,
    /// Its children.
    pub shape: Shape,
    /// The files its `map` may answer.
    pub files: Vec<Arc<File>>,
}

impl Node {
    fn new(new: NewNode) -> Node {
        let NewNode {
            name,
            kind,
            common,
            body,
            shape,
            files,
        } = new;
        Node {
            name,
            kind,
            common,
            body,
            shape,
            files,
        }
    }

    /// The same with other children.
    fn with_shape(&self, shape: Shape) -> Node {
        Node {
            shape,
            ..self.clone()
        }
    }

    /// Are the two one node, whatever their children?
    fn is(&self, other: &Node) -> bool {
        match (&self.body, &other.body) {
            (Body::Driver(a), Body::Driver(b)) => std::ptr::addr_eq(Arc::as_ptr(a), Arc::as_ptr(b)),
            (Body::Filter(a), Body::Filter(b)) => std::ptr::addr_eq(Arc::as_ptr(a), Arc::as_ptr(b)),
            _ => false,
        }
    }

    /// Its node-name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its driver's name.
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// Options every node has.
    pub fn common(&self) -> Common {
        self.common
    }

    /// What it does.
    pub fn body(&self) -> &Body {
        &self.body
    }

    /// Its children.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The files its `map` may answer.
    pub fn files(&self) -> &[Arc<File>] {
        &self.files
    }

    /// The file it is, if it is one.
    pub fn origin(&self) -> Option<&Origin> {
        match &self.body {
            Body::Driver(driver) => driver.origin(),
            Body::Filter(_) => None,
        }
    }

    /// True if a write must be looked at, or refused, before it may be mapped.
    pub fn writes_serve(&self) -> bool {
        self.common.detect_zeroes != DetectZeroes::Off || self.common.access == Access::ReadOnly
    }
}

/// One generation.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    generation: u64,
    nodes: Vec<Option<Arc<Node>>>,
    /// The next file's name. Counts up for ever: a generation that is thrown away gives its names back unseen.
    next_file: u32,
    /// Nodes that the user asked for by themselves, and not as somebody's child.
    asked_for: BTreeSet<NodeId>,
    /// Files of nodes that are gone and that nobody is using any more.
    gone: Vec<FileId>,
    /// What makes a published generation be missed; a draft has its predecessor's.
    life: Option<Arc<current::Life>>,
    /// Filters that a job put there.
    implicit: BTreeSet<NodeId>,
    /// Who uses which node; the same for all generations.
    users: Arc<perm::Users>,
    /// The same for all generations too.
    throttle_groups: ThrottleGroups,
}

impl Graph {
    /// Which generation it is; the first, empty one is 0.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// A node by id.
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id.0 as usize)?.as_deref()
    }

    /// A node by name.
    pub fn find(&self, name: &str) -> Option<NodeId> {
        self.nodes().find(|(_, n)| n.name == name).map(|(id, _)| id)
    }

    /// Every node.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        let named = self.nodes.iter().enumerate();
        named.filter_map(|(at, node)| Some((NodeId(at as u32), node.as_deref()?)))
    }

    /// The throttle groups that nodes may belong to.
    pub fn throttle_groups(&self) -> &ThrottleGroups {
        &self.throttle_groups
    }

    /// Every file a walk may end at.
    pub fn files(&self) -> impl Iterator<Item = &Arc<File>> {
        self.nodes().flat_map(|(_, node)| node.files.iter())
    }

    /// Size and limits of a node; a filter's are those of what it filters.
    pub fn info(&self, id: NodeId) -> Option<Info> {
        let mut id = id;
        let mut shown = Shown::default();
        for _ in 0..crate::map::DEPTH_MAX {
            let node = self.node(id)?;
            let filtered = node.shape().filtered();
            match (node.body(), filtered) {
                (Body::Filter(_), below) => id = below?,
                (Body::Driver(driver), None) => {
                    let info = driver.info();
                    return Some(Info {
                        size_bytes: shown.size_bytes.unwrap_or(info.size_bytes),
                        limits: shown.limits.unwrap_or(info.limits),
                    });
                }
                (Body::Driver(driver), Some(below)) => {
                    let own = driver.shown();
                    shown.size_bytes = shown.size_bytes.or(own.size_bytes);
                    shown.limits = shown.limits.or(own.limits);
                    id = below;
                }
            }
        }
        None
    }

    /// Files that nobody is using any more: whoever has them open still may close them.
    pub(crate) fn gone(&self) -> &[FileId] {
        &self.gone
    }

    /// How many nodes are on top of each other from `id` down; stops counting past what a walk goes down.
    fn depth(&self, id: NodeId) -> usize {
        let mut level = vec![id];
        let mut depth = 0;
        while !level.is_empty() && depth <= crate::map::DEPTH_MAX {
            let nodes = level.iter().filter_map(|id| self.node(*id));
            level = nodes
                .flat_map(|n| n.shape().edges().map(|e| e.child))
                .collect();
            level.sort_unstable();
            level.dedup();
            depth += 1;
        }
        depth
    }

    /// The id that the next node to be inserted will have.
    pub fn next_id(&self) -> NodeId {
        NodeId(self.nodes.len() as u32)
    }

    /// A name for a file that no other has had.
    pub fn new_file_id(&mut self) -> FileId {
        self.next_file += 1;
        FileId(self.next_file - 1)
    }

    /// Says that a job put the filter `id` there, and not the user.
    pub fn set_implicit(&mut self, id: NodeId) {
        self.implicit.insert(id);
    }

    /// Did a job put it there?
    pub fn is_implicit(&self, id: NodeId) -> bool {
        self.implicit.contains(&id)
    }

    /// Adds a node and returns its id.
    pub fn insert(&mut self, new: NewNode) -> NodeId {
        self.insert_arc(Arc::new(Node::new(new)))
    }

    fn insert_arc(&mut self, node: Arc<Node>) -> NodeId {
        let id = self.next_id();
        self.nodes.push(Some(node));
        id
    }

    /// The same to be kept for later: it is nobody's generation.
    fn kept(&self) -> Graph {
        Graph {
            life: None,
            ..self.clone()
        }
    }
}

/// The system's words for an error, without the number that std adds: what QEMU's messages end in.
pub(crate) fn errno_text(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error ") {
        Some(at) => text[..at].to_owned(),
        None => text,
    }
}
