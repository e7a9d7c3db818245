//! From answers to a picture: things and what they have to do with each other, in an order that depends on nothing but
//! their names.
//!
//! The rule: everything a format draws is decided here, with text made fit to print; formats only place it.

use super::NAME_CHARS_MAX;
use super::answers::{Answers, Drains, Export, GraphNode, Job, Kind, NodeInfo, Rates};
use crate::units;
use std::collections::BTreeMap;

/// Drivers that show what one child shows.
const FILTERS: [&str; 10] = [
    "blkdebug",
    "blklogwrites",
    "blkreplay",
    "compress",
    "copy-before-write",
    "copy-on-read",
    "preallocate",
    "snapshot-access",
    "throttle",
    "x-delay",
];
/// Filters that only jobs put there.
const OF_JOBS: [&str; 3] = ["backup-top", "commit_top", "mirror_top"];
/// Filters that a job puts there where no user asked for one, then under a name no user can give.
const SOMETIMES_OF_JOBS: [&str; 2] = ["copy-before-write", "copy-on-read"];

/// What a thing looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    Export,
    Job,
    /// Somebody else who uses a node.
    User,
    Node,
    Filter,
    /// A filter that a job put there.
    Implicit,
}

/// One thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) look: Look,
    /// Driver, type of export or of job.
    pub(super) kind: String,
    pub(super) name: String,
    /// What else is known, one fact each.
    pub(super) facts: Vec<String>,
}

/// What one thing is to another, by places in the list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Link {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) role: String,
    /// Letters of what is done through it.
    pub(super) perms: String,
}

/// Everything drawn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Picture {
    pub(super) items: Vec<Item>,
    /// In the order of their parents, and for each in the order of [`role_order`].
    pub(super) links: Vec<Link>,
    /// What is to be said of all of it.
    pub(super) note: Option<String>,
}

impl Picture {
    pub(super) fn of(answers: &Answers) -> Picture {
        let mut picture = Picture {
            note: answers.drains.and_then(note_of_drains),
            ..Picture::default()
        };
        let exports = picture.add_exports(answers);
        let mut places = picture.add_users(answers);
        picture.add_nodes(answers, &mut places);
        for edge in &answers.edges {
            if let (Some(from), Some(to)) = (places.get(&edge.parent), places.get(&edge.child)) {
                picture.links.push(Link {
                    from: *from,
                    to: *to,
                    role: printable(&edge.name),
                    perms: edge.perms.clone(),
                });
            }
        }
        let named = |name: &str| {
            let mut drivers = answers
                .nodes
                .iter()
                .filter(|node| node.kind == Kind::Driver);
            let node = drivers.find(|node| node.name == name)?;
            places.get(&node.id).copied()
        };
        for (from, export) in exports {
            picture.links.extend(named(&export.node).map(|to| Link {
                from,
                to,
                role: String::new(),
                perms: String::new(),
            }));
        }
        picture.links.sort_by_cached_key(|link| {
            let order = role_order(&link.role);
            (link.from, order, link.role.clone(), link.to)
        });
        picture.links.dedup();
        picture
    }

    fn add(&mut self, item: Item) -> usize {
        self.items.push(item);
        self.items.len() - 1
    }

