//! Copy-before-write: whatever guests do and whatever becomes of the target, the snapshot is the disk as it was when the
//! filter came, or nothing at all; and guests find what they wrote.

mod support;

use blockgraph::bitmap::{BitmapAdmin, BitmapName, Keeping, NewBitmap, State};
use blockgraph::driver::file::{Cache, FileDriver, FileKind, FileParts, Flushes};
use blockgraph::filter::copy_before_write::{CbwOptions, OnCbwError};
use blockgraph::graph::edit::{Edit, EditError, LeaveError, Leaving};
use blockgraph::graph::open::{Child, DriverSpec, FilterSpec, NodeSpec};
use blockgraph::graph::perm::{self, Attachment, Wants};
use blockgraph::graph::status::{Until, status_above};
use blockgraph::graph::{Common, Role};
use blockgraph::map::{Plan, Walk, walk};
use blockgraph::request::Prealloc;
use blockgraph::{Current, Dir, Graph, Kind, Limits, Mode, NodeId, Span, Started, Unmap};
use ring::sim::{Act, Config, Disk, FileConfig, Kind as Op, Rule, Times, Weather};
use ring::{Align, Choice, Durability, Errno, FileId, Mem};
use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use support::cow::WRITE;
use support::{Bench, Chance, common, engines, file, modes, named, raw, span};

const CLUSTER: u64 = 64 << 10;
/// The last cluster is not whole.
const SIZE: u64 = 11 * CLUSTER + 1536;
const SOURCE: FileId = FileId(0);
const TARGET: FileId = FileId(1);
const EACCES: Errno = Errno(libc::EACCES);
/// So many turns of a simulated ring.
const TIMEOUT_NS: u64 = 20_000;

fn pattern(seed: u64, len: u64) -> Vec<u8> {
    let mut chance = Chance(seed);
    let words = (0..len.div_ceil(8)).flat_map(|_| (chance.next() | 1).to_le_bytes());
    words.take(len as usize).collect()
}

fn filter(options: CbwOptions) -> NodeSpec {
    filter_of(options, None)
}

fn filter_of(options: CbwOptions, bitmap: Option<BitmapName>) -> NodeSpec {
    let spec = FilterSpec::CopyBeforeWrite {
        file: Child::Named("source".to_owned()),
        target: Child::Named("target".to_owned()),
        bitmap,
        options,
    };
    let spec = NodeSpec {
        name: None,
        common: common(),
        driver: DriverSpec::Filter(Box::new(spec)),
    };
    named(spec, "cbw")
}

fn snapshot_of(name: &str) -> NodeSpec {
    NodeSpec {
        name: Some("snapshot".to_owned()),
        common: common(),
        driver: DriverSpec::SnapshotAccess {
            file: Child::Named(name.to_owned()),
        },
    }
}

/// A guest's disk (`top`, a raw on `source`) and a target, and once it is taken, a snapshot.
struct World {
    bench: Bench,
    top: NodeId,
    snapshot: Option<NodeId>,
    guest: Attachment,
    model: Vec<u8>,
}

fn sim_file(graph: &mut Graph, disk: &Disk, name: &str, id: FileId) {
    assert_eq!(graph.new_file_id(), id);
    let file = disk.open(id).expect("a file of the disk");
    let parts = FileParts {
        file: file.clone(),
        kind: FileKind::Regular,
        size_bytes: SIZE,
        limits: Limits::PLAIN,
        cache: Cache::Page,
        flushes: Flushes::Sync,
    };
    graph.insert(blockgraph::graph::NewNode {
        name: name.to_owned(),
        kind: "file",
        common: common(),
        body: blockgraph::graph::Body::Driver(Arc::new(FileDriver::from_parts(parts))),
        shape: blockgraph::graph::Shape::Leaf,
        files: vec![file],
    });
}

fn world(seed: u64, mode: Mode) -> (World, Disk) {
    let bytes = pattern(seed, SIZE);
    let mut config = Config::new(seed).weather(Weather::ROUGH);
    for (id, bytes) in [(SOURCE, bytes.clone()), (TARGET, vec![0xdd; SIZE as usize])] {
        config = config.file_with(FileConfig {
            id,
            bytes,
            align: Align::NONE,
            size_bytes_max: SIZE,
        });
    }
    let disk = config.disk();
    let bench = Bench::new(Choice::Sim(disk.clone()), mode);
    let mut graph = (*bench.current.get()).clone();
    sim_file(&mut graph, &disk, "source", SOURCE);
    sim_file(&mut graph, &disk, "target", TARGET);
    bench.current.publish(graph);
    (World::above(bench, bytes), disk)
}

