//! `blockdev-set-active`: an image is left to another process, or taken back.
//!
//! The rule: a node is inactive only if no active node uses it. What becomes active is read again from disk.

use super::edits::shrink;
use super::executor::Daemon;
use blockgraph::graph::edit::EditError;
use blockgraph::graph::perm::PermError;
use blockgraph::graph::reopen::{ReopenError, set_common};
use blockgraph::graph::{Activity, Graph};
use blockgraph::{Common, NodeId};
use std::collections::BTreeSet;

impl Daemon {
    /// Makes a node, or all of them, active or inactive. Errors: in QSD's words; nothing has changed then.
    pub(crate) fn set_active(
        &mut self,
        name: Option<&str>,
        activity: Activity,
    ) -> Result<(), String> {
        self.retry_leaving();
        let graph = self.kept_graph();
        let nodes: BTreeSet<NodeId> = match name {
            None => graph.nodes().map(|(id, _)| id).collect(),
            Some(name) => {
                let node = graph.find(name);
                let node =
                    node.ok_or_else(|| format!("Failed to find node with node-name='{name}'"))?;
                match activity {
                    Activity::Active => graph.parents_first(node).into_iter().collect(),
                    Activity::Inactive => inactive_with(&graph, node)?,
                }
            }
        };
        let wanted = commons(&graph, &nodes, activity);
        drop(graph);
        let deadline = Daemon::drain_deadline();
        let exports = &self.exports;
        let publishing = |graph: &Graph| shrink(exports, graph);
        let control = &mut self.control;
        let done = set_common(&self.current, &wanted, control, deadline, publishing);
        let (_, leaving) = done.map_err(|error| refusal(&error, name, activity))?;
        self.edited(leaving);
        Ok(())
    }

    /// A node is to be used by somebody who needs it active.
    pub(super) fn activate(&mut self, node: NodeId) -> Result<(), String> {
        let graph = self.kept_graph();
        let inactive = graph
            .node(node)
            .is_some_and(|node| node.common().activity == Activity::Inactive);
        let name = graph.node(node).map_or("", |node| node.name()).to_owned();
        drop(graph);
        match inactive {
            true => self.set_active(Some(&name), Activity::Active),
            false => Ok(()),
        }
    }
}

/// A node, and what below it nobody active uses besides. Errors: somebody active uses it.
fn inactive_with(graph: &Graph, node: NodeId) -> Result<BTreeSet<NodeId>, String> {
    let mut all = BTreeSet::new();
    for id in graph.parents_first(node) {
        let active_parent = graph.nodes().any(|(parent, above)| {
            above.common().activity == Activity::Active
                && !all.contains(&parent)
                && above.shape().edges().any(|edge| edge.child == id)
        });
        match (active_parent, id == node) {
            (true, true) => return Err("Node has active parent node".to_owned()),
            (true, false) => {}
            (false, _) => {
                all.insert(id);
            }
        }
    }
    Ok(all)
}

fn commons(graph: &Graph, nodes: &BTreeSet<NodeId>, activity: Activity) -> Vec<(NodeId, Common)> {
    let differs = nodes.iter().filter_map(|id| {
        let node = graph.node(*id)?;
        let common = Common {
            activity,
            ..node.spec()?.common
        };
        (node.common().activity != activity).then_some((*id, common))
    });
    differs.collect()
}

fn refusal(error: &ReopenError, name: Option<&str>, activity: Activity) -> String {
    let not_idle = matches!(
        error,
        ReopenError::Edit(EditError::Perm(PermError::NotIdle))
    );
    match (name, activity) {
        (None, Activity::Inactive) if not_idle => {
            "Failed to inactivate all nodes: Operation not permitted".to_owned()
        }
        (Some(_), Activity::Inactive) if not_idle => {
            "Failed to inactivate node: Operation not permitted".to_owned()
        }
        _ => crate::open::reopen_refusal(error).to_string(),
    }
}
