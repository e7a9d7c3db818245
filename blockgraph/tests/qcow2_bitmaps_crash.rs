//! Images with bitmaps on a disk that loses power: in whatever is left, a bitmap that looks right is right, and no check finds
//! errors.

mod support;

use blockgraph::bitmap::{BitmapAdmin, Keeping, NewBitmap, State};
use blockgraph::driver::qcow2::Options;
use blockgraph::request::Prealloc;
use blockgraph::{Kind, Mode, NodeId, Started, Unmap};
use ring::sim::{Act, Disk, Images, Rule, Weather};
use ring::{Durability, Mem};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use support::sim::{self, Verdict};
use support::{Bench, qcow2, span, writes};

const SIZE: u64 = 512 << 10;
const ROOM: u64 = 24 << 20;
/// What both bitmaps call dirty, and where the guest writes again later: bytes.
const DIRTY: u64 = 64 << 10;
const PATTERN: u8 = 3;

/// An image with a bitmap that records and a frozen one, which both say that its first 64 KiB are dirty.
fn image(options: &str) -> Images {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("disk.qcow2");
    qcow2::create(&path, options, SIZE);
    for name in ["records", "frozen"] {
        let add = ["bitmap", "--add", "-g", "512", qcow2::text(&path), name];
        qcow2::run("qemu-img", &add);
    }
    let write = format!("write -P {PATTERN} 0 {DIRTY}");
    qcow2::qemu_io(&path, "qcow2", &[write]);
    let disable = ["bitmap", "--disable", qcow2::text(&path), "frozen"];
    qcow2::run("qemu-img", &disable);
    sim::files_in(dir.path())
}

/// A bench on a simulated disk, the file's node and the image's.
fn open(disk: &Disk, mode: Mode) -> (Bench, NodeId, NodeId) {
    let (mut bench, file) = sim::bench(disk, mode);
    let node = sim::open(&mut bench, file, Options::default());
    (bench, file, node)
}

/// What a power cut left.
#[derive(Debug, Default)]
struct Left {
    /// Images with the disk as it was, as far as we look.
    unchanged: u64,
    /// With a disk that has changed.
    changed: u64,
    /// With a frozen bitmap that cannot be trusted.
    frozen_in_use: u64,
    /// With one that can.
    frozen_right: u64,
    /// Bitmaps that have recorded and cannot be trusted.
    records_in_use: u64,
    /// Those that can.
    records_right: u64,
    /// That have another size.
    resized: u64,
}

/// One that looks right is right: one that has recorded knows of every change, a frozen one says what it said of what there is.
fn look(left: &mut Left, files: Images, original: &[u8], what: &str) {
    let calm = sim::disk(files, ROOM, 1, Weather::CALM);
    let (mut bench, file, node) = open(&calm, Mode::Fast);
    let report = sim::look(&mut bench, file);
    assert_eq!(report.corruptions, 0, "{what}: {:?}", report.findings);
    let graph = bench.current.get();
    let size = graph.info(node).expect("open").size_bytes;
    let bytes = bench.read(node, 0, size.min(SIZE) as usize);
    let same = size == SIZE && bytes == original;
    left.unchanged += u64::from(same);
    left.changed += u64::from(!same);
    left.resized += u64::from(size != SIZE);
    let changed = |at: u64| bytes[at as usize..][..512] != original[at as usize..][..512];
    let sectors = (0..size.min(SIZE)).step_by(512);
    for bitmap in graph.node(node).expect("open").bitmaps().bitmaps() {
        let name = bitmap.name();
        let says = |at| bitmap.next_dirty(span(at, 512)).is_some();
        match (name, bitmap.state()) {
            (_, State::Inconsistent) if name == "frozen" => left.frozen_in_use += 1,
            (_, State::Inconsistent) => left.records_in_use += 1,
            ("frozen", State::Disabled) => {
                left.frozen_right += 1;
                let right = |at| says(at) == (at < DIRTY);
                assert!(sectors.clone().all(right), "{what}: {name} is wrong");
                assert_eq!(
                    bitmap.next_dirty(span(DIRTY, SIZE.max(size))),
                    None,
                    "{what}"
                );
            }
            ("records" | "new", State::Recording) => {
                left.records_right += 1;
                let was = |at| name == "records" && at < DIRTY;
                let right = |at| says(at) || !(was(at) || changed(at));
                assert!(sectors.clone().all(right), "{what}: {name} is stale");
            }
            (_, state) => panic!("{what}: {name} is {state:?}"),
        }
    }
}

