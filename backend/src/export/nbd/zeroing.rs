//! Whether zeroes can be had without writing them (NBD_CMD_FLAG_FAST_ZERO).

use blockgraph::graph::Body;
use blockgraph::node::Zeroing;
use blockgraph::{Graph, NodeId, Unmap};

/// Would a write of zeroes to `top` be faster than a write of data? A host that has not been asked yet is trusted once.
pub(super) fn is_fast(graph: &Graph, top: NodeId, unmap: Unmap) -> bool {
    let mut id = graph.skip_filters(top);
    for _ in 0..blockgraph::map::DEPTH_MAX {
        let Some(node) = graph.node(id) else {
            return false;
        };
        let Body::Driver(driver) = node.body() else {
            return false;
        };
        match driver.zeroing(unmap) {
            Zeroing::Fast => return true,
            Zeroing::Written => return false,
            Zeroing::Below(role) => match node.shape().child(role) {
                Some(child) => id = graph.skip_filters(child),
                None => return false,
            },
        }
    }
    false
}
