//! Edits of a graph that is in use: another child, a filter more or less, a node less.
//!
//! The rule: an edit is a draft until [`Edit::commit`], which checks who may do what in the new generation and publishes
//! it, or changes nothing at all. Requests under way end on the generation they began on; nodes that are in no generation
//! any more are closed by [`Leaving::finish`], once the last of those has ended.
//!
//! Exports and jobs name the place where they are attached, so a filter put above a node takes the node's place, and the
//! node gets another: whoever was attached sees the filter, and never knows.

use super::perm::PermError;
use super::{Body, Control, Current, Edge, Graph, NewNode, Node, Role, Shape};
use crate::io::Io;
use crate::map::DEPTH_MAX;
use crate::node::NodeId;
use ring::Errno;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use thiserror::Error;

/// Why a graph cannot be edited so; the texts are QEMU's.
#[derive(Debug, Error)]
pub enum EditError {
    /// Nobody has that name.
    #[error("Failed to find node with node-name='{0}'")]
    NotFound(String),
    /// Somebody outside the graph is attached to it.
    #[error("Node {0} is in use")]
    Attached(String),
    /// Another node needs it.
    #[error("Block device {0} is in use")]
    Needed(String),
    /// It belongs to its parent, or to a job.
    #[error("Node {0} is not owned by the monitor")]
    NotOwned(String),
    /// It would be its own descendant.
    #[error("Making '{child}' a {option} child of '{parent}' would create a cycle")]
    Cycle {
        /// The new child.
        child: String,
        /// As what.
        option: &'static str,
        /// Of whom.
        parent: String,
    },
    /// It has no child of that kind, or is no filter.
    #[error("Node '{0}' has no such child")]
    NoChild(String),
    /// More nodes on top of each other than a walk goes down.
    #[error("Block graph is deeper than {DEPTH_MAX} nodes")]
    TooDeep,
    /// Who uses what.
    #[error(transparent)]
    Perm(#[from] PermError),
}

/// What could not be done about nodes that left the graph.
#[derive(Debug, Error)]
pub enum LeaveError {
    /// Requests are still under way on them; try again.
    #[error("requests on removed nodes did not end in time")]
    StillUsed,
    /// A node could not write what it has to at its end.
    #[error("cannot close node {0}: {1}")]
    Close(String, Errno),
    /// No ring to close them through.
    #[error("cannot close nodes")]
    Ring(#[from] std::io::Error),
}

/// A generation in the making.
#[derive(Debug)]
pub struct Edit {
    current: Arc<Current>,
    before: Arc<Graph>,
    graph: Graph,
    /// Where nodes that got another place were before, by where they are now.
    moved: BTreeMap<NodeId, NodeId>,
}

/// Nodes that are in the graph no more, until they are closed.
#[must_use = "nodes that left the graph have to be closed"]
#[derive(Debug)]
pub struct Leaving {
    current: Arc<Current>,
    before: Arc<Graph>,
    /// By where they were, parents first.
    nodes: Vec<NodeId>,
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

    /// Makes `child` the child of that role of `parent`, in place of the one it has.
    pub fn replace_child(
        &mut self,
        parent: NodeId,
        role: Role,
        child: NodeId,
    ) -> Result<(), EditError> {
        let shape = self.node(parent)?.shape().clone();
        let Some(option) = shape.edges().find(|e| e.role == role).map(|e| e.option) else {
            return Err(EditError::NoChild(self.name(parent)));
        };
        if self.graph.parents_first(child).contains(&parent) {
            return Err(EditError::Cycle {
                child: self.name(child),
                option,
                parent: self.name(parent),
            });
        }
        self.node(child)?;
        self.redirect(parent, |edge| {
            if edge.role == role {
                edge.child = child;
            }
        });
        Ok(())
    }

