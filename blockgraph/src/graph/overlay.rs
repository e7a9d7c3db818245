//! A layer more: a node that exists becomes the overlay of another, in its place.
//!
//! The rule: whoever used the node uses the overlay from now on, and the node becomes its backing child. They change places,
//! since exports and jobs name places; an overlay that somebody writes already (a job whose target it is) stays at its own, and
//! nobody outside the graph may have the node then.

use super::Role;
use super::edit::{Edit, EditError};
use super::{Graph, Shape};
use crate::node::NodeId;
use thiserror::Error;

/// Why a node cannot become the overlay of another; the texts are QEMU's.
#[derive(Debug, Error)]
pub enum OverlayError {
    /// It is somebody's backing child already: what is written to it would show there.
    #[error("Node '{node}' is busy: node is used as backing hd of '{parent}'")]
    Busy {
        /// The node.
        node: String,
        /// Whose.
        parent: String,
    },
    /// Somebody reads it, and would suddenly read something else.
    #[error("The overlay is already in use")]
    InUse,
    /// It has one.
    #[error("The overlay already has a backing image")]
    HasBacking,
    /// It is no format with backing files.
    #[error("The overlay does not support backing images")]
    NoFormat,
    /// A filter relies on its child.
    #[error("Cannot change '{option}' link to '{node}'")]
    Frozen {
        /// As what it is used.
        option: &'static str,
        /// The child.
        node: String,
    },
    /// Anything else.
    #[error(transparent)]
    Edit(#[from] EditError),
}

impl Graph {
    /// The node that has `id` as its backing child, if there is one.
    pub fn backed(&self, id: NodeId) -> Option<NodeId> {
        let mut nodes = self.nodes();
        let found = nodes.find(|(_, node)| node.shape().child(Role::Cow) == Some(id));
        found.map(|(above, _)| above)
    }
}

impl Edit {
    /// May an overlay be put on `node`? Errors: it is a backing child.
    pub fn check_snapshot(&self, node: NodeId) -> Result<(), OverlayError> {
        match self.graph.backed(node) {
            Some(parent) => Err(OverlayError::Busy {
                node: self.name(node),
                parent: self.name(parent),
            }),
            None => Ok(()),
        }
    }

    /// Puts `overlay` on `node`: all users of `node` use it. Says where the node is now: they change places, unless somebody
    /// who only writes is attached to the overlay.
    pub fn put_overlay(&mut self, node: NodeId, overlay: NodeId) -> Result<NodeId, OverlayError> {
        self.check_snapshot(node)?;
        self.check_overlay(overlay)?;
        self.check_links(node)?;
        if self.graph.parents_first(overlay).contains(&node) {
            return Err(OverlayError::Edit(EditError::Cycle {
                child: self.name(node),
                option: "backing",
                parent: self.name(overlay),
            }));
        }
        let users = &self.graph.users;
        match (users.is_attached(overlay), users.is_attached(node)) {
            (true, true) => Err(OverlayError::InUse),
            (true, false) => {
                self.redirect_all(node, overlay);
                self.set_backing_unchecked(overlay, node);
                Ok(node)
            }
            (false, _) => {
                // Whoever had the overlay has it still; all others find it where the node was.
                self.redirect_all(overlay, node);
                self.swap(node, overlay);
                self.set_backing_unchecked(node, overlay);
                Ok(overlay)
            }
        }
    }

    /// Whose child was `from` has `to`.
    fn redirect_all(&mut self, from: NodeId, to: NodeId) {
        let parents: Vec<NodeId> = self.graph.nodes().map(|(id, _)| id).collect();
        for parent in parents {
            self.redirect(parent, |edge| {
                if edge.child == from {
                    edge.child = to;
                }
            });
        }
    }

    /// Undoes [`Edit::put_overlay`], which said that the node is at `below`. `parents` had the overlay before, if the two
    /// changed places, and else the node.
    pub fn take_off_overlay(
        &mut self,
        node: NodeId,
        overlay: NodeId,
        below: NodeId,
        parents: &[NodeId],
    ) -> Result<(), EditError> {
        let (from, to) = match below == overlay {
            true => (node, overlay),
            false => (overlay, node),
        };
        self.set_backing(from, None)?;
        if below == overlay {
            self.swap(node, overlay);
        }
        for parent in parents {
            self.redirect(*parent, |edge| {
                if edge.child == from {
                    edge.child = to;
                }
            });
        }
        Ok(())
    }

    fn check_overlay(&self, overlay: NodeId) -> Result<(), OverlayError> {
        if self.graph.users.is_read(overlay) {
            return Err(OverlayError::InUse);
        }
        match self.node(overlay)?.shape() {
            Shape::Format {
                backing: Some(_), ..
            } => Err(OverlayError::HasBacking),
            _ if !self.takes_backing(overlay) => Err(OverlayError::NoFormat),
            _ => Ok(()),
        }
    }

    fn takes_backing(&self, id: NodeId) -> bool {
        match self.graph.node(id).map(|node| node.body()) {
            Some(super::Body::Driver(driver)) => driver.as_qcow2().is_some(),
            _ => false,
        }
    }

    /// Errors: a filter relies on one of the links to `node`.
    fn check_links(&self, node: NodeId) -> Result<(), OverlayError> {
        for (parent, above) in self.graph.nodes() {
            let mut edges = above.shape().edges().filter(|edge| edge.child == node);
            if let Some(edge) = edges.find(|edge| self.graph.is_frozen(parent, edge)) {
                return Err(OverlayError::Frozen {
                    option: edge.option,
                    node: self.name(node),
                });
            }
        }
        Ok(())
    }

    pub(super) fn swap(&mut self, one: NodeId, other: NodeId) {
        self.graph.nodes.swap(one.0 as usize, other.0 as usize);
        for set in [&mut self.graph.implicit, &mut self.graph.asked_for] {
            match (set.contains(&one), set.contains(&other)) {
                (true, false) => {
                    set.remove(&one);
                    set.insert(other);
                }
                (false, true) => {
                    set.remove(&other);
                    set.insert(one);
                }
                _ => {}
            }
        }
        let was = |id| self.moved.get(&id).copied().unwrap_or(id);
        let (was_one, was_other) = (was(one), was(other));
        self.moved.insert(one, was_other);
        self.moved.insert(other, was_one);
    }

    fn set_backing_unchecked(&mut self, parent: NodeId, child: NodeId) {
        let shape = self.graph.node(parent).map(|node| node.shape().clone());
        if let Some(mut shape) = shape
            && let Shape::Format { backing, .. } = &mut shape
        {
            *backing = Some(super::Edge {
                role: Role::Cow,
                option: "backing",
                child,
            });
            self.reshape(parent, shape);
        }
    }
}
