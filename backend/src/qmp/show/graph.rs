//! `XDbgBlockGraph`

use blockgraph::graph::perm::{Perm, Perms};
use blockgraph::report::{Use, User, uses};
use blockgraph::{Graph, NodeId};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What users are called who have no name of their own.
const NAMELESS: &str = "an unnamed block device";

/// Who a number is given to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    User(u64),
    Node(NodeId),
}

/// Numbers in the order in which they are asked for.
#[derive(Debug, Default)]
struct Numbers(BTreeMap<Who, usize>);

impl Numbers {
    fn of(&mut self, who: Who) -> usize {
        let next = self.0.len() + 1;
        *self.0.entry(who).or_insert(next)
    }
}

/// Nodes and users with numbers, and edges between them: users first, then nodes as they were made, numbered as they come
/// by, and listed from the last to the first (QEMU's order).
pub(in crate::qmp) fn block_graph(graph: &Graph) -> Value {
    let uses = uses(graph);
    let mut numbers = Numbers::default();
    let (mut nodes, mut edges) = (Vec::new(), Vec::new());
    for one in &uses {
        if let User::Outside(ticket, who) = &one.by {
            let number = numbers.of(Who::User(*ticket));
            if !nodes.iter().any(|node: &Value| node["id"] == number) {
                nodes.push(user(number, who));
            }
            edges.push(edge(one, number, numbers.of(Who::Node(one.of))));
        }
    }
    for id in graph.as_made() {
        let number = numbers.of(Who::Node(id));
        let name = graph.node(id).map_or("", |node| node.name());
        nodes.push(json!({"id": number, "type": "block-driver", "name": name}));
        let children = uses.iter().filter(|one| one.by == User::Parent(id));
        for one in children.rev() {
            edges.push(edge(one, number, numbers.of(Who::Node(one.of))));
        }
    }
    nodes.reverse();
    edges.reverse();
    json!({"nodes": nodes, "edges": edges})
}

fn user(number: usize, who: &str) -> Value {
    match who {
        NAMELESS => json!({"id": number, "type": "block-backend", "name": ""}),
        job => json!({"id": number, "type": "block-job", "name": job}),
    }
}

fn edge(one: &Use, parent: usize, child: usize) -> Value {
    json!({
        "parent": parent, "child": child, "name": one.option,
        "perm": perms(one.wants.needs), "shared-perm": perms(one.wants.shares),
    })
}

/// In QEMU's order, the last one first.
fn perms(perms: Perms) -> Vec<&'static str> {
    let held = Perm::EACH.into_iter().rev().filter(|perm| perms.has(*perm));
    held.map(|perm| match perm {
        Perm::ConsistentRead => "consistent-read",
        Perm::Write => "write",
        Perm::WriteUnchanged => "write-unchanged",
        Perm::Resize => "resize",
    })
    .collect()
}
