//! A node as the graph has it: a body, and what generation by generation may be another.
//!
//! The rule: generations share bodies; children, options and bitmaps are each generation's own.

use super::threshold::WriteThreshold;
use super::{Common, DetectZeroes, Shape, open};
use crate::bitmap::Tracker;
use crate::node::{Driver, Filter, Origin};
use ring::File;
use std::sync::Arc;

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
    pub(super) name: String,
    pub(super) kind: &'static str,
    pub(super) common: Common,
    pub(super) body: Body,
    pub(super) shape: Shape,
    pub(super) files: Vec<Arc<File>>,
    /// What it was opened with, for whoever opens it anew.
    pub(super) spec: Option<Arc<open::NodeSpec>>,
    /// Somebody wants to know of the first write beyond it.
    pub(super) threshold: Option<Arc<WriteThreshold>>,
    pub(super) bitmaps: Tracker,
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
    pub(super) fn new(new: NewNode) -> Node {
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
            spec: None,
            threshold: None,
            bitmaps: Tracker::default(),
        }
    }

    /// The same with other children.
    pub(super) fn with_shape(&self, shape: Shape) -> Node {
        Node {
            shape,
            ..self.clone()
        }
    }

    /// Are the two one node, whatever their children?
    pub(super) fn is(&self, other: &Node) -> bool {
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

    /// What it was opened with, or opened anew with since; the names in it of its children may have changed. `None` for a
    /// node that nobody asked for in such words.
    pub fn spec(&self) -> Option<&Arc<open::NodeSpec>> {
        self.spec.as_ref()
    }

    /// Where somebody wants to know of a write, in bytes; 0 if nobody does, or if it was told.
    pub fn write_threshold(&self) -> u64 {
        let threshold = self.threshold.as_ref();
        threshold.map_or(0, |threshold| threshold.at_bytes())
    }

    /// What was written to it, as its bitmaps note it.
    #[inline]
    pub fn bitmaps(&self) -> &Tracker {
        &self.bitmaps
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
        self.common.detect_zeroes != DetectZeroes::Off
            || !self.common.takes_writes()
            || self.threshold.is_some()
    }
}
