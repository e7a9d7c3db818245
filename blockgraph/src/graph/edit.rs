//! Edits of a graph that is in use: another child, a filter more or less, a node less.
//!
//! The rule: an edit is a draft until [`Edit::commit`], which checks who may do what in the new generation and publishes
//! it, or changes nothing at all. Requests under way end on the generation they began on; nodes that are in no generation
//! any more are closed by [`Leaving::finish`], once the last of those has ended.
//!
//! Exports and jobs name the place where they are attached, so a filter put above a node takes the node's place, and the
//! node gets another: whoever was attached sees the filter, and never knows.

use super::journals;
use super::open::NodeSpec;
use super::pause::{Quiet, StillBusy};
use super::perm::{Agreed, PermError};
use super::{Body, Common, Control, Current, Edge, Graph, NewNode, Node, Role, Shape};
use crate::io::Io;
use crate::map::DEPTH_MAX;
use crate::node::NodeId;
use ring::{Errno, File};
use std::collections::{BTreeMap, BTreeSet};
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
    /// Another reads from it what it has not itself.
    #[error("Node '{node}' is busy: node is used as backing hd of '{parent}'")]
    Busy {
        /// The node.
        node: String,
        /// Whose.
        parent: String,
    },
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
    /// A filter above relies on what is below.
    #[error("Cannot change frozen '{option}' link from '{parent}' to '{child}'")]
    Frozen {
        /// The child that would be another.
        child: String,
        /// As what.
        option: &'static str,
        /// Whose.
        parent: String,
    },
    /// It has no child of that kind, or is no filter.
    #[error("Node '{0}' has no such child")]
    NoChild(String),
    /// More nodes on top of each other than a walk goes down.
    #[error("Block graph is deeper than {DEPTH_MAX} nodes")]
    TooDeep,
    /// Some disk is stuck.
    #[error(transparent)]
    Stuck(#[from] StillBusy),
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
    pub(super) current: Arc<Current>,
    pub(super) before: Arc<Graph>,
    pub(super) graph: Graph,
    /// Where nodes that got another place were before, by where they are now.
    pub(super) moved: BTreeMap<NodeId, NodeId>,
}