impl World {
    fn above(mut bench: Bench, model: Vec<u8>) -> World {
        let source = Child::Named("source".to_owned());
        let top = bench.open(named(raw(source, Default::default()), "top"));
        let guest = perm::attach(&bench.current, top, Wants::READ_WRITE, None).expect("attached");
        World {
            bench,
            top,
            snapshot: None,
            guest,
            model,
        }
    }

    /// Takes the snapshot; nothing of the guest's is under way.
    fn take_snapshot(&mut self, options: CbwOptions) {
        self.take(filter(options));
    }

    fn take(&mut self, filter: NodeSpec) {
        let filter = self.bench.open(filter);
        let mut edit = Edit::begin(&self.bench.current);
        edit.replace_child(self.top, Role::Image, filter)
            .expect("a draft");
        drop(edit.commit().expect("committed"));
        self.snapshot = Some(self.bench.open(snapshot_of("cbw")));
    }

    /// Nodes that left are closed; the lane is not on an older generation.
    fn finish(&mut self, leaving: Leaving) {
        self.bench.lane.begin_batch();
        self.bench.lane.end_batch();
        let patience = Instant::now() + Duration::from_secs(20);
        let finished = leaving.finish(&mut self.bench.control, patience);
        finished.expect("nobody uses them any more");
    }

    fn read_snapshot(&mut self, span: Span) -> Result<Vec<u8>, Errno> {
        let node = self.snapshot.expect("taken");
        let mem = Mem::zeroed(span.len as usize).expect("memory");
        self.bench.ask(node, Kind::Read, span, &mem)?;
        let mut bytes = vec![0; span.len as usize];
        mem.load(0, &mut bytes);
        Ok(bytes)
    }

    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.bench.write(self.top, at, bytes)?;
        self.model[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
}

/// A request under way.
enum Doing {
    /// What a read may see, byte by byte, is the model before and what is being written.
    Read(Span, Mem, Vec<Vec<u8>>),
    Write(Span, Vec<u8>, Mem),
    Snapshot(Span, Mem),
}

/// What becomes of writes to the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    None,
    Errors,
    Timeouts,
}

struct Race {
    world: World,
    chance: Chance,
    doing: Vec<Option<Doing>>,
    left: u64,
    was: Vec<u8>,
    on_error: OnCbwError,
    trouble: Trouble,
    broken: u64,
}

impl Race {
    fn writes(&self) -> impl Iterator<Item = (Span, &[u8])> {
        self.doing.iter().flatten().filter_map(|doing| match doing {
            Doing::Write(span, bytes, _) => Some((*span, bytes.as_slice())),
            _ => None,
        })
    }

    fn some_span(&mut self) -> Span {
        let at = self.chance.below(SIZE - 1);
        let most = match self.chance.below(4) {
            0 => 200_000,
            _ => 6000,
        };
        span(at, 1 + self.chance.below((SIZE - at).min(most)))
    }

    fn start(&mut self) {
        let span = self.some_span();
        match self.chance.below(8) {
            0 | 1 => self.start_read(span),
            2..=4 => self.start_write(span, WRITE),
            5 => self.start_write(span, Kind::WriteZeroes(Unmap::Keep, Durability::Cached)),
            _ => self.start_snapshot(span),
        }
    }

    fn launch(&mut self, node: NodeId, kind: Kind, span: Span, mem: &Mem, doing: Doing) {
        let token = self.doing.len() as u64;
        self.doing.push(Some(doing));
        match self.world.bench.start(node, kind, span, mem, token) {
            Started::Done(outcome) => self.end(token, outcome),
            _ => self.left += 1,
        }
    }

    fn start_snapshot(&mut self, span: Span) {
        let Some(node) = self.world.snapshot else {
            return;
        };
        let mem = Mem::zeroed(span.len as usize).expect("memory");
        self.launch(
            node,
            Kind::Read,
            span,
            &mem,
            Doing::Snapshot(span, mem.clone()),
        );
    }

