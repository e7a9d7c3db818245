//! What a monitor is asked, and what of its answers is drawn.
//!
//! The rule: an answer is read once, here, into plain values; a member that is missing or of another type is not known.

use crate::qmp_client::{Client, ClientError};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What kind of thing a node of `x-debug-query-block-graph` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Driver,
    Job,
    /// A user without a name: an export, or a job's.
    Backend,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GraphNode {
    pub(super) id: u64,
    pub(super) kind: Kind,
    pub(super) name: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GraphEdge {
    pub(super) parent: u64,
    pub(super) child: u64,
    pub(super) name: String,
    /// What the parent may do, as the letters of [`letters`].
    pub(super) perms: String,
}

/// A node as `query-named-block-nodes` tells of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct NodeInfo {
    pub(super) driver: String,
    pub(super) file: String,
    pub(super) read_only: bool,
    pub(super) inactive: bool,
    pub(super) size_bytes: Option<u64>,
    pub(super) allocated_bytes: Option<u64>,
    /// Name and dirty bytes of each bitmap.
    pub(super) bitmaps: Vec<(String, u64)>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Export {
    pub(super) id: String,
    pub(super) kind: String,
    pub(super) node: String,
    pub(super) leaving: bool,
    /// Not known to every daemon.
    pub(super) rates: Option<Rates>,
}

/// Of an export, per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rates {
    pub(super) reads: f64,
    pub(super) read_bytes: f64,
    pub(super) writes: f64,
    pub(super) written_bytes: f64,
    pub(super) others: f64,
    /// Mean time of a request, in nanoseconds; `None` if none ended.
    pub(super) mean_ns: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) id: String,
    pub(super) kind: String,
    pub(super) status: String,
    pub(super) done: u64,
    pub(super) total: u64,
}

/// How long changes of the graph held requests back, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Drains {
    pub(super) count: u64,
    pub(super) wait_max_ns: u64,
    pub(super) settling_max_ns: u64,
    pub(super) hold_max_ns: u64,
}

/// Everything that was told.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Answers {
    pub(super) nodes: Vec<GraphNode>,
    pub(super) edges: Vec<GraphEdge>,
    pub(super) infos: BTreeMap<String, NodeInfo>,
    pub(super) exports: Vec<Export>,
    pub(super) jobs: Vec<Job>,
    /// Not known to every daemon.
    pub(super) drains: Option<Drains>,
}

impl Answers {
    /// Asks everything; figures of exports twice, with `interval` between.
    pub(super) fn ask(
        client: &mut Client,
        interval: Option<Duration>,
    ) -> Result<Answers, ClientError> {
        let stats = |client: &mut Client| client.ask_if_known("query-blockstats");
        let measured = match interval {
            None => None,
            Some(interval) => {
                let (before, begun) = (stats(client)?, Instant::now());
                std::thread::sleep(interval);
                let (after, took) = (stats(client)?, begun.elapsed());
                before
                    .zip(after)
                    .map(|(before, after)| (before, after, took))
            }
        };
        let flat = json!({ "flat": true });
        let named = flat.as_object().cloned().unwrap_or_default();
        let graph = client.ask("x-debug-query-block-graph", Map::new())?;
        let named = client.ask("query-named-block-nodes", named)?;
        let exports = client.ask_if_known("query-block-exports")?;
        let jobs = client.ask_if_known("query-jobs")?;
        let mut answers = Answers::read(&graph, &named);
        answers.read_users(exports.as_ref(), jobs.as_ref());
        if let Some((before, after, took)) = measured {
            answers.measure(&before, &after, took);
        }
        Ok(answers)
    }

    /// From what the two commands about the graph returned.
    pub(super) fn read(graph: &Value, named: &Value) -> Answers {
        Answers {
            nodes: list(graph.get("nodes")).filter_map(graph_node).collect(),
            edges: list(graph.get("edges")).filter_map(graph_edge).collect(),
            infos: list(Some(named)).filter_map(node_info).collect(),
            drains: graph.get("x-drains").and_then(drains),
            ..Answers::default()
        }
    }

    /// Adds who uses the graph.
    pub(super) fn read_users(&mut self, exports: Option<&Value>, jobs: Option<&Value>) {
        self.exports = list(exports).filter_map(export).collect();
        self.jobs = list(jobs).filter_map(job).collect();
    }

    /// Adds the exports' rates, from two answers of `query-blockstats`.
    pub(super) fn measure(&mut self, before: &Value, after: &Value, took: Duration) {
        let of = |answer: &Value, id: &str| {
            list(Some(answer))
                .find(|entry| text(entry, "qdev").as_deref() == Some(id))
                .and_then(|entry| entry.get("stats").cloned())
        };
        for export in &mut self.exports {
            let figures = of(before, &export.id).zip(of(after, &export.id));
            export.rates = figures.map(|(before, after)| rates(&before, &after, took));
        }
    }
}

