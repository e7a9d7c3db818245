//! Writes that replace clusters of every kind, compressed writes, and the options of discarding: what QEMU makes of the result.

use crate::support;
use blockgraph::driver::qcow2::{Options, PassDiscard, Unref, WriteOptions};
use blockgraph::graph::open::Backing;
use blockgraph::{Kind, Mode, NodeId, Unmap};
use ring::{Durability, Mem};
use std::path::{Path, PathBuf};
use support::qcow2::{create, flat, qemu_io, run, scribble, squeeze, text};
use support::writes::{Habits, change, close, compare, image, judge};
use support::{Bench, Chance, engines, modes, span};

const SIZE: u64 = 3 << 20;

fn bench(path: &Path, mode: Mode, open: Options) -> (Bench, NodeId) {
    let engine = engines().pop().expect("at least the pool");
    let mut bench = Bench::new(engine, mode);
    let node = bench.open(image(path, None, Backing::Nothing, open));
    (bench, node)
}

fn habits(unit: u64) -> Habits {
    Habits {
        unit,
        units_max: 4,
        at_once: 5,
    }
}

fn image_in(dir: &Path, options: &str) -> PathBuf {
    let path = dir.join("disk.qcow2");
    let _ = std::fs::remove_file(&path);
    create(&path, options, SIZE);
    path
}

/// Half of each cluster is text that repeats, and none of them is like another.
fn clusters(chance: &mut Chance, count: usize, cluster: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(count * cluster);
    for _ in 0..count {
        let noise = chance.below(cluster as u64 / 2) as usize;
        bytes.extend((0..noise).map(|_| chance.next() as u8));
        let word = chance.next().to_le_bytes();
        bytes.extend(word.iter().cycle().take(cluster - noise));
    }
    bytes
}

#[test]
fn compressed_writes_are_what_qemu_reads() {
    let dir = tempfile::tempdir().expect("a directory");
    for options in [
        "compression_type=zlib",
        "compression_type=zstd",
        "compression_type=zlib,cluster_size=4096",
        "compression_type=zstd,cluster_size=16384,extended_l2=on",
        "refcount_bits=1",
        "refcount_bits=2",
    ] {
        for mode in modes(1) {
            println!("{options} {mode:?}");
            let path = image_in(dir.path(), options);
            let (mut bench, node) = bench(&path, mode, Options::default());
            let mut chance = Chance(7);
            let mut model = vec![0; SIZE as usize];
            let cluster = if options.contains("4096") {
                4096
            } else {
                65536
            };
            for round in 0..12u64 {
                let bytes = clusters(&mut chance, 4, cluster);
                let at = chance.below(SIZE / cluster as u64 - 4) as usize * cluster;
                let mem = Mem::zeroed(bytes.len()).expect("memory");
                mem.store(0, &bytes);
                let whole = span(at as u64, bytes.len() as u64);
                let outcome = bench.ask(node, Kind::WriteCompressed, whole, &mem);
                assert_eq!(outcome, Ok(()), "round {round}");
                model[at..at + bytes.len()].copy_from_slice(&bytes);
            }
            compare(&mut bench, node, &model);
            change(&mut bench, node, &mut model, &mut chance, habits(4096), 10);
            compare(&mut bench, node, &model);
            assert_eq!(close(&mut bench, node), Ok(()));
            judge(&path, None, &model);
        }
    }
}

#[test]
fn compressed_clusters_share_host_clusters() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = image_in(dir.path(), "");
    let (mut bench, node) = bench(&path, Mode::Fast, Options::default());
    let mem = Mem::zeroed(1 << 20).expect("memory");
    mem.store(0, &vec![0x42; 1 << 20]);
    let outcome = bench.ask(node, Kind::WriteCompressed, span(0, 1 << 20), &mem);
    assert_eq!(outcome, Ok(()));
    assert_eq!(close(&mut bench, node), Ok(()));
    let length = std::fs::metadata(&path).expect("there").len();
    assert!(length <= 7 * 65536, "sixteen clusters take {length} bytes");
}

#[test]
fn clusters_that_qemu_made_are_replaced() {
    let dir = tempfile::tempdir().expect("a directory");
    for options in ["", "cluster_size=4096", "extended_l2=on", "compat=0.10"] {
        for mode in modes(2) {
            println!("{options} {mode:?}");
            let path = image_in(dir.path(), options);
            let unit = if options.contains("4096") {
                4096
            } else {
                65536
            };
            let mut chance = Chance(3);
            qemu_io(&path, "qcow2", &squeeze(&mut chance, SIZE, unit, 20));
            let mut commands = scribble(&mut chance, SIZE, unit, 10);
            commands.retain(|command| !(options.contains("0.10") && command.contains("-z")));
            qemu_io(&path, "qcow2", &commands);
            let mut model = flat(&path, "qcow2");
            let (mut bench, node) = bench(&path, mode, Options::default());
            compare(&mut bench, node, &model);
            change(&mut bench, node, &mut model, &mut chance, habits(unit), 30);
            compare(&mut bench, node, &model);
            assert_eq!(close(&mut bench, node), Ok(()));
            judge(&path, None, &model);
        }
    }
}

