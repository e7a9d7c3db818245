//! Edges: what a child is to its parent is always said by role, never by the name of the option it came from.

use crate::node::NodeId;

/// What a child is to its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Guest data only.
    Data,
    /// Metadata only.
    Metadata,
    /// Data and metadata in one child.
    Image,
    /// What a filter filters.
    Filtered,
    /// Where unallocated ranges are read from.
    Cow,
}

/// An edge to a child.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edge {
    /// What it is to the parent.
    pub role: Role,
    /// The option it came from (`file`, `backing`), for messages.
    pub option: &'static str,
    /// The child.
    pub child: NodeId,
}
