//! What a query tells of a node's bitmaps.

use super::dirty::{Keeping, State};
use crate::graph::Graph;
use crate::node::NodeId;

/// A bitmap as a query shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapReport {
    /// Its name.
    pub name: String,
    /// How many bytes are dirty.
    pub dirty_bytes: u64,
    /// How much a bit stands for.
    pub granularity_bytes: u32,
    /// Does it note what is written?
    pub state: State,
    /// Does somebody use it?
    pub busy: bool,
    /// Is it stored?
    pub keeping: Keeping,
}

/// The bitmaps of a node, the newest first.
pub fn report(graph: &Graph, node: NodeId) -> Vec<BitmapReport> {
    let Some(tracker) = graph.node(node).map(|node| node.bitmaps()) else {
        return Vec::new();
    };
    let bitmaps = tracker.bitmaps().into_iter();
    let shown = bitmaps.map(|bitmap| BitmapReport {
        name: bitmap.name().to_owned(),
        dirty_bytes: bitmap.shown_bytes(),
        granularity_bytes: bitmap.granularity_bytes(),
        state: bitmap.state(),
        busy: bitmap.is_busy(),
        keeping: bitmap.keeping(),
    });
    shown.collect()
}
