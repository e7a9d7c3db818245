//! Dirty bitmaps under load: whatever changed since a bitmap began to record, or was cleared, is dirty in it.

mod support;

use blockgraph::bitmap::{
    BitmapAdmin, BitmapError, DirtyBitmap, Keeping, NewBitmap, Source, State, find, find_above,
    report,
};
use blockgraph::driver::qcow2::Options;
use blockgraph::filter::delay::Delay;
use blockgraph::graph::edit::{Edit, NewFilter};
use blockgraph::graph::open::{Backing, Child};
use blockgraph::graph::{Body, Role};
use blockgraph::pin::Epochs;
use blockgraph::request::Prealloc;
use blockgraph::{Current, Kind, Mode, NodeId, Started, Unmap};
use ring::{Choice, Durability, Mem};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use support::{Bench, Chance, common, image, modes, named, qcow2, raw, span, writes};

const SECTOR: usize = 512;
const SECTORS: usize = 4096;
const THREADS: usize = 3;
/// What is done with bitmaps while others write.
const ROUNDS: usize = 12;
/// And what is written after that: little, or it would hide what was missed.
const LAST_BATCHES: usize = 2;
/// Runs in each mode.
const RUNS: u64 = 5;
/// Sectors that nobody writes.
const LEFT_ALONE: usize = 512;

fn admin(bench: &mut Bench) -> BitmapAdmin<'_> {
    BitmapAdmin {
        current: &bench.current,
        control: &mut bench.control,
    }
}

fn new(name: &str, granularity: u32, state: State) -> NewBitmap {
    NewBitmap {
        name: name.to_owned(),
        granularity_bytes: Some(granularity),
        state,
        keeping: Keeping::InMemory,
    }
}

fn add(bench: &mut Bench, node: &str, bitmap: NewBitmap) {
    admin(bench).add(node, bitmap).expect("added");
}

fn bitmap(bench: &Bench, node: &str, name: &str) -> Arc<DirtyBitmap> {
    let found = find(&bench.current.get(), node, name);
    found.expect("found").bitmap
}

fn name_of(bench: &Bench, node: NodeId) -> String {
    let graph = bench.current.get();
    graph.node(node).expect("a node").name().to_owned()
}

/// What all threads of a run share.
#[derive(Clone)]
struct Shared {
    current: Arc<Current>,
    epochs: Arc<Epochs>,
    node: NodeId,
    watched: Arc<AtomicBool>,
    choice: Choice,
    mode: Mode,
}

impl Shared {
    fn bench(&self) -> Bench {
        let (current, epochs) = (self.current.clone(), self.epochs.clone());
        Bench::on(current, epochs, self.choice.clone(), self.mode)
    }
}

fn request(chance: &mut Chance, len: usize, stamp: u64) -> (Kind, Mem) {
    let unmap = [Unmap::Allow, Unmap::Keep][chance.below(2) as usize];
    let kind = match chance.below(10) {
        0 => Kind::WriteZeroes(unmap, Durability::Cached),
        1 => Kind::Discard,
        2 => Kind::Write(Durability::Through),
        _ => Kind::Write(Durability::Cached),
    };
    if !matches!(kind, Kind::Write(_)) {
        return (kind, Mem::none());
    }
    let mem = Mem::zeroed(len).expect("memory");
    mem.store(0, &stamp.to_le_bytes().repeat(len / 8));
    (kind, mem)
}

