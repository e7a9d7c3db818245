//! Mirrors beside guests, on a simulated disk: whatever the two do at the same time, and whatever fails meanwhile, the target is in the
//! end what the source is, and the source what guests have written.
//!
//! The rule: everything happens on this one thread, in an order that the seed decides. A sector that two writes were under way on at
//! once, or that was discarded, may be anything, as long as source and target agree about it.

use crate::support::{Bench, Chance, common, insert, modes, span};
use blockgraph::driver::file::{Cache, FileDriver, FileKind, FileParts, Flushes};
use blockgraph::filter::dirty::{CopiedTo, Dirty};
use blockgraph::filter::write_blocking::WriteBlocking;
use blockgraph::graph::Body;
use blockgraph::graph::edit::{Edit, NewFilter};
use blockgraph::job::copy::{
    Bounds, Copier, CopyPlan, Counts, ErrorPolicy, Ignored, Select, Transfer, Waits, Walked,
    WorkSet, Writing, Zeroes,
};
use blockgraph::job::{
    Cancel, ErrorAction, Mirror, Mirrored, OnError, Progress, Steer, Word, Worker,
};
use blockgraph::{Kind, Limits, Mode, NodeId, Outcome, Started, Unmap};
use ring::sim::{Act, Config, Disk, FileConfig, Rule, Weather};
use ring::{Align, Choice, Durability, FileId, Mem};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const SECTOR: u64 = 512;
const UNIT: u64 = 4096;
const SECTORS: u64 = 64 * UNIT / SECTOR;
const SIZE: u64 = SECTORS * SECTOR;
const LANES: usize = 3;
const SOURCE: FileId = FileId(0);
const TARGET: FileId = FileId(1);
/// What a guest asks for in all.
const REQUESTS: usize = 150;
const SEEDS: u64 = 25;

/// How guests' writes get to the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Later,
    AtOnce,
    /// Later, and at some moment at once.
    Changes,
}

/// How it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Completes,
    Cancelled,
    /// The target fails, and that is reported.
    Fails,
}

#[derive(Clone, Copy, Debug)]
struct Sector {
    /// `None`: it may be anything.
    value: Option<u8>,
    /// Writes under way.
    busy: u32,
    /// More than one was.
    mixed: bool,
}

#[derive(Debug)]
struct Request {
    sectors: std::ops::Range<usize>,
    kind: Kind,
    byte: u8,
    mem: Mem,
}

struct World {
    lanes: Vec<Bench>,
    /// Where guests are, and the filter.
    place: NodeId,
    source: NodeId,
    target: NodeId,
    sectors: Vec<Sector>,
    requests: BTreeMap<u64, Request>,
    token: u64,
    chance: Chance,
    mirrored: Arc<Mirrored>,
}

fn disk(seed: u64, source: Vec<u8>, target: Vec<u8>) -> Disk {
    let align = Align {
        memory_bytes: 1,
        offset_bytes: 512,
    };
    let mut config = Config::new(seed).weather(Weather::ROUGH);
    for (id, bytes) in [(SOURCE, source), (TARGET, target)] {
        config = config.file_with(FileConfig {
            id,
            bytes,
            align,
            size_bytes_max: SIZE,
        });
    }
    config.disk()
}

fn open_files(bench: &Bench, disk: &Disk) -> [NodeId; 2] {
    let mut graph = (*bench.current.get()).clone();
    let nodes = [SOURCE, TARGET].map(|id| {
        assert_eq!(graph.new_file_id(), id);
        let file = disk.open(id).expect("a file of the disk");
        let driver = FileDriver::from_parts(FileParts {
            file: file.clone(),
            kind: FileKind::Regular,
            size_bytes: SIZE,
            limits: Limits::PLAIN,
            cache: Cache::Direct,
            flushes: Flushes::Sync,
        });
        insert(&mut graph, "file", driver, vec![file])
    });
    bench.current.publish(graph);
    nodes
}

impl World {
    fn ends(&mut self, ends: Vec<(u64, Outcome)>) {
        for (token, outcome) in ends {
            assert_eq!(outcome, Ok(()), "guests do not hear of the target");
            let request = self.requests.remove(&token).expect("asked for");
            self.end(&request);
        }
    }

