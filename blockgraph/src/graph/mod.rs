//! The graph: nodes, edges with roles, immutable generations.
//!
//! The rule: a generation never changes. An edit builds generation n+1 and publishes it whole, or nothing; queue threads
//! adopt it between batches.

mod common;
pub mod control;
pub(crate) mod current;
pub mod drains;
mod edge;
pub mod edit;
mod fdsets;
mod frozen;
pub mod gate;
mod gone;
pub mod journals;
mod made;
pub mod map_logs;
pub mod name;
mod node;
pub mod open;
mod overlay;
pub mod pause;
pub mod perm;
mod place;
pub mod reopen;
pub mod resize;
mod resources;
pub mod status;
pub mod threshold;
mod walk;

pub use common::{Access, Activity, Caching, Common, DetectZeroes, DiscardPolicy, Sharing};
pub use control::Control;
pub use current::Current;
pub use edge::{Edge, Role, Shape};
pub use fdsets::{FdSetError, FdSets};
pub use node::{Body, NewNode, Node};
pub use overlay::OverlayError;
pub use resources::{Resources, TlsUnavailable};

use crate::bitmap::{BitmapMemory, Tracker};
use crate::filter::throttle::ThrottleGroups;
use crate::node::{Info, NodeId, Shown};
use crate::notice::Notices;
use ring::{File, FileId};
use std::collections::BTreeSet;
use std::sync::Arc;

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
    gone: gone::Gone,
    /// What makes a published generation be missed; a draft has its predecessor's.
    life: Option<Arc<current::Life>>,
    /// Filters that a job put there.
    implicit: BTreeSet<NodeId>,
    /// Who was made before whom.
    made: made::Made,
    /// Nodes that no request may begin on.
    held: Option<Arc<pause::Held>>,
    /// Who uses which node; the same for all generations.
    users: Arc<perm::Users>,
    /// The same for all generations too.
    throttle_groups: ThrottleGroups,
    /// And these.
    notices: Arc<Notices>,
    /// And this.
    bitmap_memory: Arc<BitmapMemory>,
}

impl Graph {
    /// Which generation it is; the first, empty one is 0.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// A node by id.
    #[inline]
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

    /// Every use of its nodes, as it is now; generations share it.
    pub(crate) fn uses(&self) -> Vec<crate::report::Use> {
        self.users.all(self)
    }

    /// Is it the disk of somebody outside the graph?
    pub fn is_disk(&self, id: NodeId) -> bool {
        self.users.is_root(id)
    }

    /// Do only those outside the graph use it, as their disk?
    pub fn is_root(&self, id: NodeId) -> bool {
        let mut edges = self.nodes().flat_map(|(_, node)| node.shape().edges());
        !edges.any(|edge| edge.child == id) && !self.users.is_part(id)
    }

    /// Where nodes tell what happened to them; the same for all generations.
    pub fn notices(&self) -> &Arc<Notices> {
        &self.notices
    }

    /// What the bitmaps of all nodes take; the same for all generations.
    pub fn bitmap_memory(&self) -> &Arc<BitmapMemory> {
        &self.bitmap_memory
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

    /// The size that [`Graph::info`] tells, by itself.
    #[inline]
    pub(crate) fn size_bytes(&self, id: NodeId) -> Option<u64> {
        let node = self.node(id)?;
        match (&node.body, &node.shape) {
            (Body::Driver(driver), Shape::Leaf | Shape::Format { .. }) => Some(driver.size_bytes()),
            _ => Some(self.info(id)?.size_bytes),
        }
    }

    /// What the node that `id` is or filters allocates at once, in bytes; 1 where nobody says.
    pub fn unit_bytes(&self, id: NodeId) -> u64 {
        match self.node(self.skip_filters(id)).map(Node::body) {
            Some(Body::Driver(driver)) => driver.unit_bytes(),
            _ => 1,
        }
    }

    /// Files that nobody is using any more: whoever has them open still may close them.
    pub(crate) fn gone(&self) -> &[FileId] {
        self.gone.files()
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

    /// Did the user ask for it by itself, and not as somebody's child?
    pub fn is_owned(&self, id: NodeId) -> bool {
        self.asked_for.contains(&id)
    }

    /// `id`, and those of its children that were opened with it to hold its bytes, and so on down.
    pub fn with_own_files(&self, id: NodeId) -> Vec<NodeId> {
        let mut all = vec![id];
        let mut at = 0;
        while let Some(id) = all.get(at).copied() {
            let shape = self.node(id).map(|node| node.shape());
            let edges = shape.into_iter().flat_map(|shape| shape.edges());
            let own = edges.filter(|edge| edge.role != Role::Cow && !self.is_owned(edge.child));
            all.extend(own.map(|edge| edge.child));
            at += 1;
        }
        all
    }

    /// Says that a job put the filter `id` there, and not the user.
    pub fn set_implicit(&mut self, id: NodeId) {
        self.implicit.insert(id);
    }

    /// Did a job put it there?
    pub fn is_implicit(&self, id: NodeId) -> bool {
        self.implicit.contains(&id)
    }

    /// Is a request of `node` to wait for the next generation?
    #[inline]
    pub(crate) fn holds(&self, node: NodeId) -> bool {
        self.held.as_ref().is_some_and(|held| held.has(node))
    }

    /// Is any?
    pub(crate) fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// Adds a node and returns its id.
    pub fn insert(&mut self, new: NewNode) -> NodeId {
        self.insert_arc(Arc::new(Node::new(new)))
    }

    /// Remembers what a node was opened with.
    fn keep_spec(&mut self, id: NodeId, spec: Arc<open::NodeSpec>) {
        if let Some(Some(node)) = self.nodes.get_mut(id.0 as usize) {
            Arc::make_mut(node).spec = Some(spec);
        }
    }

    fn insert_arc(&mut self, node: Arc<Node>) -> NodeId {
        let id = self.next_id();
        self.nodes.push(Some(node));
        id
    }

    /// The same, a node having other bitmaps: a draft of the next generation.
    pub(crate) fn with_bitmaps(&self, id: NodeId, bitmaps: Tracker) -> Graph {
        let mut graph = self.kept();
        graph.set_bitmaps(id, bitmaps);
        graph
    }

    fn set_bitmaps(&mut self, id: NodeId, bitmaps: Tracker) {
        if let Some(Some(node)) = self.nodes.get_mut(id.0 as usize) {
            Arc::make_mut(node).bitmaps = bitmaps;
        }
    }

    /// The same to be kept for later: it is nobody's generation, and nobody waits for whoever has it.
    pub fn kept(&self) -> Graph {
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
