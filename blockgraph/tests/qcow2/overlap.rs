//! Images in which a guest cluster, or a free one, is where metadata is: the write fails, the image says that it is corrupt,
//! and nothing else changes; as with the real qemu-io on a copy.

use crate::support;
use blockgraph::driver::qcow2::{Options, OverlapChecks};
use blockgraph::graph::open::Backing;
use blockgraph::{Mode, NodeId};
use ring::{Choice, Errno};
use std::path::Path;
use std::process::Command;
use support::Bench;
use support::qcow2::{create, qemu_io, run, text};
use support::writes::image;

const CLUSTER: usize = 65536;
const SIZE: u64 = 4 << 20;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;
/// Where the byte of the header is that has the corrupt bit.
const FLAGS_AT: usize = 79;
const CORRUPT: u8 = 2;
/// Within a cluster: no table here is that long.
const WITHIN: usize = 32768;
const MODES: [Mode; 2] = [Mode::Fast, Mode::ServeAlways];

const NONE: OverlapChecks = OverlapChecks {
    main_header: false,
    active_l1: false,
    active_l2: false,
    refcount_table: false,
    refcount_block: false,
    snapshot_table: false,
    inactive_l1: false,
    inactive_l2: false,
    bitmap_directory: false,
};

const ALL: OverlapChecks = OverlapChecks {
    main_header: true,
    active_l1: true,
    active_l2: true,
    refcount_table: true,
    refcount_block: true,
    snapshot_table: true,
    inactive_l1: true,
    inactive_l2: true,
    bitmap_directory: true,
};

fn word(bytes: &[u8], at: u64) -> u64 {
    let at = at as usize;
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Where an image has its metadata.
#[derive(Clone, Copy, Debug)]
struct Places {
    l1: u64,
    l2: u64,
    table: u64,
    block: u64,
    snapshots: u64,
    inactive_l1: u64,
    inactive_l2: u64,
}

impl Places {
    fn of(bytes: &[u8]) -> Places {
        let (l1, table, snapshots) = (word(bytes, 40), word(bytes, 48), word(bytes, 64));
        let inactive_l1 = word(bytes, snapshots);
        Places {
            l1,
            l2: word(bytes, l1) & OFFSET,
            table,
            block: word(bytes, table),
            snapshots,
            inactive_l1,
            inactive_l2: word(bytes, inactive_l1) & OFFSET,
        }
    }
}

/// An image with a snapshot; its first two clusters were written to before and since.
fn sound(path: &Path) -> (Vec<u8>, Places) {
    let write = ["write -P 2 0 128k".to_owned()];
    create(path, "", SIZE);
    qemu_io(path, "qcow2", &write);
    run("qemu-img", &["snapshot", "-c", "s", text(path)]);
    qemu_io(path, "qcow2", &write);
    let mut bytes = std::fs::read(path).expect("read");
    // Whole clusters: nobody has to lengthen it.
    bytes.resize(bytes.len().next_multiple_of(CLUSTER), 0);
    let places = Places::of(&bytes);
    (bytes, places)
}

fn store(bytes: &mut [u8], at: u64, word: &[u8]) {
    bytes[at as usize..at as usize + word.len()].copy_from_slice(word);
}

/// Does the real qemu-io write there? And is the image corrupt then?
fn qemu_writes(path: &Path, checks: &str, at: usize) -> (bool, bool) {
    let opened = format!(
        "driver=qcow2,overlap-check={checks},file.filename={}",
        text(path)
    );
    let write = format!("write -P 9 {at} 4k");
    let output = Command::new("qemu-io")
        .args(["--image-opts", "-c", &write, &opened])
        .output();
    let output = output.expect("qemu-io");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = said + &String::from_utf8_lossy(&output.stderr);
    let flags = std::fs::read(path).expect("read")[FLAGS_AT];
    (said.contains("wrote 4096/4096"), flags & CORRUPT != 0)
}

fn open(path: &Path, checks: OverlapChecks, mode: Mode) -> (Bench, NodeId) {
    let mut options = Options::default();
    options.write.overlap_checks = checks;
    let mut bench = Bench::new(Choice::Threads, mode);
    let node = bench.open(image(path, None, Backing::Nothing, options));
    (bench, node)
}

/// A write at `at` is stopped, by QEMU and by us, and leaves the image as it was.
fn stopped(what: &str, damaged: &[u8], name: &str, checks: OverlapChecks, at: usize) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("disk.qcow2");
    std::fs::write(&path, damaged).expect("written");
    assert_eq!(qemu_writes(&path, name, at), (false, true), "{what}: qemu");
    for mode in MODES {
        let what = format!("{what} {name} {mode:?}");
        std::fs::write(&path, damaged).expect("written");
        let (mut bench, node) = open(&path, checks, mode);
        // What is there already, so nothing changes; the image is being written from here on.
        let same = [2; 4096];
        assert_eq!(bench.write(node, CLUSTER as u64, &same), Ok(()), "{what}");
        let outcome = bench.write(node, at as u64, &[9; 4096]);
        assert_eq!(outcome, Err(Errno::IO), "{what}");
        let outcome = bench.write(node, CLUSTER as u64, &same);
        assert_eq!(outcome, Err(Errno::IO), "{what}: written after all");
        let read = bench.read(node, CLUSTER as u64, CLUSTER);
        assert!(read == vec![2; CLUSTER], "{what}: another cluster");
        drop(bench);
        let mut left = std::fs::read(&path).expect("read");
        assert_eq!(left[FLAGS_AT], CORRUPT, "{what}");
        left[FLAGS_AT] = damaged[FLAGS_AT];
        let (kept, more) = left.split_at(damaged.len());
        assert!(kept == damaged, "{what}: the image has changed");
        assert!(more.iter().all(|byte| *byte == 0), "{what}");
        let info = run("qemu-img", &["info", text(&path)]);
        assert!(info.contains("corrupt: true"), "{what}: {info}");
    }
}

