//! What the driver tests share: a lane of its own per case, requests one at a time, and seeded chance.
#![allow(
    dead_code,
    unreachable_pub,
    missing_debug_implementations,
    missing_docs,
    reason = "each test file uses its own part, and no other crate any of it"
)]

pub mod bitmaps;
pub mod corrupt;
pub mod cow;
pub mod fake_nbd;
pub mod guests;
pub mod history;
pub mod model;
pub mod nbd;
pub mod pki;
pub mod qcow2;
pub mod qemu;
pub mod sectors;
pub mod sim;
pub mod writes;

use blockgraph::graph::open::{self, Child, DriverSpec, FileSpec, NodeSpec, OpenError};
use blockgraph::graph::{Body, Common, Control, DiscardPolicy, NewNode, Shape};
use blockgraph::node::{Engine, NodeId, Outcome};
use blockgraph::pin::Epochs;
use blockgraph::{Current, Event, Kind, Lane, Mode, Span, Started, driver};
use driver::file::{
    Cache, FileDriver, FileKind, FileOptions, FileParts, Flushes, Locking, OpenMode,
};
use driver::raw::Window;
use ring::{Align, Choice, File, Mem, Op, Ring, Wait};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
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
    pub control: Control,
    pub epochs: Arc<Epochs>,
    bell: ring::Bell,
}

const BELL: u64 = 1 << 62;

impl Bench {
    pub fn new(choice: Choice, mode: Mode) -> Bench {
        let current = Arc::new(Current::default());
        Bench::on(current, Arc::new(Epochs::default()), choice, mode)
    }

    pub fn on(current: Arc<Current>, epochs: Arc<Epochs>, choice: Choice, mode: Mode) -> Bench {
        let ring = Ring::new(choice.clone()).expect("a ring");
        // Tasks are woken by other threads too: by whoever lets go of a held range, or of a pin.
        let bell = ring.bell();
        let lane = Lane::new(ring, current.clone(), epochs.clone(), mode);
        let control = Control::in_mode(current.clone(), epochs.clone(), choice, mode);
        let control = control.expect("a ring");
        let fd = std::os::fd::AsRawFd::as_raw_fd(&bell);
        let ring = lane.ring().clone();
        ring.borrow_mut().start(Op::Poll { fd }, &[], 0, 0, BELL);
        Bench {
            current,
            lane,
            control,
            epochs,
            bell,
        }
    }

    pub fn open(&mut self, spec: NodeSpec) -> NodeId {
        let opened = open::open(&self.current, spec, &mut self.control);
        opened.expect("opened").0
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
                Some(Event::Signal { .. }) => self.bell.hush(),
                None => self.lane.turn(Wait::One).expect("a turn"),
            }
        }
    }

    /// Goes on as far as anything can without waiting, and notes what ended.
    pub fn pump(&mut self, ends: &mut Vec<(u64, Outcome)>) {
        for _ in 0..50 {
            self.lane.turn(Wait::Not).expect("a turn");
            self.lane.begin_batch();
            while let Some(event) = self.lane.take() {
                if let Event::Finished { token, outcome } = event {
                    ends.push((token, outcome));
                }
            }
            self.lane.end_batch();
        }
    }

    /// Goes on for so many turns, waiting for nothing but what a simulated disk has under way, and notes what ended.
    pub fn turns(&mut self, count: usize, ends: &mut Vec<(u64, Outcome)>) {
        for _ in 0..count {
            self.lane.turn(Wait::Not).expect("a turn");
            self.lane.begin_batch();
            while let Some(event) = self.lane.take() {
                if let Event::Finished { token, outcome } = event {
                    ends.push((token, outcome));
                }
            }
            self.lane.end_batch();
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

/// Opens with a control of its own.
pub fn open(
    current: &Arc<Current>,
    spec: NodeSpec,
) -> Result<(NodeId, Arc<blockgraph::Graph>), OpenError> {
    let epochs = Arc::new(Epochs::default());
    let mut control = Control::new(current.clone(), epochs, Choice::Threads).expect("a control");
    open::open(current, spec, &mut control)
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
        driver: DriverSpec::Raw {
            file,
            window,
            journal: None,
        },
    }
}

pub fn named(mut spec: NodeSpec, name: &str) -> NodeSpec {
    spec.name = Some(name.to_owned());
    spec
}

pub fn inline(spec: NodeSpec) -> Child {
    Child::Inline(Box::new(spec))
}

/// A sparse image of `size` bytes.
pub fn image(dir: &Path, size: u64) -> PathBuf {
    let path = dir.join("disk.raw");
    let file = std::fs::File::create(&path).expect("created");
    file.set_len(size).expect("sized");
    path
}

/// An O_DIRECT file of which nothing is believed but whole pages, as if its device had 4096-byte sectors.
pub fn strict_file(bench: &Bench, path: &Path) -> NodeId {
    let mut graph = (*bench.current.get()).clone();
    let mut how = std::fs::OpenOptions::new();
    how.read(true).write(true).custom_flags(libc::O_DIRECT);
    let opened = how.open(path).expect("opened");
    let size_bytes = opened.metadata().expect("metadata").len();
    let align = Align {
        memory_bytes: 4096,
        offset_bytes: 4096,
    };
    let file = Arc::new(File::new(graph.new_file_id(), opened.into(), align));
    let parts = FileParts {
        file: file.clone(),
        kind: FileKind::Regular,
        size_bytes,
        limits: blockgraph::Limits::PLAIN,
        cache: Cache::Direct,
        flushes: Flushes::Sync,
    };
    let node = insert(
        &mut graph,
        "file",
        FileDriver::from_parts(parts),
        vec![file],
    );
    bench.current.publish(graph);
    node
}

/// Puts a driver of the test's own making into a generation.
pub fn insert(
    graph: &mut blockgraph::Graph,
    kind: &'static str,
    driver: impl blockgraph::Driver + 'static,
    files: Vec<Arc<File>>,
) -> NodeId {
    let name = format!("own{}", graph.next_id().0);
    graph.insert(NewNode {
        name,
        kind,
        common: common(),
        body: Body::Driver(Arc::new(driver)),
        shape: Shape::Leaf,
        files,
    })
}