    fn end(&mut self, request: &Request) {
        for (n, at) in request.sectors.clone().enumerate() {
            let sector = &mut self.sectors[at];
            if request.kind == Kind::Read {
                let mut found = [0; SECTOR as usize];
                request.mem.load(n * SECTOR as usize, &mut found);
                if let (Some(value), 0, false) = (sector.value, sector.busy, sector.mixed) {
                    assert!(found.iter().all(|byte| *byte == value), "sector {at}");
                }
                continue;
            }
            sector.busy -= 1;
            sector.value = match request.kind {
                Kind::Discard => None,
                _ if sector.mixed => None,
                _ => Some(request.byte),
            };
            sector.mixed &= sector.busy > 0;
        }
    }

    /// A request more of some lane's.
    fn ask(&mut self) {
        let chance = &mut self.chance;
        let at = chance.below(SECTORS);
        let len = (1 + chance.below(3 * UNIT / SECTOR)).min(SECTORS - at);
        let byte = 1 + chance.below(255) as u8;
        let unmap = [Unmap::Keep, Unmap::Allow][chance.below(2) as usize];
        let durability = [Durability::Cached, Durability::Through][chance.below(2) as usize];
        let (kind, byte) = match chance.below(10) {
            0 => (Kind::WriteZeroes(unmap, durability), 0),
            1 => (Kind::Discard, 0),
            2 | 3 => (Kind::Read, 0),
            _ => (Kind::Write(durability), byte),
        };
        let mem = match kind {
            Kind::Read | Kind::Write(_) => Mem::zeroed((len * SECTOR) as usize).expect("memory"),
            _ => Mem::none(),
        };
        mem.store(0, &vec![byte; mem.len()]);
        let sectors = at as usize..(at + len) as usize;
        for sector in &mut self.sectors[sectors.clone()] {
            if kind == Kind::Read {
                // What is written meanwhile may be read or not.
                sector.mixed |= sector.busy > 0;
            } else {
                sector.mixed |= sector.busy > 0;
                sector.busy += 1;
            }
        }
        let reads: Vec<u64> = self.overlapping_reads(&sectors, kind);
        for token in reads {
            // Nothing is to be found out from them any more.
            let request = self.requests.get_mut(&token).expect("under way");
            request.sectors = 0..0;
        }
        self.token += 1;
        let lane = self.chance.below(LANES as u64) as usize;
        let span = span(at * SECTOR, len * SECTOR);
        let started = self.lanes[lane].start(self.place, kind, span, &mem, self.token);
        let request = Request {
            sectors,
            kind,
            byte,
            mem,
        };
        self.requests.insert(self.token, request);
        if let Started::Done(outcome) = started {
            self.ends(vec![(self.token, outcome)]);
        }
    }

    fn overlapping_reads(&self, sectors: &std::ops::Range<usize>, kind: Kind) -> Vec<u64> {
        let overlaps = |request: &Request| {
            request.kind == Kind::Read
                && kind != Kind::Read
                && request.sectors.start < sectors.end
                && sectors.start < request.sectors.end
        };
        let found = self
            .requests
            .iter()
            .filter(|(_, request)| overlaps(request));
        found.map(|(token, _)| *token).collect()
    }

    fn pump(&mut self) {
        let mut ends = Vec::new();
        for lane in &mut self.lanes {
            lane.turns(1, &mut ends);
        }
        self.ends(ends);
    }

    fn content(&mut self, node: NodeId) -> Vec<u8> {
        self.lanes[0].read(node, 0, SIZE as usize)
    }

    /// Nothing is under way: the source is what was written to it.
    fn check_source(&mut self) -> Vec<u8> {
        let found = self.content(self.source);
        for (at, bytes) in found.chunks(SECTOR as usize).enumerate() {
            if let Some(value) = self.sectors[at].value {
                assert!(bytes.iter().all(|byte| *byte == value), "sector {at}");
            }
        }
        found
    }

    fn check_both(&mut self) {
        let source = self.check_source();
        let target = self.content(self.target);
        let differ = (0..SECTORS as usize).find(|at| {
            let bytes = at * SECTOR as usize..(at + 1) * SECTOR as usize;
            source[bytes.clone()] != target[bytes]
        });
        assert_eq!(differ, None, "the first sector that differs");
    }

