//! Why a graph cannot be edited so, or a node not let go. The rule: the texts are QEMU's where it has them.

use crate::graph::pause::StillBusy;
use crate::graph::perm::PermError;
use crate::map::DEPTH_MAX;
use ring::Errno;
use thiserror::Error;

/// Why a graph cannot be edited so; the texts are QEMU's.
#[derive(Debug, Error)]
pub enum EditError {
    /// Nobody has that name.
    #[error("Failed to find node with node-name='{0}'")]
    NotFound(String),
    /// Somebody outside the graph is attached to it.
    #[error("Node {0} is in use")]
    Attached(String),
    /// Another reads from it what it has not itself.
    #[error("Node '{node}' is busy: node is used as backing hd of '{parent}'")]
    Busy {
        /// The node.
        node: String,
        /// Whose.
        parent: String,
    },
    /// Another node needs it.
    #[error("Block device {0} is in use")]
    Needed(String),
    /// It belongs to its parent, or to a job.
    #[error("Node {0} is not owned by the monitor")]
    NotOwned(String),
    /// It would be its own descendant.
    #[error("Making '{child}' a {option} child of '{parent}' would create a cycle")]
    Cycle {
        /// The new child.
        child: String,
        /// As what.
        option: &'static str,
        /// Of whom.
        parent: String,
    },
    /// A filter above relies on what is below.
    #[error("Cannot change frozen '{option}' link from '{parent}' to '{child}'")]
    Frozen {
        /// The child that would be another.
        child: String,
        /// As what.
        option: &'static str,
        /// Whose.
        parent: String,
    },
    /// It has no child of that kind, or is no filter.
    #[error("Node '{0}' has no such child")]
    NoChild(String),
    /// More nodes on top of each other than a walk goes down.
    #[error("Block graph is deeper than {DEPTH_MAX} nodes")]
    TooDeep,
    /// Some disk is stuck.
    #[error(transparent)]
    Stuck(#[from] StillBusy),
    /// Who uses what.
    #[error(transparent)]
    Perm(#[from] PermError),
}

/// What could not be done about nodes that left the graph.
#[derive(Debug, Error)]
pub enum LeaveError {
    /// Requests are still under way on them; try again.
    #[error("requests on removed nodes did not end in time")]
    StillUsed,
    /// A node could not write what it has to at its end.
    #[error("cannot close node {0}: {1}")]
    Close(String, Errno),
    /// No ring to close them through.
    #[error("cannot close nodes")]
    Ring(#[from] std::io::Error),
}
