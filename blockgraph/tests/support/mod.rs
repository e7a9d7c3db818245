//! What the driver tests share: a lane of its own per case, requests one at a time, and seeded chance.
#![allow(dead_code, reason = "each test file uses its own part")]

use blockgraph::graph::open::{Child, DriverSpec, FileSpec, NodeSpec, open};
use blockgraph::graph::{Common, DiscardPolicy};
use blockgraph::node::{Engine, NodeId, Outcome};
use blockgraph::pin::Epochs;
use blockgraph::{Current, Event, Kind, Lane, Mode, Span, Started, driver};
use driver::file::{Cache, FileKind, FileOptions, Flushes, Locking, OpenMode};
use driver::raw::Window;
use ring::{Choice, Mem, Ring, Wait};
use std::path::Path;
use std::sync::Arc;

/// Small and fast, and the same on every machine (SplitMix64; Steele, Lea, Flood 2014).
#[derive(Debug)]
pub struct Chance(pub u64);

impl Chance {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// The ways every block test goes.
pub fn modes(seed: u64) -> [Mode; 3] {
    [Mode::Fast, Mode::ServeAlways, Mode::Mixed(seed)]
}

/// The engines every block test goes on; io_uring only where there is one.
pub fn engines() -> Vec<Choice> {
    let mut engines = vec![Choice::Threads];
    match Ring::new(Choice::Uring(None)) {
        Ok(_) => engines.push(Choice::Uring(None)),
        Err(error) => println!("skipped: io_uring ({error})"),
    }
    engines
}

/// A thread's way to a graph, one request at a time or many.
pub struct Bench {
    pub current: Arc<Current>,
    pub lane: Lane,
}

impl Bench {
    pub fn new(choice: Choice, mode: Mode) -> Bench {
        let current = Arc::new(Current::default());
        Bench::on(current, Arc::new(Epochs::default()), choice, mode)
    }

    pub fn on(current: Arc<Current>, epochs: Arc<Epochs>, choice: Choice, mode: Mode) -> Bench {
        let ring = Ring::new(choice).expect("a ring");
        let lane = Lane::new(ring, current.clone(), epochs, mode);
        Bench { current, lane }
    }

    pub fn open(&self, spec: NodeSpec) -> NodeId {
        open(&self.current, spec).expect("opened").0
    }

    /// Asks and waits.
    pub fn ask(&mut self, node: NodeId, kind: Kind, span: Span, mem: &Mem) -> Outcome {
        match self.start(node, kind, span, mem, 1) {
            Started::Done(outcome) => outcome,
            _ => self.wait().1,
        }
    }

    /// Asks.
    pub fn start(
        &mut self,
        node: NodeId,
        kind: Kind,
        span: Span,
        mem: &Mem,
        token: u64,
    ) -> Started {
        let segs: Vec<_> = mem.segs().collect();
        self.lane.begin_batch();
        let started = self.lane.start(node, kind, span, &segs, token);
        assert_ne!(started, Started::Full);
        self.lane.end_batch();
        started
    }

    /// The next end: its token and how.
    pub fn wait(&mut self) -> (u64, Outcome) {
        loop {
            self.lane.begin_batch();
            let event = self.lane.take();
            self.lane.end_batch();
            match event {
                Some(Event::Finished { token, outcome }) => return (token, outcome),
                Some(Event::Signal { .. }) => {}
                None => self.lane.turn(Wait::One).expect("a turn"),
            }
        }
    }

    pub fn read(&mut self, node: NodeId, at: u64, len: usize) -> Vec<u8> {
        let mem = Mem::zeroed(len).expect("memory");
        mem.store(0, &vec![0xee; len]);
        let span = span(at, len as u64);
        self.ask(node, Kind::Read, span, &mem).expect("read");
        let mut bytes = vec![0; len];
        mem.load(0, &mut bytes);
        bytes
    }

    pub fn write(&mut self, node: NodeId, at: u64, bytes: &[u8]) -> Outcome {
        let mem = Mem::zeroed(bytes.len()).expect("memory");
        mem.store(0, bytes);
        let kind = Kind::Write(ring::Durability::Cached);
        self.ask(node, kind, span(at, bytes.len() as u64), &mem)
    }

    pub fn plain(&mut self, node: NodeId, kind: Kind, span: Span) -> Outcome {
        self.ask(node, kind, span, &Mem::none())
    }
}

pub fn span(at: u64, len: u64) -> Span {
    Span::new(at, len).expect("a span")
}

pub fn common() -> Common {
    Common {
        discard: DiscardPolicy::Unmap,
        ..Common::default()
    }
}

pub fn file_options(path: &Path, cache: Cache) -> FileOptions {
    FileOptions {
        filename: path.to_owned(),
        kind: FileKind::Regular,
        mode: OpenMode::ReadWrite,
        cache,
        flushes: Flushes::Sync,
        locking: Locking::Auto,
        engine: Engine::Any,
    }
}

pub fn file(path: &Path, cache: Cache) -> NodeSpec {
    file_with(file_options(path, cache))
}

pub fn file_with(options: FileOptions) -> NodeSpec {
    NodeSpec {
        name: None,
        common: common(),
        driver: DriverSpec::File(FileSpec { options }),
    }
}

pub fn raw(file: Child, window: Window) -> NodeSpec {
    NodeSpec {
        name: None,
        common: common(),
        driver: DriverSpec::Raw { file, window },
    }
}

pub fn named(mut spec: NodeSpec, name: &str) -> NodeSpec {
    spec.name = Some(name.to_owned());
    spec
}

pub fn inline(spec: NodeSpec) -> Child {
    Child::Inline(Box::new(spec))
}