    /// Puts a filter between `below` and all its users. It takes the node's place; says where the node is now.
    pub fn insert_above(&mut self, below: NodeId, filter: NewFilter) -> Result<NodeId, EditError> {
        let node = self.slot(below)?.clone();
        let place = self.graph.insert_arc(node);
        let NewFilter {
            name,
            kind,
            common,
            body,
        } = filter;
        let above = Node::new(NewNode {
            name,
            kind,
            common,
            body,
            shape: Shape::filter(place),
            files: Vec::new(),
        });
        self.graph.nodes[below.0 as usize] = Some(Arc::new(above));
        self.note_move(below, place);
        Ok(place)
    }

    /// Takes a filter out: its users use what it filtered. Errors: something is attached to both.
    pub fn remove_filter(&mut self, filter: NodeId) -> Result<NodeId, EditError> {
        let Some(below) = self.node(filter)?.shape().filtered() else {
            return Err(EditError::NoChild(self.name(filter)));
        };
        let users = &self.graph.users;
        let (kept, gone) = match (users.is_attached(filter), users.is_attached(below)) {
            (true, true) => return Err(EditError::Attached(self.name(below))),
            (true, false) => (filter, below),
            (false, _) => (below, filter),
        };
        for set in [&mut self.graph.implicit, &mut self.graph.asked_for] {
            set.remove(&filter);
        }
        if kept == filter {
            self.graph.nodes[filter.0 as usize] = Some(self.slot(below)?.clone());
            self.note_move(below, filter);
        }
        self.graph.nodes[gone.0 as usize] = None;
        for parent in self.graph.all_parents_first() {
            self.redirect(parent, |edge| {
                if edge.child == gone {
                    edge.child = kept;
                }
            });
        }
        Ok(kept)
    }

    /// Removes a node, and with it those of its children that were opened for it and that nobody else uses.
    pub fn remove(&mut self, name: &str) -> Result<(), EditError> {
        let owned = || name.to_owned();
        let id = self
            .graph
            .find(name)
            .ok_or_else(|| EditError::NotFound(owned()))?;
        if self.graph.users.is_attached(id) {
            return Err(EditError::Attached(owned()));
        }
        if !self.graph.asked_for.contains(&id) {
            return Err(EditError::NotOwned(owned()));
        }
        if self.is_child(id) {
            return Err(EditError::Needed(owned()));
        }
        self.graph.asked_for.remove(&id);
        let mut unused = vec![id];
        while let Some(id) = unused.pop() {
            let children: Vec<NodeId> = self.node(id)?.shape().edges().map(|e| e.child).collect();
            self.graph.implicit.remove(&id);
            self.graph.nodes[id.0 as usize] = None;
            let left_over = |child: &NodeId| {
                self.graph.node(*child).is_some()
                    && !self.graph.asked_for.contains(child)
                    && !self.graph.users.is_attached(*child)
                    && !self.is_child(*child)
            };
            unused.extend(children.into_iter().filter(left_over));
        }
        Ok(())
    }

    /// Checks and publishes, or changes nothing.
    pub fn commit(self) -> Result<(Arc<Graph>, Leaving), EditError> {
        let Edit {
            current,
            before,
            graph,
            moved,
        } = self;
        if graph.nodes().any(|(id, _)| graph.depth(id) > DEPTH_MAX) {
            return Err(EditError::TooDeep);
        }
        graph.users.rebuild(&graph, &before, &moved)?;
        let is_there = |node: &Node| graph.nodes().any(|(_, other)| other.is(node));
        let gone = before.all_parents_first().into_iter();
        let gone = gone.filter(|id| before.node(*id).is_some_and(|node| !is_there(node)));
        let leaving = Leaving {
            nodes: gone.collect(),
            current: current.clone(),
            before,
        };
        Ok((current.publish(graph), leaving))
    }

    fn node(&self, id: NodeId) -> Result<&Node, EditError> {
        self.slot(id).map(|node| &**node)
    }

