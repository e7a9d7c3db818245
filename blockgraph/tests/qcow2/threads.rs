//! Threads that write one image at once, each with a lane and a ring of its own, as queue threads do; and, meanwhile, one
//! that makes and deletes snapshots.

use crate::support;
use blockgraph::driver::qcow2::Options;
use blockgraph::driver::qcow2::format::snapshot_table::Taken;
use blockgraph::driver::qcow2::snapshot::NewSnapshot;
use blockgraph::graph::open::Backing;
use blockgraph::pin::Epochs;
use blockgraph::{Current, Kind, Mode, NodeId, Started, Unmap};
use ring::{Choice, Durability, Mem};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use support::history::{Change, Moment, Sector, Sure, is_of_one_moment};
use support::sectors::{SECTOR, Version, stamp, versions};
use support::sim::with;
use support::{Bench, Chance, qcow2, span, writes};

const SECTORS: usize = 4096;
const THREADS: usize = 4;
const BATCHES: usize = 60;

/// Which sectors a thread writes.
#[derive(Clone, Copy, Debug)]
enum Share {
    /// A part of the disk for each.
    Parts,
    /// Every fourth 2 KiB: all of them in each cluster.
    Stripes,
    /// All of them.
    Everything,
}

impl Share {
    /// A range for a request of thread `thread`.
    fn pick(self, thread: usize, chance: &mut Chance) -> (usize, usize) {
        let part = SECTORS / THREADS;
        let unit = [1, 8, 8][chance.below(3) as usize];
        let len = (1 + chance.below(8) as usize) * unit;
        match self {
            Share::Parts => {
                let at = chance.below((part / unit) as u64) as usize * unit;
                (thread * part + at, len.min(part - at))
            }
            Share::Stripes => {
                let stripe = chance.below((SECTORS / 16) as u64) as usize;
                let skip = chance.below(4) as usize;
                (stripe * 16 + thread * 4 + skip, 4 - skip)
            }
            Share::Everything => {
                let at = chance.below((SECTORS / 4 / unit) as u64) as usize * unit;
                (at, len)
            }
        }
    }
}

/// What all of a run share.
#[derive(Clone)]
struct Shared {
    current: Arc<Current>,
    epochs: Arc<Epochs>,
    node: NodeId,
    clock: Arc<AtomicU64>,
    writing: Arc<AtomicUsize>,
    choice: Choice,
    mode: Mode,
}

