//! Copy-on-read: what is copied, what is not, and that no copy replaces what a guest wrote.

use crate::support;
use blockgraph::driver::file::{Cache, FileDriver, FileKind, FileParts, Flushes};
use blockgraph::filter::copy_on_read::CopyOnRead;
use blockgraph::graph::perm::{self, Wants};
use blockgraph::graph::{Body, NewNode, Shape};
use blockgraph::map::{Plan, Walk, walk};
use blockgraph::{Dir, Graph, Kind, Limits, Mode, NodeId, Span, Started, Unmap};
use ring::sim::{Act, Config, Disk, Event, FileConfig, Kind as Op, Rule, Weather};
use ring::{Align, Choice, Durability, Errno, FileId, Mem};
use std::sync::Arc;
use support::cow::{Cow, WRITE};
use support::{Bench, Chance, common, insert, modes, span};

const SIZE: u64 = 64 << 10;
/// The base is shorter.
const BASE: u64 = 50 << 10;
const TOP: FileId = FileId(0);
const MIDDLE: FileId = FileId(1);
const BOTTOM: FileId = FileId(2);

struct World {
    bench: Bench,
    disk: Disk,
    top: Arc<Cow>,
    middle: Arc<Cow>,
    /// The filter.
    node: NodeId,
    layers: [NodeId; 3],
    model: Vec<u8>,
}

fn pattern(seed: u64, len: u64) -> Vec<u8> {
    let mut chance = Chance(seed);
    (0..len).map(|_| chance.next() as u8 | 1).collect()
}

fn file(graph: &mut Graph, disk: &Disk, id: FileId, size_bytes: u64) -> NodeId {
    assert_eq!(graph.new_file_id(), id);
    let file = disk.open(id).expect("a file of the disk");
    let parts = FileParts {
        file: file.clone(),
        kind: FileKind::Regular,
        size_bytes,
        limits: Limits::PLAIN,
        cache: Cache::Page,
        flushes: Flushes::Sync,
    };
    insert(graph, "file", FileDriver::from_parts(parts), vec![file])
}

/// Three layers: an empty one on one that has some units on a base that is shorter.
fn world(seed: u64, mode: Mode, bottom: impl Fn([NodeId; 3]) -> Option<NodeId>) -> World {
    let unit = 512 << (seed % 4);
    let bytes = [
        vec![0; SIZE as usize],
        pattern(seed, SIZE),
        pattern(!seed, BASE),
    ];
    let mut config = Config::new(seed).weather(Weather::ROUGH);
    for (id, bytes) in [TOP, MIDDLE, BOTTOM].into_iter().zip(&bytes) {
        config = config.file_with(FileConfig {
            id,
            bytes: bytes.clone(),
            align: Align::NONE,
            size_bytes_max: bytes.len() as u64,
        });
    }
    let disk = config.disk();
    let bench = Bench::new(Choice::Sim(disk.clone()), mode);
    let mut graph = (*bench.current.get()).clone();
    let data = file(&mut graph, &disk, TOP, SIZE);
    let middle_data = file(&mut graph, &disk, MIDDLE, SIZE);
    let base = file(&mut graph, &disk, BOTTOM, BASE);
    let middle = Arc::new(Cow::new(SIZE, unit, BASE));
    let mut chance = Chance(seed);
    let mut model = bytes[2].clone();
    model.resize(SIZE as usize, 0);
    for at in (0..SIZE).step_by(unit as usize) {
        if chance.below(3) == 0 {
            middle.set(at);
            let range = at as usize..(at + unit) as usize;
            model[range.clone()].copy_from_slice(&bytes[1][range]);
        }
    }
    let middle_node = middle.insert(&mut graph, middle_data, base);
    let top = Arc::new(Cow::new(SIZE, unit, SIZE));
    let top_node = top.insert(&mut graph, data, middle_node);
    let layers = [top_node, middle_node, base];
    let info = graph.info(top_node).expect("a node");
    let bottom = bottom(layers).and_then(|id| graph.node(id));
    let bottom = bottom.map(|node| node.name().to_owned());
    let node = graph.insert(NewNode {
        name: "cor".to_owned(),
        kind: "copy-on-read",
        common: common(),
        body: Body::Driver(Arc::new(CopyOnRead::new(info, bottom))),
        shape: Shape::filter(top_node),
        files: Vec::new(),
    });
    bench.current.publish(graph);
    World {
        bench,
        disk,
        top,
        middle,
        node,
        layers,
        model,
    }
}

impl World {
    fn read_all(&mut self) -> Vec<u8> {
        self.bench.read(self.node, 0, SIZE as usize)
    }

    /// Reads of the files below the top since the first `skip` events.
    fn reads_below(&self, skip: usize) -> usize {
        let log = self.disk.log_from(skip);
        let below = log.iter().filter(|event| {
            matches!(event, Event::Submitted(seen) if seen.kind == Op::Read && seen.file != TOP)
        });
        below.count()
    }
}

