//! Internal snapshots and sizes, beside qemu-img: what we make it finds sound, what it makes we work on, and every byte is
//! where it should be.

use crate::support;
use blockgraph::driver::file::Cache;
use blockgraph::driver::qcow2::format::snapshot_table::Taken;
use blockgraph::driver::qcow2::resize::ResizeFailure;
use blockgraph::driver::qcow2::snapshot::{NewSnapshot, SnapshotFailure};
use blockgraph::driver::qcow2::{Options, Qcow2};
use blockgraph::graph::Body;
use blockgraph::graph::open::{Backing, DriverSpec, NodeSpec, Qcow2Spec};
use blockgraph::io::Io;
use blockgraph::request::Prealloc;
use blockgraph::{Mode, NodeId};
use ring::Choice;
use std::path::Path;
use std::sync::Arc;
use support::{Bench, Chance, file, inline, qemu};

const SIZE: u64 = 8 << 20;

fn spec(path: &Path, data: Option<&Path>, backing: Option<&Path>) -> NodeSpec {
    let child = |path: &Path| inline(file(path, Cache::Page));
    NodeSpec {
        name: None,
        common: file(path, Cache::Page).common,
        driver: DriverSpec::Qcow2(Box::new(Qcow2Spec {
            file: child(path),
            data_file: data.map(child),
            backing: backing.map_or(Backing::Nothing, |path| Backing::Node(child(path))),
            options: Options::default(),
            named: blockgraph::graph::gate::Named::default(),
            journal: None,
        })),
    }
}

/// An open image.
struct Open {
    bench: Bench,
    node: NodeId,
}

impl Open {
    fn new(spec: NodeSpec, mode: Mode) -> Open {
        let mut bench = Bench::new(Choice::Threads, mode);
        let node = bench.open(spec);
        Open { bench, node }
    }

    /// Does something only qcow2 can.
    fn with<T: 'static>(&mut self, work: impl AsyncFnOnce(&Qcow2, &Io) -> T + 'static) -> T {
        let graph = self.bench.current.get();
        let node = self.node;
        let Some(Body::Driver(driver)) = graph.node(node).map(|node| node.body().clone()) else {
            panic!("a driver");
        };
        let ran = self.bench.control.run(&graph, node, move |io| async move {
            work(driver.as_qcow2().expect("an image"), &io).await
        });
        ran.expect("a turn")
    }

    fn create(&mut self, name: &str) -> String {
        let new = NewSnapshot {
            name: name.to_owned(),
            taken: Taken::default(),
        };
        self.with(async move |image, io| image.create_snapshot(io, new).await)
            .expect("made")
    }

    fn apply(&mut self, which: &str) -> Result<(), SnapshotFailure> {
        let which = which.to_owned();
        self.with(async move |image, io| image.apply_snapshot(io, &which).await)
    }

    fn delete(&mut self, which: &str) -> Result<(), SnapshotFailure> {
        let which = which.to_owned();
        self.with(async move |image, io| image.delete_snapshot(io, &which).await)
    }

    fn resize(&mut self, size: u64, how: Prealloc) -> Result<(), ResizeFailure> {
        self.with(async move |image, io| image.resize(io, size, how).await)
    }

    fn close(mut self) {
        let graph = self.bench.current.get();
        let node = self.node;
        let Some(Body::Driver(driver)) = graph.node(node).map(|node| node.body().clone()) else {
            panic!("a driver");
        };
        let ran = self.bench.control.run(&graph, node, move |io| async move {
            let driver: Arc<dyn blockgraph::Driver> = driver;
            driver.close(&io).await
        });
        ran.expect("a turn").expect("closed");
    }

    fn read_all(&mut self, size: u64) -> Vec<u8> {
        let steps = (0..size).step_by(1 << 20);
        steps
            .flat_map(|at| {
                self.bench
                    .read(self.node, at, (size - at).min(1 << 20) as usize)
            })
            .collect()
    }

    fn scribble(&mut self, chance: &mut Chance, disk: &mut [u8], count: usize) {
        for _ in 0..count {
            let at = chance.below(disk.len() as u64 / 512) as usize * 512;
            let len = ((1 + chance.below(300)) as usize * 512).min(disk.len() - at);
            let byte = chance.next() as u8;
            disk[at..at + len].fill(byte);
            self.bench
                .write(self.node, at as u64, &vec![byte; len])
                .expect("written");
        }
    }
}

fn make(dir: &Path, options: &str, size: u64) {
    qemu::ok(
        dir,
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            options,
            "image",
            &size.to_string(),
        ],
    );
}

