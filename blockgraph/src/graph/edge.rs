//! Edges: what a child is to its parent is always said by role, never by the name of the option it came from.
//!
//! The rule: a node has at most one child of each role. Its [`Shape`] makes it so: a filter has exactly one filtered
//! child, and nothing has two backing children.

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
    /// Where a filter copies old data to.
    Target,
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

impl Edge {
    /// An edge that the option `file` made.
    pub fn file(role: Role, child: NodeId) -> Edge {
        Edge {
            role,
            option: "file",
            child,
        }
    }
}

/// Which children a node has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    /// None.
    #[default]
    Leaf,
    /// It shows what one child shows.
    Filter {
        /// That child.
        below: Edge,
        /// Something it needs besides.
        also: Option<Edge>,
    },
    /// It gives the bytes of its children a meaning of its own.
    Format {
        /// The image, or its metadata.
        file: Edge,
        /// Guest data, where it is not in the image.
        data: Option<Edge>,
        /// Where unallocated ranges are read from.
        backing: Option<Edge>,
    },
}

impl Shape {
    /// A filter of `child`.
    pub fn filter(child: NodeId) -> Shape {
        Shape::Filter {
            below: Edge::file(Role::Filtered, child),
            also: None,
        }
    }

    /// A format with all of itself in `child`.
    pub fn image(child: NodeId) -> Shape {
        Shape::Format {
            file: Edge::file(Role::Image, child),
            data: None,
            backing: None,
        }
    }

    /// Every child.
    pub fn edges(&self) -> impl Iterator<Item = &Edge> {
        let (first, second, third) = match self {
            Shape::Leaf => (None, None, None),
            Shape::Filter { below, also } => (Some(below), also.as_ref(), None),
            Shape::Format {
                file,
                data,
                backing,
            } => (Some(file), data.as_ref(), backing.as_ref()),
        };
        [first, second, third].into_iter().flatten()
    }

    /// Every child, to be changed.
    pub(super) fn edges_mut(&mut self) -> impl Iterator<Item = &mut Edge> {
        let (first, second, third) = match self {
            Shape::Leaf => (None, None, None),
            Shape::Filter { below, also } => (Some(below), also.as_mut(), None),
            Shape::Format {
                file,
                data,
                backing,
            } => (Some(file), data.as_mut(), backing.as_mut()),
        };
        [first, second, third].into_iter().flatten()
    }

    /// The child of that role. The mapped path asks at every step, so no list is made.
    #[inline]
    pub fn child(&self, role: Role) -> Option<NodeId> {
        let (first, others) = match self {
            Shape::Leaf => return None,
            Shape::Filter { below, also } => (below, [also, &None]),
            Shape::Format {
                file,
                data,
                backing,
            } => (file, [backing, data]),
        };
        if first.role == role {
            return Some(first.child);
        }
        let mut others = others.into_iter().flatten();
        others.find(|edge| edge.role == role).map(|edge| edge.child)
    }

    /// What it filters, if it is a filter.
    #[inline]
    pub fn filtered(&self) -> Option<NodeId> {
        match self {
            Shape::Filter { below, .. } => Some(below.child),
            _ => None,
        }
    }
}
