//! qcow2 images that somebody has damaged: what is wrong fails with an error, what is not is read, and nothing panics,
//! hangs or takes memory without bound.

use crate::support;
use blockgraph::driver::qcow2::Options;
use blockgraph::graph::open::{Backing, OpenError};
use blockgraph::{Kind, Mode, NodeId};
use ring::{Choice, Errno, Mem};
use std::path::Path;
use support::qcow2::{create, flat, image, qemu_io, scribble, squeeze};
use support::{Bench, Chance, modes, span};

const SIZE: u64 = 2 << 20;
const CLUSTER: u64 = 65536;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn put(bytes: &mut [u8], at: usize, word: u64) {
    bytes[at..at + 8].copy_from_slice(&word.to_be_bytes());
}

fn try_open(path: &Path, mode: Mode) -> Result<(Bench, NodeId), OpenError> {
    let mut bench = Bench::new(Choice::Threads, mode);
    let spec = image(path, None, Backing::Nothing, Options::default());
    let opened = blockgraph::graph::open::open(&bench.current, spec, &mut bench.control);
    let node = opened?.0;
    Ok((bench, node))
}

fn read(bench: &mut Bench, node: NodeId, at: u64, len: u64) -> Result<Vec<u8>, Errno> {
    let mem = Mem::zeroed(len as usize).expect("memory");
    bench.ask(node, Kind::Read, span(at, len), &mem)?;
    let mut bytes = vec![0; len as usize];
    mem.load(0, &mut bytes);
    Ok(bytes)
}

fn status(bench: &mut Bench, node: NodeId, at: u64) -> Result<(), Errno> {
    let asked = span(at, SIZE - at);
    let graph = bench.current.get();
    let told = bench.control.run(
        &graph,
        node,
        |io| async move { io.status(node, asked).await },
    );
    told.expect("a ring").map(|_| ())
}

/// L2 words no image may hold, for the cluster at `host`.
fn bad_entries(host: u64) -> Vec<(&'static str, u64)> {
    let file_bytes = 1u64 << 40;
    let mut bad = vec![
        ("unaligned", COPIED | (host + 512)),
        ("unaligned zero", COPIED | (host + 512) | 1),
        ("copied without an offset", COPIED),
        ("copied compressed", COPIED | COMPRESSED | host),
        ("compressed nonsense", COMPRESSED | host),
        ("compressed past the end", COMPRESSED | file_bytes),
        ("compressed header", COMPRESSED),
        ("all bits", u64::MAX),
        ("all bits but compressed", !COMPRESSED),
    ];
    bad.extend((1..9).map(|bit| ("reserved low bit", COPIED | host | 1 << bit)));
    bad.extend((56..62).map(|bit| ("reserved high bit", COPIED | host | 1 << bit)));
    bad
}

#[test]
fn a_bad_l2_entry_fails_its_cluster_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("disk.qcow2");
    create(&path, "", SIZE);
    qemu_io(&path, "qcow2", &["write -P 5 0 2M".to_owned()]);
    let good = std::fs::read(&path).expect("an image");
    let l1 = word(&good, 40) as usize;
    let l2 = (word(&good, l1) & !COPIED) as usize;
    let host = word(&good, l2 + 3 * 8) & !COPIED;
    for (what, entry) in bad_entries(host) {
        let mut bytes = good.clone();
        put(&mut bytes, l2 + 3 * 8, entry);
        std::fs::write(&path, &bytes).expect("written");
        for mode in modes(1) {
            let (mut bench, node) = try_open(&path, mode).expect("opened");
            let case = format!("{what} {entry:#x} in {mode:?}");
            let bad = 3 * CLUSTER;
            assert_eq!(read(&mut bench, node, bad, 512), Err(Errno::IO), "{case}");
            assert!(read(&mut bench, node, 0, SIZE).is_err(), "{case}");
            let before = read(&mut bench, node, 0, bad).expect("readable");
            assert!(before.iter().all(|byte| *byte == 5), "{case}");
            let after = read(&mut bench, node, bad + CLUSTER, SIZE - bad - CLUSTER);
            assert!(after.expect("readable").iter().all(|byte| *byte == 5));
            // Bytes that cannot be unpacked are found when they are read.
            let packed = entry & COMPRESSED != 0 && entry & COPIED == 0;
            assert_eq!(status(&mut bench, node, bad).is_ok(), packed, "{case}");
            assert!(status(&mut bench, node, 0).is_ok(), "{case}");
        }
    }
}

#[test]
fn bad_subclusters_fail_their_cluster_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("disk.qcow2");
    create(&path, "extended_l2=on", SIZE);
    qemu_io(&path, "qcow2", &["write -P 5 0 2M".to_owned()]);
    let good = std::fs::read(&path).expect("an image");
    let l2 = (word(&good, word(&good, 40) as usize) & !COPIED) as usize;
    let host = word(&good, l2 + 3 * 16) & !COPIED;
    for (first, second) in [
        (COPIED | host, 1 << 32 | 1),
        (COPIED | host, u64::MAX),
        (0, 1),
        (0, u64::from(u32::MAX)),
        (COPIED | host | 1, 0),
        (1, 0),
        (COMPRESSED | host, 1),
        (COPIED | host | 1 << 57, u64::from(u32::MAX)),
    ] {
        let mut bytes = good.clone();
        put(&mut bytes, l2 + 3 * 16, first);
        put(&mut bytes, l2 + 3 * 16 + 8, second);
        std::fs::write(&path, &bytes).expect("written");
        for mode in modes(2) {
            let (mut bench, node) = try_open(&path, mode).expect("opened");
            let case = format!("{first:#x} {second:#x} in {mode:?}");
            let bad = 3 * CLUSTER;
            assert_eq!(read(&mut bench, node, bad, 512), Err(Errno::IO), "{case}");
            assert!(read(&mut bench, node, 0, bad).is_ok(), "{case}");
            assert!(status(&mut bench, node, bad).is_err(), "{case}");
        }
    }
}