    /// Nothing is under way: from now on guests wait for the target.
    fn change(&mut self) {
        let mut edit = Edit::begin(&self.lanes[0].current);
        let below = edit.graph().info(self.place).expect("known");
        let body = WriteBlocking::new(below, self.mirrored.clone());
        edit.replace_body(self.place, Body::Driver(Arc::new(body)));
        let (_, leaving) = edit.commit().expect("published");
        drop(leaving);
        self.mirrored.set_blocking();
    }
}

/// A world with a mirror that has not begun.
fn world(
    mode: Mode,
    way: Way,
    mut chance: Chance,
    (work, steer, progress): (&Arc<WorkSet>, &Arc<Steer>, &Arc<Progress>),
    disk: &Disk,
    content: &[u8],
) -> World {
    let first = Bench::new(Choice::Sim(disk.clone()), mode);
    let [source, target] = open_files(&first, disk);
    let (current, epochs) = (first.current.clone(), first.epochs.clone());
    let mut lanes = vec![first];
    lanes.resize_with(LANES, || {
        Bench::on(
            current.clone(),
            epochs.clone(),
            Choice::Sim(disk.clone()),
            mode,
        )
    });
    let mirrored = Mirrored::new(work.clone(), target, progress.clone(), steer.clone());
    let mirrored = Arc::new(mirrored);
    let info = current.get().info(source).expect("known");
    let body = match way {
        Way::AtOnce => {
            mirrored.set_blocking();
            Body::Driver(Arc::new(WriteBlocking::new(info, mirrored.clone())))
        }
        Way::Later | Way::Changes => {
            Body::Filter(Arc::new(Dirty::new(work.clone(), CopiedTo::Elsewhere)))
        }
    };
    let mut edit = Edit::begin(&current);
    let filter = NewFilter {
        name: "mirror".to_owned(),
        kind: "mirror_top",
        common: common(),
        body,
    };
    let below = edit.insert_above(source, filter).expect("a filter more");
    let (_, leaving) = edit.commit().expect("published");
    drop(leaving);
    let sectors = content.chunks(SECTOR as usize).map(|bytes| Sector {
        value: Some(bytes[0]),
        busy: 0,
        mixed: false,
    });
    let token = chance.below(1000);
    World {
        lanes,
        place: source,
        source: below,
        target,
        sectors: sectors.collect(),
        requests: BTreeMap::new(),
        token,
        chance,
        mirrored,
    }
}

fn sectors(chance: &mut Chance) -> Vec<u8> {
    let bytes = (0..SECTORS).map(|_| (chance.below(4) * chance.below(60)) as u8);
    bytes.flat_map(|byte| [byte; SECTOR as usize]).collect()
}

fn run(seed: u64, mode: Mode, way: Way, end: End, is_full: bool) {
    let mut chance = Chance(seed);
    let content = sectors(&mut chance);
    let target = match is_full {
        true => sectors(&mut chance),
        // Only what guests write is copied.
        false => content.clone(),
    };
    let disk = disk(seed, content.clone(), target);
    let failing = Arc::new(AtomicBool::new(false));
    let fails = failing.clone();
    let rule = Rule::every(Act::Refuse(libc::EIO));
    disk.rule(rule.when(move |seen| seen.file == TARGET && fails.load(Ordering::SeqCst)));
    let work = Arc::new(WorkSet::new(SIZE, UNIT));
    let (steer, progress) = (Arc::<Steer>::default(), Arc::<Progress>::default());
    let shared = (&work, &steer, &progress);
    let mut world = world(mode, way, chance, shared, &disk, &content);
    let (current, epochs) = (
        world.lanes[0].current.clone(),
        world.lanes[0].epochs.clone(),
    );
    let choice = Choice::Sim(disk.clone());
    let worker = Worker::in_mode(current, epochs, choice, mode, steer.clone());
    let mut worker = worker.expect("a worker");
    if is_full {
        work.add(work.whole());
    }
    progress.set_remaining(work.left_bytes());
    world.mirrored.begin();
    let transfer = Transfer {
        source: world.source,
        target: world.target,
        select: Select::All,
        zeroes: Zeroes::Plain,
        writing: Writing::Plain,
    };
    let on = match end {
        End::Fails => OnError::Report,
        _ if seed.is_multiple_of(2) => OnError::Stop,
        _ => OnError::Ignore,
    };
    let plan = CopyPlan {
        parts: Rc::new(Mirror {
            transfer,
            mirrored: world.mirrored.clone(),
        }),
        nodes: vec![world.place, world.target],
        work: work.clone(),
        bounds: Bounds {
            chunk_bytes: 2 * UNIT,
            copies_max: 4,
            bytes_max: 8 * UNIT,
        },
        errors: ErrorPolicy::both(on, Ignored::Retried),
        counts: Counts::Left,
    };
    let (cured, steered) = (failing.clone(), steer.clone());
    let tell = move |word| match word {
        // Whoever hears of a failure mends it, and of a rest that it is over.
        Word::Failed { action, .. } if action != ErrorAction::Report => {
            cured.store(false, Ordering::SeqCst);
        }
        Word::Paused => steered.change(|wish| wish.pause = false),
        _ => {}
    };
    let mut copier = Copier::new(&mut worker, plan, &progress, &tell);
    let ended = follow(&mut world, &mut copier, (way, end), &failing, &steer);
    failing.store(false, Ordering::SeqCst);
    while !world.requests.is_empty() {
        world.pump();
        // What it has under way is what guests may wait for.
        let _ = ended.is_none() && copier.round(Waits::No).is_ok();
    }
    match (end, ended) {
        (End::Completes, None) => {
            assert_eq!(copier.run().expect("copied"), Walked::All);
            world.mirrored.all_copied();
            assert_eq!(world.mirrored.is_synced(), world.mirrored.is_blocking());
            assert_eq!(progress.total(), progress.current(), "nothing is left");
            world.check_both();
        }
        (End::Cancelled, Some(true)) | (End::Fails, Some(false)) => {
            world.check_source();
        }
        (end, ended) => panic!("{end:?}, but {ended:?}"),
    }
}

