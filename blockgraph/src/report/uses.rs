//! Who uses which node for what.

use crate::graph::Graph;
use crate::graph::perm::Wants;
use crate::node::NodeId;

/// Who uses a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// A node it is a child of.
    Parent(NodeId),
    /// Somebody outside the graph, by a number of its own and what it is called in messages.
    Outside(u64, String),
}

/// A use of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// By whom.
    pub by: User,
    /// Of which node.
    pub of: NodeId,
    /// The option that made it a child; `root` for those outside.
    pub option: &'static str,
    /// What is needed and shared.
    pub wants: Wants,
}

/// Every use of a node of `graph`, those of one user together, in the order in which users came.
pub fn uses(graph: &Graph) -> Vec<Use> {
    graph.uses()
}
