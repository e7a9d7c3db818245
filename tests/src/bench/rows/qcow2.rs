//! qcow2: what lies under a mapped request, an allocating one, a chain, and a cache that is too small.

use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::super::load::{Direction, Load, Order};
use super::super::report::{Bound, Figure, Goal};
use super::images::{self, Empty};
use super::{Cpus, DIRECT_URING, Named, Plan, Subject, ours, qsd, random_4k};
use crate::client::starter::Node;

const READ: Direction = Direction::Read;
const WRITE: Direction = Direction::Write;
/// qemu-img's default.
const CLUSTER_BYTES: u64 = 65536;
/// So many clusters are there to be allocated in a round.
const FRESH_BYTES: u64 = 4 << 30;
/// Overlays of a long chain.
pub(in crate::bench) const LONG_CHAIN: usize = 16;
/// What a chain's base holds: it should stay in the page cache.
const CHAIN_BYTES_MAX: u64 = 256 << 20;
const COLD_BYTES: u64 = 100 << 30;

pub(super) const ROWS: &[Named] = &[
    ("qcow2 allocated 4k randread QD32, one CPU", |subject| {
        allocated(subject, READ)
    }),
    ("qcow2 allocated 4k randwrite QD32, one CPU", |subject| {
        allocated(subject, WRITE)
    }),
    ("qcow2 allocating 4k writes QD32, one CPU", |_| {
        allocating(4096)
    }),
    ("qcow2 allocating 64k writes QD32, one CPU", |_| {
        allocating(65536)
    }),
    ("qcow2 chains, page cache 4k randread QD32, one CPU", chains),
    ("qcow2 cold L2 4k randread QD32, one CPU", |_| cold()),
];

/// A qcow2 node `n0` on a file, which has these options; and what else `n0` is told.
pub(in crate::bench) fn on_file(path: &Path, file_options: &str, options: &str) -> Node {
    let path = path.display();
    let comma = if file_options.is_empty() { "" } else { "," };
    Node::Graph(vec![
        format!("driver=file,node-name=f0,filename={path}{comma}{file_options}"),
        format!("driver=qcow2,node-name=n0,file=f0{options}"),
    ])
}

fn allocated(subject: &Subject<'_>, direction: Direction) -> io::Result<Plan> {
    let dir = TempDir::new()?;
    // Everybody writes to an image of his own.
    let image = |name: &str| -> io::Result<PathBuf> {
        let path = dir.path().join(name);
        images::converted(subject.file, &path)?;
        images::settle(&path)?;
        Ok(path)
    };
    let (first, second) = (image("ours.qcow2")?, image("qsd.qcow2")?);
    let raw = dir.path().join("ours.raw");
    std::fs::copy(subject.file, &raw)?;
    images::settle(&raw)?;
    let contenders = vec![
        ours("virtioblkd", on_file(&first, DIRECT_URING, ""), "", 1),
        ours("virtioblkd, raw", Node::File(raw), DIRECT_URING, 1),
        qsd("QSD", on_file(&second, DIRECT_URING, ""), "", 1),
    ];
    Ok(Plan {
        load: random_4k(32, direction, subject.file_bytes),
        contenders,
        reference: 1,
        cpus: Cpus::One,
        goals: vec![
            Goal::new(Figure::Cpu, 0, 1, Bound::AtMost(1.25)),
            Goal::new(Figure::Cpu, 0, 2, Bound::AtMost(0.6)),
        ],
        _images: Some(dir),
    })
}

/// Each write is the first of its cluster.
fn allocating(block_bytes: u32) -> io::Result<Plan> {
    let dir = TempDir::new()?;
    let image = |name| Empty {
        path: dir.path().join(name),
        size_bytes: FRESH_BYTES,
    };
    let (first, second) = (image("ours.qcow2"), image("qsd.qcow2"));
    let contenders = vec![
        ours("virtioblkd", on_file(&first.path, DIRECT_URING, ""), "", 1).anew(first),
        qsd("QSD", on_file(&second.path, DIRECT_URING, ""), "", 1).anew(second),
    ];
    Ok(Plan {
        load: Load {
            block_bytes,
            order: Order::Once,
            stride_bytes: CLUSTER_BYTES,
            ..random_4k(32, WRITE, FRESH_BYTES)
        },
        contenders,
        reference: 1,
        cpus: Cpus::One,
        goals: vec![Goal::new(Figure::Iops, 0, 1, Bound::AtLeast(1.5))],
        _images: Some(dir),
    })
}