    fn add_exports<'a>(&mut self, answers: &'a Answers) -> Vec<(usize, &'a Export)> {
        let mut exports: Vec<&Export> = answers.exports.iter().collect();
        exports.sort_by_key(|export| &export.id);
        let add = |export: &'a Export| (self.add(item_of_export(export)), export);
        exports.into_iter().map(add).collect()
    }

    /// Jobs, and users that are neither jobs nor exports; places by number in the answer.
    fn add_users(&mut self, answers: &Answers) -> BTreeMap<u64, usize> {
        let mut places = BTreeMap::new();
        let mut known: Vec<&Job> = answers.jobs.iter().collect();
        known.sort_by_key(|job| &job.id);
        for job in known {
            let at = self.add(item_of_job(job));
            let nodes = answers.nodes.iter();
            let its = nodes.filter(|node| node.kind == Kind::Job && node.name == job.id);
            places.extend(its.map(|node| (node.id, at)));
        }
        let mut others: Vec<&GraphNode> = answers.nodes.iter().collect();
        others.retain(|node| node.kind != Kind::Driver && !places.contains_key(&node.id));
        let told = told_elsewhere(answers);
        others.retain(|node| !told.contains(&node.id));
        others.sort_by_key(|node| (&node.name, node.id));
        for node in others {
            let at = self.add(Item {
                look: Look::User,
                kind: "user".to_owned(),
                name: printable(&node.name),
                facts: Vec::new(),
            });
            places.insert(node.id, at);
        }
        places
    }

    fn add_nodes(&mut self, answers: &Answers, places: &mut BTreeMap<u64, usize>) {
        let mut nodes: Vec<&GraphNode> = answers.nodes.iter().collect();
        nodes.retain(|node| node.kind == Kind::Driver);
        nodes.sort_by_key(|node| (&node.name, node.id));
        for node in nodes {
            let leaf = !answers.edges.iter().any(|edge| edge.parent == node.id);
            let info = answers.infos.get(&node.name).cloned().unwrap_or_default();
            let at = self.add(item_of_node(&node.name, &info, leaf));
            places.insert(node.id, at);
        }
    }

    /// Places of the children of a thing, with what each is to it.
    pub(super) fn children(&self, of: usize) -> impl Iterator<Item = &Link> {
        self.links.iter().filter(move |link| link.from == of)
    }

    /// Places of the things nothing is above.
    pub(super) fn tops(&self) -> Vec<usize> {
        let has_parent = |at: &usize| self.links.iter().any(|link| link.to == *at);
        (0..self.items.len()).filter(|at| !has_parent(at)).collect()
    }
}

/// Users without a name that are told of as exports (as many on each node as it has exports), or belong to a job that uses
/// the node by its name.
fn told_elsewhere(answers: &Answers) -> Vec<u64> {
    let kinds: BTreeMap<u64, &GraphNode> = answers.nodes.iter().map(|n| (n.id, n)).collect();
    let is_job = |id: &u64| kinds.get(id).is_some_and(|node| node.kind == Kind::Job);
    let mut exported: Vec<&str> = answers.exports.iter().map(|e| e.node.as_str()).collect();
    let mut told = Vec::new();
    for node in &answers.nodes {
        let edge = answers.edges.iter().find(|edge| edge.parent == node.id);
        let Some(edge) = edge.filter(|_| node.kind == Kind::Backend && node.name.is_empty()) else {
            continue;
        };
        let name = kinds.get(&edge.child).map(|below| below.name.as_str());
        let mut users = answers
            .edges
            .iter()
            .filter(|other| other.child == edge.child);
        if let Some(at) = exported.iter().position(|exported| Some(*exported) == name) {
            exported.swap_remove(at);
            told.push(node.id);
        } else if users.any(|other| is_job(&other.parent)) {
            told.push(node.id);
        }
    }
    told
}

/// The image before what is below it.
fn role_order(role: &str) -> usize {
    let order = [
        "",
        "root",
        "file",
        "image",
        "data-file",
        "backing",
        "source",
        "target",
    ];
    let place = order.iter().position(|known| *known == role);
    place.unwrap_or(order.len())
}

/// Nothing where the graph was never changed.
fn note_of_drains(drains: Drains) -> Option<String> {
    let [wait, settling, hold] = [
        drains.wait_max_ns,
        drains.settling_max_ns,
        drains.hold_max_ns,
    ]
    .map(|ns| units::time(ns as f64));
    let count = units::count(drains.count as f64);
    (drains.count > 0).then(|| {
        format!(
            "requests were held back {count} times: at most {hold}, {wait} for those under way, {settling} after their end"
        )
    })
}

fn item_of_export(export: &Export) -> Item {
    let mut facts = Vec::new();
    if export.leaving {
        facts.push("shutting down".to_owned());
    }
    facts.extend(export.rates.iter().flat_map(rate_facts));
    Item {
        look: Look::Export,
        kind: printable(&export.kind),
        name: printable(&export.id),
        facts,
    }
}

