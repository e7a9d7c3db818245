//! Images in which a guest cluster is where metadata comes to be only after they were opened: the write fails, the image says
//! that it is corrupt, and this is told once, in the log and as a notice.

use crate::support;
use blockgraph::driver::qcow2::format::snapshot_table::Taken;
use blockgraph::driver::qcow2::snapshot::NewSnapshot;
use blockgraph::driver::qcow2::{Options, OverlapChecks};
use blockgraph::graph::open::Backing;
use blockgraph::notice::{Fatal, Notice};
use blockgraph::request::Prealloc;
use blockgraph::{Kind, Mode, NodeId};
use ring::{Choice, Errno};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use support::qcow2::create;
use support::sim::with;
use support::writes::image;
use support::{Bench, qcow2, span};

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;
const CLUSTER: u64 = 512;
/// So many that the refcount table has to grow.
const SIZE: u64 = 12 << 20;
/// Where the byte of the header is that has the corrupt bit.
const FLAGS_AT: usize = 79;
const MODES: [Mode; 2] = [Mode::Fast, Mode::ServeAlways];

fn word(bytes: &[u8], at: u64) -> u64 {
    let at = at as usize;
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Keeps what is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>, Arc<AtomicUsize>);

impl tracing::Subscriber for Log {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(self.1.fetch_add(1, Ordering::Relaxed) as u64 + 1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        struct Words<'a>(&'a mut Vec<String>);
        impl tracing::field::Visit for Words<'_> {
            fn record_debug(&mut self, field: &tracing::field::Field, words: &dyn std::fmt::Debug) {
                if field.name() == "message" {
                    self.0.push(format!("{words:?}"));
                }
            }
        }
        event.record(&mut Words(&mut self.0.lock().expect("whole")));
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// An image of 512-byte clusters whose first guest cluster was written.
fn sound(path: &Path) -> Vec<u8> {
    create(path, "cluster_size=512", SIZE);
    qcow2::qemu_io(path, "qcow2", &["write -P 2 0 512".to_owned()]);
    std::fs::read(path).expect("read")
}

/// Where its first guest cluster is said to be: its L2 entry.
fn first_entry(bytes: &[u8]) -> u64 {
    word(bytes, word(bytes, 40)) & OFFSET
}

fn open(path: &Path, checks: OverlapChecks, mode: Mode) -> (Bench, NodeId) {
    let mut options = Options::default();
    options.write.overlap_checks = checks;
    let mut bench = Bench::new(Choice::Threads, mode);
    let node = bench.open(image(path, None, Backing::Nothing, options));
    (bench, node)
}

/// The guest writes so much that new L2 tables, refcount blocks and a refcount table are needed.
fn fill(bench: &mut Bench, node: NodeId) {
    let step = vec![7; 1 << 20];
    for at in (1 << 20..SIZE).step_by(step.len()) {
        assert_eq!(bench.write(node, at, &step), Ok(()));
    }
}

fn flush(bench: &mut Bench, node: NodeId) {
    assert_eq!(bench.plain(node, Kind::Flush, span(0, 0)), Ok(()));
}

/// The write of the first guest cluster, which is said to be at `target`, is stopped, and told once.
fn stopped(bench: &mut Bench, node: NodeId, path: &Path, target: u64, section: &str) {
    let log = Log::default();
    tracing::subscriber::with_default(log.clone(), || {
        for what in ["write", "write again"] {
            let outcome = bench.write(node, 0, &[9; 512]);
            assert_eq!(outcome, Err(Errno::IO), "{section}: {what}");
        }
    });
    let msg = format!("Preventing invalid write on metadata (overlaps with {section})");
    let line = format!(
        "qcow2: Marking image as corrupt: {msg}; further corruption events will be suppressed"
    );
    assert_eq!(*log.0.lock().expect("whole"), [line], "{section}");
    let graph = bench.current.get();
    let posted = graph.notices().take();
    let node = graph.node(node).expect("open").name().to_owned();
    let notice = Notice::ImageCorrupted {
        node,
        msg,
        offset: Some(target),
        size: Some(512),
        fatal: Fatal::Yes,
    };
    assert_eq!(
        (posted.notices, posted.lost),
        (vec![notice], 0),
        "{section}"
    );
    let left = std::fs::read(path).expect("read");
    assert_eq!(left[FLAGS_AT] & 2, 2, "{section}: marked");
    let at = target as usize;
    let kept = left.get(at..at + 512).unwrap_or_default();
    assert!(kept != [9; 512], "{section}: overwritten");
}