/// What qemu-img reads of the image, or of a snapshot.
fn flat(dir: &Path, snapshot: Option<&str>) -> Vec<u8> {
    let named = snapshot.map(|name| format!("snapshot.name={name}"));
    let mut args = vec!["convert", "-f", "qcow2", "-O", "raw"];
    if let Some(named) = &named {
        args.extend(["-l", named]);
    }
    args.extend(["image", "flat"]);
    qemu::ok(dir, "qemu-img", &args);
    std::fs::read(dir.join("flat")).expect("read")
}

const KINDS: [&str; 6] = [
    "compat=1.1",
    "compat=0.10",
    "cluster_size=512,refcount_bits=64",
    "cluster_size=4k,refcount_bits=32",
    "extended_l2=on",
    "lazy_refcounts=on,cluster_size=2M",
];

#[test]
fn snapshots_come_and_go_and_every_one_keeps_its_bytes() {
    for (seed, options) in KINDS.into_iter().enumerate() {
        for mode in support::modes(seed as u64) {
            println!("{options} {mode:?}");
            let dir = tempfile::tempdir().expect("a directory");
            let dir = dir.path();
            make(dir, options, SIZE);
            let mut chance = Chance(seed as u64);
            let mut disk = vec![0; SIZE as usize];
            let mut open = Open::new(spec(&dir.join("image"), None, None), mode);
            let mut kept: Vec<(String, Vec<u8>)> = Vec::new();
            for turn in 0..8 {
                open.scribble(&mut chance, &mut disk, 6);
                let name = format!("s{turn}");
                match chance.below(4) {
                    0 if !kept.is_empty() => {
                        let at = chance.below(kept.len() as u64) as usize;
                        open.apply(&kept[at].0).expect("applied");
                        disk.clone_from(&kept[at].1);
                    }
                    1 if !kept.is_empty() => {
                        let at = chance.below(kept.len() as u64) as usize;
                        open.delete(&kept.remove(at).0).expect("deleted");
                    }
                    _ => {
                        open.create(&name);
                        kept.push((name, disk.clone()));
                    }
                }
                assert!(open.read_all(SIZE) == disk, "turn {turn}");
            }
            open.scribble(&mut chance, &mut disk, 6);
            assert!(open.read_all(SIZE) == disk);
            open.close();
            qemu::check(dir, "image");
            assert!(flat(dir, None) == disk);
            for (name, bytes) in &kept {
                assert!(flat(dir, Some(name)) == *bytes, "{name}");
            }
        }
    }
}

#[test]
fn qemu_s_snapshots_survive_our_writes_and_are_applied_and_deleted_by_us() {
    for options in KINDS {
        println!("{options}");
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path();
        make(dir, options, SIZE);
        qemu::io(dir, "image", &["write -P 1 0 1M", "write -c -P 2 4M 2M"]);
        qemu::ok(dir, "qemu-img", &["snapshot", "-c", "one", "image"]);
        let one = flat(dir, None);
        qemu::io(dir, "image", &["write -P 3 512k 1M"]);
        qemu::ok(dir, "qemu-img", &["snapshot", "-c", "two", "image"]);
        let mut disk = flat(dir, None);
        let two = disk.clone();
        let mut open = Open::new(spec(&dir.join("image"), None, None), Mode::Fast);
        open.scribble(&mut Chance(5), &mut disk, 30);
        assert!(open.read_all(SIZE) == disk);
        open.close();
        qemu::check(dir, "image");
        assert!(flat(dir, Some("one")) == one && flat(dir, Some("two")) == two);
        let mut open = Open::new(spec(&dir.join("image"), None, None), Mode::Fast);
        assert_eq!(open.create("three"), "3");
        open.apply("1").expect("applied");
        assert!(open.read_all(SIZE) == one);
        open.delete("two").expect("deleted");
        assert_eq!(open.delete("two"), Err(SnapshotFailure::NotFound));
        open.close();
        qemu::check(dir, "image");
        assert!(flat(dir, None) == one && flat(dir, Some("three")) == disk);
        qemu::ok(dir, "qemu-img", &["snapshot", "-a", "three", "image"]);
        qemu::ok(dir, "qemu-img", &["snapshot", "-d", "one", "image"]);
        qemu::check(dir, "image");
        assert!(flat(dir, None) == disk);
    }
}