fn all(_: [NodeId; 3]) -> Option<NodeId> {
    None
}

#[test]
fn what_was_read_is_read_from_the_top_layer_and_mapped_the_next_time() {
    for seed in 0..20 {
        for mode in modes(seed) {
            let mut world = world(seed, mode, all);
            let images = world.disk.images();
            let mut chance = Chance(seed);
            for _ in 0..20 {
                let at = chance.below(SIZE - 1);
                let len = 1 + chance.below((SIZE - at).min(9000));
                let bytes = world.bench.read(world.node, at, len as usize);
                let wanted = &world.model[at as usize..(at + len) as usize];
                assert!(bytes == wanted, "seed {seed} {mode:?} at {at}");
                assert!((at..at + len).all(|at| world.top.has(at)));
            }
            assert!(world.read_all() == world.model);
            let skip = world.disk.log().len();
            assert!(world.read_all() == world.model);
            assert_eq!(world.reads_below(skip), 0, "seed {seed} {mode:?}");
            let mut plan = Plan::default();
            let graph = world.bench.current.get();
            let whole = span(0, SIZE);
            let walked = walk(&graph, world.node, Dir::Read, whole, &mut plan);
            assert_eq!(walked, Walk::Mapped);
            let after = world.disk.images();
            assert!(after[&MIDDLE] == images[&MIDDLE] && after[&BOTTOM] == images[&BOTTOM]);
        }
    }
}

#[test]
fn nothing_is_copied_from_below_the_bottom_and_everything_is_still_read() {
    for seed in 0..20 {
        for mode in modes(seed) {
            let mut world = world(seed, mode, |[_, middle, _]| Some(middle));
            assert!(world.read_all() == world.model, "seed {seed} {mode:?}");
            for at in (0..SIZE).step_by(512) {
                assert_eq!(
                    world.top.has(at),
                    world.middle.has(at),
                    "seed {seed} at {at}"
                );
            }
            assert!(world.read_all() == world.model, "seed {seed} {mode:?}");
        }
    }
    let mut world = world(3, Mode::Fast, |[top, ..]| Some(top));
    assert!(world.read_all() == world.model);
    assert!((0..SIZE).all(|at| !world.top.has(at)));
}

#[test]
fn a_read_that_cannot_be_copied_is_still_a_read() {
    for errno in [libc::ENOSPC, libc::EROFS, libc::EIO] {
        for mode in modes(5) {
            let mut world = world(5, mode, all);
            world.disk.set_weather(Weather::CALM);
            let fail = Rule::every(Act::Refuse(errno)).kind(Op::Write);
            world.disk.rule(fail);
            assert!(world.read_all() == world.model);
            assert!((0..SIZE).all(|at| !world.top.has(at)));
            world.disk.clear_rules();
            assert!(world.read_all() == world.model);
            assert!((0..SIZE).all(|at| world.top.has(at)));
        }
    }
}

#[test]
fn a_read_that_fails_says_so_and_what_nobody_asked_for_may_fail() {
    let mut world = world(7, Mode::Fast, all);
    world.disk.set_weather(Weather::CALM);
    let unit = 4096;
    let lacking = (0..BASE).step_by(unit).find(|at| !world.middle.has(*at));
    let at = lacking.expect("a unit that is in the base");
    let bad = Rule::every(Act::Refuse(libc::EIO)).kind(Op::Read);
    world.disk.rule(bad.touching(at + 3000..at + 3001));
    let mem = Mem::zeroed(unit).expect("memory");
    let whole = span(at, unit as u64);
    let outcome = world.bench.ask(world.node, Kind::Read, whole, &mem);
    assert_eq!(outcome, Err(Errno::IO));
    let bytes = world.bench.read(world.node, at, 1000);
    assert!(bytes == world.model[at as usize..at as usize + 1000]);
    assert!(!world.top.has(at));
}

/// A request under way: what a read may see, byte by byte, or what a write writes.
enum Doing {
    Read(Span, Mem, Vec<Vec<u8>>),
    Write(Span, Vec<u8>, Mem),
}

struct Race {
    world: World,
    chance: Chance,
    doing: Vec<Option<Doing>>,
    left: u64,
}

impl Race {
    fn writes(&self) -> impl Iterator<Item = (Span, &[u8])> {
        self.doing.iter().flatten().filter_map(|doing| match doing {
            Doing::Write(span, bytes, _) => Some((*span, bytes.as_slice())),
            Doing::Read(..) => None,
        })
    }

    fn start(&mut self) {
        let at = self.chance.below(SIZE - 1);
        let span = span(at, 1 + self.chance.below((SIZE - at).min(6000)));
        match self.chance.below(5) {
            0 | 1 => self.start_read(span),
            2 | 3 => self.start_write(span, WRITE),
            _ => self.start_write(span, Kind::WriteZeroes(Unmap::Keep, Durability::Cached)),
        }
    }