/// Guests and the job go on side by side. Says whether it was cancelled, or failed, before guests had done all they want.
fn follow(
    world: &mut World,
    copier: &mut Copier<'_>,
    (way, end): (Way, End),
    failing: &AtomicBool,
    steer: &Steer,
) -> Option<bool> {
    let mut ended = None;
    let (mut left, mut trouble) = (REQUESTS, 2);
    let changes_at = world.chance.below(REQUESTS as u64) as usize;
    let ends_at = REQUESTS / 4 + world.chance.below(REQUESTS as u64 / 4) as usize;
    let mut changes = way == Way::Changes;
    loop {
        if ended.is_none() {
            ended = match copier.round(Waits::No) {
                Ok(Some(Walked::Cancelled(_))) => Some(true),
                Ok(_) => None,
                Err(_) => Some(false),
            };
            if ended.is_some() {
                world.mirrored.give_up();
            }
        }
        world.pump();
        if changes && left <= changes_at {
            if world.requests.is_empty() {
                world.change();
                changes = false;
            }
            continue;
        }
        let is_over = end == End::Completes || ended.is_some();
        if left == 0 && is_over {
            return ended;
        }
        match world.chance.below(12) {
            0..5 if left > 0 && world.requests.len() < 8 => {
                world.ask();
                left -= 1;
            }
            5 => steer.change(|wish| wish.pause = true),
            6 => steer.change(|wish| wish.speed_bytes = [0, 1 << 40][left % 2]),
            7 if end == End::Completes && trouble > 0 && left < REQUESTS / 2 => {
                trouble -= 1;
                failing.store(true, Ordering::SeqCst);
            }
            8 if end == End::Fails && left < ends_at => failing.store(true, Ordering::SeqCst),
            9 if end == End::Cancelled && left < ends_at => {
                steer.change(|wish| wish.cancel = Some(Cancel::Force));
            }
            _ => {}
        }
        // A disk that fails for good would have a job that writes nothing never hear of it.
        if end == End::Fails && left == 0 && ended.is_none() {
            left += 1;
        }
    }
}

#[test]
fn a_target_is_what_its_source_is_whatever_guests_do_meanwhile() {
    let begin = std::env::var("SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seeds = begin.map_or(0..SEEDS, |seed| seed..seed + 1);
    for seed in seeds {
        for mode in modes(seed) {
            for way in [Way::Later, Way::AtOnce, Way::Changes] {
                for end in [End::Completes, End::Cancelled, End::Fails] {
                    println!("seed {seed} {mode:?} {way:?} {end:?}");
                    run(seed, mode, way, end, !seed.is_multiple_of(3));
                }
            }
        }
    }
}