#[test]
fn no_bitmap_looks_right_after_a_change_that_it_does_not_know() {
    for options in ["cluster_size=512", "cluster_size=65536"] {
        let original = image(options);
        let whole = vec![PATTERN; DIRTY as usize];
        let mut disk_bytes = vec![0; SIZE as usize];
        disk_bytes[..whole.len()].copy_from_slice(&whole);
        let mut left = Left::default();
        for seed in 0..12 {
            let what = format!("{options} seed {seed}");
            println!("{what}");
            let mode = [Mode::Fast, Mode::ServeAlways][seed as usize % 2];
            let rough = sim::disk(original.clone(), ROOM, seed, Weather::ROUGH);
            let (mut bench, _, node) = open(&rough, mode);
            let mem = Mem::zeroed(512).expect("memory");
            mem.store(0, &[9; 512]);
            let free = Kind::WriteZeroes(Unmap::Allow, Durability::Cached);
            let write = Kind::Write(Durability::Cached);
            // In place, to new clusters, and to none.
            let (kind, at, len) =
                [(write, 0, 512), (write, 256 << 10, 512), (free, 0, DIRTY)][seed as usize % 3];
            let mem = match kind {
                Kind::Write(_) => mem,
                _ => Mem::none(),
            };
            let started = bench.start(node, kind, span(at, len), &mem, 1);
            let mut ends = Vec::new();
            let mut cuts = 0;
            while ends.is_empty() && !matches!(started, Started::Done(_)) {
                bench.turns(1, &mut ends);
                cuts += 1;
                let crashed = rough.crash(seed * 1000 + cuts);
                look(&mut left, crashed, &disk_bytes, &what);
            }
            for cut in 0..8 {
                let crashed = rough.crash(seed * 1000 + 500 + cut);
                look(&mut left, crashed, &disk_bytes, &what);
            }
            assert_eq!(bench.plain(node, Kind::Flush, span(0, 0)), Ok(()));
            let crashed = rough.crash(seed);
            look(&mut left, crashed, &disk_bytes, &what);
        }
        println!("{options}: {left:?}");
        assert!(left.unchanged > 20 && left.changed > 10, "{left:?}");
        assert!(left.records_in_use > 10, "{left:?}");
    }
}

#[test]
fn a_frozen_bitmap_is_right_or_in_use_in_the_middle_of_a_resize() {
    let original = image("cluster_size=512");
    let mut disk_bytes = vec![0; SIZE as usize];
    disk_bytes[..DIRTY as usize].fill(PATTERN);
    let mut left = Left::default();
    for seed in 0..3 {
        // Into what is dirty, and so far that the table moves.
        for size in [DIRTY / 2 + 512, 140 << 20] {
            let what = format!("to {size} seed {seed}");
            println!("{what}");
            let rough = sim::disk(original.clone(), ROOM, seed, Weather::ROUGH);
            let (mut bench, _, node) = open(&rough, Mode::Fast);
            let crashes = rough.clone();
            let images = sim::with(&mut bench, node, async move |image, io| {
                let mut images = Vec::new();
                let mut resize = std::pin::pin!(image.resize(io, size, Prealloc::Off));
                let mut polls = 0u64;
                let resized = std::future::poll_fn(|cx| {
                    polls += 1;
                    // Not all of them: there are many.
                    if polls.is_multiple_of(3) {
                        images.push(crashes.crash(seed * 1000 + polls));
                    }
                    resize.as_mut().poll(cx)
                })
                .await;
                assert_eq!(resized, Ok(()));
                images
            });
            for files in images {
                look(&mut left, files, &disk_bytes, &what);
            }
            let crashed = rough.crash(seed);
            look(&mut left, crashed, &disk_bytes, &what);
        }
    }
    println!("{left:?}");
    assert!(left.unchanged > 5 && left.resized > 20, "{left:?}");
    assert!(left.frozen_in_use > 5, "{left:?}");
}