/// Writes, each time something else, until the bitmaps were watched and a little longer.
fn write(shared: &Shared, thread: usize, seed: u64) {
    let mut bench = shared.bench();
    let mut chance = Chance(seed * 100 + thread as u64);
    let mut left = LAST_BATCHES;
    for batch in 0.. {
        if shared.watched.load(Ordering::SeqCst) {
            left -= 1;
        }
        if left == 0 {
            break;
        }
        let mut running = Vec::new();
        let mut pending = 0;
        for token in 0..6 {
            let len = (1 + chance.below(8) as usize) * SECTOR;
            let at = chance.below((SECTORS - LEFT_ALONE - 8) as u64) * SECTOR as u64;
            let stamp = (thread as u64 + 1) << 32 | (batch * 6 + token + 1);
            let (kind, mem) = request(&mut chance, len, stamp);
            match bench.start(shared.node, kind, span(at, len as u64), &mem, token) {
                Started::Done(outcome) => assert_eq!(outcome, Ok(())),
                _ => pending += 1,
            }
            running.push(mem);
        }
        for _ in 0..pending {
            assert_eq!(bench.wait().1, Ok(()));
        }
    }
}

/// Tells the writers, also when the watcher has failed.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A bitmap, and what its node read as when it was clean.
struct Watch {
    node: NodeId,
    bitmap: Arc<DirtyBitmap>,
    was: Vec<u8>,
}

fn whole(bench: &mut Bench, node: NodeId) -> Vec<u8> {
    let size = bench.current.get().info(node).expect("a node").size_bytes;
    bench.read(node, 0, size as usize / SECTOR * SECTOR)
}

/// While others write: adds, enables and clears bitmaps of the disk and of the file below it, and reads the node right after.
fn watch(shared: &Shared, nodes: &[(NodeId, String)], seed: u64) -> Vec<Watch> {
    let mut bench = shared.bench();
    let mut chance = Chance(seed ^ 0xb175);
    let mut watched: Vec<Watch> = Vec::new();
    for round in 0..ROUNDS {
        let (node, name) = &nodes[chance.below(nodes.len() as u64) as usize];
        let granularity = [512, 4096, 65536][chance.below(3) as usize];
        let own = format!("b{round}");
        let of_node = watched.iter_mut().filter(|watch| watch.node == *node);
        let known: Vec<&mut Watch> = of_node.collect();
        if known.len() < 4 {
            match chance.below(2) {
                0 => add(&mut bench, name, new(&own, granularity, State::Recording)),
                _ => {
                    add(&mut bench, name, new(&own, granularity, State::Disabled));
                    admin(&mut bench).enable(name, &own).expect("enabled");
                }
            }
            let bitmap = bitmap(&bench, name, &own);
            let (node, was) = (*node, whole(&mut bench, *node));
            watched.push(Watch { node, bitmap, was });
            continue;
        }
        let at = chance.below(known.len() as u64) as usize;
        let watch = known.into_iter().nth(at).expect("one");
        if chance.below(4) == 0 {
            admin(&mut bench)
                .remove(name, watch.bitmap.name())
                .expect("removed");
            let gone = watch.bitmap.name().to_owned();
            watched.retain(|watch| watch.node != *node || watch.bitmap.name() != gone);
        } else {
            admin(&mut bench)
                .clear(name, watch.bitmap.name())
                .expect("cleared");
            watch.was = whole(&mut bench, *node);
        }
    }
    watched
}

fn no_change_is_missed((choice, mode): (Choice, Mode), seed: u64) {
    println!("{choice:?} {mode:?} seed {seed}");
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    let dir = dir.expect("a directory");
    let path = dir.path().join("disk.qcow2");
    qcow2::create(&path, "cluster_size=4096", (SECTORS * SECTOR) as u64);
    let mut bench = Bench::new(choice.clone(), mode);
    let image = writes::image(&path, None, Backing::Nothing, Options::default());
    let node = bench.open(named(image, "disk"));
    let graph = bench.current.get();
    let file = graph.node(node).expect("it").shape().child(Role::Image);
    let file = file.expect("a file");
    let nodes = [(node, "disk".to_owned()), (file, name_of(&bench, file))];
    drop(graph);
    let shared = Shared {
        current: bench.current.clone(),
        epochs: bench.epochs.clone(),
        node,
        watched: Arc::default(),
        choice,
        mode,
    };
    let watched = std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let shared = shared.clone();
            scope.spawn(move || write(&shared, thread, seed));
        }
        let _over = Over(&shared.watched);
        watch(&shared, &nodes, seed)
    });
    for watch in &watched {
        is_right(&mut bench, watch, watch.node == node);
    }
    assert_eq!(writes::close(&mut bench, node), Ok(()));
}

