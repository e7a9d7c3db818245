//! A mapped request allocates nothing: counted in the allocator, over the data loop, the lane, the walk and the ring, once
//! each has met as many requests as there are at a time. In a binary of its own, for the allocator is.
#![allow(clippy::unwrap_used, missing_docs)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use blockgraph::driver::file::{Cache, FileKind, FileOptions, Flushes, Locking, OpenMode};
use blockgraph::driver::null::Reads;
use blockgraph::driver::qcow2::Options;
use blockgraph::driver::qcow2::cache::CacheOptions;
use blockgraph::graph::Common;
use blockgraph::graph::gate::Named;
use blockgraph::graph::open::{
    Backing, Child, DriverSpec, FileSpec, FilterSpec, NodeSpec, NullKind, NullSpec, Qcow2Spec,
};
use blockgraph::node::Engine;
use ring::{Choice, Ring};
use tests::client::thread::{Desk, desk_with_bitmaps};

struct Counting;

static COUNTS: AtomicBool = AtomicBool::new(false);
static COUNT: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// The guest's own thread may allocate as it likes.
    static EXEMPT: Cell<bool> = const { Cell::new(false) };
}

fn note() {
    if COUNTS.load(Ordering::Relaxed) && !EXEMPT.get() {
        COUNT.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller's contract is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        note();
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const BATCH: u64 = 32;

fn spec(driver: DriverSpec) -> NodeSpec {
    NodeSpec {
        name: None,
        common: Common::default(),
        driver,
    }
}

fn null(reads: Reads) -> NodeSpec {
    spec(DriverSpec::Null(NullSpec {
        kind: NullKind::Co,
        size_bytes: 64 << 20,
        reads,
        latency_ns: 0,
    }))
}

fn file(path: &std::path::Path) -> NodeSpec {
    let options = FileOptions {
        filename: path.to_owned(),
        kind: FileKind::Regular,
        mode: OpenMode::ReadWrite,
        cache: Cache::Page,
        flushes: Flushes::Sync,
        locking: Locking::Off,
        engine: Engine::Any,
    };
    spec(DriverSpec::File(FileSpec { options }))
}

fn delayed_by_nothing(below: NodeSpec) -> NodeSpec {
    spec(DriverSpec::Delay {
        file: Child::Inline(Box::new(below)),
        latency_ns: 0,
    })
}

fn filter(filter: FilterSpec) -> NodeSpec {
    spec(DriverSpec::Filter(Box::new(filter)))
}

fn throttled(below: NodeSpec, group: &str) -> NodeSpec {
    filter(FilterSpec::Throttle {
        file: Child::Inline(Box::new(below)),
        group: group.to_owned(),
    })
}

/// Filters of every kind that have nothing to do.
fn idly_filtered(below: NodeSpec) -> NodeSpec {
    let child = |below: NodeSpec| Child::Inline(Box::new(below));
    let preallocate = filter(FilterSpec::Preallocate {
        file: child(below),
        align_bytes: 1 << 20,
        ahead_bytes: 1 << 20,
    });
    let copied = filter(FilterSpec::CopyOnRead {
        file: child(preallocate),
        bottom: None,
    });
    let blkdebug = filter(FilterSpec::Blkdebug {
        image: child(throttled(copied, "none")),
        config: None,
        options: Default::default(),
    });
    delayed_by_nothing(blkdebug)
}

/// A qcow2 image with every cluster in its place, and an empty one on top of another such.
fn images(dir: &std::path::Path) -> (NodeSpec, NodeSpec) {
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let (alone, below, top) = (path("alone"), path("below"), path("top"));
    create(&["-o", "preallocation=metadata", &alone, "64M"]);
    create(&["-o", "preallocation=metadata", &below, "64M"]);
    create(&["-b", &below, "-F", "qcow2", &top]);
    let below = image(&below, Backing::Nothing);
    let chain = image(&top, Backing::Node(Child::Inline(Box::new(below))));
    (image(&alone, Backing::Nothing), chain)
}

fn image(path: &str, backing: Backing) -> NodeSpec {
    // The thread that cleans caches allocates when it starts, whenever that is.
    let cache = CacheOptions {
        clean_interval_s: Some(0),
        ..CacheOptions::default()
    };
    spec(DriverSpec::Qcow2(Box::new(Qcow2Spec {
        file: Child::Inline(Box::new(file(path.as_ref()))),
        data_file: None,
        backing,
        named: Named::default(),
        options: Options {
            cache,
            ..Options::default()
        },
        journal: None,
    })))
}

fn create(args: &[&str]) {
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2"]).args(args);
    assert!(command.status().unwrap().success());
}

/// What a batch asks for.
#[derive(Clone, Copy)]
enum Mix {
    Both,
    Reads,
}

/// Batches of requests of many sizes.
fn batches(desk: &mut Desk, count: u64, mix: Mix) {
    for batch in 0..count {
        for slot in 0..BATCH {
            let len_bytes = 512 << (slot % 6);
            let kind = match mix {
                Mix::Both if (slot + batch) % 3 == 0 => OUT,
                Mix::Both | Mix::Reads => IN,
            };
            desk.offer(slot, kind, slot * 128, len_bytes);
        }
        desk.finish(BATCH as usize);
        (0..BATCH).for_each(|slot| assert_eq!(desk.status(slot), 0));
    }
}

fn allocations(work: impl FnOnce()) -> u64 {
    let before = COUNT.load(Ordering::Relaxed);
    COUNTS.store(true, Ordering::Relaxed);
    work();
    COUNTS.store(false, Ordering::Relaxed);
    COUNT.load(Ordering::Relaxed) - before
}

/// One test, as the count is the process's.
#[test]
fn a_mapped_request_allocates_nothing_after_warm_up() {
    EXEMPT.set(true);
    if let Err(error) = Ring::new(Choice::Uring(None)) {
        // The pool of threads queues jobs in lists, and promises nothing.
        println!("not tested: io_uring is refused ({error})");
        return;
    }
    let raw = tempfile::NamedTempFile::new().unwrap();
    raw.as_file().set_len(64 << 20).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (qcow2, chain) = images(dir.path());
    let marked = dir.path().join("marked").to_str().unwrap().to_owned();
    create(&["-o", "preallocation=metadata", &marked, "64M"]);
    let nodes = [
        ("null", null(Reads::Untouched), Mix::Both),
        ("null, zeroes", null(Reads::Zeroes), Mix::Both),
        ("a file", file(raw.path()), Mix::Both),
        (
            "a file under a filter",
            delayed_by_nothing(file(raw.path())),
            Mix::Both,
        ),
        (
            "a file under five filters",
            idly_filtered(file(raw.path())),
            Mix::Both,
        ),
        (
            "a file that is throttled and has room",
            throttled(file(raw.path()), "wide"),
            Mix::Both,
        ),
        ("a qcow2 image", qcow2, Mix::Both),
        ("a qcow2 image and its backing file", chain, Mix::Reads),
    ];
    let plain = nodes.map(|(name, node, mix)| (name, node, mix, 0));
    let marked = [
        ("a file with bitmaps", file(raw.path()), Mix::Both, 8),
        (
            "an image with bitmaps",
            image(&marked, Backing::Nothing),
            Mix::Both,
            8,
        ),
    ];
    for (name, node, mix, bitmaps) in plain.into_iter().chain(marked) {
        let mut desk = desk_with_bitmaps(Choice::Uring(None), node, bitmaps);
        desk.start();
        batches(&mut desk, 20, mix);
        let counted = allocations(|| batches(&mut desk, 100, mix));
        assert_eq!(counted, 0, "{name}: allocations in 3200 mapped requests");
        // The counter counts: a flush is served, by a task that is allocated.
        let flushed = allocations(|| {
            desk.offer(0, FLUSH, 0, 0);
            desk.finish(1);
        });
        assert!(flushed > 0, "{name}: the test must test something");
        assert!(desk.crew.stop(0).is_some());
    }
}
