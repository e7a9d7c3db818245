//! Tasks of a lane: requests that are served, work of the caller's, and work that outlives the request that began it.
//!
//! The rule: whoever changes a part of the graph waits for the tasks of its nodes, those too of which nobody else awaits the end;
//! new ones begin when that is over.

use super::Lane;
use crate::graph::Graph;
use crate::io::Io;
use crate::node::{Local, NodeId, Outcome};
use ring::Wait;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the end of a lane waits for work that was begun aside.
const ASIDE_PATIENCE: Duration = Duration::from_secs(10);

/// How many tasks there are of each node.
#[derive(Clone, Debug, Default)]
pub(super) struct TasksOf(Rc<RefCell<BTreeMap<NodeId, u32>>>);

impl TasksOf {
    pub(super) fn enter(&self, node: NodeId) -> TaskOf {
        *self.0.borrow_mut().entry(node).or_default() += 1;
        TaskOf {
            all: self.clone(),
            node,
        }
    }

    /// How many there are of nodes of which `is_it` says so.
    pub(super) fn count(&self, is_it: impl Fn(NodeId) -> bool) -> usize {
        let tasks = self.0.borrow();
        let counted = tasks.iter().filter(|(node, _)| is_it(**node));
        counted.map(|(_, count)| *count as usize).sum()
    }
}

/// A task; one less when this is gone.
pub(super) struct TaskOf {
    all: TasksOf,
    node: NodeId,
}

impl Drop for TaskOf {
    fn drop(&mut self) {
        let mut all = self.all.0.borrow_mut();
        if let Some(count) = all.get_mut(&self.node) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.node);
            }
        }
    }
}

/// A task of nodes that no request may begin on yet.
pub(super) struct HeldTask {
    nodes: Vec<NodeId>,
    token: u64,
    work: Box<dyn FnOnce(Io) -> Local<'static, Outcome>>,
}

impl std::fmt::Debug for HeldTask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("HeldTask");
        shown.field("nodes", &self.nodes).finish_non_exhaustive()
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.finish_aside();
    }
}

impl Lane {
    /// Runs work of the caller's own on `node` as a task of this lane; its end comes out with `token`. It is a request like
    /// any other: whoever changes the graph waits for its end, and it begins only when nobody does.
    pub fn spawn<F>(&mut self, node: NodeId, token: u64, work: impl FnOnce(Io) -> F + 'static)
    where
        F: Future<Output = Outcome> + 'static,
    {
        self.spawn_using(&[node], token, work);
    }

    /// The same of work that uses several nodes, of which the first is where it is seen from.
    pub fn spawn_using<F>(
        &mut self,
        nodes: &[NodeId],
        token: u64,
        work: impl FnOnce(Io) -> F + 'static,
    ) where
        F: Future<Output = Outcome> + 'static,
    {
        if nodes.iter().any(|node| self.graph.holds(*node)) {
            self.in_flight += 1;
            let work = Box::new(|io| Box::pin(work(io)) as Local<'static, Outcome>);
            let nodes = nodes.to_vec();
            return self.held.push(HeldTask { nodes, token, work });
        }
        let here = nodes.first().copied().unwrap_or(NodeId(0));
        let work = work(self.io(here));
        let of: Vec<TaskOf> = nodes
            .iter()
            .map(|node| self.tasks_of.enter(*node))
            .collect();
        self.spawn_task(token, async move {
            let _of = of;
            work.await
        });
    }

    /// Begins what may begin now.
    pub(super) fn spawn_held(&mut self) {
        for task in std::mem::take(&mut self.held) {
            let HeldTask { nodes, token, work } = task;
            self.in_flight -= 1;
            self.spawn_using(&nodes, token, work);
        }
    }

    /// The same on a generation of the caller's, published or not: opening and closing nodes is done so.
    pub(crate) fn spawn_on<F>(
        &mut self,
        graph: &Arc<Graph>,
        node: NodeId,
        token: u64,
        work: impl FnOnce(Io) -> F,
    ) where
        F: Future<Output = Outcome> + 'static,
    {
        self.adopt_files(graph);
        let io = Io {
            thread: self.thread.clone(),
            graph: graph.clone(),
            here: node,
        };
        let work = work(io);
        self.spawn_task(token, work);
    }

    fn spawn_task(&mut self, token: u64, work: impl Future<Output = Outcome> + 'static) {
        let finished = self.finished.clone();
        self.in_flight += 1;
        self.tasks.spawn(Box::pin(async move {
            let outcome = work.await;
            finished.borrow_mut().push((token, outcome));
        }));
    }

    /// Runs tasks until none can go on, those among them that others began aside.
    pub(super) fn run_tasks(&mut self) {
        loop {
            self.tasks.run();
            let begun = std::mem::take(&mut *self.thread.aside.borrow_mut());
            if begun.is_empty() {
                return;
            }
            for (node, work) in begun {
                let of = self.tasks_of.enter(node);
                let aside = self.aside.clone();
                aside.set(aside.get() + 1);
                self.tasks.spawn(Box::pin(async move {
                    let _of = of;
                    work.await;
                    aside.set(aside.get() - 1);
                }));
            }
        }
    }

    /// Waits for tasks of which nobody awaits the end. A disk that is stuck for longer is stuck for good.
    fn finish_aside(&mut self) {
        let deadline = Instant::now() + ASIDE_PATIENCE;
        while self.aside.get() > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            let wait = Wait::AtMost(left.as_nanos() as u64);
            if left.is_zero() || self.turn(wait).is_err() {
                return;
            }
            // Nobody asks for these any more.
            while self.take().is_some() {}
        }
    }
}