fn is_right(bench: &mut Bench, watch: &Watch, is_disk: bool) {
    let name = watch.bitmap.name();
    let now = whole(bench, watch.node);
    let mut changed = 0;
    for (at, sector) in now.chunks(SECTOR).enumerate() {
        let at = at * SECTOR;
        let was = watch.was.get(at..at + SECTOR).unwrap_or(&[0; SECTOR]);
        if was != sector {
            changed += 1;
            let here = span(at as u64, SECTOR as u64);
            assert_eq!(watch.bitmap.next_dirty(here), Some(here), "{name} at {at}");
        }
    }
    println!(
        "{name}: {changed} sectors changed, {} bytes dirty",
        watch.bitmap.dirty_bytes()
    );
    if is_disk {
        let unit = watch.bitmap.granularity_bytes() as usize;
        let alone = ((SECTORS - LEFT_ALONE) * SECTOR).next_multiple_of(unit);
        let alone = span(alone as u64, (SECTORS * SECTOR - alone) as u64);
        assert_eq!(
            watch.bitmap.next_dirty(alone),
            None,
            "{name}: nobody wrote there"
        );
    }
}

#[test]
fn nothing_that_is_written_after_a_bitmap_was_cleared_is_missed() {
    for seed in 1..=RUNS {
        for mode in modes(seed) {
            no_change_is_missed((Choice::Threads, mode), seed);
        }
    }
}

/// A disk with a raw format on top of it.
struct Place {
    bench: Bench,
    _dir: tempfile::TempDir,
}

fn place(mode: Mode) -> Place {
    let dir = tempfile::tempdir().expect("a directory");
    let path = image(dir.path(), 1 << 20);
    let mut bench = Bench::new(Choice::Threads, mode);
    let file = support::file(&path, blockgraph::driver::file::Cache::Page);
    bench.open(named(file, "file"));
    let top = raw(Child::Named("file".to_owned()), Default::default());
    bench.open(named(top, "top"));
    Place { bench, _dir: dir }
}

impl Place {
    fn node(&self, name: &str) -> NodeId {
        self.bench.current.get().find(name).expect("a node")
    }

    fn dirty(&self, node: &str, name: &str) -> u64 {
        bitmap(&self.bench, node, name).dirty_bytes()
    }
}

#[test]
fn every_kind_of_change_is_noted_by_every_bitmap_on_its_way_and_reads_are_not() {
    for mode in modes(3) {
        let mut place = place(mode);
        for node in ["top", "file"] {
            for name in ["a", "b"] {
                add(&mut place.bench, node, new(name, 512, State::Recording));
            }
            add(&mut place.bench, node, new("off", 512, State::Disabled));
        }
        let top = place.node("top");
        place.bench.read(top, 0, 1 << 20);
        assert_eq!(place.dirty("top", "a"), 0);
        place.bench.write(top, 512, &[1; 1024]).expect("written");
        let kinds = [
            Kind::WriteZeroes(Unmap::Allow, Durability::Cached),
            Kind::Discard,
        ];
        for (at, kind) in (1..).zip(kinds) {
            let here = span(at << 16, 4096);
            assert_eq!(place.bench.plain(top, kind, here), Ok(()));
        }
        place
            .bench
            .plain(top, Kind::Flush, span(0, 0))
            .expect("flushed");
        for node in ["top", "file"] {
            for name in ["a", "b"] {
                assert_eq!(
                    place.dirty(node, name),
                    1024 + 2 * 4096,
                    "{mode:?} {node} {name}"
                );
            }
            assert_eq!(place.dirty(node, "off"), 0);
        }
    }
}