    fn start_read(&mut self, span: Span) {
        let model = &self.world.model[span.at as usize..span.end() as usize];
        let mut may: Vec<Vec<u8>> = model.iter().map(|&byte| vec![byte]).collect();
        for (written, bytes) in self.writes() {
            admit(&mut may, span, written, bytes);
        }
        let mem = Mem::zeroed(span.len as usize).expect("memory");
        let token = self.doing.len() as u64;
        self.doing.push(Some(Doing::Read(span, mem.clone(), may)));
        let node = self.world.node;
        let started = self.world.bench.start(node, Kind::Read, span, &mem, token);
        self.started(token, started);
    }

    fn start_write(&mut self, span: Span, kind: Kind) {
        // Two writes to one byte at once may end as either; that would tell nothing.
        if self.writes().any(|(other, _)| other.overlaps(span)) {
            return;
        }
        let bytes = match kind {
            WRITE => pattern(self.chance.next(), span.len),
            _ => vec![0; span.len as usize],
        };
        for doing in self.doing.iter_mut().flatten() {
            if let Doing::Read(read, _, may) = doing {
                admit(may, *read, span, &bytes);
            }
        }
        let mem = match kind {
            WRITE => Mem::zeroed(bytes.len()).expect("memory"),
            _ => Mem::none(),
        };
        mem.store(0, &bytes);
        let token = self.doing.len() as u64;
        self.doing
            .push(Some(Doing::Write(span, bytes, mem.clone())));
        let node = self.world.node;
        let started = self.world.bench.start(node, kind, span, &mem, token);
        self.started(token, started);
    }

    fn started(&mut self, token: u64, started: Started) {
        match started {
            Started::Done(outcome) => self.end(token, outcome),
            _ => self.left += 1,
        }
    }

    fn end(&mut self, token: u64, outcome: Result<(), Errno>) {
        assert_eq!(outcome, Ok(()));
        match self.doing[token as usize].take().expect("under way") {
            Doing::Write(span, bytes, mem) => {
                // Lent to the request until now.
                drop(mem);
                self.world.model[span.at as usize..span.end() as usize].copy_from_slice(&bytes);
            }
            Doing::Read(span, mem, may) => {
                let mut got = vec![0; mem.len()];
                mem.load(0, &mut got);
                let wrong = got
                    .iter()
                    .zip(&may)
                    .position(|(byte, may)| !may.contains(byte));
                assert_eq!(wrong, None, "in {span}: {:?} {:?}", &got[..4], &may[..4]);
            }
        }
    }
}

/// A read of `span` may see what is being written.
fn admit(may: &mut [Vec<u8>], span: Span, written: Span, bytes: &[u8]) {
    for at in span.at.max(written.at)..span.end().min(written.end()) {
        may[(at - span.at) as usize].push(bytes[(at - written.at) as usize]);
    }
}

#[test]
fn no_copy_replaces_what_a_guest_wrote_meanwhile() {
    for seed in 0..1000 {
        for mode in modes(seed) {
            race(seed, mode);
        }
    }
}

fn race(seed: u64, mode: Mode) {
    let with_bottom = seed.is_multiple_of(2);
    let bottom = move |[_, middle, _]: [NodeId; 3]| with_bottom.then_some(middle);
    let mut race = Race {
        world: world(seed, mode, bottom),
        chance: Chance(seed),
        doing: Vec::new(),
        left: 0,
    };
    let images = race.world.disk.images();
    println!("seed {seed} {mode:?}");
    for most in (0..30).map(|n| if n == 29 { 1 } else { 8 }) {
        race.start();
        while race.left > race.chance.below(most) {
            let (token, outcome) = race.world.bench.wait();
            race.left -= 1;
            race.end(token, outcome);
        }
    }
    assert!(race.world.read_all() == race.world.model, "seed {seed}");
    assert!(race.world.read_all() == race.world.model, "seed {seed}");
    let after = race.world.disk.images();
    assert!(after[&MIDDLE] == images[&MIDDLE] && after[&BOTTOM] == images[&BOTTOM]);
}

#[test]
fn the_filter_writes_without_its_users_writing_and_shares_that_with_nobody() {
    let world = world(1, Mode::Fast, all);
    let current = &world.bench.current;
    // As long as nobody reads through it: it is about to be put under the writer.
    let writer = perm::attach(current, world.layers[0], Wants::READ_WRITE, None);
    drop(writer.expect("nothing is copied"));
    let reader = perm::attach(current, world.node, Wants::READ, None).expect("attached");
    let beside = perm::attach(current, world.layers[0], Wants::READ, None);
    drop(beside.expect("another reader"));
    let writer = perm::attach(current, world.layers[0], Wants::READ_WRITE, None);
    let refused = writer.expect_err("a writer the filter would not see");
    assert!(
        refused.to_string().contains("permissions 'write'"),
        "{refused}"
    );
    drop(reader);
}