    fn start_read(&mut self, span: Span) {
        let model = &self.world.model[span.at as usize..span.end() as usize];
        let mut may: Vec<Vec<u8>> = vec![model.to_vec()];
        for (written, bytes) in self.writes() {
            may.push(overlaid(model, span, written, bytes));
        }
        let mem = Mem::zeroed(span.len as usize).expect("memory");
        let doing = Doing::Read(span, mem.clone(), may);
        self.launch(self.world.top, Kind::Read, span, &mem, doing);
    }

    fn start_write(&mut self, span: Span, kind: Kind) {
        // Two writes to one byte at once may end as either; that would tell nothing.
        if self.writes().any(|(other, _)| other.overlaps(span)) {
            return;
        }
        let (bytes, mem) = match kind {
            WRITE => {
                let bytes = pattern(self.chance.next(), span.len);
                (bytes, Mem::zeroed(span.len as usize).expect("memory"))
            }
            _ => (vec![0; span.len as usize], Mem::none()),
        };
        if !mem.is_empty() {
            mem.store(0, &bytes);
        }
        let model = &self.world.model;
        for doing in self.doing.iter_mut().flatten() {
            if let Doing::Read(read, _, may) = doing {
                let before = &model[read.at as usize..read.end() as usize];
                may.push(overlaid(before, *read, span, &bytes));
            }
        }
        let doing = Doing::Write(span, bytes, mem.clone());
        self.launch(self.world.top, kind, span, &mem, doing);
    }

    fn end(&mut self, token: u64, outcome: Result<(), Errno>) {
        match self.doing[token as usize].take().expect("under way") {
            Doing::Write(span, bytes, _mem) => match outcome {
                Ok(()) => {
                    self.world.model[span.at as usize..span.end() as usize].copy_from_slice(&bytes);
                }
                Err(errno) => {
                    assert_ne!(self.trouble, Trouble::None, "{errno}");
                    assert_eq!(self.on_error, OnCbwError::BreakGuestWrite, "{errno}");
                }
            },
            Doing::Read(span, mem, may) => {
                assert_eq!(outcome, Ok(()));
                let got = loaded(&mem);
                let known = |at: usize| may.iter().any(|may| may[at] == got[at]);
                let wrong = (0..got.len()).find(|at| !known(*at));
                assert_eq!(wrong, None, "the guest's read of {span}");
            }
            Doing::Snapshot(span, mem) => match outcome {
                Ok(()) => {
                    let was = &self.was[span.at as usize..span.end() as usize];
                    assert!(loaded(&mem) == was, "the snapshot's {span}");
                }
                Err(errno) => {
                    assert_eq!(errno, EACCES);
                    assert_ne!(self.trouble, Trouble::None);
                    assert_eq!(self.on_error, OnCbwError::BreakSnapshot);
                    self.broken += 1;
                }
            },
        }
    }

    fn run(&mut self, requests: u64) {
        for nth in 0..requests {
            self.start();
            let most = if nth + 1 == requests { 1 } else { 12 };
            while self.left > self.chance.below(most) {
                let (token, outcome) = self.world.bench.wait();
                self.left -= 1;
                self.end(token, outcome);
            }
        }
    }
}

fn loaded(mem: &Mem) -> Vec<u8> {
    let mut bytes = vec![0; mem.len()];
    mem.load(0, &mut bytes);
    bytes
}

/// What is at `span` when `bytes` are written to `written`.
fn overlaid(before: &[u8], span: Span, written: Span, bytes: &[u8]) -> Vec<u8> {
    let mut after = before.to_vec();
    for at in span.at.max(written.at)..span.end().min(written.end()) {
        after[(at - span.at) as usize] = bytes[(at - written.at) as usize];
    }
    after
}

fn make_trouble(disk: &Disk, trouble: Trouble) {
    let to_target = |act, per_mille| {
        let rule = Rule::every(act).times(Times::Chance(per_mille));
        rule.when(|seen| seen.file == TARGET && matches!(seen.kind, Op::Write | Op::Zero))
    };
    match trouble {
        Trouble::None => disk.rule(to_target(Act::Delay(10), 300)),
        Trouble::Errors => {
            disk.rule(to_target(Act::Fail(libc::EIO), 60));
            disk.rule(to_target(Act::Refuse(libc::ENOSPC), 60));
        }
        Trouble::Timeouts => {
            disk.rule(to_target(Act::Delay(200), 100));
            disk.rule(to_target(Act::Delay(5), 500));
        }
    }
}

