//! Write thresholds: who watches over a disk is told of the first write beyond a point, to make room in time.
//!
//! The rule: it fires once. A node without one costs nothing; a node with one serves its writes (`Node::writes_serve`).

use super::{Current, Graph, Node};
use crate::node::NodeId;
use crate::units::Span;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Told by how many bytes the threshold was exceeded, on the thread of the write: it only passes that on.
pub type Tell = Box<dyn Fn(u64) + Send + Sync>;

/// A point in a disk, and whom to tell.
pub struct WriteThreshold {
    at_bytes: u64,
    fired: AtomicBool,
    tell: Tell,
}

impl fmt::Debug for WriteThreshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("WriteThreshold");
        shown.field("at_bytes", &self.at_bytes);
        shown.field("fired", &self.fired).finish_non_exhaustive()
    }
}

impl WriteThreshold {
    /// `tell` is called once, with what is written beyond `at_bytes`.
    pub fn new(at_bytes: u64, tell: Tell) -> WriteThreshold {
        WriteThreshold {
            at_bytes,
            fired: AtomicBool::new(false),
            tell,
        }
    }

    /// Where it is; 0 once it has fired.
    pub fn at_bytes(&self) -> u64 {
        match self.fired.load(Ordering::Acquire) {
            true => 0,
            false => self.at_bytes,
        }
    }

    fn see(&self, span: Span) {
        let beyond = span.end().saturating_sub(self.at_bytes);
        if beyond > 0 && !self.fired.swap(true, Ordering::AcqRel) {
            (self.tell)(beyond);
        }
    }
}

impl Node {
    /// A write is about to be made.
    #[inline]
    pub(crate) fn tell_threshold(&self, span: Span) {
        if let Some(threshold) = &self.threshold {
            threshold.see(span);
        }
    }
}

/// Sets or takes away the threshold of a node; the one before is forgotten. Requests under way are not waited for.
pub fn set(current: &Current, node: NodeId, threshold: Option<WriteThreshold>) -> Arc<Graph> {
    let mut graph = current.get().kept();
    if let Some(Some(node)) = graph.nodes.get_mut(node.0 as usize) {
        Arc::make_mut(node).threshold = threshold.map(Arc::new);
    }
    current.publish(graph)
}