impl Shared {
    fn tick(&self) -> Moment {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn bench(&self) -> Bench {
        let (current, epochs) = (self.current.clone(), self.epochs.clone());
        Bench::on(current, epochs, self.choice.clone(), self.mode)
    }
}

/// A change of a range.
struct Done {
    at: usize,
    len: usize,
    change: Change,
}

/// One thread's writes; what it has done.
fn write(shared: &Shared, share: Share, thread: usize, seed: u64) -> Vec<Done> {
    let mut bench = shared.bench();
    let mut chance = Chance(seed * 100 + thread as u64);
    let mut done = Vec::new();
    for batch in 0..BATCHES {
        let mut running: Vec<(Done, Mem)> = Vec::new();
        let mut pending = 0;
        for token in 0..4 {
            let (at, len) = share.pick(thread, &mut chance);
            if running
                .iter()
                .any(|(r, _)| at < r.at + r.len && r.at < at + len)
            {
                continue;
            }
            let version = (thread * BATCHES * 4 + batch * 4 + token + 1) as Version;
            let (kind, version, mem) = request(&mut chance, at, len, version);
            let sure = match kind {
                Kind::Discard => Sure::Perhaps,
                _ => Sure::Yes,
            };
            let change = Change {
                token: token as u64,
                version,
                sure,
                begun: shared.tick(),
                ended: Moment::MAX,
                through: false,
            };
            let whole = span((at * SECTOR) as u64, (len * SECTOR) as u64);
            let started = bench.start(shared.node, kind, whole, &mem, running.len() as u64);
            running.push((Done { at, len, change }, mem));
            match started {
                Started::Done(outcome) => {
                    assert_eq!(outcome, Ok(()));
                    running.last_mut().expect("it").0.change.ended = shared.tick();
                }
                _ => pending += 1,
            }
        }
        for _ in 0..pending {
            let (token, outcome) = bench.wait();
            assert_eq!(outcome, Ok(()));
            running[token as usize].0.change.ended = shared.tick();
        }
        if chance.below(6) == 0 {
            let flushed = bench.plain(shared.node, Kind::Flush, span(0, 0));
            assert_eq!(flushed, Ok(()));
        }
        done.extend(running.into_iter().map(|(done, _)| done));
    }
    shared.writing.fetch_sub(1, Ordering::SeqCst);
    done
}

fn request(chance: &mut Chance, at: usize, len: usize, version: Version) -> (Kind, Version, Mem) {
    let unmap = [Unmap::Allow, Unmap::Keep][chance.below(2) as usize];
    let kind = match chance.below(10) {
        0 => Kind::WriteZeroes(unmap, Durability::Cached),
        1 => Kind::Discard,
        2 => Kind::Write(Durability::Through),
        _ => Kind::Write(Durability::Cached),
    };
    if !matches!(kind, Kind::Write(_)) {
        return (kind, 0, Mem::none());
    }
    let mem = Mem::zeroed(len * SECTOR).expect("memory");
    for n in 0..len {
        mem.store(n * SECTOR, &stamp(at + n, version));
    }
    (kind, version, mem)
}

/// Makes snapshots, and deletes those before the last two, as long as anybody writes; what is left, and when it was made.
fn snapshots(shared: &Shared) -> Vec<(String, (Moment, Moment))> {
    let mut bench = shared.bench();
    let mut made: Vec<(String, (Moment, Moment))> = Vec::new();
    for number in 0.. {
        if shared.writing.load(Ordering::SeqCst) == 0 {
            break;
        }
        let name = format!("s{number}");
        let from = shared.tick();
        let (new, taken) = (name.clone(), Taken::default());
        let new = NewSnapshot { name: new, taken };
        let outcome = with(&mut bench, shared.node, async move |image, io| {
            image.create_snapshot(io, new).await
        });
        outcome.expect("made");
        made.push((name, (from, shared.tick())));
        if made.len() > 2 {
            let (gone, _) = made.remove(0);
            let outcome = with(&mut bench, shared.node, async move |image, io| {
                image.delete_snapshot(io, &gone).await
            });
            outcome.expect("deleted");
        }
    }
    made
}

fn run(options: &str, share: Share, (choice, mode): (Choice, Mode), seed: u64, keeps: bool) {
    println!("{options} {share:?} {choice:?} {mode:?} snapshots {keeps} seed {seed}");
    // In memory where that is possible: a slow disk shows nothing here that a fast one does not.
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    let dir = dir.expect("a directory");
    let path = dir.path().join("disk.qcow2");
    qcow2::create(&path, options, (SECTORS * SECTOR) as u64);
    let mut bench = Bench::new(choice.clone(), mode);
    let image = writes::image(&path, None, Backing::Nothing, Options::default());
    let node = bench.open(image);
    let shared = Shared {
        current: bench.current.clone(),
        epochs: bench.epochs.clone(),
        node,
        clock: Arc::new(AtomicU64::new(1)),
        writing: Arc::new(AtomicUsize::new(THREADS)),
        choice,
        mode,
    };
    let (done, kept) = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..THREADS)
            .map(|thread| {
                let shared = shared.clone();
                scope.spawn(move || write(&shared, share, thread, seed))
            })
            .collect();
        let keeper = keeps.then(|| {
            let shared = shared.clone();
            scope.spawn(move || snapshots(&shared))
        });
        let done = writers
            .into_iter()
            .flat_map(|t| t.join().expect("a writer"));
        let done: Vec<Done> = done.collect();
        let kept = keeper.map_or(Vec::new(), |t| t.join().expect("a keeper"));
        (done, kept)
    });
    let now = shared.tick();
    let sectors = sectors(done);
    let bytes = bench.read(node, 0, SECTORS * SECTOR);
    is_right(&sectors, &bytes, now, "as we read it");
    assert_eq!(writes::close(&mut bench, node), Ok(()));
    drop(bench);
    qcow2::run(
        "qemu-img",
        &["check", "-q", "-f", "qcow2", qcow2::text(&path)],
    );
    is_right(
        &sectors,
        &qcow2::flat(&path, "qcow2"),
        now,
        "as QEMU reads it",
    );
    for (name, during) in kept {
        let found = versions(0, &flat_snapshot(&path, &name), &name);
        assert_eq!(is_of_one_moment(&sectors, &found, during), Ok(()), "{name}");
    }
}

/// All that was made of each sector.
fn sectors(done: Vec<Done>) -> Vec<Sector> {
    let mut sectors = vec![Sector::zero(); SECTORS];
    for Done { at, len, change } in done {
        let range = sectors[at..at + len].iter_mut();
        range.for_each(|sector| sector.0.push(change));
    }
    sectors
}

fn is_right(sectors: &[Sector], bytes: &[u8], now: Moment, what: &str) {
    for (n, version) in versions(0, bytes, what).into_iter().enumerate() {
        let may_be = sectors[n].may_be(now, now);
        let right = may_be.contains(&version);
        assert!(right, "{what}: sector {n} is {version}, not of {may_be:?}");
    }
}

fn flat_snapshot(path: &Path, name: &str) -> Vec<u8> {
    let raw = path.with_extension("snapshot");
    let (from, to) = (qcow2::text(path), qcow2::text(&raw));
    let named = format!("snapshot.name={name}");
    let args = [
        "convert", "-f", "qcow2", "-O", "raw", "-l", &named, from, to,
    ];
    qcow2::run("qemu-img", &args);
    std::fs::read(raw).expect("read")
}

fn ways(seed: u64) -> Vec<(Choice, Mode)> {
    let engines = support::engines().into_iter();
    let modes = support::modes(seed);
    engines
        .flat_map(|engine| modes.map(|mode| (engine.clone(), mode)))
        .collect()
}

#[test]
fn threads_that_write_parts_of_a_disk_lose_nothing() {
    for (seed, way) in (0..).zip(ways(1)) {
        run("cluster_size=4096", Share::Parts, way, seed, false);
    }
}

#[test]
fn threads_that_write_into_the_same_clusters_lose_nothing() {
    for (seed, way) in (10..).zip(ways(2)) {
        run("cluster_size=16384", Share::Stripes, way, seed, false);
    }
}

#[test]
fn threads_that_write_over_each_other_leave_what_one_of_them_wrote() {
    for (seed, way) in (20..).zip(ways(3)) {
        run("cluster_size=4096", Share::Everything, way, seed, false);
    }
}

#[test]
fn snapshots_of_what_threads_write_are_of_one_moment() {
    for (seed, way) in (30..).zip(ways(4)) {
        let share = [Share::Parts, Share::Stripes, Share::Everything][seed as usize % 3];
        run("cluster_size=4096", share, way, seed, true);
    }
}