/// True if the snapshot was broken.
fn race(seed: u64, mode: Mode) -> bool {
    println!("seed {seed} {mode:?}");
    let trouble = [Trouble::None, Trouble::Errors, Trouble::Timeouts][(seed % 3) as usize];
    let on_error =
        [OnCbwError::BreakGuestWrite, OnCbwError::BreakSnapshot][(seed / 3 % 2) as usize];
    let (world, disk) = world(seed, mode);
    let mut race = Race {
        world,
        chance: Chance(seed),
        doing: Vec::new(),
        left: 0,
        was: Vec::new(),
        on_error,
        trouble,
        broken: 0,
    };
    race.run(6);
    race.was = race.world.model.clone();
    race.world.take_snapshot(CbwOptions {
        on_error,
        timeout_ns: if trouble == Trouble::Timeouts {
            TIMEOUT_NS
        } else {
            0
        },
        min_cluster_bytes: 0,
    });
    make_trouble(&disk, trouble);
    race.run(60);
    disk.clear_rules();
    race.run(10);
    let whole = span(0, SIZE);
    let was_broken = match race.world.read_snapshot(whole) {
        Ok(bytes) => {
            assert!(bytes == race.was, "seed {seed}: the snapshot at the end");
            assert_eq!(race.broken, 0, "what is broken stays so");
            false
        }
        Err(errno) => {
            assert_eq!(errno, EACCES);
            assert_eq!(on_error, OnCbwError::BreakSnapshot);
            true
        }
    };
    let top = race.world.top;
    assert!(
        race.world.bench.read(top, 0, SIZE as usize) == race.world.model,
        "seed {seed}"
    );
    drop(race);
    was_broken
}

#[test]
fn the_snapshot_is_the_disk_as_it_was_or_nothing_and_guests_find_what_they_wrote() {
    let mut broken = 0;
    for seed in 0..200 {
        for mode in modes(seed) {
            broken += u64::from(race(seed, mode));
        }
    }
    println!("{broken} snapshots broken");
    assert!(broken > 20, "the trouble is some");
}

#[test]
fn a_finished_copy_is_passed_by_lookup_alone() {
    let (mut world, _disk) = world(1, Mode::Fast);
    world.take_snapshot(CbwOptions::default());
    let is_mapped = |world: &World, dir, span| {
        let mut plan = Plan::default();
        walk(&world.bench.current.get(), world.top, dir, span, &mut plan) == Walk::Mapped
    };
    let whole = span(0, SIZE);
    assert!(is_mapped(&world, Dir::Read, whole) && !is_mapped(&world, Dir::Write, whole));
    world.write(CLUSTER + 5, &[7; 10]).expect("written");
    assert!(is_mapped(&world, Dir::Write, span(CLUSTER, CLUSTER)));
    assert!(!is_mapped(&world, Dir::Write, span(CLUSTER, CLUSTER + 1)));
    let zeroes = Kind::WriteZeroes(Unmap::Keep, Durability::Cached);
    world
        .bench
        .plain(world.top, zeroes, whole)
        .expect("written");
    assert!(is_mapped(&world, Dir::Write, whole));
    assert!(world.read_snapshot(whole) == Ok(pattern(1, SIZE)));
}

#[test]
fn concurrent_writes_to_one_cluster_copy_it_once() {
    for mode in modes(9) {
        let (mut world, disk) = world(9, mode);
        world.take_snapshot(CbwOptions::default());
        let skip = disk.log().len();
        let bytes: Vec<Mem> = (0..8).map(|_| Mem::zeroed(512).expect("memory")).collect();
        for (nth, mem) in bytes.iter().enumerate() {
            let at = span(3 * CLUSTER + nth as u64 * 1024, 512);
            let started = world.bench.start(world.top, WRITE, at, mem, nth as u64);
            assert_eq!(started, Started::Pending);
        }
        for _ in &bytes {
            assert_eq!(world.bench.wait().1, Ok(()));
        }
        let log = disk.log_from(skip);
        let copied = log.iter().filter_map(|event| match event {
            ring::sim::Event::Submitted(seen) if seen.file == SOURCE && seen.kind == Op::Read => {
                Some(seen.len_bytes)
            }
            _ => None,
        });
        // Short transfers are read on; nothing is read from the beginning again.
        let begun = copied.filter(|len| *len == CLUSTER).count();
        assert_eq!(begun, 1, "{mode:?}");
    }
}

