//! Reports as QMP's JSON has them.
//!
//! The rule: shapes and names are QAPI's (`qapi/tables/queries.rs`), and what a report does not know has no member.

mod drains;
mod graph;
mod image;
pub(crate) mod name;
mod node;
pub(super) mod stats;

pub(super) use drains::drains;
pub(super) use graph::block_graph;
pub(super) use image::snapshot;
pub(super) use node::node_info;

use serde_json::{Map, Value};

/// Members that may be missing, put together.
fn object<const N: usize>(members: [(&str, Option<Value>); N]) -> Value {
    let members = members.into_iter();
    let known = members.filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Value::Object(known.collect::<Map<_, _>>())
}
