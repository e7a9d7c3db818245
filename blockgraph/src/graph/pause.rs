//! Requests held back: while a part of the graph is changed, nothing is under way on it and nothing begins.
//!
//! The rule: only requests that come through what is changed wait; others go on. Whoever holds requests back publishes a
//! generation that lets them go, whatever happens: [`Quiet`] sees to that.

use super::drains::Drain;
use super::{Body, Control, Current, Graph};
use crate::filter::throttle::Group;
use crate::node::NodeId;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;
use thiserror::Error;

/// Nodes that no request may begin on: bits by node id.
#[derive(Debug, Default)]
pub(crate) struct Held(Vec<bool>);

impl Held {
    #[inline]
    pub(crate) fn has(&self, node: NodeId) -> bool {
        self.0.get(node.0 as usize).is_some_and(|held| *held)
    }

    /// Those nodes, and those that are held already.
    fn with(above: &BTreeSet<NodeId>, outer: Option<&Held>) -> Held {
        let mut held = outer.map_or(Vec::new(), |outer| outer.0.clone());
        for id in above {
            let at = id.0 as usize;
            held.resize(held.len().max(at + 1), false);
            held[at] = true;
        }
        Held(held)
    }
}

/// Requests that were under way did not end in time: some disk is stuck.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("Requests under way did not end in time; nothing was changed")]
pub struct StillBusy;

/// Nothing is under way through certain nodes while this lives. Within it, others may begin and end.
#[derive(Debug)]
pub struct Quiet {
    current: Arc<Current>,
    /// What was held before.
    outer: Option<Arc<Held>>,
    hurried: Vec<Arc<Group>>,
    drain: Drain,
}

impl Quiet {
    /// Holds back requests that come through one of `touched`, and waits for the end of those under way. Those that wait for
    /// a throttle group's limits pass at once. Errors: they did not end before `deadline`.
    pub fn begin(
        current: &Arc<Current>,
        touched: &BTreeSet<NodeId>,
        control: &mut Control,
        deadline: Instant,
    ) -> Result<Quiet, StillBusy> {
        let drain = Drain::begin();
        let mut graph = current.get().kept();
        let above = above(&graph, touched);
        let outer = graph.held.take();
        let held = Held::with(&above, outer.as_deref());
        graph.held = Some(Arc::new(held));
        let hurried = groups(&graph, &above);
        hurried.iter().for_each(|group| group.hurry(true));
        let generation = current.publish(graph).generation();
        let mut quiet = Quiet {
            current: current.clone(),
            outer,
            hurried,
            drain,
        };
        control.adopt();
        let last_end = current.wait_quiet(generation, deadline)?;
        quiet.drain.settle(last_end);
        Ok(quiet)
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        self.hurried.iter().for_each(|group| group.hurry(false));
        let mut graph = self.current.get().kept();
        let is_as_before = match (&graph.held, &self.outer) {
            (Some(now), Some(outer)) => Arc::ptr_eq(now, outer),
            (now, outer) => now.is_none() && outer.is_none(),
        };
        if !is_as_before {
            graph.held = self.outer.take();
            self.current.publish(graph);
        }
        self.current.drains.over(&self.drain);
    }
}

/// Those nodes, all that are above them, and all that use one of those besides.
fn above(graph: &Graph, touched: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    let mut above = touched.clone();
    loop {
        // Children first: a node is known before its parents ask.
        for id in graph.all_parents_first().into_iter().rev() {
            let shape = graph.node(id).map(|node| node.shape());
            let mut edges = shape.into_iter().flat_map(|shape| shape.edges());
            if edges.any(|edge| above.contains(&edge.child)) {
                above.insert(id);
            }
        }
        // Of those there are few, and none in most graphs.
        let uses = |id: &NodeId| match graph.node(*id).map(|node| node.body()) {
            Some(Body::Driver(driver)) => driver.uses_besides(),
            _ => None,
        };
        let besides = graph
            .nodes()
            .map(|(id, _)| id)
            .filter(|id| !above.contains(id));
        let more: Vec<NodeId> = besides
            .filter(|id| uses(id).is_some_and(|used| above.contains(&used)))
            .collect();
        if more.is_empty() {
            break;
        }
        above.extend(more);
    }
    above.retain(|id| graph.node(*id).is_some());
    above
}

/// The throttle groups of requests that come in through one of `tops`, however far down they are throttled.
fn groups(graph: &Graph, tops: &BTreeSet<NodeId>) -> Vec<Arc<Group>> {
    let below = tops.iter().flat_map(|top| graph.parents_first(*top));
    let nodes: BTreeSet<NodeId> = below.collect();
    let bodies = nodes.iter().filter_map(|id| Some(graph.node(*id)?.body()));
    let groups = bodies.filter_map(|body| match body {
        Body::Filter(filter) => filter.throttle_group().cloned(),
        Body::Driver(_) => None,
    });
    let mut found: Vec<Arc<Group>> = Vec::new();
    for group in groups {
        if !found.iter().any(|other| Arc::ptr_eq(other, &group)) {
            found.push(group);
        }
    }
    found
}