#[test]
fn a_guest_write_waits_for_the_reader_of_its_own_bytes_and_no_other() {
    for mode in modes(4) {
        let (mut world, disk) = world(4, mode);
        disk.set_weather(Weather::CALM);
        world.take_snapshot(CbwOptions::default());
        let snapshot = world.snapshot.expect("taken");
        let held = Held::next_read(&disk);
        let mem = Mem::zeroed(4096).expect("memory");
        let read = span(CLUSTER, 4096);
        world.bench.start(snapshot, Kind::Read, read, &mem, 1);
        let mut ends = Vec::new();
        world.bench.pump(&mut ends);
        let (beside, within) = (
            Mem::zeroed(512).expect("memory"),
            Mem::zeroed(512).expect("memory"),
        );
        world
            .bench
            .start(world.top, WRITE, span(CLUSTER + 4096, 512), &beside, 2);
        world
            .bench
            .start(world.top, WRITE, span(CLUSTER + 512, 512), &within, 3);
        assert_eq!(world.bench.wait(), (2, Ok(())), "{mode:?}");
        // A second reader waits for nobody: the cluster is in the target by now.
        let other = Mem::zeroed(4096).expect("memory");
        world.bench.start(snapshot, Kind::Read, read, &other, 4);
        assert_eq!(world.bench.wait(), (4, Ok(())), "{mode:?}");
        world.bench.pump(&mut ends);
        assert_eq!(ends, [], "{mode:?}");
        drop(held);
        let mut last = [world.bench.wait(), world.bench.wait()];
        last.sort_by_key(|(token, _)| *token);
        assert_eq!(last, [(1, Ok(())), (3, Ok(()))], "{mode:?}");
        let was = pattern(4, SIZE)[CLUSTER as usize..CLUSTER as usize + 4096].to_vec();
        assert!(loaded(&mem) == was && loaded(&other) == was, "{mode:?}");
    }
}

#[test]
fn what_the_reader_discards_is_copied_no_more_and_read_by_nobody() {
    for mode in modes(2) {
        let (mut world, disk) = world(2, mode);
        world.take_snapshot(CbwOptions::default());
        let snapshot = world.snapshot.expect("taken");
        world.write(2 * CLUSTER, &[1; 512]).expect("written");
        let gone = span(CLUSTER - 1, 2 * CLUSTER + 1);
        world
            .bench
            .plain(snapshot, Kind::Discard, gone)
            .expect("discarded");
        assert!(
            world.read_snapshot(span(CLUSTER - 1, 1)).is_ok(),
            "not whole"
        );
        for at in [CLUSTER, 2 * CLUSTER, 3 * CLUSTER - 1] {
            assert_eq!(world.read_snapshot(span(at, 1)), Err(EACCES));
        }
        assert!(world.read_snapshot(span(3 * CLUSTER, CLUSTER)).is_ok());
        let skip = disk.log().len();
        world.write(CLUSTER, &[2; 512]).expect("written");
        let to_target = |event: &ring::sim::Event| matches!(event, ring::sim::Event::Submitted(seen) if seen.file == TARGET);
        assert!(!disk.log_from(skip).iter().any(to_target), "{mode:?}");
        let write = world.bench.write(snapshot, 0, &[0; 512]);
        assert_eq!(write, Err(Errno::NOTSUP));
    }
}

