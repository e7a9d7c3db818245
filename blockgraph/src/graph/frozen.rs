//! Links that a filter above relies on. The rule: they are those from the filter down to the layer it names.

use super::{Body, Edge, Graph, Role};
use crate::node::NodeId;

impl Graph {
    /// Does a filter above rely on that child of `parent` staying the same?
    pub(super) fn is_frozen(&self, parent: NodeId, edge: &Edge) -> bool {
        if !matches!(edge.role, Role::Filtered | Role::Image | Role::Cow) {
            return false;
        }
        self.nodes().any(|(id, node)| {
            let bottom = match node.body() {
                Body::Driver(driver) => driver.frozen_until(),
                Body::Filter(filter) => filter.frozen_until(),
            };
            let Some(bottom) = bottom else {
                return false;
            };
            self.links_down_to(id, bottom)
                .contains(&(parent, edge.child))
        })
    }

    /// The links from `top` down the chain to the layer of that name.
    fn links_down_to(&self, top: NodeId, bottom: &str) -> Vec<(NodeId, NodeId)> {
        let mut links = Vec::new();
        let mut at = top;
        for _ in 0..crate::map::DEPTH_MAX {
            let Some(node) = self.node(at) else { break };
            let below = node.shape().filtered().or(self.cow_child(at));
            match below.filter(|_| node.name() != bottom) {
                Some(below) => {
                    links.push((at, below));
                    at = below;
                }
                None => break,
            }
        }
        links
    }
}
