//! The order in which nodes were made, which clients see.
//!
//! The rule: it is known by name, since nodes change places: an overlay that takes the place of another is no older for it.

use super::Graph;
use crate::node::NodeId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Names, the oldest first; some may be of nodes that are gone.
#[derive(Clone, Debug, Default)]
pub(super) struct Made(Arc<Vec<String>>);

impl Graph {
    /// Every node in the order in which QEMU would have made them, the oldest first. Those that nobody asked for in words (a
    /// filter that was put between others) come last.
    pub fn as_made(&self) -> Vec<NodeId> {
        let places = self.made.0.iter().enumerate();
        let places: BTreeMap<&str, usize> =
            places.map(|(place, name)| (name.as_str(), place)).collect();
        let mut nodes: Vec<(NodeId, &str)> =
            self.nodes().map(|(id, node)| (id, node.name())).collect();
        nodes.sort_by_key(|(_, name)| places.get(name).copied().unwrap_or(usize::MAX));
        nodes.into_iter().map(|(id, _)| id).collect()
    }

    /// `opened` are the newest: `top` and what was opened with it. What `file` names was made before its parent, and other
    /// children after it.
    pub(super) fn note_made(&mut self, top: NodeId, opened: &[NodeId]) {
        let new = self.tree_as_made(top).into_iter();
        let new = new.filter(|id| opened.contains(id));
        let name = |id: NodeId| self.node(id).map(|node| node.name().to_owned());
        let new: Vec<String> = new.filter_map(name).collect();
        // The name of a node that is gone may be another's now.
        let old = self.nodes().map(|(_, node)| node.name());
        let old: BTreeSet<&str> = old.filter(|name| !new.iter().any(|n| n == name)).collect();
        let made = self.made.0.iter();
        let made = made.filter(|name| old.contains(name.as_str())).cloned();
        self.made = Made(Arc::new(made.chain(new.iter().cloned()).collect()));
    }

    fn tree_as_made(&self, top: NodeId) -> Vec<NodeId> {
        let (mut made, mut seen) = (Vec::new(), BTreeSet::new());
        let mut ahead = vec![(top, false)];
        while let Some((id, is_ready)) = ahead.pop() {
            if is_ready {
                made.push(id);
            } else if seen.insert(id) {
                let edges = || self.node(id).into_iter().flat_map(|n| n.shape().edges());
                let (file, rest): (Vec<_>, Vec<_>) = edges().partition(|e| e.option == "file");
                ahead.extend(rest.iter().rev().map(|edge| (edge.child, false)));
                ahead.push((id, true));
                ahead.extend(file.iter().map(|edge| (edge.child, false)));
            }
        }
        made
    }
}