#[test]
fn the_snapshot_has_the_clusters_that_are_dirty_in_the_bitmap_when_the_filter_is_opened() {
    for mode in modes(5) {
        let (mut world, disk) = world(5, mode);
        let name = |node: &str| BitmapName {
            node: node.to_owned(),
            name: "b".to_owned(),
        };
        add_bitmap(&mut world.bench, "source");
        world.write(3 * CLUSTER - 1, &[1; 2]).expect("written");
        world.write(SIZE - 1, &[2]).expect("written");
        let was = world.model.clone();
        world.take(filter_of(CbwOptions::default(), Some(name("source"))));
        // What is written later is dirty too, and in no snapshot for that.
        for at in 0..12 {
            let written = world.write((at * CLUSTER + 7).min(SIZE - 1), &[3]);
            written.expect("written");
        }
        let has = |at: u64| [2, 3, 11].contains(&at);
        for at in 0..12 {
            let part = span(at * CLUSTER, CLUSTER.min(SIZE - at * CLUSTER));
            let expected = match has(at) {
                true => Ok(was[part.at as usize..part.end() as usize].to_vec()),
                false => Err(EACCES),
            };
            assert!(
                world.read_snapshot(part) == expected,
                "{mode:?} cluster {at}"
            );
        }
        let target = disk.images()[&TARGET].clone();
        let clusters = target.chunks(CLUSTER as usize).enumerate();
        for (at, bytes) in clusters.filter(|(at, _)| !has(*at as u64)) {
            assert!(
                bytes.iter().all(|byte| *byte == 0xdd),
                "{mode:?} cluster {at}"
            );
        }
    }
}

fn add_bitmap(bench: &mut Bench, node: &str) {
    let mut admin = BitmapAdmin {
        current: &bench.current,
        control: &mut bench.control,
    };
    let new = NewBitmap {
        name: "b".to_owned(),
        granularity_bytes: Some(4096),
        state: State::Recording,
        keeping: Keeping::InMemory,
    };
    admin.add(node, new).expect("added");
}

#[test]
fn what_a_smaller_disk_loses_stays_in_the_snapshot() {
    for mode in modes(8) {
        let (mut world, _disk) = world(8, mode);
        let was = world.model.clone();
        world.take_snapshot(CbwOptions::default());
        for size in [SIZE - 1536, 2 * CLUSTER + 512, 4 * CLUSTER] {
            let top = world.top;
            let smaller = move |io: blockgraph::Io| async move {
                io.truncate(top, size, Prealloc::Off).await
            };
            world.bench.lane.begin_batch();
            world.bench.lane.spawn(top, 1, smaller);
            world.bench.lane.end_batch();
            assert_eq!(world.bench.wait().1, Ok(()), "{mode:?}");
            let now = world.bench.current.get().info(top).expect("there");
            assert_eq!(now.size_bytes, size, "{mode:?}");
        }
        world.write(2 * CLUSTER, &[1; 1000]).expect("written");
        let whole = world.read_snapshot(span(0, SIZE));
        assert!(whole == Ok(was), "{mode:?}");
    }
}

#[test]
fn the_status_of_a_snapshot_is_that_of_where_it_would_be_read_from() {
    let (mut world, _disk) = world(3, Mode::Fast);
    world.take_snapshot(CbwOptions::default());
    world.write(CLUSTER, &[1; 512]).expect("written");
    let snapshot = world.snapshot.expect("taken");
    let graph = world.bench.current.get();
    let (source, target) = (graph.find("source"), graph.find("target"));
    let found = Rc::new(RefCell::new(Vec::new()));
    let to = found.clone();
    world.bench.lane.begin_batch();
    world.bench.lane.spawn(snapshot, 1, move |io| async move {
        for at in [0, CLUSTER + 5, 2 * CLUSTER] {
            let rest = span(at, SIZE - at);
            let found = status_above(&io, snapshot, Until::Bottom, rest).await?;
            to.borrow_mut()
                .push((found.status.offset(), found.status.len));
        }
        Ok(())
    });
    world.bench.lane.end_batch();
    assert_eq!(world.bench.wait().1, Ok(()));
    let at = |node: Option<NodeId>, at| Some((node.expect("there"), at));
    let expected = [
        (at(source, 0), CLUSTER),
        (at(target, CLUSTER + 5), CLUSTER - 5),
        (at(source, 2 * CLUSTER), SIZE - 2 * CLUSTER),
    ];
    assert_eq!(*found.borrow(), expected);
}

