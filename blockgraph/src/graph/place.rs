//! A node takes the place of another that may be anywhere in the graph: a mirror's target that of its source.
//!
//! The rule: those below the new node keep the old one, since it would be its own descendant otherwise; all others use the new one,
//! whoever is outside the graph among them.

use super::edit::{Edit, EditError};
use super::{Body, Graph};
use crate::node::NodeId;
use std::collections::BTreeSet;

impl Edit {
    /// All who use `old` use `new`, but for those that `new` is made of. Errors: a filter relies on one of the links to `old`;
    /// somebody outside the graph has `new` as well.
    pub fn take_place(&mut self, old: NodeId, new: NodeId) -> Result<(), EditError> {
        let own: BTreeSet<NodeId> = self.graph.parents_first(new).into_iter().collect();
        let others = self.graph.nodes().map(|(id, _)| id);
        let others: Vec<NodeId> = others.filter(|id| !own.contains(id)).collect();
        for id in &others {
            self.check_free_link(*id, old)?;
        }
        let is_swapped = self.graph.users.is_attached(old);
        if is_swapped && self.graph.users.is_attached(new) {
            return Err(EditError::Attached(self.name(new)));
        }
        for id in others {
            self.redirect(id, |edge| {
                if edge.child == old {
                    edge.child = new;
                }
            });
        }
        if is_swapped {
            self.change_places(old, new);
        }
        Ok(())
    }

    /// Each is where the other was, for those outside the graph; for nodes nothing changes.
    fn change_places(&mut self, one: NodeId, other: NodeId) {
        let nodes: Vec<NodeId> = self.graph.nodes().map(|(id, _)| id).collect();
        for id in nodes {
            self.redirect(id, |edge| {
                edge.child = match edge.child {
                    child if child == one => other,
                    child if child == other => one,
                    child => child,
                };
            });
        }
        self.swap(one, other);
    }

    /// Errors: a filter relies on that link.
    fn check_free_link(&self, parent: NodeId, child: NodeId) -> Result<(), EditError> {
        let node = self.node(parent)?;
        let mut edges = node.shape().edges().filter(|edge| edge.child == child);
        match edges.find(|edge| self.graph.is_frozen(parent, edge)) {
            Some(edge) => Err(EditError::Frozen {
                child: self.name(child),
                option: edge.option,
                parent: self.name(parent),
            }),
            None => Ok(()),
        }
    }

    /// The filter `id` works in another way from now on.
    pub fn replace_body(&mut self, id: NodeId, body: Body) {
        self.give_body(id, body, Vec::new());
    }
}

impl Graph {
    /// Is `other` what `id` reads as, by itself or through filters alone? Then a copy of `id` may take the place of `other` without
    /// anybody reading something else.
    pub fn reads_as(&self, id: NodeId, other: NodeId) -> bool {
        let below = |id: &NodeId| self.node(*id)?.shape().filtered();
        let mut down = std::iter::successors(Some(id), below).take(crate::map::DEPTH_MAX);
        down.any(|id| id == other)
    }
}