/// A bitmap more and one less, something written, and the image closed, on a disk that does nothing more from its operation
/// `count` on. Answers what a power cut leaves then, and whether it came to that.
fn cut_short(original: &Images, seed: u64, count: u64, errno: i32) -> (Images, bool) {
    let disk = sim::disk(original.clone(), ROOM, seed, Weather::CALM);
    let (mut bench, file) = sim::bench(&disk, Mode::Fast);
    disk.set_weather(Weather::ROUGH);
    let refused = Arc::new(AtomicBool::new(false));
    let noted = refused.clone();
    disk.rule(Rule::every(Act::Refuse(errno)).when(move |seen| {
        let refuses = seen.number >= count;
        noted.fetch_or(refuses, Ordering::Relaxed);
        refuses
    }));
    // Whatever of it fails: the rest is tried.
    if let Some(node) = sim::try_open(&mut bench, file, Options::default()) {
        let name = bench
            .current
            .get()
            .node(node)
            .expect("open")
            .name()
            .to_owned();
        let mut admin = BitmapAdmin {
            current: &bench.current,
            control: &mut bench.control,
        };
        let new = NewBitmap {
            name: "new".to_owned(),
            granularity_bytes: Some(512),
            state: State::Recording,
            keeping: Keeping::Persistent,
        };
        let _ = admin.add(&name, new);
        if seed.is_multiple_of(2) {
            let _ = admin.remove(&name, "frozen");
        }
        let _ = bench.write(node, 200 << 10, &[7; 1024]);
        let _ = bench.write(node, 0, &[8; 512]);
        let _ = writes::close(&mut bench, node);
    }
    (
        disk.crash(seed * 1000 + count),
        refused.load(Ordering::Relaxed),
    )
}

#[test]
fn a_disk_that_ends_anywhere_on_the_way_leaves_bitmaps_that_are_right_or_in_use() {
    let mut disk_bytes = vec![0; SIZE as usize];
    disk_bytes[..DIRTY as usize].fill(PATTERN);
    for options in [
        "cluster_size=512",
        "cluster_size=4096,lazy_refcounts=on",
        "cluster_size=65536",
    ] {
        let original = image(options);
        let mut left = Left::default();
        for seed in 0..4 {
            let errno = [libc::EIO, libc::ENOSPC][seed as usize / 2];
            for count in 0.. {
                let what = format!("{options} seed {seed} count {count}");
                let (files, refused) = cut_short(&original, seed, count, errno);
                if count % 7 == seed {
                    let (verdict, said) = sim::ask_qemu(&files);
                    assert!(
                        verdict != Verdict::Errors || options.contains("lazy"),
                        "{what}: {said}"
                    );
                }
                // One that was left dirty is repaired before anybody looks.
                if !options.contains("lazy") {
                    let calm = sim::disk(files.clone(), ROOM, 1, Weather::CALM);
                    let (mut bench, file) = sim::bench(&calm, Mode::Fast);
                    let report = sim::look(&mut bench, file);
                    assert!(
                        sim::refcounts_are_high_enough(&report),
                        "{what}: {report:?}"
                    );
                }
                look(&mut left, files, &disk_bytes, &what);
                if !refused {
                    println!("{options} seed {seed}: {count} operations");
                    break;
                }
            }
        }
        println!("{options}: {left:?}");
        assert!(
            left.records_in_use > 20 && left.records_right > 4,
            "{left:?}"
        );
        assert!(left.frozen_in_use > 10 && left.frozen_right > 1, "{left:?}");
    }
}
