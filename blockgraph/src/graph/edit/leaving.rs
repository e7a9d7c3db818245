//! Nodes that left the graph. The rule: they are closed when the last request that may use them has ended, parents first.

use super::LeaveError;
use crate::graph::{Body, Control, Current, Graph, Node, journals};
use crate::io::Io;
use crate::node::NodeId;
use ring::File;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

/// Nodes that are in the graph no more, until they are closed.
#[must_use = "nodes that left the graph have to be closed"]
#[derive(Debug)]
pub struct Leaving {
    pub(super) current: Arc<Current>,
    pub(super) before: Arc<Graph>,
    /// The first generation without them.
    pub(super) since: u64,
    /// By where they were, parents first.
    pub(super) nodes: Vec<NodeId>,
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
