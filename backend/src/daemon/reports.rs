//! What is asked about everything there is: nodes, exports, and what was asked of them.

use super::executor::Daemon;
use crate::qmp::name_text;
use crate::stats::ExportStats;
use blockgraph::graph::drains::DrainFigures;
use blockgraph::report::{Layers, NodeReport, nodes};
use blockgraph::{Graph, NodeId};
use std::sync::Arc;

/// An export's figures.
#[derive(Clone, Debug)]
pub(crate) struct ExportCounts {
    /// Its id.
    pub(crate) id: String,
    /// The node it shows.
    pub(crate) node: NodeId,
    /// What was asked of it.
    pub(crate) stats: Arc<ExportStats>,
}

impl Daemon {
    /// The newest generation.
    pub(crate) fn graph(&self) -> Arc<Graph> {
        self.current.get()
    }

    /// How long changes of the graph held requests back.
    pub(crate) fn drain_figures(&self) -> DrainFigures {
        self.current.drain_figures()
    }

    /// Every node. Errors: the control thread's ring is gone.
    pub(crate) fn node_reports(&mut self, layers: Layers) -> std::io::Result<Vec<NodeReport>> {
        nodes(&self.current, &mut self.control, layers, name_text)
    }

    /// Every export's figures, by id.
    pub(crate) fn export_counts(&self) -> Vec<ExportCounts> {
        let counts = self.exports.iter().map(|export| ExportCounts {
            id: export.id.clone(),
            node: export.node(),
            stats: export.stats().clone(),
        });
        let mut counts: Vec<ExportCounts> = counts.collect();
        counts.sort_by(|a, b| a.id.cmp(&b.id));
        counts
    }
}
