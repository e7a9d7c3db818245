//! Random changes of a writable image, several at a time, and the bytes that it should have afterwards.

use super::qcow2::{read_only, text};
use super::{Bench, Chance, common, file_options, inline, span};
use blockgraph::driver::file::{Cache, FileOptions, Locking};
use blockgraph::driver::qcow2::Options;
use blockgraph::graph::Body;
use blockgraph::graph::gate::Named;
use blockgraph::graph::open::{Backing, Child, DriverSpec, FileSpec, NodeSpec, Qcow2Spec};
use blockgraph::node::{NodeId, Outcome};
use blockgraph::{Kind, Started, Unmap};
use ring::{Durability, Mem};
use std::path::Path;

/// A file that is written, as a child.
pub fn file_child(path: &Path) -> Child {
    inline(NodeSpec {
        name: None,
        common: common(),
        driver: DriverSpec::File(FileSpec {
            options: FileOptions {
                // A ring that was dropped may keep its files open a moment longer than this test waits.
                locking: Locking::Off,
                ..file_options(path, Cache::Page)
            },
        }),
    })
}

/// A raw or qcow2 image below another.
pub fn below(path: &Path, format: &str) -> Backing {
    let file = super::qcow2::file_child(path);
    let driver = match format {
        "raw" => DriverSpec::Raw {
            file,
            window: blockgraph::driver::raw::Window::default(),
            journal: None,
        },
        _ => DriverSpec::Qcow2(Box::new(Qcow2Spec {
            file,
            data_file: None,
            backing: Backing::Nothing,
            options: Options::default(),
            named: Named::default(),
            journal: None,
        })),
    };
    Backing::Node(inline(NodeSpec {
        name: None,
        common: read_only(),
        driver,
    }))
}

/// A qcow2 image that is written.
pub fn image(
    path: &Path,
    data_file: Option<&Path>,
    backing: Backing,
    options: Options,
) -> NodeSpec {
    NodeSpec {
        name: None,
        common: common(),
        driver: DriverSpec::Qcow2(Box::new(Qcow2Spec {
            file: file_child(path),
            data_file: data_file.map(file_child),
            backing,
            options,
            named: Named::default(),
            journal: None,
        })),
    }
}

/// Closes a node's driver as its owner would.
pub fn close(bench: &mut Bench, node: NodeId) -> Outcome {
    let graph = bench.current.get();
    let inner = graph.clone();
    let closed = bench.control.run(&graph, node, |io| async move {
        match inner.node(node).expect("open").body() {
            Body::Driver(driver) => driver.close(&io).await,
            Body::Filter(_) => Ok(()),
        }
    });
    closed.expect("a ring")
}

/// What changes are like.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    /// Changes are often of this many bytes, and aligned to it.
    pub unit: u64,
    /// The longest, in units.
    pub units_max: u64,
    /// So many at a time.
    pub at_once: u64,
}

/// A change under way, and what it makes of its bytes.
struct Change {
    at: usize,
    bytes: Option<Vec<u8>>,
    len: usize,
}

/// Makes `count` batches of random changes that do not overlap, on the node and on its model.
pub fn change(
    bench: &mut Bench,
    node: NodeId,
    model: &mut [u8],
    chance: &mut Chance,
    habits: Habits,
    count: usize,
) {
    for _ in 0..count {
        batch(bench, node, model, chance, habits);
        if chance.below(8) == 0 {
            assert_eq!(bench.plain(node, Kind::Flush, span(0, 0)), Ok(()));
        }
    }
}

fn batch(bench: &mut Bench, node: NodeId, model: &mut [u8], chance: &mut Chance, habits: Habits) {
    let mut changes: Vec<Change> = Vec::new();
    let mut pending = 0;
    for token in 0..habits.at_once {
        let (at, len) = pick(model.len() as u64, chance, habits);
        if changes.iter().any(|c| at < c.at + c.len && c.at < at + len) {
            continue;
        }
        let (kind, bytes) = kind(chance, len);
        let mem = Mem::zeroed(len).expect("memory");
        if let Some(bytes) = &bytes {
            mem.store(0, bytes);
        }
        let mem = if matches!(kind, Kind::Write(_) | Kind::WriteCompressed) {
            mem
        } else {
            Mem::none()
        };
        let started = bench.start(node, kind, span(at as u64, len as u64), &mem, token);
        match started {
            Started::Done(outcome) => assert_eq!(outcome, Ok(())),
            _ => {
                pending += 1;
                // Memory lives as long as the lane's copies of it, which is longer than this loop.
                std::mem::forget(mem);
            }
        }
        changes.push(Change { at, bytes, len });
    }
    for _ in 0..pending {
        let (_, outcome) = bench.wait();
        assert_eq!(outcome, Ok(()));
    }
    for change in changes {
        let range = change.at..change.at + change.len;
        match change.bytes {
            Some(bytes) => model[range].copy_from_slice(&bytes),
            // What was discarded reads as before or as zeroes, in whatever parts; from then on it stays as it is.
            None => {
                let now = bench.read(node, change.at as u64, change.len);
                for (now, before) in now.iter().zip(&model[range.clone()]) {
                    assert!(now == before || *now == 0, "made up at {:#x}", change.at);
                }
                model[range].copy_from_slice(&now);
            }
        }
    }
}

fn pick(size: u64, chance: &mut Chance, habits: Habits) -> (usize, usize) {
    let unit = match chance.below(2) {
        0 => 512,
        _ => habits.unit,
    };
    let units = (size / unit).max(1);
    let at = chance.below(units);
    let longest = (units - at)
        .min(habits.units_max * habits.unit / unit)
        .max(1);
    let len = 1 + chance.below(longest);
    let (at, len) = (at * unit, len * unit);
    // Now and then to the very end of the disk.
    let len = if chance.below(16) == 0 && size - at < 8 * habits.unit {
        size - at
    } else {
        len
    };
    (at as usize, len.min(size - at) as usize)
}

fn kind(chance: &mut Chance, len: usize) -> (Kind, Option<Vec<u8>>) {
    let durability = match chance.below(16) {
        0 => Durability::Through,
        _ => Durability::Cached,
    };
    let unmap = [Unmap::Allow, Unmap::Keep][chance.below(2) as usize];
    match chance.below(10) {
        0 | 1 => (Kind::WriteZeroes(unmap, durability), Some(vec![0; len])),
        2 => (Kind::Discard, None),
        _ => {
            let byte = 1 + chance.below(255) as u8;
            let mut bytes = vec![byte; len];
            for at in (0..len).step_by(512) {
                bytes[at] = chance.next() as u8;
            }
            (Kind::Write(durability), Some(bytes))
        }
    }
}

/// The bytes of a node's whole disk are those of the model.
pub fn compare(bench: &mut Bench, node: NodeId, model: &[u8]) {
    let ours = bench.read(node, 0, model.len());
    let wrong = ours.iter().zip(model).position(|(a, b)| a != b);
    if let Some(wrong) = wrong {
        panic!(
            "byte {wrong:#x} is {:#x}, not {:#x}",
            ours[wrong], model[wrong]
        );
    }
}

/// QEMU finds neither errors nor leaks in the image, and reads the model from it.
pub fn judge(path: &Path, backing: Option<(&Path, &str)>, model: &[u8]) {
    super::qcow2::run("qemu-img", &["check", "-q", "-f", "qcow2", text(path)]);
    let _ = backing;
    let flat = super::qcow2::flat(path, "qcow2");
    let wrong = flat.iter().zip(model).position(|(a, b)| a != b);
    assert_eq!(wrong, None, "as QEMU reads it");
    assert_eq!(flat.len(), model.len());
}
