//! Images to be damaged: where their structures are, and what they do when they are opened, read, written and checked.

use super::{Bench, Chance, file, inline, qemu, span};
use blockgraph::driver::file::Cache;
use blockgraph::driver::qcow2::Options;
use blockgraph::driver::qcow2::check::{Repair, check};
use blockgraph::graph::open::{self, Backing, DriverSpec, NodeSpec, Qcow2Spec};
use blockgraph::{Kind, Mode, NodeId, Unmap};
use ring::{Choice, Durability, Mem};
use std::path::Path;

/// What a base image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Base {
    /// Version 3, with a snapshot, a bitmap, zero and compressed clusters.
    Plain,
    /// Version 2, with a snapshot.
    Old,
    /// Extended L2 entries.
    Extended,
    /// An external data file.
    DataFile,
    /// A backing file that is a plain file of sevens, named in the header.
    Backed,
    /// Small clusters, narrow refcounts.
    Small,
}

pub const BASES: [Base; 6] = [
    Base::Plain,
    Base::Old,
    Base::Extended,
    Base::DataFile,
    Base::Backed,
    Base::Small,
];

/// A base image, by QEMU's tools.
pub fn make(dir: &Path, base: Base) -> Vec<u8> {
    let name = format!("{base:?}");
    let options = match base {
        Base::Plain => "compat=1.1".into(),
        Base::Old => "compat=0.10".into(),
        Base::Extended => "extended_l2=on".into(),
        Base::DataFile => format!("data_file={name}.data"),
        Base::Backed => format!("backing_file={}/below,backing_fmt=raw", dir.display()),
        Base::Small => "cluster_size=512,refcount_bits=1".into(),
    };
    std::fs::write(dir.join("below"), vec![7; 16 << 20]).expect("written");
    qemu::ok(
        dir,
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-o", &options, &name, "16M"],
    );
    let first = ["write -P 1 0 128k", "write -z 2M 64k"];
    qemu::io(dir, &name, &first);
    if base != Base::DataFile {
        qemu::io(dir, &name, &["write -c -P 2 1M 64k"]);
    }
    if matches!(base, Base::Plain | Base::Old) {
        qemu::ok(dir, "qemu-img", &["snapshot", "-c", "one", &name]);
        qemu::io(dir, &name, &["write -P 3 64k 64k"]);
    }
    if base == Base::Plain {
        qemu::ok(
            dir,
            "qemu-img",
            &["bitmap", "--add", "-g", "64k", &name, "bits"],
        );
    }
    std::fs::read(dir.join(&name)).expect("read")
}

/// Where something is.
#[derive(Clone, Copy, Debug)]
pub enum At {
    /// A byte of the file, and so of the header.
    Byte(u64),
    /// A byte of the bitmaps extension's body.
    BitmapsExtension(u64),
    /// A word of the L1 table.
    L1(u64),
    /// A word of the first L2 table.
    L2(u64),
    /// A word of the refcount table.
    RefcountTable(u64),
    /// A byte of the first refcount block.
    RefcountBlock(u64),
    /// A byte of the snapshot table.
    Snapshots(u64),
    /// A byte of the bitmap directory.
    BitmapDirectory(u64),
    /// A word of the first bitmap's table.
    BitmapTable(u64),
}

pub fn word(image: &[u8], at: u64) -> u64 {
    let at = at as usize;
    let bytes = image.get(at..at + 8).expect("in the image");
    u64::from_be_bytes(bytes.try_into().expect("eight"))
}

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

fn bitmaps_extension(image: &[u8]) -> u64 {
    let mut at = 112;
    loop {
        let head = word(image, at);
        assert_ne!(head >> 32, 0, "no bitmaps");
        if head >> 32 == 0x2385_2875 {
            return at + 8;
        }
        at += 8 + (head & 0xffff_ffff).next_multiple_of(8);
    }
}

/// The file offset of `at` in a sound image.
pub fn place(image: &[u8], at: At) -> u64 {
    let l1 = word(image, 40);
    let directory = || word(image, bitmaps_extension(image) + 16);
    match at {
        At::Byte(at) => at,
        At::BitmapsExtension(at) => bitmaps_extension(image) + at,
        At::L1(n) => l1 + n * 8,
        At::L2(n) => (word(image, l1) & OFFSET) + n * 8,
        At::RefcountTable(n) => word(image, 48) + n * 8,
        At::RefcountBlock(at) => word(image, word(image, 48)) + at,
        At::Snapshots(at) => word(image, 64) + at,
        At::BitmapDirectory(at) => directory() + at,
        At::BitmapTable(n) => word(image, directory()) + n * 8,
    }
}

