//! What nodes are called: by a file's name where that says all, else by the options that matter (QEMU's "filename").
//!
//! The rule: a name is enough to open the same disk again. A plain one therefore stands for a node only if opening it as
//! that driver would find the same children: an overlay whose backing file is another than it says needs its options.

use super::{Body, Edge, Graph, Node, Role, Shape, gate};
use crate::node::NodeId;
use std::collections::BTreeMap;

/// A name with more options than this names children by their node-names: a graph of shared nodes may have more ways through
/// it than it has nodes.
const OPTIONS_MAX: usize = 4096;

/// The value of an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Setting {
    /// Nothing, and said so.
    Null,
    /// On or off.
    Switch(bool),
    /// A number.
    Number(u64),
    /// A word.
    Text(String),
    /// Options of a child.
    Options(Settings),
}

/// Options by name.
pub type Settings = Vec<(String, Setting)>;

/// What a driver has to say about a node's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// The options without which it would show another disk, but for its driver and its children.
    pub settings: Settings,
    /// What it can be called for short.
    pub short: Short,
}

/// What a node can be called for short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Short {
    /// That. It says all.
    Own(String),
    /// That, followed by its child's; it says all.
    Before(String),
    /// As what it is on, if that is a protocol and there is nothing else to be said: a format.
    Storage,
    /// As its first child is, whatever that is called, though that does not say all.
    Child,
    /// It cannot.
    None,
}

impl Described {
    /// With nothing to say.
    pub fn plainly(short: Short) -> Described {
        let settings = Vec::new();
        Described { settings, short }
    }
}

/// What a node is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// For short.
    Plain(String),
    /// By its options.
    Options(Settings),
}

/// Writes a name as an image has it. It is the embedding program that knows JSON.
pub type Text = fn(&Name) -> String;

/// All there is to say about a node's name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    options: Settings,
    count: usize,
    short: Option<String>,
    /// It is called by these, which are a child's.
    as_child: Option<Settings>,
    is_protocol: bool,
}

impl Known {
    fn name(self) -> Name {
        match self.short {
            Some(short) => Name::Plain(short),
            None => Name::Options(self.as_child.unwrap_or(self.options)),
        }
    }

    fn is_called(&self, stored: &str, text: Text) -> bool {
        match &self.short {
            Some(short) => short == stored,
            // Nearly all names are paths, and are not compared with a long text.
            None => stored.starts_with("json:") && text(&self.clone().name()) == stored,
        }
    }
}

impl Graph {
    /// What every node is called; `text` is how names are written in images.
    pub fn names(&self, text: Text) -> BTreeMap<NodeId, Name> {
        let mut known = BTreeMap::new();
        for id in self.all_parents_first().into_iter().rev() {
            if let Some(node) = self.node(id) {
                let all = self.known(node, &known, text);
                known.insert(id, all);
            }
        }
        let names = known.into_iter().map(|(id, known)| (id, known.name()));
        names.collect()
    }

    /// The full name of what an image says is below it.
    pub fn stored_backing(&self, node: &Node) -> Option<String> {
        let Body::Driver(driver) = node.body() else {
            return None;
        };
        let stored = driver.as_qcow2()?.header().backing?;
        let storage = node.shape().edges().next()?.child;
        let full = gate::full_name(self, storage, &stored.name);
        // A name that is no path is complete, and so is one that nobody can complete.
        Some(full.map_or(stored.name, |path| path.display().to_string()))
    }

    fn known(&self, node: &Node, below: &BTreeMap<NodeId, Known>, text: Text) -> Known {
        let described = match node.body() {
            Body::Driver(driver) => driver.described(node.kind()),
            Body::Filter(filter) => filter.described(),
        };
        let backing = node.shape().child(Role::Cow);
        let found = backing.and_then(|id| below.get(&id));
        let is_elsewhere = match self.stored_backing(node) {
            None => backing.is_some(),
            Some(stored) => !found.is_some_and(|found| found.is_called(&stored, text)),
        };
        let short = short(node.shape(), &described, is_elsewhere, below);
        let first = node.shape().edges().next();
        let first = first.and_then(|edge| below.get(&edge.child));
        let as_child = match described.short {
            Short::Child => first.map(|child| child.as_child.as_ref().unwrap_or(&child.options)),
            _ => None,
        };
        let as_child = as_child.cloned();
        let is_protocol = matches!(described.short, Short::Own(_) | Short::Before(_))
            || *node.shape() == Shape::Leaf;
        let mut known = Known {
            options: vec![("driver".to_owned(), Setting::Text(node.kind().to_owned()))],
            count: 1 + described.settings.len(),
            short,
            as_child,
            is_protocol,
        };
        known.options.extend(described.settings);
        if is_elsewhere && backing.is_none() {
            let backing = ("backing".to_owned(), Setting::Null);
            known.options.push(backing);
        }
        let edges = node.shape().edges();
        for edge in edges.filter(|edge| edge.role != Role::Cow || is_elsewhere) {
            self.add_child(&mut known, edge, below);
        }
        known
    }

    fn add_child(&self, known: &mut Known, edge: &Edge, below: &BTreeMap<NodeId, Known>) {
        let Some(child) = below.get(&edge.child) else {
            return;
        };
        known.count += child.count;
        let setting = match known.count <= OPTIONS_MAX {
            true => Setting::Options(child.options.clone()),
            false => Setting::Text(self.node(edge.child).map_or("", Node::name).to_owned()),
        };
        if known.count > OPTIONS_MAX {
            known.count -= child.count;
        }
        known.options.push((edge.option.to_owned(), setting));
    }
}

fn short(
    shape: &Shape,
    described: &Described,
    is_elsewhere: bool,
    below: &BTreeMap<NodeId, Known>,
) -> Option<String> {
    let first = shape.edges().next().and_then(|edge| below.get(&edge.child));
    match (&described.short, shape) {
        (Short::Own(name), _) => Some(name.clone()),
        (Short::Child, _) => first?.short.clone(),
        (Short::Before(prefix), _) => {
            let below = first?.short.as_ref()?;
            Some(format!("{prefix}{below}"))
        }
        (Short::Storage, Shape::Format { .. })
            if described.settings.is_empty() && !is_elsewhere && first?.is_protocol =>
        {
            first?.short.clone()
        }
        (Short::Storage | Short::None, _) => None,
    }
}
