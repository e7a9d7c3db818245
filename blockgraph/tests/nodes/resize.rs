//! Windows on files and what filters them made longer and shorter; files whose growth fails.

use crate::support;
use blockgraph::driver::file::{Cache, FileDriver, FileKind, FileParts, Flushes};
use blockgraph::driver::raw::Window;
use blockgraph::graph::open::{DriverSpec, NodeSpec};
use blockgraph::request::Prealloc;
use blockgraph::{Limits, Mode, NodeId};
use ring::sim::{Act, Config, FileConfig, Kind as Op, Rule, Weather};
use ring::{Align, Choice, Errno, FileId};
use support::{Bench, common, file, image, inline, insert, raw};

const M: u64 = 1 << 20;

fn truncate(bench: &mut Bench, node: NodeId, size: u64, how: Prealloc) -> Result<(), Errno> {
    let graph = bench.current.get();
    let work = move |io: blockgraph::Io| async move { io.truncate(node, size, how).await };
    bench.control.run(&graph, node, work).expect("a ring")
}

fn size(bench: &Bench, node: NodeId) -> u64 {
    bench.current.get().info(node).expect("a node").size_bytes
}

#[test]
fn what_has_no_size_of_its_own_is_not_resized() {
    let mut bench = Bench::new(Choice::Threads, Mode::Fast);
    let null = bench.open(NodeSpec {
        name: None,
        common: common(),
        driver: DriverSpec::Null(blockgraph::graph::open::NullSpec {
            kind: blockgraph::graph::open::NullKind::Co,
            size_bytes: M,
            reads: blockgraph::driver::null::Reads::Zeroes,
            latency_ns: 0,
        }),
    });
    let refused = truncate(&mut bench, null, 2 * M, Prealloc::Off);
    assert_eq!(refused, Err(Errno::NOTSUP));
}

#[test]
fn a_raw_node_resizes_what_is_behind_its_offset_unless_its_size_was_given() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = image(dir.path(), 4 * M);
    let mut bench = Bench::new(Choice::Threads, Mode::Fast);
    let mut window = Window {
        offset_bytes: M,
        size_bytes: None,
    };
    let node = bench.open(raw(inline(file(&path, Cache::Page)), window));
    for wanted in [5 * M, 2 * M] {
        truncate(&mut bench, node, wanted, Prealloc::Off).expect("resized");
        assert_eq!(size(&bench, node), wanted);
        assert_eq!(path.metadata().expect("metadata").len(), wanted + M);
    }
    let beyond = truncate(&mut bench, node, i64::MAX as u64, Prealloc::Off);
    assert_eq!(beyond, Err(Errno::INVAL));
    drop(bench);
    let mut bench = Bench::new(Choice::Threads, Mode::Fast);
    window.size_bytes = Some(M);
    let node = bench.open(raw(inline(file(&path, Cache::Page)), window));
    let refused = truncate(&mut bench, node, 2 * M, Prealloc::Off);
    assert_eq!(refused, Err(Errno::NOTSUP));
    assert_eq!(size(&bench, node), M);
}

#[test]
fn a_filter_passes_a_resize_down() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = image(dir.path(), M);
    let mut bench = Bench::new(Choice::Threads, Mode::Fast);
    let node = bench.open(NodeSpec {
        name: None,
        common: common(),
        driver: DriverSpec::Delay {
            file: inline(file(&path, Cache::Page)),
            latency_ns: 10,
        },
    });
    truncate(&mut bench, node, 3 * M, Prealloc::Off).expect("resized");
    assert_eq!(size(&bench, node), 3 * M);
    assert_eq!(path.metadata().expect("metadata").len(), 3 * M);
}

const FILE: FileId = FileId(0);

/// A file of 4096-byte blocks on a simulated disk of `most` bytes.
fn simulated(seed: u64, most: u64, weather: Weather) -> (Bench, ring::sim::Disk, NodeId) {
    let config = FileConfig {
        id: FILE,
        bytes: vec![1; 64 << 10],
        align: Align {
            memory_bytes: 1,
            offset_bytes: 4096,
        },
        size_bytes_max: most,
    };
    let disk = Config::new(seed).file_with(config).weather(weather).disk();
    let bench = Bench::new(Choice::Sim(disk.clone()), Mode::Mixed(seed));
    let mut graph = (*bench.current.get()).clone();
    assert_eq!(graph.new_file_id(), FILE);
    let file = disk.open(FILE).expect("a file of the disk");
    let parts = FileParts {
        file: file.clone(),
        kind: FileKind::Regular,
        size_bytes: 64 << 10,
        limits: Limits::PLAIN,
        cache: Cache::Direct,
        flushes: Flushes::Sync,
    };
    let driver = FileDriver::from_parts(parts);
    let node = insert(&mut graph, "file", driver, vec![file]);
    bench.current.publish(graph);
    (bench, disk, node)
}

#[test]
fn a_growth_that_fails_half_way_is_taken_back() {
    for how in [Prealloc::Falloc, Prealloc::Full] {
        for kind in [Op::Zero, Op::Write, Op::Punch] {
            let (mut bench, disk, node) = simulated(1, 4 * M, Weather::CALM);
            disk.rule(Rule::every(Act::Fail(libc::ENOSPC)).kind(kind));
            let outcome = truncate(&mut bench, node, 3 * M, how);
            let hit = match how {
                Prealloc::Falloc => kind == Op::Zero,
                _ => kind == Op::Write,
            };
            assert_eq!(outcome.is_err(), hit, "{how:?} {kind:?}");
            let wanted = if hit { 64 << 10 } else { 3 * M };
            assert_eq!(disk.images()[&FILE].len() as u64, wanted);
            assert_eq!(size(&bench, node), wanted);
        }
    }
    let (mut bench, disk, node) = simulated(1, M, Weather::CALM);
    let outcome = truncate(&mut bench, node, 2 * M, Prealloc::Off);
    assert_eq!(outcome, Err(Errno::NOSPC));
    assert_eq!(disk.images()[&FILE].len(), 64 << 10);
}

#[test]
fn a_file_system_that_cannot_set_aside_is_written() {
    let (mut bench, disk, node) = simulated(1, 4 * M, Weather::ROUGH);
    disk.rule(Rule::every(Act::Refuse(libc::EOPNOTSUPP)).kind(Op::Zero));
    truncate(&mut bench, node, 65_536 + 512, Prealloc::Falloc).expect("grown");
    let bytes = disk.images()[&FILE].clone();
    assert_eq!(bytes.len(), 65_536 + 512);
    truncate(&mut bench, node, M + 512, Prealloc::Falloc).expect("grown");
    let bytes = disk.images()[&FILE].clone();
    assert_eq!(bytes.len() as u64, M + 512);
    assert!(bytes[..65_536].iter().all(|&byte| byte == 1));
    assert!(bytes[65_536..].iter().all(|&byte| byte == 0));
}