pub fn spec(path: &Path, base: Base) -> NodeSpec {
    let data = path.with_file_name("DataFile.data");
    let below = path.with_file_name("below");
    let child = |path: &Path| inline(file(path, Cache::Page));
    let common = file(path, Cache::Page).common;
    NodeSpec {
        name: None,
        common,
        driver: DriverSpec::Qcow2(Box::new(Qcow2Spec {
            file: child(path),
            data_file: (base == Base::DataFile).then(|| child(&data)),
            backing: match base {
                Base::Backed => Backing::Node(child(&below)),
                _ => Backing::Nothing,
            },
            options: Options::default(),
            named: blockgraph::graph::gate::Named::default(),
            journal: None,
        })),
    }
}

/// Opens, reads and checks; says what came of it.
pub fn outcome(path: &Path, base: Base) -> String {
    let mut bench = Bench::new(Choice::Threads, Mode::Fast);
    let opened = open::open(&bench.current, spec(path, base), &mut bench.control);
    match opened {
        Err(error) => {
            let _ = checked(path, Repair::Nothing);
            format!("refused: {error}")
        }
        Ok((node, _)) => {
            let reads = reads(&mut bench, node);
            drop(bench);
            format!("{reads}; {}", checked(path, Repair::Nothing))
        }
    }
}

fn reads(bench: &mut Bench, node: NodeId) -> &'static str {
    let size = bench.current.get().info(node).expect("a node").size_bytes;
    let mem = Mem::zeroed(65536).expect("memory");
    let mut all = "reads";
    for at in [0, 65536, 131_072, 1 << 20, 2 << 20, 15 << 20] {
        let span = span(at, 65536);
        if span.end() <= size && bench.ask(node, Kind::Read, span, &mem).is_err() {
            all = "a read fails";
        }
    }
    all
}

pub fn checked(path: &Path, repair: Repair) -> String {
    let mut bench = Bench::new(Choice::Threads, Mode::Fast);
    let node = bench.open(file(path, Cache::Page));
    let graph = bench.current.get();
    let ran = bench.control.run(&graph, node, move |io| async move {
        check(&io, node, repair).await
    });
    match ran.expect("a turn") {
        Err(error) => format!("unchecked: {error}"),
        Ok(report) if report.corruptions > 0 => "errors".into(),
        Ok(report) if report.leaks > 0 => "leaks".into(),
        Ok(_) => "clean".into(),
    }
}

/// Changes of every kind, wherever chance has it; what fails, fails.
pub fn use_it(path: &Path, base: Base, chance: &mut Chance, count: u64) {
    let mut bench = Bench::new(Choice::Threads, Mode::Mixed(chance.next()));
    let opened = open::open(&bench.current, spec(path, base), &mut bench.control);
    let Ok((node, graph)) = opened else {
        return;
    };
    let size = graph.info(node).expect("a node").size_bytes;
    let mem = Mem::zeroed(128 << 10).expect("memory");
    for _ in 0..count {
        let at = chance.below((size / 512).max(1)) * 512;
        let len = (1 + chance.below(200)) * 512;
        let at = if chance.below(2) == 0 {
            at % (1 << 20)
        } else {
            at
        };
        let len = len.min(size.saturating_sub(at));
        if len == 0 {
            continue;
        }
        let mem = mem.slice(0, len as usize);
        let cached = Durability::Cached;
        let (kind, mem) = match chance.below(8) {
            0..=2 => (Kind::Read, mem),
            3 | 4 => (Kind::Write(cached), mem),
            5 => (Kind::WriteZeroes(Unmap::Allow, cached), Mem::none()),
            6 => (Kind::Discard, Mem::none()),
            _ => (Kind::Flush, Mem::none()),
        };
        let span = if kind == Kind::Flush {
            span(0, 0)
        } else {
            span(at, len)
        };
        let _ = bench.ask(node, kind, span, &mem);
    }
    close(&mut bench, node);
}

/// As the daemon does when it no longer needs a node.
fn close(bench: &mut Bench, node: NodeId) {
    let graph = bench.current.get();
    let Some(blockgraph::graph::Body::Driver(driver)) =
        graph.node(node).map(|node| node.body().clone())
    else {
        return;
    };
    let ran = bench.control.run(
        &graph,
        node,
        move |io| async move { driver.close(&io).await },
    );
    let _ = ran.expect("a turn");
}
