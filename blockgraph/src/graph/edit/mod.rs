//! Edits of a graph that is in use: another child, a filter more or less, a node less.
//!
//! The rule: an edit is a draft until [`Edit::commit`], which checks who may do what in the new generation and publishes
//! it, or changes nothing at all. Requests under way end on the generation they began on; nodes that are in no generation
//! any more are closed by [`Leaving::finish`], once the last of those has ended.
//!
//! Exports and jobs name the place where they are attached, so a filter put above a node takes the node's place, and the
//! node gets another: whoever was attached sees the filter, and never knows.

mod error;
mod leaving;
mod links;

pub use error::{EditError, LeaveError};
pub use leaving::Leaving;
pub use links::NewFilter;

use super::open::NodeSpec;
use super::pause::Quiet;
use super::perm::Agreed;
use super::{Body, Common, Control, Current, Edge, Graph, Node, Shape};
use crate::map::DEPTH_MAX;
use crate::node::NodeId;
use ring::File;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

/// A generation in the making.
#[derive(Debug)]
pub struct Edit {
    pub(super) current: Arc<Current>,
    pub(super) before: Arc<Graph>,
    pub(super) graph: Graph,
    /// Where nodes that got another place were before, by where they are now.
    pub(super) moved: BTreeMap<NodeId, NodeId>,
}

impl Edit {
    /// Begins with the newest generation. Edits, and opening, happen on one thread.
    pub fn begin(current: &Arc<Current>) -> Edit {
        let before = Arc::new(current.get().kept());
        Edit {
            current: current.clone(),
            graph: before.kept(),
            before,
            moved: BTreeMap::new(),
        }
    }

    /// As it will be.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Checks and publishes, or changes nothing.
    pub fn commit(self) -> Result<(Arc<Graph>, Leaving), EditError> {
        let _agreed = self.agree()?;
        Ok(self.publish())
    }

    /// The same while nothing is under way through any of `touched`, nor begins: for edits that requests must not overlap with,
    /// as a filter that has to see every write, or another layer to write to.
    pub fn commit_quiet(
        self,
        touched: &BTreeSet<NodeId>,
        control: &mut Control,
        deadline: Instant,
    ) -> Result<(Arc<Graph>, Leaving), EditError> {
        let quiet = Quiet::begin(&self.current, touched, control, deadline)?;
        let _agreed = self.agree()?;
        let published = self.publish();
        drop(quiet);
        Ok(published)
    }

    /// The same while `quiet` lasts, which ends with it.
    pub fn commit_in(self, quiet: Quiet) -> Result<(Arc<Graph>, Leaving), EditError> {
        let _agreed = self.agree()?;
        let published = self.publish();
        drop(quiet);
        Ok(published)
    }

    /// Checks who may do what in the new generation, and tells other processes. What comes of it has to be published, or
    /// given to [`Edit::disagree`].
    pub(super) fn agree(&self) -> Result<Agreed, EditError> {
        let graph = &self.graph;
        if graph.nodes().any(|(id, _)| graph.depth(id) > DEPTH_MAX) {
            return Err(EditError::TooDeep);
        }
        Ok(graph.users.rebuild(graph, &self.before, &self.moved)?)
    }

    /// As it was before that.
    pub(super) fn disagree(&self, agreed: Agreed) {
        self.graph.users.restore(agreed, &self.before);
    }

    /// What was agreed upon becomes the newest generation.
    pub(super) fn publish(self) -> (Arc<Graph>, Leaving) {
        let Edit {
            current,
            before,
            graph,
            ..
        } = self;
        let is_there = |node: &Node| graph.nodes().any(|(_, other)| other.is(node));
        let gone = before.all_parents_first().into_iter();
        let gone = gone.filter(|id| before.node(*id).is_some_and(|node| !is_there(node)));
        let nodes = gone.collect();
        let graph = current.publish(graph);
        let leaving = Leaving {
            nodes,
            current,
            before,
            since: graph.generation(),
        };
        (graph, leaving)
    }

    /// Gives a node other options.
    pub(super) fn set_options(&mut self, id: NodeId, common: Common, spec: Arc<NodeSpec>) {
        if let Some(Some(node)) = self.graph.nodes.get_mut(id.0 as usize) {
            let node = Arc::make_mut(node);
            node.common = common;
            node.spec = Some(spec);
        }
    }

    /// Gives a node another body.
    pub(super) fn give_body(&mut self, id: NodeId, body: Body, files: Vec<Arc<File>>) {
        if let Some(Some(node)) = self.graph.nodes.get_mut(id.0 as usize) {
            let node = Arc::make_mut(node);
            node.body = body;
            node.files = files;
            let journal = node.bitmaps.journal();
            node.files
                .extend(journal.map(|journal| journal.file().clone()));
        }
    }

    /// Gives a node one file more.
    pub(super) fn add_file(&mut self, id: NodeId, file: Arc<File>) {
        if let Some(Some(node)) = self.graph.nodes.get_mut(id.0 as usize) {
            Arc::make_mut(node).files.push(file);
        }
    }

    /// The node is kept for those who use it, and for nobody else.
    pub fn disown(&mut self, id: NodeId) {
        self.graph.asked_for.remove(&id);
    }

    /// Takes out what nobody asked for and nobody uses any more.
    pub fn drop_unused(&mut self) {
        let graph = &self.graph;
        let wanted = graph.nodes().map(|(id, _)| id);
        let wanted =
            wanted.filter(|id| graph.asked_for.contains(id) || graph.users.is_attached(*id));
        let used: BTreeSet<NodeId> = wanted.flat_map(|id| graph.parents_first(id)).collect();
        let unused: Vec<NodeId> = graph.nodes().map(|(id, _)| id).collect();
        for id in unused.into_iter().filter(|id| !used.contains(id)) {
            self.graph.implicit.remove(&id);
            self.graph.nodes[id.0 as usize] = None;
        }
    }

    pub(super) fn node(&self, id: NodeId) -> Result<&Node, EditError> {
        self.slot(id).map(|node| &**node)
    }

    pub(super) fn slot(&self, id: NodeId) -> Result<&Arc<Node>, EditError> {
        let slot = self.graph.nodes.get(id.0 as usize).and_then(Option::as_ref);
        slot.ok_or_else(|| EditError::NotFound(format!("{}", id.0)))
    }

    pub(super) fn name(&self, id: NodeId) -> String {
        self.graph.node(id).map_or("", Node::name).to_owned()
    }

    pub(super) fn is_child(&self, id: NodeId) -> bool {
        let mut edges = self
            .graph
            .nodes()
            .flat_map(|(_, node)| node.shape().edges());
        edges.any(|edge| edge.child == id)
    }

    /// Changes edges of a node; generations before this one keep theirs.
    pub(super) fn redirect(&mut self, parent: NodeId, change: impl FnMut(&mut Edge)) {
        if let Some(Some(node)) = self.graph.nodes.get(parent.0 as usize) {
            let mut shape = node.shape().clone();
            shape.edges_mut().for_each(change);
            self.reshape(parent, shape);
        }
    }

    pub(super) fn reshape(&mut self, id: NodeId, shape: Shape) {
        if let Some(Some(node)) = self.graph.nodes.get_mut(id.0 as usize)
            && shape != *node.shape()
        {
            *node = Arc::new(node.with_shape(shape));
        }
    }
}