fn rate_facts(rates: &Rates) -> Vec<String> {
    let Some(mean_ns) = rates.mean_ns else {
        return vec!["idle".to_owned()];
    };
    let flow = |what: &str, count, bytes| {
        format!(
            "{} {what}/s ({}/s)",
            units::count(count),
            units::bytes(bytes)
        )
    };
    let mut facts = Vec::new();
    if rates.reads > 0.0 {
        facts.push(flow("reads", rates.reads, rates.read_bytes));
    }
    if rates.writes > 0.0 {
        facts.push(flow("writes", rates.writes, rates.written_bytes));
    }
    if rates.others > 0.0 {
        facts.push(format!("others {}/s", units::count(rates.others)));
    }
    facts.push(format!("{} each", units::time(mean_ns)));
    facts
}

fn item_of_job(job: &Job) -> Item {
    let mut facts = vec![printable(&job.status)];
    if job.total > 0 {
        let percent = job.done as f64 / job.total as f64 * 100.0;
        facts.push(format!("{percent:.0} % done"));
    }
    Item {
        look: Look::Job,
        kind: printable(&job.kind),
        name: printable(&job.id),
        facts,
    }
}

fn item_of_node(name: &str, info: &NodeInfo, leaf: bool) -> Item {
    let look = look_of_node(name, &info.driver);
    let mut facts = Vec::new();
    // A filter's sizes are those of what it filters.
    if look == Look::Node {
        facts.extend(size_fact(info));
    }
    if leaf && !info.file.is_empty() && !info.file.starts_with("json:") {
        facts.push(printable(&info.file));
    }
    if info.read_only {
        facts.push("read-only".to_owned());
    }
    if info.inactive {
        facts.push("inactive".to_owned());
    }
    for (bitmap, dirty_bytes) in &info.bitmaps {
        let dirty = units::bytes(*dirty_bytes as f64);
        facts.push(format!("bitmap {}: {dirty} dirty", printable(bitmap)));
    }
    Item {
        look,
        kind: printable(&info.driver),
        name: printable(name),
        facts,
    }
}

fn size_fact(info: &NodeInfo) -> Option<String> {
    let size = units::bytes(info.size_bytes? as f64);
    Some(match info.allocated_bytes {
        Some(bytes) => format!("{size}, {} allocated", units::bytes(bytes as f64)),
        None => size,
    })
}

fn look_of_node(name: &str, driver: &str) -> Look {
    let generated = name.starts_with('#');
    let implicit = OF_JOBS.contains(&driver) || (generated && SOMETIMES_OF_JOBS.contains(&driver));
    match implicit {
        true => Look::Implicit,
        false if FILTERS.contains(&driver) => Look::Filter,
        false => Look::Node,
    }
}

/// What cannot be shown is replaced, and what is too long loses its middle.
fn printable(text: &str) -> String {
    let hides = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
    };
    let chars: Vec<char> = text
        .chars()
        .map(|c| if hides(c) { '\u{fffd}' } else { c })
        .collect();
    if chars.len() <= NAME_CHARS_MAX {
        return chars.into_iter().collect();
    }
    let head = NAME_CHARS_MAX / 3;
    let tail = chars.len() - (NAME_CHARS_MAX - head - 1);
    let (head, tail) = (&chars[..head], &chars[tail..]);
    head.iter().chain(&['…']).chain(tail).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_play_tricks_are_made_harmless() {
        assert_eq!(
            printable("a\x1b[31m\nb\u{202e}c"),
            "a\u{fffd}[31m\u{fffd}b\u{fffd}c"
        );
        let long = printable(&format!("/start/{}/end", "x".repeat(500)));
        assert_eq!(long.chars().count(), NAME_CHARS_MAX);
        assert!(long.starts_with("/start/") && long.ends_with("x/end"));
        let just = "y".repeat(NAME_CHARS_MAX);
        assert_eq!(printable(&just), just);
    }
}