#[test]
fn what_keeps_no_snapshot_may_stand_there_and_is_read_by_nobody() {
    let (mut world, _disk) = world(3, Mode::Fast);
    world.snapshot = Some(world.bench.open(snapshot_of("source")));
    assert_eq!(world.read_snapshot(span(0, 512)), Err(Errno::NOTSUP));
    let snapshot = world.snapshot.expect("there");
    assert_eq!(
        world.bench.plain(snapshot, Kind::Discard, span(0, SIZE)),
        Ok(())
    );
}

fn opened(world: &mut World, spec: NodeSpec) -> Result<NodeId, String> {
    let bench = &mut world.bench;
    let opened = blockgraph::graph::open::open(&bench.current, spec, &mut bench.control);
    opened.map(|(id, _)| id).map_err(|error| error.to_string())
}

#[test]
fn nobody_writes_the_source_past_a_filter_that_is_used() {
    let (mut world, _disk) = world(3, Mode::Fast);
    opened(&mut world, filter(CbwOptions::default())).expect("unused, it is no matter");
    let refused = opened(&mut world, snapshot_of("cbw")).expect_err("the guest writes");
    assert_eq!(
        refused,
        "Permission conflict on node 'source': permissions 'write' are both required by node 'top' (uses node 'source' as \
         'file' child) and unshared by node 'cbw' (uses node 'source' as 'file' child)."
    );
    let left = world.bench.current.get();
    assert!(left.find("snapshot").is_none(), "nothing is left of it");
    drop(world.guest);
    world.bench.open(snapshot_of("cbw"));
    let refused = perm::attach(&world.bench.current, world.top, Wants::READ_WRITE, None);
    let refused = refused.expect_err("a writer it would not see").to_string();
    assert!(
        refused.contains("unshared by node 'cbw' (uses node 'source' as 'file' child)"),
        "{refused}"
    );
}

#[test]
fn a_snapshot_in_use_keeps_its_filter_and_goes_when_its_readers_have_gone() {
    let (mut world, disk) = world(6, Mode::Fast);
    disk.set_weather(Weather::CALM);
    world.take_snapshot(CbwOptions::default());
    let (current, snapshot) = (world.bench.current.clone(), world.snapshot.expect("taken"));
    let source = current.get().find("source").expect("there");
    let mut edit = Edit::begin(&current);
    edit.replace_child(world.top, Role::Image, source)
        .expect("a draft");
    let refused = edit
        .commit()
        .expect_err("it would not see the guest")
        .to_string();
    assert!(refused.contains("unshared by node 'cbw'"), "{refused}");

    let held = Held::next_read(&disk);
    let mem = Mem::zeroed(512).expect("memory");
    world
        .bench
        .start(snapshot, Kind::Read, span(0, 512), &mem, 1);
    let mut ends = Vec::new();
    world.bench.pump(&mut ends);
    let leaving = edited(&current, |edit| edit.remove("snapshot"));
    let soon = Instant::now() + Duration::from_millis(50);
    let finished = leaving.finish(&mut world.bench.control, soon);
    let (error, leaving) = finished.expect_err("it is being read");
    assert!(matches!(error, LeaveError::StillUsed), "{error}");
    drop(held);
    assert_eq!(world.bench.wait(), (1, Ok(())));
    assert!(loaded(&mem) == world.model[..512]);
    world.finish(leaving.expect("handed back"));

    let top = world.top;
    let to_source = edited(&current, |edit| {
        edit.replace_child(top, Role::Image, source)
    });
    world.finish(to_source);
    world.finish(edited(&current, |edit| edit.remove("cbw")));
    let target = disk.images()[&TARGET].clone();
    world.write(0, &[1; 512]).expect("written past nothing");
    assert!(
        disk.images()[&TARGET] == target,
        "nothing is copied any more"
    );
}

fn edited(
    current: &Arc<Current>,
    change: impl FnOnce(&mut Edit) -> Result<(), EditError>,
) -> Leaving {
    let mut edit = Edit::begin(current);
    change(&mut edit).expect("a draft");
    edit.commit().expect("committed").1
}

/// Reads of the source that do not end; they do when this is gone, lest a failed test wait for them for ever.
struct Held(Disk);