#[test]
fn a_bad_l1_entry_fails_what_its_table_describes() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("disk.qcow2");
    // A table of 4 KiB clusters describes 2 MiB.
    create(&path, "cluster_size=4k", 2 * SIZE);
    qemu_io(&path, "qcow2", &["write -P 5 0 4M".to_owned()]);
    let good = std::fs::read(&path).expect("an image");
    let l1 = word(&good, 40) as usize;
    let table = word(&good, l1) & !COPIED;
    let past_end = (good.len() as u64).next_multiple_of(4096);
    for entry in [
        COPIED,
        COPIED | (table + 512),
        COPIED | table | 1,
        COPIED | table | 1 << 60,
        COPIED | past_end,
        COPIED | 0x00ff_ffff_ffff_f000,
        u64::MAX,
    ] {
        let mut bytes = good.clone();
        put(&mut bytes, l1, entry);
        std::fs::write(&path, &bytes).expect("written");
        for mode in modes(3) {
            let (mut bench, node) = try_open(&path, mode).expect("opened");
            let case = format!("{entry:#x} in {mode:?}");
            assert_eq!(read(&mut bench, node, 0, 512), Err(Errno::IO), "{case}");
            assert!(status(&mut bench, node, 0).is_err(), "{case}");
            let other = read(&mut bench, node, SIZE, SIZE).expect("readable");
            assert!(other.iter().all(|byte| *byte == 5), "{case}");
        }
    }
}

#[test]
fn a_data_file_whose_clusters_moved_is_not_read() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("disk.qcow2");
    let data = dir.path().join("disk.data");
    let options = format!("data_file={}", data.to_str().expect("a name"));
    create(&path, &options, SIZE);
    qemu_io(&path, "qcow2", &["write -P 5 0 2M".to_owned()]);
    let mut bytes = std::fs::read(&path).expect("an image");
    let l2 = (word(&bytes, word(&bytes, 40) as usize) & !COPIED) as usize;
    put(&mut bytes, l2 + 3 * 8, COPIED | (4 * CLUSTER));
    put(&mut bytes, l2 + 5 * 8, COMPRESSED | (5 * CLUSTER));
    std::fs::write(&path, &bytes).expect("written");
    for mode in modes(4) {
        let mut bench = Bench::new(Choice::Threads, mode);
        let spec = image(&path, Some(&data), Backing::Nothing, Options::default());
        let node = bench.open(spec);
        for bad in [3, 5] {
            let outcome = read(&mut bench, node, bad * CLUSTER, 512);
            assert_eq!(outcome, Err(Errno::IO));
        }
        assert!(read(&mut bench, node, 4 * CLUSTER, CLUSTER).is_ok());
    }
}

/// An image of every kind of cluster, and any of its bytes changed. The tables are where most of the changes are made.
#[test]
fn no_byte_of_an_image_makes_a_reader_panic_or_hang() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("disk.qcow2");
    for (options, seed) in [
        ("", 10u64),
        ("extended_l2=on", 11),
        ("compression_type=zstd", 12),
    ] {
        println!("{options} seed {seed}");
        create(&path, options, SIZE);
        let mut chance = Chance(seed);
        qemu_io(&path, "qcow2", &squeeze(&mut chance, SIZE, CLUSTER, 8));
        qemu_io(
            &path,
            "qcow2",
            &scribble(&mut chance, SIZE / 2, CLUSTER, 12),
        );
        let good = std::fs::read(&path).expect("an image");
        let l1 = word(&good, 40) as usize;
        let l2 = (word(&good, l1) & !COPIED) as usize;
        for _ in 0..150 {
            let mut bytes = good.clone();
            for _ in 0..=chance.below(4) {
                let at = match chance.below(4) {
                    0 => chance.below(112) as usize,
                    1 => l1 + chance.below(8) as usize,
                    2 => l2 + chance.below(512) as usize,
                    _ => chance.below(good.len() as u64) as usize,
                };
                bytes[at] ^= 1 << chance.below(8);
            }
            std::fs::write(&path, &bytes).expect("written");
            let Ok((mut bench, node)) = try_open(&path, Mode::Mixed(seed)) else {
                continue;
            };
            let size = bench.current.get().info(node).expect("open").size_bytes;
            // A changed header may promise more than anybody can read; the beginning is enough.
            for at in (0..size.min(2 * SIZE)).step_by(CLUSTER as usize) {
                let len = CLUSTER.min(size - at);
                let _ = read(&mut bench, node, at, len);
                let asked = span(at, len);
                let graph = bench.current.get();
                let told =
                    bench.control.run(
                        &graph,
                        node,
                        |io| async move { io.status(node, asked).await },
                    );
                let _ = told.expect("a ring");
            }
        }
        std::fs::write(&path, &good).expect("written");
        let (mut bench, node) = try_open(&path, Mode::Fast).expect("opened");
        assert!(read(&mut bench, node, 0, SIZE).expect("read") == flat(&path, "qcow2"));
    }
}
