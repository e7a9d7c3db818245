//! Reads of qcow2 images on a disk that delays, reorders, fails, and counts what it is asked.

use crate::support;
use blockgraph::driver::file::{Cache, FileDriver, FileKind, FileParts, Flushes};
use blockgraph::driver::qcow2::Options;
use blockgraph::graph::open::{Backing, Child, DriverSpec, NodeSpec, Qcow2Spec};
use blockgraph::{Kind, Limits, Mode, NodeId};
use ring::sim::{Act, Config, Disk, Event, FileConfig, Kind as Op, Rule, Seen, Times, Weather};
use ring::{Align, Choice, Errno, FileId, Mem};
use support::qcow2::{check_reads, create, flat, qemu_io, read_only, scribble, squeeze};
use support::{Bench, Chance, insert, modes, span};

const FILE: FileId = FileId(0);
const SIZE: u64 = 4 << 20;

/// An image's bytes, and what the guest reads of it.
struct Made {
    image: Vec<u8>,
    truth: Vec<u8>,
}

fn make(options: &str, commands: &[String]) -> Made {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("disk.qcow2");
    create(&path, options, SIZE);
    qemu_io(&path, "qcow2", commands);
    Made {
        image: std::fs::read(&path).expect("an image"),
        truth: flat(&path, "qcow2"),
    }
}

/// Every other cluster, backwards, so that no two neighbours are neighbours in the file.
fn scattered() -> Made {
    let write = |n: u64| format!("write -P {} {} 65536", n + 1, (63 - n) * 65536);
    let commands: Vec<String> = (0..64).map(write).collect();
    make("", &commands)
}

fn disk(made: &Made, seed: u64, weather: Weather) -> Disk {
    let file = FileConfig {
        id: FILE,
        bytes: made.image.clone(),
        align: Align::NONE,
        size_bytes_max: made.image.len() as u64,
    };
    Config::new(seed).file_with(file).weather(weather).disk()
}

fn open(disk: &Disk, made: &Made, mode: Mode) -> (Bench, NodeId) {
    let mut bench = Bench::new(Choice::Sim(disk.clone()), mode);
    let mut graph = (*bench.current.get()).clone();
    assert_eq!(graph.new_file_id(), FILE);
    let file = disk.open(FILE).expect("a file of the disk");
    let parts = FileParts {
        file: file.clone(),
        kind: FileKind::Regular,
        size_bytes: made.image.len() as u64,
        limits: Limits::PLAIN,
        cache: Cache::Direct,
        flushes: Flushes::Sync,
    };
    let driver = FileDriver::from_parts(parts);
    let node = insert(&mut graph, "file", driver, vec![file]);
    let name = graph.node(node).expect("inserted").name().to_owned();
    bench.current.publish(graph);
    let node = bench.open(NodeSpec {
        name: None,
        common: read_only(),
        driver: DriverSpec::Qcow2(Box::new(Qcow2Spec {
            file: Child::Named(name),
            data_file: None,
            backing: Backing::Nothing,
            options: Options::default(),
            named: blockgraph::graph::gate::Named::default(),
            journal: None,
        })),
    });
    (bench, node)
}

fn reads(log: &[Event]) -> Vec<Seen> {
    let seen = log.iter().filter_map(|event| match event {
        Event::Submitted(seen) if seen.kind == Op::Read => Some(*seen),
        _ => None,
    });
    seen.collect()
}

#[test]
fn a_cold_read_asks_for_one_slice_and_its_data() {
    let made = scattered();
    for mode in modes(1) {
        let disk = disk(&made, 1, Weather::CALM);
        let (mut bench, node) = open(&disk, &made, mode);
        let before = disk.log().len();
        bench.read(node, 65536, 4096);
        let cold = reads(&disk.log_from(before));
        let lengths: Vec<u64> = cold.iter().map(|seen| seen.len_bytes).collect();
        assert_eq!(lengths, [4096, 4096], "{mode:?}");
        let before = disk.log().len();
        bench.read(node, 3 * 65536, 4096);
        assert_eq!(reads(&disk.log_from(before)).len(), 1, "{mode:?}");
    }
}