/// Nodes that are in the graph no more, until they are closed.
#[must_use = "nodes that left the graph have to be closed"]
#[derive(Debug)]
pub struct Leaving {
    current: Arc<Current>,
    before: Arc<Graph>,
    /// The first generation without them.
    since: u64,
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
        self.check_link(parent, option, Some(child))?;
        self.redirect(parent, |edge| {
            if edge.role == role {
                edge.child = child;
            }
        });
        Ok(())
    }

    /// Makes `child` what `parent` reads where it has nothing, or nothing at all. Errors: it is no format.
    pub fn set_backing(&mut self, parent: NodeId, child: Option<NodeId>) -> Result<(), EditError> {
        self.check_link(parent, "backing", child)?;
        let mut shape = self.node(parent)?.shape().clone();
        let Shape::Format { backing, .. } = &mut shape else {
            return Err(EditError::NoChild(self.name(parent)));
        };
        *backing = child.map(|child| Edge {
            role: Role::Cow,
            option: "backing",
            child,
        });
        self.reshape(parent, shape);
        Ok(())
    }

    /// May that child of `parent` be another?
    fn check_link(
        &self,
        parent: NodeId,
        option: &'static str,
        child: Option<NodeId>,
    ) -> Result<(), EditError> {
        if let Some(child) = child {
            self.node(child)?;
            if self.graph.parents_first(child).contains(&parent) {
                return Err(EditError::Cycle {
                    child: self.name(child),
                    option,
                    parent: self.name(parent),
                });
            }
        }
        let mut edges = self.node(parent)?.shape().edges();
        let before = edges.find(|edge| edge.option == option);
        match before {
            Some(edge) if Some(edge.child) != child && self.graph.is_frozen(parent, edge) => {
                Err(EditError::Frozen {
                    child: self.name(edge.child),
                    option,
                    parent: self.name(parent),
                })
            }
            _ => Ok(()),
        }
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

    /// The same of a filter that needs something besides. Whatever that reads from `below` it goes on reading from there, not
    /// from the filter.
    pub fn insert_above_with(
        &mut self,
        below: NodeId,
        filter: NewFilter,
        also: Edge,
    ) -> Result<NodeId, EditError> {
        let needed = self.graph.parents_first(also.child);
        let place = self.insert_above(below, filter)?;
        for parent in needed {
            self.redirect(parent, |edge| {
                if edge.child == below {
                    edge.child = place;
                }
            });
        }
        if let Some(Some(node)) = self.graph.nodes.get_mut(below.0 as usize) {
            let shape = Shape::Filter {
                below: Edge::file(Role::Filtered, place),
                also: Some(also),
            };
            *node = Arc::new(node.with_shape(shape));
        }
        Ok(place)
    }

    /// A job put that filter there, and not the user.
    pub fn mark_implicit(&mut self, filter: NodeId) {
        self.graph.set_implicit(filter);
    }

    /// Takes a filter out: its users use what it filtered. Errors: something is attached to both.
    pub fn remove_filter(&mut self, filter: NodeId) -> Result<NodeId, EditError> {
        let Some(below) = self.node(filter)?.shape().filtered() else {
            return Err(EditError::NoChild(self.name(filter)));
        };
        self.put_in_place(filter, below)
    }

    /// All who use `old` use `new` instead, which is somewhere below it; `old` is no longer in the graph, though what it used may
    /// be. Says where `new` is now. Errors: something is attached to both, or a filter relies on one of the links to `old`.
    pub fn replace(&mut self, old: NodeId, new: NodeId) -> Result<NodeId, EditError> {
        for (parent, node) in self.graph.nodes() {
            let mut edges = node.shape().edges().filter(|edge| edge.child == old);
            if let Some(edge) = edges.find(|edge| self.graph.is_frozen(parent, edge)) {
                return Err(EditError::Frozen {
                    child: self.name(old),
                    option: edge.option,
                    parent: self.name(parent),
                });
            }
        }
        self.put_in_place(old, new)
    }

    fn put_in_place(&mut self, old: NodeId, new: NodeId) -> Result<NodeId, EditError> {
        let users = &self.graph.users;
        let (kept, gone) = match (users.is_attached(old), users.is_attached(new)) {
            (true, true) => return Err(EditError::Attached(self.name(new))),
            (true, false) => (old, new),
            (false, _) => (new, old),
        };
        for set in [&mut self.graph.implicit, &mut self.graph.asked_for] {
            set.remove(&old);
        }
        if kept == old {
            self.graph.nodes[old.0 as usize] = Some(self.slot(new)?.clone());
            self.note_move(new, old);
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
        if let Some(parent) = self.graph.backed(id) {
            let parent = self.name(parent);
            let node = owned();
            return Err(EditError::Busy { node, parent });
        }
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
    pub common: Common,
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
        // What is closed below a disk may still have changed its file.
        for id in &self.nodes {
            result = result.and(self.end_journal(*id, control));
        }
        // Closing had them open once more, and what had left before with them.
        control.forget(self.left_files(&self.current.get()));
        self.let_go();
        control.adopt();
        result.map_err(|error| (error, None))
    }

    /// Errors: it did not come to that in time.
    fn drain(&self, control: &mut Control, deadline: Instant) -> Result<(), LeaveError> {
        control.adopt();
        // What is kept of it here is no generation of anybody's.
        if !self.current.left(self.since, deadline) {
            return Err(LeaveError::StillUsed);
        }
        // Kept, as the work is left behind where the deadline passes.
        let newest = Arc::new(self.current.get().kept());
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

    fn end_journal(&self, id: NodeId, control: &mut Control) -> Result<(), LeaveError> {
        let node = self.before.node(id);
        match node.is_some_and(|node| node.bitmaps().journal().is_some() && !self.goes_on(node)) {
            true => Ok(control.run(&self.before, id, journals::end_here)?),
            false => Ok(()),
        }
    }

    /// Has another node its journal now?
    fn goes_on(&self, node: &Node) -> bool {
        let Some(journal) = node.bitmaps().journal() else {
            return false;
        };
        let newest = self.current.get();
        let mut others = newest
            .nodes()
            .filter_map(|(_, other)| other.bitmaps().journal());
        others.any(|other| Arc::ptr_eq(other, journal))
    }

    /// Files of the generation before that are in no newer one.
    fn left_files<'a>(&'a self, newest: &Graph) -> impl Iterator<Item = &'a Arc<File>> {
        let known: BTreeSet<_> = newest.files().map(|file| file.id()).collect();
        let files = self.before.files();
        files.filter(move |file| !known.contains(&file.id()))
    }

    /// What they had asked of their children is asked no more, and their files may be closed by every thread.
    fn let_go(&self) {
        let mut graph = self.current.get().kept();
        let nodes = self.nodes.iter().filter_map(|id| self.before.node(*id));
        // A node that took over another's journal has its file.
        let known: BTreeSet<_> = graph.files().map(|file| file.id()).collect();
        let files = nodes.flat_map(Node::files);
        let files = files.filter(|file| !known.contains(&file.id()));
        graph.gone.prune(self.current.oldest());
        let since = graph.generation() + 1;
        graph.gone.add(since, files);
        graph.users.forget(&graph);
        self.current.publish(graph);
        // Threads that sleep have the files open until they look.
        self.current.ring();
    }
}