    fn slot(&self, id: NodeId) -> Result<&Arc<Node>, EditError> {
        let slot = self.graph.nodes.get(id.0 as usize).and_then(Option::as_ref);
        slot.ok_or_else(|| EditError::NotFound(format!("{}", id.0)))
    }

    fn name(&self, id: NodeId) -> String {
        self.graph.node(id).map_or("", Node::name).to_owned()
    }

    fn is_child(&self, id: NodeId) -> bool {
        let mut edges = self
            .graph
            .nodes()
            .flat_map(|(_, node)| node.shape().edges());
        edges.any(|edge| edge.child == id)
    }

    /// Changes edges of a node; generations before this one keep theirs.
    fn redirect(&mut self, parent: NodeId, change: impl FnMut(&mut Edge)) {
        if let Some(Some(node)) = self.graph.nodes.get_mut(parent.0 as usize) {
            let mut shape = node.shape().clone();
            shape.edges_mut().for_each(change);
            if shape != *node.shape() {
                *node = Arc::new(node.with_shape(shape));
            }
        }
    }

    fn note_move(&mut self, from: NodeId, to: NodeId) {
        for set in [&mut self.graph.implicit, &mut self.graph.asked_for] {
            if set.remove(&from) {
                set.insert(to);
            }
        }
        let first = self.moved.remove(&from).unwrap_or(from);
        self.moved.insert(to, first);
    }
}

/// A filter to be put into the graph; its child follows from where.
#[derive(Debug)]
pub struct NewFilter {
    /// Its node-name.
    pub name: String,
    /// Its driver's name.
    pub kind: &'static str,
    /// Options every node has.
    pub common: super::Common,
    /// What it does.
    pub body: Body,
}

impl Leaving {
    /// The names of the nodes that leave, parents first.
    pub fn names(&self) -> Vec<&str> {
        let nodes = self.nodes.iter().filter_map(|id| self.before.node(*id));
        nodes.map(Node::name).collect()
    }

    /// Waits until no request is on a generation that has them, then closes them, parents first. Errors: the first thing
    /// that went wrong; the rest was tried, but for [`LeaveError::StillUsed`], which changes nothing and hands them back.
    pub fn finish(
        self,
        control: &mut Control,
        deadline: Instant,
    ) -> Result<(), (LeaveError, Option<Leaving>)> {
        if self.nodes.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.drain(control, deadline) {
            return Err((error, Some(self)));
        }
        let mut result = Ok(());
        for id in &self.nodes {
            result = result.and(self.close(*id, control));
        }
        self.let_go();
        control.adopt();
        result.map_err(|error| (error, None))
    }

    /// Errors: it did not come to that in time.
    fn drain(&self, control: &mut Control, deadline: Instant) -> Result<(), LeaveError> {
        control.adopt();
        // What is kept of it here is no generation of anybody's.
        if !self.current.left(self.before.generation() + 1, deadline) {
            return Err(LeaveError::StillUsed);
        }
        let newest = self.current.get();
        let work = |io: Io| async move { io.grace().await };
        let waited = control.run_until(&newest, NodeId(0), Some(deadline), work);
        waited.map_err(|_| LeaveError::StillUsed)
    }

    fn close(&self, id: NodeId, control: &mut Control) -> Result<(), LeaveError> {
        let Some(node) = self.before.node(id) else {
            return Ok(());
        };
        let Body::Driver(driver) = node.body().clone() else {
            return Ok(());
        };
        let work = |io| async move { driver.close(&io).await };
        let closed = control.run(&self.before, id, work)?;
        closed.map_err(|errno| LeaveError::Close(node.name().to_owned(), errno))
    }

    /// What they had asked of their children is asked no more, and their files may be closed by every thread.
    fn let_go(&self) {
        let mut graph = self.current.get().kept();
        let nodes = self.nodes.iter().filter_map(|id| self.before.node(*id));
        graph
            .gone
            .extend(nodes.flat_map(Node::files).map(|file| file.id()));
        graph.users.forget(&graph);
        self.current.publish(graph);
    }
}