#[test]
fn writes_leave_snapshots_as_they_are() {
    let dir = tempfile::tempdir().expect("a directory");
    for options in [
        "",
        "cluster_size=4096",
        "extended_l2=on",
        "lazy_refcounts=on",
    ] {
        for mode in modes(4) {
            println!("{options} {mode:?}");
            let path = image_in(dir.path(), options);
            let mut chance = Chance(9);
            qemu_io(&path, "qcow2", &scribble(&mut chance, SIZE, 65536, 12));
            let before = flat(&path, "qcow2");
            run("qemu-img", &["snapshot", "-c", "then", text(&path)]);
            let mut model = before.clone();
            for _ in 0..2 {
                let (mut bench, node) = bench(&path, mode, Options::default());
                change(&mut bench, node, &mut model, &mut chance, habits(65536), 15);
                compare(&mut bench, node, &model);
                assert_eq!(close(&mut bench, node), Ok(()));
                judge(&path, None, &model);
            }
            run("qemu-img", &["snapshot", "-a", "then", text(&path)]);
            judge(&path, None, &before);
        }
    }
}

#[test]
fn discarded_clusters_keep_their_place_if_that_is_asked() {
    let dir = tempfile::tempdir().expect("a directory");
    for mode in modes(5) {
        let path = image_in(dir.path(), "");
        let open = Options {
            write: WriteOptions {
                unref: Unref::Keep,
                pass_discard: PassDiscard::default(),
                ..WriteOptions::default()
            },
            ..Options::default()
        };
        let (mut bench, node) = bench(&path, mode, open);
        let map = |path: &Path| run("qemu-img", &["map", "-U", "--output=json", text(path)]);
        bench.write(node, 0, &[7; 65536]).expect("written");
        assert_eq!(bench.plain(node, Kind::Discard, span(0, 65536)), Ok(()));
        assert_eq!(bench.read(node, 0, 65536), vec![0; 65536]);
        assert_eq!(bench.plain(node, Kind::Flush, span(0, 0)), Ok(()));
        let discarded = map(&path);
        assert!(discarded.contains("\"offset\": 327680"), "{discarded}");
        bench.write(node, 4096, &[8; 4096]).expect("written");
        let zeroes = Kind::WriteZeroes(Unmap::Allow, Durability::Cached);
        assert_eq!(bench.plain(node, zeroes, span(65536, 65536)), Ok(()));
        assert_eq!(close(&mut bench, node), Ok(()));
        let written = map(&path);
        assert!(written.contains("\"offset\": 327680"), "{written}");
        let mut model = vec![0; SIZE as usize];
        model[4096..8192].fill(8);
        judge(&path, None, &model);
    }
}

#[test]
fn late_refcounts_are_announced_and_then_right() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = image_in(dir.path(), "lazy_refcounts=on");
    let dirty = |path: &Path| std::fs::read(path).expect("read")[79];
    let (mut bench, node) = bench(&path, Mode::Fast, Options::default());
    assert_eq!(dirty(&path), 0);
    bench.write(node, 0, &[1; 512]).expect("written");
    assert_eq!(dirty(&path), 1);
    assert_eq!(close(&mut bench, node), Ok(()));
    assert_eq!(dirty(&path), 0);
    let mut model = vec![0; SIZE as usize];
    model[..512].fill(1);
    judge(&path, None, &model);
}

/// The L2 entry of guest cluster 1 is made to say that it is where the L1 table is.
#[test]
fn a_write_that_would_hit_metadata_fails_and_the_image_says_that_it_is_corrupt() {
    let dir = tempfile::tempdir().expect("a directory");
    for mode in modes(6) {
        let path = image_in(dir.path(), "");
        qemu_io(&path, "qcow2", &["write 0 128k".to_owned()]);
        let mut bytes = std::fs::read(&path).expect("read");
        let word = |at: usize, bytes: &[u8]| {
            u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight"))
        };
        let l1 = word(40, &bytes);
        let l2 = (word(l1 as usize, &bytes) & 0x00ff_ffff_ffff_fe00) as usize;
        let entry = l1 | 1 << 63;
        bytes[l2 + 8..l2 + 16].copy_from_slice(&entry.to_be_bytes());
        std::fs::write(&path, &bytes).expect("written");
        let (mut bench, node) = bench(&path, mode, Options::default());
        bench.write(node, 0, &[1; 4096]).expect("written");
        assert_eq!(bench.write(node, 65536, &[2; 4096]), Err(ring::Errno::IO));
        assert_eq!(bench.write(node, 0, &[3; 4096]), Err(ring::Errno::IO));
        let now = std::fs::read(&path).expect("read");
        assert_eq!(now[79] & 2, 2, "the corrupt bit");
        assert_eq!(word(l1 as usize, &now), word(l1 as usize, &bytes));
    }
}
