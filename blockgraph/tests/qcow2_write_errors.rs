//! One error at each host operation of a workload, one run for each: what failed may be old or new, everything else is as the
//! model says, and the image is closed clean.

mod support;

use blockgraph::driver::file::{Cache, FileDriver, FileKind, FileParts, Flushes};
use blockgraph::driver::qcow2::Options;
use blockgraph::driver::qcow2::check::{Repair, check};
use blockgraph::graph::gate::Named;
use blockgraph::graph::open::{Backing, Child, DriverSpec, NodeSpec, Qcow2Spec};
use blockgraph::{Kind, Limits, Mode, NodeId, Unmap};
use ring::sim::{Act, Config, Disk, FileConfig, Rule, Times};
use ring::{Align, Choice, Durability, FileId, Mem};
use support::{Bench, Chance, common, insert, qcow2, span, writes};

const FILE: FileId = FileId(0);
const SECTOR: usize = 512;
const SIZE: u64 = 256 << 10;
const REQUESTS: usize = 200;

fn disk(image: Vec<u8>) -> Disk {
    let align = Align {
        memory_bytes: 1,
        offset_bytes: 512,
    };
    let file = FileConfig {
        id: FILE,
        bytes: image,
        align,
        size_bytes_max: 16 << 20,
    };
    Config::new(1).file_with(file).disk()
}

fn bench(disk: &Disk, mode: Mode) -> (Bench, NodeId, NodeId) {
    let size_bytes = disk.images()[&FILE].len() as u64;
    let mut bench = Bench::new(Choice::Sim(disk.clone()), mode);
    let mut graph = (*bench.current.get()).clone();
    assert_eq!(graph.new_file_id(), FILE);
    let file = disk.open(FILE).expect("a file of the disk");
    let parts = FileParts {
        file: file.clone(),
        kind: FileKind::Regular,
        size_bytes,
        limits: Limits::PLAIN,
        cache: Cache::Direct,
        flushes: Flushes::Sync,
    };
    let below = insert(
        &mut graph,
        "file",
        FileDriver::from_parts(parts),
        vec![file],
    );
    bench.current.publish(graph);
    let name = bench
        .current
        .get()
        .node(below)
        .expect("there")
        .name()
        .to_owned();
    let node = bench.open(NodeSpec {
        name: None,
        common: common(),
        driver: DriverSpec::Qcow2(Box::new(Qcow2Spec {
            file: Child::Named(name),
            data_file: None,
            backing: Backing::Nothing,
            options: Options::default(),
            named: Named::default(),
        })),
    });
    (bench, below, node)
}

/// What each sector may be: one thing, or several after an error.
type Model = Vec<Vec<u8>>;

/// The same requests every time; returns how many failed.
fn work(bench: &mut Bench, node: NodeId, model: &mut Model) -> usize {
    let mut chance = Chance(5);
    let mut failed = 0;
    for n in 0..REQUESTS {
        let unit = [1, 8][chance.below(2) as usize];
        let units = model.len() / unit;
        let at = chance.below(units as u64) as usize * unit;
        let len = ((1 + chance.below(20) as usize) * unit).min(model.len() - at);
        let byte = 1 + (n % 255) as u8;
        let (kind, byte) = match chance.below(12) {
            0 => (Kind::WriteZeroes(Unmap::Allow, Durability::Cached), 0),
            1 => (Kind::WriteZeroes(Unmap::Keep, Durability::Through), 0),
            2 => (Kind::Discard, 0),
            3 | 4 => (Kind::Flush, 0),
            _ => (Kind::Write(Durability::Cached), byte),
        };
        let mem = match kind {
            Kind::Write(_) => Mem::zeroed(len * SECTOR).expect("memory"),
            _ => Mem::none(),
        };
        mem.store(0, &vec![byte; len * SECTOR]);
        let whole = span((at * SECTOR) as u64, (len * SECTOR) as u64);
        let outcome = bench.ask(node, kind, whole, &mem);
        failed += usize::from(outcome.is_err());
        for may_be in &mut model[at..at + len] {
            match (kind, outcome) {
                (Kind::Flush, _) => {}
                // Advice: done or not.
                (Kind::Discard, _) | (_, Err(_)) => may_be.push(byte),
                (_, Ok(())) => *may_be = vec![byte],
            }
        }
    }
    failed
}

fn compare(bytes: &[u8], model: &Model, what: &str) {
    for (n, (sector, may_be)) in bytes.chunks(SECTOR).zip(model).enumerate() {
        // A write that failed may have reached some of its sectors, each of them whole.
        let whole = sector.iter().all(|byte| *byte == sector[0]);
        assert!(
            whole && may_be.contains(&sector[0]),
            "{what}: sector {n} is {} of {may_be:?}",
            sector[0]
        );
    }
}

/// A run in which the disk's operation `number` fails; false if there is none of that number.
fn run(image: &[u8], mode: Mode, number: u64, errno: i32) -> bool {
    let disk = disk(image.to_vec());
    let what = format!("{mode:?} operation {number} errno {errno}");
    let (mut bench, file, node) = bench(&disk, mode);
    let rule = Rule::every(Act::Fail(errno)).times(Times::After(number));
    disk.rule(rule);
    let before = disk.count();
    let mut model: Model = vec![vec![0]; SIZE as usize / SECTOR];
    let failed = work(&mut bench, node, &mut model);
    let came = disk.count() - before > number;
    disk.clear_rules();
    assert!(failed <= 3, "{what}: {failed} requests failed");
    let bytes = bench.read(node, 0, SIZE as usize);
    compare(&bytes, &model, &what);
    assert_eq!(writes::close(&mut bench, node), Ok(()), "{what}");
    let graph = bench.current.get();
    let report = bench.control.run(&graph, file, |io| async move {
        check(&io, file, Repair::Nothing).await
    });
    let report = report.expect("a ring").expect("an image");
    assert!(report.is_clean(), "{what}: {:?}", report.findings);
    let left = disk.images().remove(&FILE).expect("the file");
    let again = self::disk(left);
    let (mut bench, _, node) = self::bench(&again, Mode::Fast);
    let now = bench.read(node, 0, SIZE as usize);
    assert!(now == bytes, "{what}: the closed image reads otherwise");
    came
}

fn every_operation(options: &str, mode: Mode, errno: i32) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("disk.qcow2");
    qcow2::create(&path, options, SIZE);
    let image = std::fs::read(&path).expect("read");
    let mut number = 0;
    while run(&image, mode, number, errno) {
        number += 1;
    }
    println!("{options} {mode:?}: {number} operations");
    assert!(number > 200);
}

#[test]
fn an_input_or_output_error_anywhere_loses_nothing() {
    every_operation("cluster_size=4096", Mode::Fast, libc::EIO);
}

#[test]
fn an_error_anywhere_on_the_serve_path_loses_nothing() {
    every_operation(
        "cluster_size=4096,refcount_bits=1",
        Mode::ServeAlways,
        libc::EIO,
    );
}

#[test]
fn a_full_disk_anywhere_loses_nothing() {
    every_operation(
        "cluster_size=512,refcount_bits=64",
        Mode::Fast,
        libc::ENOSPC,
    );
}
