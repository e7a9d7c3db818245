//! Writes that something keeps a record of: bitmaps that they are marked in, and a copy-before-write filter that has copied
//! everything.

use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::super::load::{Direction, Load, Order};
use super::super::report::{Bound, Figure, Goal};
use super::{Contender, Cpus, DIRECT_URING, Named, Orders, Plan, copied, ours, qsd, random_4k};
use crate::client::starter::Node;

/// So that every cluster can be written before anything is measured.
const BYTES: u64 = 64 << 20;
const BITMAPS: usize = 8;
/// What copy-before-write copies at once.
const CLUSTER_BYTES: u64 = 65536;

pub(super) const ROWS: &[Named] = &[
    ("8 bitmaps, direct 4k randwrite QD32, one CPU", |_| {
        bitmaps()
    }),
    ("bitmap journal, direct 4k randwrite QD32, one CPU", |_| {
        journal()
    }),
    (
        "idle copy-before-write, direct 4k randwrite QD32, one CPU",
        |_| idle_copies(),
    ),
];

/// [`ours`] or [`qsd`].
type Make = fn(&'static str, Node, &'static str, u16) -> Contender;

/// A disk for each contender: all of them write.
fn disk(dir: &Path, name: &str) -> io::Result<PathBuf> {
    let place = dir.join(name.replace([',', ' '], "_"));
    std::fs::create_dir(&place)?;
    super::filled_file(&place, BYTES)
}

fn plan(dir: TempDir, contenders: Vec<Contender>, at_most: f64) -> Plan {
    Plan {
        load: random_4k(32, Direction::Write, BYTES),
        contenders,
        reference: 2,
        cpus: Cpus::One,
        goals: vec![Goal::new(Figure::Cpu, 1, 0, Bound::AtMost(at_most))],
        _images: Some(dir),
    }
}

fn bitmaps() -> io::Result<Plan> {
    let dir = TempDir::new()?;
    let entry = |make: Make, name: &'static str, count: usize| -> io::Result<Contender> {
        let file = disk(dir.path(), name)?;
        let add = |number| -> (&'static str, Value) {
            let bitmap = json!({"node": "n0", "name": format!("b{number}")});
            ("block-dirty-bitmap-add", bitmap)
        };
        let orders = Orders {
            monitor: file.with_file_name("monitor"),
            commands: (0..count).map(add).collect(),
        };
        Ok(make(name, Node::File(file), DIRECT_URING, 1).told(orders))
    };
    let contenders = vec![
        entry(ours, "virtioblkd, none", 0)?,
        entry(ours, "virtioblkd, 8 bitmaps", BITMAPS)?,
        entry(qsd, "QSD, none", 0)?,
        entry(qsd, "QSD, 8 bitmaps", BITMAPS)?,
    ];
    Ok(plan(dir, contenders, 1.05))
}

/// A raw disk with a journal beside it. What is measured is what comes after the first write to each region.
pub(in crate::bench) fn journaled(file: &Path, file_options: &str) -> Node {
    let path = file.display();
    Node::Graph(vec![
        format!("driver=file,node-name=f0,filename={path}{file_options}"),
        format!("driver=raw,node-name=n0,file=f0,x-bitmap-journal={path}.journal"),
    ])
}

fn journal() -> io::Result<Plan> {
    let dir = TempDir::new()?;
    let entry = |make: Make, name: &'static str, keeps: bool| -> io::Result<Contender> {
        let file = disk(dir.path(), name)?;
        let bitmap = json!({"node": "n0", "name": "b", "persistent": keeps});
        let orders = Orders {
            monitor: file.with_file_name("monitor"),
            commands: vec![("block-dirty-bitmap-add", bitmap)],
        };
        let (node, options) = match keeps {
            true => (journaled(&file, &format!(",{DIRECT_URING}")), ""),
            false => (Node::File(file), DIRECT_URING),
        };
        let contender = make(name, node, options, 1);
        Ok(contender.told(orders).touched(every_cluster()))
    };
    let contenders = vec![
        entry(ours, "virtioblkd, a bitmap", false)?,
        entry(ours, "virtioblkd, a bitmap with a journal", true)?,
        entry(qsd, "QSD, a bitmap", false)?,
    ];
    Ok(plan(dir, contenders, 1.05))
}

fn idle_copies() -> io::Result<Plan> {
    let dir = TempDir::new()?;
    let bare = |make: Make, name: &'static str| -> io::Result<Contender> {
        let file = disk(dir.path(), name)?;
        Ok(make(name, Node::File(file), DIRECT_URING, 1).touched(every_cluster()))
    };
    let filtered = |make: Make, name: &'static str| -> io::Result<Contender> {
        let file = disk(dir.path(), name)?;
        let node = copied(&file, BYTES, &format!(",{DIRECT_URING}"));
        Ok(make(name, node, "", 1).touched(every_cluster()))
    };
    let contenders = vec![
        bare(ours, "virtioblkd, none")?,
        filtered(ours, "virtioblkd, copy-before-write")?,
        bare(qsd, "QSD, none")?,
        filtered(qsd, "QSD, copy-before-write")?,
    ];
    Ok(plan(dir, contenders, 1.03))
}

/// A write to each cluster, after which there is nothing left to copy.
fn every_cluster() -> Load {
    Load {
        order: Order::Once,
        stride_bytes: CLUSTER_BYTES,
        ..random_4k(32, Direction::Write, BYTES)
    }
}