#[test]
fn a_bitmap_goes_where_its_node_goes_and_ends_with_it() {
    let mut place = place(Mode::Fast);
    add(&mut place.bench, "file", new("b", 4096, State::Recording));
    let below = place.node("file");
    let mut edit = Edit::begin(&place.bench.current);
    let filter = NewFilter {
        name: "filter".to_owned(),
        kind: "delay",
        common: common(),
        body: Body::Filter(Arc::new(Delay::new(0))),
    };
    let moved = edit.insert_above(below, filter).expect("inserted");
    let (_, leaving) = edit.commit().expect("published");
    drop(leaving);
    assert_ne!(moved, below);
    assert_eq!(report(&place.bench.current.get(), moved).len(), 1);
    assert_eq!(report(&place.bench.current.get(), below), []);
    let top = place.node("top");
    place.bench.write(top, 0, &[1; 512]).expect("written");
    assert_eq!(place.dirty("file", "b"), 4096);
    let memory = place.bench.current.get().bitmap_memory().clone();
    assert_ne!(memory.used_bytes(), 0);
    admin(&mut place.bench)
        .remove("file", "b")
        .expect("removed");
    place.bench.read(top, 0, 512);
    assert_eq!(memory.used_bytes(), 0);
}

#[test]
fn a_bitmap_has_the_size_of_its_node_and_forgets_what_was_cut_off() {
    let mut place = place(Mode::Fast);
    add(&mut place.bench, "file", new("b", 512, State::Recording));
    let file = place.node("file");
    place.bench.write(file, 0, &[1; 1 << 20]).expect("written");
    for (size, dirty) in [(4096, 4096), (1 << 20, 4096), (1 << 21, 4096)] {
        let bench = &mut place.bench;
        bench.lane.begin_batch();
        let resize =
            move |io: blockgraph::Io| async move { io.truncate(file, size, Prealloc::Off).await };
        bench.lane.spawn(file, 1, resize);
        bench.lane.end_batch();
        assert_eq!(bench.wait(), (1, Ok(())));
        let bitmap = bitmap(bench, "file", "b");
        assert_eq!((bitmap.size_bytes(), bitmap.dirty_bytes()), (size, dirty));
    }
}

#[test]
fn merging_makes_dirty_what_is_dirty_in_any_of_the_sources_whatever_their_granularities() {
    let mut place = place(Mode::Fast);
    for (name, granularity) in [
        ("fine", 512),
        ("coarse", 65536),
        ("same", 65536),
        ("to", 65536),
        ("to-fine", 512),
    ] {
        let state = match name.starts_with("to") {
            true => State::Disabled,
            false => State::Recording,
        };
        add(&mut place.bench, "top", new(name, granularity, state));
    }
    let top = place.node("top");
    place
        .bench
        .write(top, 100 << 10, &[1; 512])
        .expect("written");
    let from = |name: &str| Source {
        node: None,
        name: name.to_owned(),
    };
    let mut admin = admin(&mut place.bench);
    admin.clear("top", "same").expect("cleared");
    admin
        .merge("top", "to", &[from("fine"), from("same")])
        .expect("merged");
    admin
        .merge("top", "to-fine", &[from("coarse")])
        .expect("merged");
    assert_eq!(place.dirty("top", "to"), 65536);
    assert_eq!(place.dirty("top", "to-fine"), 65536);
    let to = bitmap(&place.bench, "top", "to-fine");
    assert_eq!(to.next_dirty(span(0, 1 << 20)), Some(span(65536, 65536)));
}

#[test]
fn a_merge_that_is_refused_changes_nothing() {
    let mut place = place(Mode::Fast);
    add(&mut place.bench, "top", new("a", 512, State::Recording));
    add(&mut place.bench, "top", new("to", 512, State::Disabled));
    let top = place.node("top");
    place.bench.write(top, 0, &[1; 512]).expect("written");
    let sources = ["a", "nosuch"].map(|name| Source {
        node: Some("top".to_owned()),
        name: name.to_owned(),
    });
    let merged = admin(&mut place.bench).merge("top", "to", &sources);
    assert!(matches!(merged, Err(BitmapError::NotFound(_))));
    assert_eq!(place.dirty("top", "to"), 0);
}