/// The last L2 table, refcount block and the refcount table that filling the image makes.
fn made_by_filling(path: &Path, image: &[u8]) -> [(u64, &'static str); 3] {
    std::fs::write(path, image).expect("written");
    let (mut bench, node) = open(path, OverlapChecks::default(), Mode::Fast);
    fill(&mut bench, node);
    flush(&mut bench, node);
    drop(bench);
    let bytes = std::fs::read(path).expect("read");
    let (l1, table) = (word(&bytes, 40), word(&bytes, 48));
    assert_ne!(table, word(image, 48), "the refcount table has moved");
    let last = |table: u64, entries: u64| {
        let mut words = (0..entries).map(|index| word(&bytes, table + index * 8) & OFFSET);
        words.rfind(|at| *at != 0).expect("one at least")
    };
    let l2 = last(l1, SIZE / (64 * CLUSTER));
    let clusters = u64::from(u32::from_be_bytes(bytes[56..60].try_into().expect("four")));
    [
        (l2, "active L2 table"),
        (last(table, clusters * 64), "refcount block"),
        (table, "refcount table"),
    ]
}

#[test]
fn a_guest_cluster_where_a_table_was_put_since_cannot_be_written() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("disk.qcow2");
    let image = sound(&path);
    for (target, section) in made_by_filling(&path, &image) {
        let mut damaged = image.clone();
        let entry = first_entry(&image) as usize;
        damaged[entry..entry + 8].copy_from_slice(&(target | COPIED).to_be_bytes());
        for (mode, flushed) in [(MODES[0], true), (MODES[0], false), (MODES[1], true)] {
            std::fs::write(&path, &damaged).expect("written");
            let (mut bench, node) = open(&path, OverlapChecks::default(), mode);
            fill(&mut bench, node);
            if flushed {
                flush(&mut bench, node);
            }
            stopped(&mut bench, node, &path, target, section);
        }
    }
}

#[test]
fn who_asks_for_no_check_gets_none() {
    let none = OverlapChecks {
        active_l2: false,
        ..OverlapChecks::default()
    };
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("disk.qcow2");
    let image = sound(&path);
    let [(target, _), ..] = made_by_filling(&path, &image);
    let mut damaged = image.clone();
    let entry = first_entry(&image) as usize;
    damaged[entry..entry + 8].copy_from_slice(&(target | COPIED).to_be_bytes());
    for mode in MODES {
        std::fs::write(&path, &damaged).expect("written");
        let (mut bench, node) = open(&path, none, mode);
        fill(&mut bench, node);
        assert_eq!(bench.write(node, 0, &[9; 512]), Ok(()));
        assert!(bench.current.get().notices().take().notices.is_empty());
    }
}

/// What a snapshot and a larger disk have moved or made, by a word of the header or of the snapshot table.
fn made_by_restructuring(bytes: &[u8]) -> [(u64, &'static str); 3] {
    let snapshots = word(bytes, 64);
    [
        (word(bytes, 40), "active L1 table"),
        (snapshots, "snapshot table"),
        (word(bytes, snapshots), "inactive L1 table"),
    ]
}

#[test]
fn a_guest_cluster_where_a_restructured_image_has_its_tables_cannot_be_written() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("disk.qcow2");
    let image = sound(&path);
    for (case, mode) in (0..3).flat_map(|case| MODES.map(|mode| (case, mode))) {
        std::fs::write(&path, &image).expect("written");
        let (mut bench, node) = open(&path, OverlapChecks::default(), mode);
        assert_eq!(bench.write(node, 1 << 20, &[7; 512]), Ok(()));
        with(&mut bench, node, async |image, io| {
            let new = NewSnapshot {
                name: "s".to_owned(),
                taken: Taken::default(),
            };
            image.create_snapshot(io, new).await.expect("made");
            let larger = image.resize(io, 2 * SIZE, Prealloc::Off).await;
            larger.expect("larger");
        });
        let mut bytes = std::fs::read(&path).expect("read");
        let (target, section) = made_by_restructuring(&bytes)[case];
        // Nobody has looked at that table since: it is damaged while the image is open.
        let entry = first_entry(&bytes) as usize;
        bytes[entry..entry + 8].copy_from_slice(&(target | COPIED).to_be_bytes());
        std::fs::write(&path, &bytes).expect("written");
        bench.read(node, 0, 512);
        stopped(&mut bench, node, &path, target, section);
    }
}

#[test]
fn a_read_that_meets_nonsense_fails_alone_and_is_told_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("disk.qcow2");
    let mut image = sound(&path);
    let entry = first_entry(&image) as usize;
    // A reserved bit.
    image[entry + 7] |= 2;
    std::fs::write(&path, &image).expect("written");
    let (mut bench, node) = open(&path, OverlapChecks::default(), Mode::Fast);
    let mem = ring::Mem::zeroed(512).expect("memory");
    for _ in 0..2 {
        let outcome = bench.ask(node, Kind::Read, span(0, 512), &mem);
        assert_eq!(outcome, Err(Errno::IO));
    }
    let told = |bench: &Bench| {
        let notices = bench.current.get().notices().take().notices;
        let fatal = notices.iter().filter_map(|notice| match notice {
            Notice::ImageCorrupted { fatal, .. } => Some(*fatal),
            Notice::JournalDue => None,
        });
        fatal.collect::<Vec<_>>()
    };
    assert_eq!(told(&bench), [Fatal::No]);
    assert!(std::fs::read(&path).expect("read") == image, "only read");
    // Another cluster is written all the same; this one marks the image corrupt.
    assert_eq!(bench.write(node, 512, &[1; 512]), Ok(()));
    assert_eq!(bench.write(node, 0, &[1; 512]), Err(Errno::IO));
    assert_eq!(told(&bench), [Fatal::Yes]);
}
