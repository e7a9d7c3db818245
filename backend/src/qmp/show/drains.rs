//! `x-drains`: how long changes of the graph held requests back.

use blockgraph::graph::drains::{BOUNDARIES, DrainFigures};
use serde_json::{Value, json};
use std::time::Duration;

/// Times in nanoseconds.
pub(in crate::qmp) fn drains(figures: &DrainFigures) -> Value {
    json!({
        "count": figures.count,
        "timed-out": figures.timed_out,
        "wait-max-ns": ns(figures.longest_wait),
        "settling-max-ns": ns(figures.longest_settling),
        "hold-max-ns": ns(figures.longest_hold),
        "settling": {"boundaries": BOUNDARIES.map(ns), "bins": figures.settled},
    })
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