#[test]
fn bitmaps_of_backing_files_are_found_from_above_and_those_of_storage_are_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("disk.qcow2");
    qcow2::create(&path, "cluster_size=4096", 1 << 20);
    let base = image(dir.path(), 1 << 20);
    let mut bench = Bench::new(Choice::Threads, Mode::Fast);
    let base = support::file(&base, blockgraph::driver::file::Cache::Page);
    bench.open(named(base, "base"));
    let backing = Backing::Node(Child::Named("base".to_owned()));
    let disk = writes::image(&path, None, backing, Options::default());
    let disk = bench.open(named(disk, "disk"));
    let graph = bench.current.get();
    let file = graph.node(disk).expect("it").shape().child(Role::Image);
    let file = name_of(&bench, file.expect("a file"));
    add(&mut bench, "base", new("below", 512, State::Recording));
    add(&mut bench, &file, new("beside", 512, State::Recording));
    let graph = bench.current.get();
    let found = find_above(&graph, disk, "below").expect("found");
    assert_eq!(graph.node(found.node).expect("it").name(), "base");
    assert!(find_above(&graph, disk, "beside").is_err());
}

/// What is shown of a bitmap, and whether it is in use.
fn shown(place: &Place) -> (u64, bool) {
    let shown = report(&place.bench.current.get(), place.node("top"));
    (shown[0].dirty_bytes, shown[0].busy)
}

#[test]
fn a_bitmap_that_a_job_took_goes_on_recording_and_is_given_back_as_the_job_says() {
    let mut place = place(Mode::Fast);
    add(&mut place.bench, "top", new("b", 512, State::Recording));
    let top = place.node("top");
    let write = |place: &mut Place, at| place.bench.write(top, at, &[1; 512]).expect("written");
    write(&mut place, 0);
    let frozen = admin(&mut place.bench).freeze("top", "b").expect("free");
    assert!(matches!(
        admin(&mut place.bench).freeze("top", "b"),
        Err(BitmapError::Busy(_))
    ));
    write(&mut place, 4096);
    write(&mut place, 8192);
    assert_eq!(
        frozen.content().next_dirty(span(0, 1 << 20)),
        Some(span(0, 512))
    );
    assert_eq!(shown(&place), (512, true), "what the job has");
    frozen.take_back();
    assert_eq!(shown(&place), (3 * 512, false), "nothing is lost");
    let frozen = admin(&mut place.bench).freeze("top", "b").expect("free");
    write(&mut place, 0);
    frozen.mark(span(16384, 512));
    frozen.keep_new();
    let left = bitmap(&place.bench, "top", "b");
    assert_eq!(left.next_dirty(span(0, 1 << 20)), Some(span(0, 512)));
    assert_eq!(left.next_dirty(span(512, 1 << 19)), Some(span(16384, 512)));
    assert_eq!(shown(&place), (2 * 512, false), "what is new, and was left");
}

#[test]
fn what_a_bitmap_said_is_said_again_when_its_change_is_undone() {
    let mut place = place(Mode::Fast);
    add(&mut place.bench, "top", new("b", 512, State::Recording));
    add(
        &mut place.bench,
        "top",
        new("other", 4096, State::Recording),
    );
    let top = place.node("top");
    place.bench.write(top, 512, &[1; 512]).expect("written");
    let merged = [Source {
        node: None,
        name: "other".to_owned(),
    }];
    let saved = admin(&mut place.bench).save("top", "b").expect("saved");
    let mut admin = admin(&mut place.bench);
    admin.clear("top", "b").expect("cleared");
    admin.merge("top", "b", &merged).expect("merged");
    assert_eq!(place.dirty("top", "b"), 4096);
    saved.restore();
    assert_eq!(place.dirty("top", "b"), 512);
}