/// A qcow2 base that holds what a raw file does, and on it so many overlays that are empty; the base first.
fn layers(raw: &Path, dir: &Path, overlays: usize) -> io::Result<Vec<PathBuf>> {
    let base = dir.join("layer0");
    images::converted(raw, &base)?;
    let mut layers = vec![base];
    for n in 1..=overlays {
        let layer = dir.join(format!("layer{n}"));
        images::overlay(&layers[n - 1], "qcow2", &layer)?;
        layers.push(layer);
    }
    Ok(layers)
}

fn chains(subject: &Subject<'_>) -> io::Result<Plan> {
    let dir = TempDir::new()?;
    let bytes = subject.file_bytes.min(CHAIN_BYTES_MAX);
    let filled = super::filled_file(dir.path(), bytes)?;
    let layers = layers(&filled, dir.path(), LONG_CHAIN)?;
    let node = |overlays: usize| chain(&layers[..=overlays], ",aio=io_uring");
    let contenders = vec![
        ours("virtioblkd, chain of 16", node(LONG_CHAIN), "", 1).read_only(),
        ours("virtioblkd, chain of 1", node(1), "", 1).read_only(),
        qsd("QSD, chain of 16", node(LONG_CHAIN), "", 1).read_only(),
        qsd("QSD, chain of 1", node(1), "", 1).read_only(),
    ];
    Ok(Plan {
        load: random_4k(32, READ, bytes),
        contenders,
        reference: 1,
        cpus: Cpus::One,
        goals: vec![Goal::new(Figure::Cpu, 0, 1, Bound::AtMost(1.5))],
        _images: Some(dir),
    })
}

/// So many empty overlays on a qcow2 base that holds what a raw file does; they are made in `dir`.
pub(in crate::bench) fn overlaid(raw: &Path, dir: &Path, overlays: usize) -> io::Result<Node> {
    // Whatever carries out the I/O: instructions are counted on the thread pool.
    Ok(chain(&layers(raw, dir, overlays)?, ""))
}

fn chain(layers: &[PathBuf], file_options: &str) -> Node {
    let mut nodes = Vec::new();
    for (n, layer) in layers.iter().enumerate() {
        // The top is `n0`, which has no number of its own.
        let name = match n + 1 == layers.len() {
            true => "n0".to_owned(),
            false => format!("layer{n}"),
        };
        let backing = match n {
            0 => String::new(),
            _ => format!(",backing=layer{}", n - 1),
        };
        let path = layer.display();
        nodes.push(format!(
            "driver=file,node-name=file{n},filename={path},read-only=on{file_options}"
        ));
        nodes.push(format!(
            "driver=qcow2,node-name={name},file=file{n},read-only=on{backing}"
        ));
    }
    Node::Graph(nodes)
}

/// A large image whose every cluster is mapped, and a cache for a hundredth of its map.
fn cold() -> io::Result<Plan> {
    let dir = TempDir::new()?;
    let path = dir.path().join("cold.qcow2");
    images::create(&path, &["-o", "preallocation=metadata"], COLD_BYTES)?;
    images::settle(&path)?;
    let cache = ",read-only=on,l2-cache-size=131072,l2-cache-entry-size=4096";
    let file = format!("{DIRECT_URING},read-only=on");
    let node = || on_file(&path, &file, cache);
    let contenders = vec![
        ours("virtioblkd", node(), "", 1).read_only(),
        qsd("QSD", node(), "", 1).read_only(),
    ];
    Ok(Plan {
        load: random_4k(32, READ, COLD_BYTES),
        contenders,
        reference: 1,
        cpus: Cpus::One,
        goals: vec![Goal::new(Figure::Iops, 0, 1, Bound::AtLeast(1.0))],
        _images: Some(dir),
    })
}
