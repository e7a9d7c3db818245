//! Block status of a whole chain, as a client is told of it.
//!
//! The rule: filters say nothing of their own, and a backing image that is too short reads as zeroes that it holds.

use blockgraph::graph::Role;
use blockgraph::status::Content;
use blockgraph::{Graph, Io, NodeId, Span};
use ring::Errno;

/// What is known of `len` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// How many bytes this is about, at least one.
    pub(super) len: u64,
    /// Does it read as zeroes?
    pub(super) zero: bool,
    /// Does host space stand behind it, anywhere in the chain?
    pub(super) mapped: bool,
    /// Which layer decides, 1 the topmost; 0 if none does.
    pub(super) depth: u32,
}

/// What is known of the beginning of `span` of `top`. Errors: those of the nodes.
pub(super) async fn find(io: &Io, top: NodeId, span: Span) -> Result<Found, Errno> {
    let mut found = Found {
        len: span.len,
        zero: false,
        mapped: false,
        depth: 0,
    };
    let mut layer = skip_filters(io.graph(), top)?;
    let layers = 1..=blockgraph::map::DEPTH_MAX as u32;
    for depth in layers {
        let size_bytes = io.graph().info(layer).ok_or(Errno::IO)?.size_bytes;
        let Some(inside) = size_bytes.checked_sub(span.at).filter(|len| *len > 0) else {
            found.zero = true;
            found.depth = depth;
            return Ok(found);
        };
        let asked = span.first(found.len.min(inside));
        let status = io.status(layer, asked).await?;
        found.len = asked.len.min(status.len.max(1));
        found.mapped |= status.is_mapped();
        if status.content != Content::Below {
            found.zero = status.is_zero();
            found.depth = depth;
            return Ok(found);
        }
        let below = io.graph().node(layer).and_then(|node| node.shape().child(Role::Cow));
        let Some(below) = below else {
            found.zero = true;
            return Ok(found);
        };
        layer = skip_filters(io.graph(), below)?;
    }
    Err(Errno(libc::ELOOP))
}

fn skip_filters(graph: &Graph, top: NodeId) -> Result<NodeId, Errno> {
    let mut id = top;
    for _ in 0..blockgraph::map::DEPTH_MAX {
        let node = graph.node(id).ok_or(Errno::IO)?;
        match node.shape().filtered() {
            Some(below) => id = below,
            None => return Ok(id),
        }
    }
    Err(Errno(libc::ELOOP))
}
