//! `BlockStats`: by export, with what is below, and by node.
//!
//! The rule: requests are counted where they come in, so a node's figures are those of the exports that show it; what its
//! parents ask of it is theirs.

use super::object;
use crate::daemon::ExportCounts;
use crate::stats::{Counted, Figures, Histogram, Sum};
use blockgraph::graph::{Body, Node, Role};
use blockgraph::map::DEPTH_MAX;
use blockgraph::{Graph, NodeId};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// One entry for each export, with its id where a device would have its path, and the chain below it.
pub(in crate::qmp) fn by_export(graph: &Graph, exports: &[ExportCounts]) -> Value {
    let ends = written_ends(graph, exports);
    let entry = |export: &ExportCounts| {
        let mut entry = entry(graph, export.node, Depth::All, &ends)?;
        entry["device"] = json!("");
        entry["qdev"] = json!(export.id);
        entry["stats"] = stats(Some(&export.stats.figures()), end_of(&ends, export.node));
        Some(entry)
    };
    Value::Array(exports.iter().filter_map(entry).collect())
}

/// One entry for each node, the oldest first.
pub(in crate::qmp) fn by_node(graph: &Graph, exports: &[ExportCounts]) -> Value {
    let ends = written_ends(graph, exports);
    let entry = |id| {
        let mut entry = entry(graph, id, Depth::Storage, &ends)?;
        let shown = exports.iter().filter(|export| export.node == id);
        let figures = shown.map(|export| export.stats.figures()).reduce(added);
        if let Some(figures) = figures {
            entry["stats"] = stats(Some(&figures), end_of(&ends, id));
        }
        Some(entry)
    };
    Value::Array(graph.as_made().into_iter().filter_map(entry).collect())
}

/// Where the highest write to a node ended. Files know; what an export wrote passed through the filters below it.
fn written_ends(graph: &Graph, exports: &[ExportCounts]) -> BTreeMap<NodeId, u64> {
    let mut ends = BTreeMap::new();
    for (id, node) in graph.nodes() {
        let files = node.files().iter().map(|file| file.written_end_bytes());
        ends.extend(files.max().map(|end| (id, end)));
    }
    for export in exports {
        let end = export.stats.figures().written_end_bytes;
        let filtered = |id: &NodeId| graph.node(*id)?.shape().filtered();
        for id in std::iter::successors(Some(export.node), filtered).take(DEPTH_MAX) {
            let known = ends.entry(id).or_insert(0);
            *known = end.max(*known);
        }
    }
    ends
}

fn end_of(ends: &BTreeMap<NodeId, u64>, id: NodeId) -> u64 {
    ends.get(&id).copied().unwrap_or(0)
}

/// Figures of two exports of one node. Their histograms need not have the same boundaries, so they stay the exports' own.
fn added(mut sum: Figures, other: Figures) -> Figures {
    for (own, other) in sum.sums.iter_mut().zip(&other.sums) {
        own.add(other);
    }
    sum.in_flight += other.in_flight;
    sum.written_end_bytes = sum.written_end_bytes.max(other.written_end_bytes);
    sum.idle_ns = sum.idle_ns.into_iter().chain(other.idle_ns).min();
    sum.histograms = Default::default();
    sum.zone_append = None;
    sum
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// What a node stores its data in, and so on down.
    Storage,
    /// Also what is below it as a layer.
    All,
}

/// A node's entry. Without recursion: first the nodes of the tree, each after its parent, then, from the last to the first,
/// each put into its parent.
fn entry(graph: &Graph, top: NodeId, depth: Depth, ends: &BTreeMap<NodeId, u64>) -> Option<Value> {
    let mut tree: Vec<(NodeId, usize, &str)> = vec![(top, 0, "")];
    let mut at = 0;
    while at < tree.len() && tree.len() < ENTRIES_MAX {
        let node = graph.node(tree[at].0)?;
        let storage = node.shape().filtered().or(graph.storage_child(tree[at].0));
        tree.extend(storage.map(|id| (id, at, "parent")));
        if depth == Depth::All {
            let layer = node.shape().filtered().or(node.shape().child(Role::Cow));
            tree.extend(layer.map(|id| (id, at, "backing")));
        }
        at += 1;
    }
    let shown = tree
        .iter()
        .map(|(id, ..)| Some(bare(graph.node(*id)?, end_of(ends, *id))));
    let mut entries: Vec<Value> = shown.collect::<Option<_>>()?;
    while entries.len() > 1 {
        let (_, parent, member) = tree.pop()?;
        entries[parent][member] = entries.pop()?;
    }
    entries.pop()
}

/// Nodes in one entry: filters are listed as storage and as layer, so a chain of them doubles with each.
const ENTRIES_MAX: usize = 4096;

fn bare(node: &Node, end_bytes: u64) -> Value {
    let mut entry = json!({"node-name": node.name(), "stats": stats(None, end_bytes)});
    let Body::Driver(driver) = node.body() else {
        return entry;
    };
    if let Some(discards) = driver.discards() {
        entry["driver-specific"] = json!({
            "driver": node.kind(),
            "discard-nb-ok": discards.done,
            "discard-nb-failed": discards.failed,
            "discard-bytes-ok": discards.bytes,
        });
    }
    entry
}

/// `BlockDeviceStats`; `None` for a node that is not exported.
fn stats(figures: Option<&Figures>, written_end_bytes: u64) -> Value {
    let none = Figures::default();
    let is_counted = figures.is_some();
    let shown = figures.unwrap_or(&none);
    let mut stats = object([
        ("wr_highest_offset", Some(json!(written_end_bytes))),
        ("idle_time_ns", shown.idle_ns.map(Value::from)),
        ("account_invalid", Some(json!(is_counted))),
        ("account_failed", Some(json!(is_counted))),
        ("timed_stats", Some(json!([]))),
        ("x-in-flight", is_counted.then(|| json!(shown.in_flight))),
        (
            "zone_append_latency_histogram",
            shown.zone_append.as_ref().map(histogram),
        ),
    ]);
    for (op, name) in [
        (Counted::Read, "rd"),
        (Counted::Write, "wr"),
        (Counted::Flush, "flush"),
        (Counted::Unmap, "unmap"),
    ] {
        add_sum(&mut stats, name, shown.of(op));
        if let Some(counted) = &shown.histograms[op as usize] {
            stats[format!("{name}_latency_histogram")] = histogram(counted);
        }
    }
    // A disk here has no zones.
    add_sum(&mut stats, "zone_append", &Sum::default());
    stats
}

fn add_sum(stats: &mut Value, name: &str, sum: &Sum) {
    stats[format!("{name}_operations")] = json!(sum.operations);
    stats[format!("{name}_total_time_ns")] = json!(sum.time_ns);
    stats[format!("failed_{name}_operations")] = json!(sum.failed);
    stats[format!("invalid_{name}_operations")] = json!(sum.invalid);
    if name != "flush" {
        stats[format!("{name}_bytes")] = json!(sum.bytes);
        // Requests are carried out as they come.
        stats[format!("{name}_merged")] = json!(0);
    }
}

fn histogram(histogram: &Histogram) -> Value {
    json!({"boundaries": histogram.boundaries.ns(), "bins": histogram.bins})
}
