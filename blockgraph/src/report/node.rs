//! Nodes, with what they show as images, and the layers below them.

use super::image::{ImageReport, images};
use crate::bitmap::{self, BitmapReport, JournalReport};
use crate::graph::name::{Name, Text};
use crate::graph::{Common, Control, Current, Graph};
use crate::map::DEPTH_MAX;
use crate::node::NodeId;
use std::collections::BTreeMap;
use std::io;

/// Are the images below an image to be told of with it?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layers {
    /// All.
    All,
    /// Those of the node itself only.
    Own,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeReport {
    /// Its node-name.
    pub name: String,
    /// Its driver.
    pub kind: &'static str,
    /// Options every node has.
    pub common: Common,
    /// What its backing file is called, whatever the image says; a filter has none.
    pub backing: Option<Name>,
    /// Where somebody wants to know of a write, in bytes; 0 if nobody does.
    pub write_threshold: u64,
    /// What it shows, and what is below that, topmost first: what it filters, or its backing file.
    pub layers: Vec<ImageReport>,
    /// Its bitmaps, the newest first.
    pub bitmaps: Vec<BitmapReport>,
    /// What keeps them through a crash, if anything does.
    pub journal: Option<JournalReport>,
}

/// Every node of the newest generation, the newest first; `text` writes names. Errors: the control thread's ring is gone.
pub fn nodes(
    current: &Current,
    control: &mut Control,
    layers: Layers,
    text: Text,
) -> io::Result<Vec<NodeReport>> {
    let graph = current.get();
    let Some((first, _)) = graph.nodes().next() else {
        return Ok(Vec::new());
    };
    let images = control.run(&graph, first, |io| async move { images(&io, text).await })?;
    let newest_first = graph.as_made().into_iter().rev();
    Ok(newest_first
        .filter_map(|id| report(&graph, id, &images, layers))
        .collect())
}

fn report(
    graph: &Graph,
    id: NodeId,
    images: &BTreeMap<NodeId, ImageReport>,
    layers: Layers,
) -> Option<NodeReport> {
    let node = graph.node(id)?;
    let depth = match layers {
        Layers::All => DEPTH_MAX,
        Layers::Own => 1,
    };
    let chain = std::iter::successors(Some(id), |id| below(graph, *id)).take(depth);
    let backing = graph.cow_child(id).and_then(|id| images.get(&id));
    Some(NodeReport {
        write_threshold: node.write_threshold(),
        name: node.name().to_owned(),
        kind: node.kind(),
        common: node.common(),
        backing: backing.map(|image| image.filename.clone()),
        layers: chain.filter_map(|id| images.get(&id).cloned()).collect(),
        bitmaps: bitmap::report(graph, id),
        journal: node.bitmaps().journal().map(|journal| journal.report()),
    })
}

fn below(graph: &Graph, id: NodeId) -> Option<NodeId> {
    let filtered = graph.node(id)?.shape().filtered();
    filtered.or_else(|| graph.cow_child(id))
}