impl Held {
    fn next_read(disk: &Disk) -> Held {
        let rule = Rule::every(Act::Hold).times(Times::Next(1));
        disk.rule(rule.when(|seen| seen.file == SOURCE && seen.kind == Op::Read));
        Held(disk.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.release_all();
    }
}

#[test]
fn a_filter_that_cannot_be_leaves_nothing_behind() {
    let (mut world, _disk) = world(3, Mode::Fast);
    let options = |min_cluster_bytes| CbwOptions {
        min_cluster_bytes,
        ..CbwOptions::default()
    };
    let before = world.bench.current.generation();
    let refused = opened(&mut world, filter(options(3))).expect_err("no power of two");
    assert_eq!(
        refused,
        "Cannot create block-copy-state: min-cluster-size needs to be a power of 2"
    );
    let mut spec = filter(options(0));
    if let DriverSpec::Filter(filter) = &mut spec.driver
        && let FilterSpec::CopyBeforeWrite { target, .. } = filter.as_mut()
    {
        let read_only = Common {
            access: blockgraph::graph::Access::ReadOnly,
            ..common()
        };
        let inline = NodeSpec {
            common: read_only,
            ..raw(Child::Named("target".to_owned()), Default::default())
        };
        *target = Child::Inline(Box::new(inline));
    }
    let refused = opened(&mut world, spec).expect_err("a target that takes no writes");
    assert_eq!(refused, "Block node is read-only");
    assert_eq!(world.bench.current.generation(), before);
    let sole = Wants {
        needs: perm::Perms::WRITE,
        shares: perm::Perms::NONE,
    };
    let target = world.bench.current.get().find("target").expect("there");
    perm::attach(&world.bench.current, target, sole, None).expect("nobody uses it");
}

/// Real files and threads: each writer has a part of its own, and one thread takes the snapshot meanwhile.
#[test]
fn threads_write_while_the_snapshot_is_taken_away_from_real_files() {
    for engine in engines() {
        for seed in 0..12 {
            // The kernel closes a ring's files, and gives their locks back, when it comes to it: no two cases share one.
            let dir = tempfile::tempdir().expect("a directory");
            threads(dir.path(), engine.clone(), seed);
        }
    }
}

fn threads(dir: &Path, engine: Choice, seed: u64) {
    println!("seed {seed} {engine:?}");
    let mode = modes(seed)[(seed % 3) as usize];
    let was = pattern(seed, SIZE);
    let (source, target) = (dir.join("source"), dir.join("target"));
    std::fs::write(&source, &was).expect("written");
    std::fs::write(&target, vec![0; SIZE as usize]).expect("written");
    let mut bench = Bench::new(engine.clone(), mode);
    bench.open(named(file(&source, Cache::Page), "source"));
    bench.open(named(file(&target, Cache::Page), "target"));
    let mut world = World::above(bench, was.clone());
    world.take_snapshot(CbwOptions::default());
    let (snapshot, top) = (world.snapshot.expect("taken"), world.top);
    let (current, epochs) = (world.bench.current.clone(), world.bench.epochs.clone());
    const WRITERS: u64 = 2;
    let writing = AtomicUsize::new(WRITERS as usize);
    std::thread::scope(|scope| {
        for nth in 0..WRITERS {
            let (current, epochs, engine) = (current.clone(), epochs.clone(), engine.clone());
            let writing = &writing;
            scope.spawn(move || {
                let mut bench = Bench::on(current, epochs, engine, mode);
                let mut chance = Chance(seed * 10 + nth);
                for _ in 0..60 {
                    // Interleaved sectors: the writers meet in every cluster.
                    let sector = chance.below(SIZE / 512 / WRITERS) * WRITERS + nth;
                    let bytes = pattern(chance.next(), 512);
                    bench.write(top, sector * 512, &bytes).expect("written");
                    assert!(bench.read(top, sector * 512, 512) == bytes);
                }
                writing.fetch_sub(1, Ordering::SeqCst);
            });
        }
        let mut chance = Chance(seed);
        let mut is_last = false;
        while !is_last {
            is_last = writing.load(Ordering::SeqCst) == 0;
            let at = chance.below(SIZE - 1);
            let len = 1 + chance.below((SIZE - at).min(300_000));
            let bytes = world.bench.read(snapshot, at, len as usize);
            assert!(
                bytes == was[at as usize..(at + len) as usize],
                "seed {seed}"
            );
        }
    });
    assert!(
        world.bench.read(snapshot, 0, SIZE as usize) == was,
        "seed {seed}"
    );
}