#[test]
fn refcounts_too_narrow_for_a_snapshot_refuse_it_and_the_image_goes_on() {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path();
    make(dir, "refcount_bits=1", SIZE);
    let mut disk = vec![0; SIZE as usize];
    let mut open = Open::new(spec(&dir.join("image"), None, None), Mode::Fast);
    open.scribble(&mut Chance(1), &mut disk, 10);
    let new = NewSnapshot {
        name: "one".into(),
        taken: Taken::default(),
    };
    let refused = open.with(async move |image, io| image.create_snapshot(io, new).await);
    let words = refused.expect_err("refused").to_string();
    assert!(
        words.contains("more than the refcount width allows"),
        "{words}"
    );
    open.scribble(&mut Chance(2), &mut disk, 10);
    assert!(open.read_all(SIZE) == disk);
    open.close();
    qemu::check(dir, "image");
    assert!(flat(dir, None) == disk);
}

#[test]
fn disks_grow_and_shrink_and_what_is_new_reads_as_zeroes() {
    let kinds = KINDS
        .into_iter()
        .chain(["data_file=data", "data_file=data,data_file_raw=on"]);
    for (seed, options) in kinds.enumerate() {
        println!("{options}");
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path();
        make(dir, options, SIZE);
        let data = options.contains("data_file").then(|| dir.join("data"));
        let mut chance = Chance(seed as u64);
        let mut disk = vec![0; SIZE as usize];
        let image = spec(&dir.join("image"), data.as_deref(), None);
        let mut open = Open::new(image, Mode::Mixed(seed as u64));
        for turn in 0..8 {
            open.scribble(&mut chance, &mut disk, 5);
            let size = 512 + chance.below(24 << 11) * 512;
            let how = match size as usize > disk.len() {
                true => [
                    Prealloc::Off,
                    Prealloc::Metadata,
                    Prealloc::Falloc,
                    Prealloc::Full,
                ][turn % 4],
                false => Prealloc::Off,
            };
            open.resize(size, how).expect("resized");
            disk.resize(size as usize, 0);
            assert!(open.read_all(size) == disk, "turn {turn}");
        }
        open.close();
        qemu::check(dir, "image");
        assert!(flat(dir, None) == disk);
        if options.contains("raw") {
            let raw = std::fs::read(dir.join("data")).expect("read");
            assert!(
                raw.get(..disk.len()) == Some(&disk[..]),
                "a raw image as well"
            );
        }
    }
}

#[test]
fn a_longer_backing_file_does_not_show_in_what_is_new() {
    for options in ["compat=1.1", "compat=0.10", "extended_l2=on"] {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path();
        std::fs::write(dir.join("below"), vec![7; 4 << 20]).expect("written");
        make(
            dir,
            &format!("{options},backing_file=below,backing_fmt=raw"),
            100 << 10,
        );
        let image = spec(&dir.join("image"), None, Some(&dir.join("below")));
        let mut open = Open::new(image, Mode::Fast);
        open.resize(6 << 20, Prealloc::Off).expect("resized");
        let mut disk = vec![7; 100 << 10];
        disk.resize(6 << 20, 0);
        assert!(open.read_all(6 << 20) == disk);
        open.resize(50 << 10, Prealloc::Off).expect("resized");
        open.resize(6 << 20, Prealloc::Metadata).expect("resized");
        disk[50 << 10..].fill(0);
        assert!(open.read_all(6 << 20) == disk);
        open.close();
        qemu::check(dir, "image");
        assert!(flat(dir, None) == disk);
    }
}

#[test]
fn sizes_that_cannot_be_are_refused_in_qemu_s_words() {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path();
    make(dir, "compat=0.10,cluster_size=512", SIZE);
    qemu::ok(dir, "qemu-img", &["snapshot", "-c", "one", "image"]);
    let mut open = Open::new(spec(&dir.join("image"), None, None), Mode::Fast);
    let mut refused = |size, how| open.resize(size, how).expect_err("refused").to_string();
    let words = "Can't resize a version 2 image which has snapshots";
    assert_eq!(refused(SIZE * 2, Prealloc::Off), words);
    assert_eq!(
        refused(1000, Prealloc::Off),
        "The new size must be a multiple of 512"
    );
    open.delete("one").expect("deleted");
    let mut refused = |size, how| open.resize(size, how).expect_err("refused").to_string();
    let words = "Preallocation can't be used for shrinking an image";
    assert_eq!(refused(512, Prealloc::Full), words);
    let words = "Failed to grow the L1 table: File too large";
    assert_eq!(refused(1 << 40, Prealloc::Off), words);
    open.resize(SIZE * 2, Prealloc::Off).expect("resized");
    open.close();
    qemu::check(dir, "image");
}