fn list(value: Option<&Value>) -> impl Iterator<Item = &Value> {
    value.and_then(Value::as_array).into_iter().flatten()
}

fn text(of: &Value, name: &str) -> Option<String> {
    of.get(name)?.as_str().map(str::to_owned)
}

fn number(of: &Value, name: &str) -> Option<u64> {
    of.get(name)?.as_u64()
}

fn is(of: &Value, name: &str) -> Option<bool> {
    of.get(name)?.as_bool()
}

fn graph_node(value: &Value) -> Option<GraphNode> {
    Some(GraphNode {
        id: number(value, "id")?,
        kind: match value.get("type")?.as_str()? {
            "block-driver" => Kind::Driver,
            "block-job" => Kind::Job,
            _ => Kind::Backend,
        },
        name: text(value, "name")?,
    })
}

fn graph_edge(value: &Value) -> Option<GraphEdge> {
    Some(GraphEdge {
        parent: number(value, "parent")?,
        child: number(value, "child")?,
        name: text(value, "name")?,
        perms: letters(value.get("perm")),
    })
}

/// One letter for each permission: read, write, write unchanged (`u`), resize (`s`).
fn letters(perms: Option<&Value>) -> String {
    let names = [
        ("consistent-read", 'r'),
        ("write", 'w'),
        ("write-unchanged", 'u'),
        ("resize", 's'),
    ];
    let has = |name: &str| list(perms).any(|perm| perm.as_str() == Some(name));
    let held = names.into_iter().filter(|(name, _)| has(name));
    held.map(|(_, letter)| letter).collect()
}

fn node_info(value: &Value) -> Option<(String, NodeInfo)> {
    let image = value.get("image").unwrap_or(&Value::Null);
    let bitmaps = list(value.get("dirty-bitmaps"));
    let bitmaps =
        bitmaps.filter_map(|bitmap| Some((text(bitmap, "name")?, number(bitmap, "count")?)));
    let info = NodeInfo {
        driver: text(value, "drv").unwrap_or_default(),
        file: text(value, "file").unwrap_or_default(),
        read_only: is(value, "ro").unwrap_or(false),
        inactive: is(value, "active") == Some(false),
        size_bytes: number(image, "virtual-size"),
        allocated_bytes: number(image, "actual-size"),
        bitmaps: bitmaps.collect(),
    };
    Some((text(value, "node-name")?, info))
}

fn export(value: &Value) -> Option<Export> {
    Some(Export {
        id: text(value, "id")?,
        kind: text(value, "type")?,
        node: text(value, "node-name")?,
        leaving: is(value, "shutting-down").unwrap_or(false),
        rates: None,
    })
}

fn job(value: &Value) -> Option<Job> {
    Some(Job {
        id: text(value, "id")?,
        kind: text(value, "type")?,
        status: text(value, "status")?,
        done: number(value, "current-progress").unwrap_or(0),
        total: number(value, "total-progress").unwrap_or(0),
    })
}

fn drains(value: &Value) -> Option<Drains> {
    Some(Drains {
        count: number(value, "count")?,
        wait_max_ns: number(value, "wait-max-ns")?,
        settling_max_ns: number(value, "settling-max-ns")?,
        hold_max_ns: number(value, "hold-max-ns")?,
    })
}

fn rates(before: &Value, after: &Value, took: Duration) -> Rates {
    let grown = |name: &str| {
        let (was, is) = (number(before, name), number(after, name));
        is.unwrap_or(0).saturating_sub(was.unwrap_or(0)) as f64
    };
    let sum = |names: [&str; 4]| names.into_iter().map(grown).sum::<f64>();
    let ended = sum([
        "rd_operations",
        "wr_operations",
        "flush_operations",
        "unmap_operations",
    ]);
    let time_ns = sum([
        "rd_total_time_ns",
        "wr_total_time_ns",
        "flush_total_time_ns",
        "unmap_total_time_ns",
    ]);
    let seconds = took.as_secs_f64().max(1e-9);
    let per_s = |name| grown(name) / seconds;
    Rates {
        reads: per_s("rd_operations"),
        read_bytes: per_s("rd_bytes"),
        writes: per_s("wr_operations"),
        written_bytes: per_s("wr_bytes"),
        others: per_s("flush_operations") + per_s("unmap_operations"),
        mean_ns: (ended > 0.0).then(|| time_ns / ended),
    }
}
