//! What every change of the graph has in common: how long it may take, what it leaves behind, and who is told.
//!
//! The rule: a change is done when it is published. Nodes that left are closed then, or later if requests are still on them;
//! guests of a disk whose size is another are told.

use super::executor::Daemon;
use super::exports::Export;
use crate::cli::{BlockdevOptions, ChildRef, Given};
use blockgraph::graph::edit::{Edit, LeaveError, Leaving};
use blockgraph::{Graph, NodeId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long requests under way are waited for, their guests waiting too.
pub(super) const DRAIN: Duration = Duration::from_secs(5);
/// How long nodes that left are waited for. After that they are looked at again with every command.
const LEAVE: Duration = Duration::from_secs(2);

/// And so long then.
const AGAIN: Duration = Duration::from_millis(20);

/// What changes of the graph leave behind.
#[derive(Debug, Default)]
pub(super) struct Edits {
    /// By node-name: the options as they were given last.
    given: BTreeMap<String, Given>,
    /// Nodes that left while requests were still on them.
    leaving: Vec<Leaving>,
}

impl Daemon {
    pub(super) fn drain_deadline() -> Instant {
        Instant::now() + DRAIN
    }

    /// The options of a node as they were given last, if somebody gave any.
    pub(crate) fn given(&self, name: &str) -> Option<&Given> {
        self.edits.given.get(name)
    }

    /// A node was opened so, and its inline children with it.
    pub(super) fn remember(&mut self, node: NodeId, options: BlockdevOptions) {
        let graph = self.current.get();
        self.remember_in(&graph, node, options);
    }

    fn remember_in(&mut self, graph: &Graph, id: NodeId, mut options: BlockdevOptions) {
        let Some(node) = graph.node(id) else { return };
        let children = options.driver.named_children();
        for (option, child) in children {
            let mut edges = node.shape().edges();
            if let (ChildRef::Inline(child), Some(edge)) =
                (child, edges.find(|edge| edge.option == option))
            {
                self.remember_in(graph, edge.child, (**child).clone());
            }
        }
        self.edits
            .given
            .insert(node.name().to_owned(), options.given);
    }

    /// After a change: what left is closed, what is known of it forgotten, and guests are told of new sizes.
    pub(super) fn edited(&mut self, leaving: Leaving) {
        self.finish(leaving);
        self.forget_given();
        self.tell_sizes();
    }

    fn finish(&mut self, leaving: Leaving) {
        let names = leaving.names().join(", ");
        match leaving.finish(&mut self.control, Instant::now() + LEAVE) {
            Ok(()) => {}
            Err((LeaveError::StillUsed, Some(leaving))) => {
                tracing::warn!("requests are still under way on removed nodes {names}");
                self.edits.leaving.push(leaving);
            }
            // It is gone all the same.
            Err((error, _)) => tracing::error!("{error}"),
        }
    }

    /// Looks again at nodes that could not be closed.
    pub(super) fn retry_leaving(&mut self) {
        for leaving in std::mem::take(&mut self.edits.leaving) {
            match leaving.finish(&mut self.control, Instant::now() + AGAIN) {
                Err((LeaveError::StillUsed, Some(leaving))) => self.edits.leaving.push(leaving),
                Err((error, _)) => tracing::error!("{error}"),
                Ok(()) => {}
            }
        }
    }

    fn forget_given(&mut self) {
        let graph = self.current.get();
        self.edits
            .given
            .retain(|name, _| graph.find(name).is_some());
    }

    /// Front ends look at a disk whose size is another than they know.
    pub(super) fn tell_sizes(&mut self) {
        let graph = self.current.get();
        for export in &self.exports {
            let (Some(disk), Some(info)) = (export.disk(), graph.info(export.node())) else {
                continue;
            };
            disk.resize(info.size_bytes);
            if disk.tells_new_size()
                && let Some(door) = export.door()
            {
                door.config_changed();
            }
        }
    }

    /// Nodes that nobody asked for and nobody uses any more leave: an overlay whose export is gone.
    pub(super) fn drop_unused(&mut self) {
        let mut edit = Edit::begin(&self.current);
        let before = edit.graph().nodes().count();
        edit.drop_unused();
        if edit.graph().nodes().count() == before {
            return;
        }
        match edit.commit() {
            Ok((graph, leaving)) => {
                drop(graph);
                self.edited(leaving);
            }
            Err(error) => tracing::error!("cannot drop unused nodes: {error}"),
        }
    }

    /// The node of that name. Errors: as QEMU says where a device could be named too.
    pub(super) fn lookup(&self, name: &str) -> Result<NodeId, String> {
        let found = self.current.get().find(name);
        found.ok_or_else(|| format!("Cannot find device='{name}' nor node-name='{name}'"))
    }

    /// A node by a device's name or its own; there are no devices here.
    pub(super) fn lookup_either(
        &self,
        device: Option<&str>,
        node_name: Option<&str>,
    ) -> Result<NodeId, String> {
        let found = node_name.and_then(|name| self.current.get().find(name));
        found.ok_or_else(|| {
            let (device, node) = (device.unwrap_or(""), node_name.unwrap_or(""));
            format!("Cannot find device='{device}' nor node-name='{node}'")
        })
    }

    /// A generation to look at that does not keep anybody waiting.
    pub(super) fn kept_graph(&self) -> Arc<Graph> {
        Arc::new(self.current.get().kept())
    }
}

/// Disks that become smaller are so before their guests' requests go on: none of them is to land beyond the end.
pub(super) fn shrink(exports: &[Export], graph: &Graph) {
    for export in exports {
        if let (Some(disk), Some(info)) = (export.disk(), graph.info(export.node())) {
            disk.resize(info.size_bytes.min(disk.size_bytes()));
        }
    }
}