#[test]
fn the_pieces_of_a_large_read_are_under_way_together() {
    let made = scattered();
    for mode in modes(2) {
        let disk = disk(&made, 2, Weather::CALM);
        let (mut bench, node) = open(&disk, &made, mode);
        bench.read(node, 0, 512);
        disk.rule(Rule::every(Act::Hold).kind(Op::Read));
        let mem = Mem::zeroed(SIZE as usize).expect("memory");
        bench.start(node, Kind::Read, span(0, SIZE), &mem, 1);
        let mut ends = Vec::new();
        bench.pump(&mut ends);
        assert_eq!(disk.held().len(), 16, "{mode:?}");
        disk.clear_rules();
        disk.release_all();
        assert_eq!(bench.wait(), (1, Ok(())));
        let mut bytes = vec![0; SIZE as usize];
        mem.load(0, &mut bytes);
        assert!(bytes == made.truth);
    }
}

#[test]
fn clusters_that_are_neighbours_in_the_file_are_read_in_one_piece() {
    let made = make("", &["write -P 7 0 4M".to_owned()]);
    for mode in modes(3) {
        let disk = disk(&made, 3, Weather::CALM);
        let (mut bench, node) = open(&disk, &made, mode);
        bench.read(node, 0, 512);
        let before = disk.log().len();
        bench.read(node, 0, SIZE as usize);
        assert_eq!(reads(&disk.log_from(before)).len(), 1, "{mode:?}");
    }
}

/// Whatever read of the disk fails, once: the request that needed it fails, and the next is right.
#[test]
fn a_read_that_failed_fails_its_request_and_no_other() {
    let mut chance = Chance(4);
    let mut commands = squeeze(&mut chance, SIZE, 65536, 20);
    commands.extend(scribble(&mut chance, SIZE / 2, 65536, 20));
    let made = make("", &commands);
    for mode in modes(4) {
        let count = {
            let disk = disk(&made, 4, Weather::CALM);
            let (mut bench, node) = open(&disk, &made, mode);
            let before = disk.log().len();
            bench.read(node, 0, SIZE as usize);
            reads(&disk.log_from(before)).len() as u64
        };
        assert!(count > 20);
        for nth in 0..count {
            let disk = disk(&made, 4, Weather::CALM);
            let (mut bench, node) = open(&disk, &made, mode);
            let fail = Rule::every(Act::Fail(libc::EIO)).kind(Op::Read);
            disk.rule(fail.times(Times::After(nth)));
            let mem = Mem::zeroed(SIZE as usize).expect("memory");
            let outcome = bench.ask(node, Kind::Read, span(0, SIZE), &mem);
            assert_eq!(outcome, Err(Errno::IO), "read {nth} in {mode:?}");
            assert!(bench.read(node, 0, SIZE as usize) == made.truth);
        }
    }
}

#[test]
fn reads_are_right_in_rough_weather() {
    let kinds = [
        "",
        "extended_l2=on",
        "cluster_size=4k",
        "compression_type=zstd",
    ];
    for (seed, options) in (5..).zip(kinds) {
        let cluster = if options.ends_with("4k") { 4096 } else { 65536 };
        let mut chance = Chance(seed);
        let mut commands = squeeze(&mut chance, SIZE, cluster, 20);
        commands.extend(scribble(&mut chance, SIZE / 2, cluster, 30));
        let made = make(options, &commands);
        for mode in modes(seed) {
            println!("{options} in {mode:?} seed {seed}");
            let disk = disk(&made, seed, Weather::CALM);
            let (mut bench, node) = open(&disk, &made, mode);
            disk.set_weather(Weather::ROUGH);
            check_reads(&mut bench, node, &made.truth, &mut Chance(seed));
        }
    }
}

/// Many requests at once, of the same few clusters: slices and compressed clusters are loaded by one of them.
#[test]
fn what_many_ask_for_at_once_is_loaded_once() {
    let mut chance = Chance(9);
    let made = make("", &squeeze(&mut chance, SIZE, 65536, 1));
    let disk = disk(&made, 9, Weather::CALM);
    let (mut bench, node) = open(&disk, &made, Mode::Fast);
    let before = disk.log().len();
    let mems: Vec<Mem> = (0..16)
        .map(|_| Mem::zeroed(4096).expect("memory"))
        .collect();
    for (n, mem) in mems.iter().enumerate() {
        let at = SIZE - 65536 + n as u64 * 4096;
        bench.start(node, Kind::Read, span(at, 4096), mem, n as u64);
    }
    for _ in 0..16 {
        assert_eq!(bench.wait().1, Ok(()));
    }
    assert_eq!(reads(&disk.log_from(before)).len(), 2, "a slice, a cluster");
    for (n, mem) in mems.iter().enumerate() {
        let mut bytes = vec![0; 4096];
        mem.load(0, &mut bytes);
        let at = SIZE as usize - 65536 + n * 4096;
        assert!(bytes == made.truth[at..at + 4096]);
    }
}