/// Nobody minds.
fn passes(what: &str, damaged: &[u8], name: &str, checks: OverlapChecks, target: u64) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("disk.qcow2");
    std::fs::write(&path, damaged).expect("written");
    assert_eq!(qemu_writes(&path, name, WITHIN), (true, false), "{what}");
    for mode in MODES {
        std::fs::write(&path, damaged).expect("written");
        let (mut bench, node) = open(&path, checks, mode);
        let outcome = bench.write(node, WITHIN as u64, &[9; 4096]);
        assert_eq!(outcome, Ok(()), "{what} {mode:?}");
        drop(bench);
        let left = std::fs::read(&path).expect("read");
        let at = target as usize + WITHIN;
        assert!(left[at..at + 4096] == [9; 4096], "{what} {mode:?}");
        assert_eq!(left[FLAGS_AT], damaged[FLAGS_AT], "{what} {mode:?}");
    }
}

#[test]
fn a_guest_cluster_that_is_where_metadata_is_cannot_be_written() {
    let dir = tempfile::tempdir().expect("a directory");
    let (bytes, places) = sound(&dir.path().join("sound"));
    let targets = [
        ("L1 table", places.l1),
        ("its own L2 table", places.l2),
        ("refcount table", places.table),
        ("refcount block", places.block),
        ("snapshot table", places.snapshots),
        ("inactive L1 table", places.inactive_l1),
        ("inactive L2 table", places.inactive_l2),
    ];
    for (what, target) in targets {
        let mut damaged = bytes.clone();
        store(&mut damaged, places.l2, &(target | COPIED).to_be_bytes());
        match what {
            "inactive L2 table" => {
                passes(what, &damaged, "cached", OverlapChecks::default(), target);
            }
            _ => stopped(what, &damaged, "cached", OverlapChecks::default(), WITHIN),
        }
        stopped(what, &damaged, "all", ALL, WITHIN);
        passes(what, &damaged, "none", NONE, target);
    }
}

#[test]
fn a_cluster_of_metadata_that_counts_as_free_is_not_handed_out() {
    let dir = tempfile::tempdir().expect("a directory");
    let (bytes, places) = sound(&dir.path().join("sound"));
    let targets = [
        ("header", 0),
        ("L1 table", places.l1),
        ("L2 table", places.l2),
        ("refcount table", places.table),
        ("snapshot table", places.snapshots),
    ];
    for (what, target) in targets {
        let mut damaged = bytes.clone();
        let count_at = places.block + target / CLUSTER as u64 * 2;
        store(&mut damaged, count_at, &0u16.to_be_bytes());
        let free = format!("free {what}");
        stopped(
            &free,
            &damaged,
            "cached",
            OverlapChecks::default(),
            4 * CLUSTER,
        );
    }
}
