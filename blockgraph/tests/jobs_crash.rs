//! Streaming, committing and mirroring on a disk that reorders, interrupts and loses power: whatever moment that is, and whatever guests
//! write meanwhile, the image that its user would open holds what was flushed, or something later.
//!
//! The rule: the blocks of a disk each hold one byte, repeated. The model knows for each which bytes it may hold after a crash: the
//! one of the last flush, and those written since.

mod support;

use blockgraph::driver::file::{Cache, FileDriver, FileKind, FileParts, Flushes};
use blockgraph::driver::qcow2::Options;
use blockgraph::driver::qcow2::format::header::Backing as Named;
use blockgraph::filter::copy_on_read::CopyOnRead;
use blockgraph::filter::dirty::{CopiedTo, Dirty};
use blockgraph::filter::write_blocking::WriteBlocking;
use blockgraph::graph::edit::{Edit, NewFilter};
use blockgraph::graph::open::{Backing, Child, DriverSpec, NodeSpec, Qcow2Spec};
use blockgraph::graph::status::Until;
use blockgraph::graph::{Body, Common, gate};
use blockgraph::io::Io;
use blockgraph::job::copy::{
    Bounds, Copier, CopyPlan, Counts, ErrorPolicy, Ignored, Parts, Select, Transfer, Waits,
    WorkSet, Writing, Zeroes, find_work,
};
use blockgraph::job::{Mirror, Mirrored, OnError, Progress, Steer, Stream, Worker, rename_backing};
use blockgraph::{Kind, Limits, Mode, NodeId, Started, Unmap};
use ring::sim::{Act, Config, Disk, FileConfig, Images, Rule, Weather};
use ring::{Align, Choice, Durability, FileId, Mem};
use std::rc::Rc;
use std::sync::Arc;
use support::qcow2::{create, overlay, qemu_io};
use support::{Bench, Chance, common, insert, span};

const BLOCK: u64 = 4096;
/// A power cut tears a write between these, as disks do.
const SECTOR: usize = 512;
const BLOCKS: u64 = 96;
const SIZE: u64 = BLOCK * BLOCKS;
/// The last one is for a mirror.
const IMAGES: u32 = 4;
const TARGET: usize = 3;

/// What is done to the chain.
#[derive(Clone, Copy, Debug)]
enum Job {
    /// The top takes everything.
    Stream,
    /// The top takes what the image in the middle has.
    StreamPart,
    /// The image in the middle goes into the base.
    CommitMiddle,
    /// Top and middle go into the base.
    CommitTop,
    /// All goes into another image, which takes the top's place.
    Mirror,
    /// The same, and guests wait for it.
    MirrorBlocking,
}

const JOBS: [Job; 6] = [
    Job::Stream,
    Job::StreamPart,
    Job::CommitMiddle,
    Job::CommitTop,
    Job::Mirror,
    Job::MirrorBlocking,
];

/// Three images, each with some blocks, and what the topmost reads as.
fn images(chance: &mut Chance) -> (Vec<Vec<u8>>, Vec<u8>) {
    let dir = tempfile::tempdir().expect("a directory");
    let mut content = vec![0; BLOCKS as usize];
    let paths: Vec<_> = (0..IMAGES)
        .map(|n| dir.path().join(format!("c{n}")))
        .collect();
    for (n, path) in paths.iter().enumerate() {
        match n {
            0 => create(path, "cluster_size=4k", SIZE),
            TARGET => {
                create(path, "cluster_size=4k", SIZE);
                continue;
            }
            _ => overlay(path, "cluster_size=4k", SIZE, &paths[n - 1], "qcow2"),
        }
        let mut commands = Vec::new();
        for _ in 0..BLOCKS / 3 {
            let (block, byte) = (chance.below(BLOCKS), chance.below(50) as u8 + 1);
            commands.push(format!("write -P {byte} {} {BLOCK}", block * BLOCK));
            content[block as usize] = byte;
        }
        qemu_io(path, "qcow2", &commands);
    }
    let read = |path| std::fs::read(path).expect("read");
    (paths.iter().map(read).collect(), content)
}

/// A disk with those files.
fn disk(images: impl IntoIterator<Item = Vec<u8>>, seed: u64, weather: Weather) -> Disk {
    let align = Align {
        memory_bytes: 1,
        offset_bytes: 512,
    };
    let mut config = Config::new(seed).weather(weather);
    for (n, bytes) in images.into_iter().enumerate() {
        config = config.file_with(FileConfig {
            id: FileId(n as u32),
            bytes,
            align,
            size_bytes_max: 8 << 20,
        });
    }
    config.disk()
}

/// A bench on such a disk, and the nodes of its files.
fn bench(disk: &Disk) -> (Bench, Vec<NodeId>) {
    let bench = Bench::new(Choice::Sim(disk.clone()), Mode::Fast);
    let mut graph = (*bench.current.get()).clone();
    let images = disk.images();
    let nodes = (0..IMAGES).map(|n| {
        assert_eq!(graph.new_file_id(), FileId(n));
        let file = disk.open(FileId(n)).expect("a file of the disk");
        let driver = FileDriver::from_parts(FileParts {
            file: file.clone(),
            kind: FileKind::Regular,
            size_bytes: images[&FileId(n)].len() as u64,
            limits: Limits::PLAIN,
            cache: Cache::Direct,
            flushes: Flushes::Sync,
        });
        insert(&mut graph, "file", driver, vec![file])
    });
    let nodes = nodes.collect();
    bench.current.publish(graph);
    (bench, nodes)
}

/// Opens an image as `q` and its number.
fn open(bench: &mut Bench, files: &[NodeId], n: usize, below: Option<usize>) -> NodeId {
    let file = bench
        .current
        .get()
        .node(files[n])
        .expect("there")
        .name()
        .to_owned();
    let backing = match below {
        Some(below) => Backing::Node(Child::Named(format!("q{below}"))),
        None => Backing::Nothing,
    };
    bench.open(NodeSpec {
        name: Some(format!("q{n}")),
        common: common(),
        driver: DriverSpec::Qcow2(Box::new(Qcow2Spec {
            file: Child::Named(file),
            data_file: None,
            backing,
            options: Options::default(),
            named: gate::Named::default(),
            journal: None,
        })),
    })
}

/// What may be found in each block.
struct Model {
    now: Vec<u8>,
    may_be: Vec<Vec<u8>>,
}

impl Model {
    fn new(content: Vec<u8>) -> Model {
        let may_be = content.iter().map(|byte| vec![*byte]).collect();
        Model {
            now: content,
            may_be,
        }
    }

    fn writes(&mut self, block: u64, byte: u8) {
        self.now[block as usize] = byte;
        self.may_be[block as usize].push(byte);
    }

    fn flushed(&mut self) {
        for (may_be, now) in self.may_be.iter_mut().zip(&self.now) {
            *may_be = vec![*now];
        }
    }

    fn holds(&self, found: &[u8], what: &str) {
        for (sector, bytes) in found.chunks(SECTOR).enumerate() {
            let (block, byte) = (sector as u64 * SECTOR as u64 / BLOCK, bytes[0]);
            let is_whole = bytes.iter().all(|other| *other == byte);
            assert!(is_whole, "{what}: sector {sector} is torn");
            let may_be = &self.may_be[block as usize];
            assert!(
                may_be.contains(&byte),
                "{what}: block {block} is {byte}, not {may_be:?}"
            );
        }
    }
}

/// What a user reads after a power cut: from the image `top`, on what it says is below it.
fn read_after(images: Images, top: usize) -> Vec<u8> {
    let disk = disk(images.into_values(), 1, Weather::CALM);
    let (mut bench, files) = bench(&disk);
    let below = below_of(&disk, top);
    if let Some(below) = below {
        let lowest = below_of(&disk, below);
        if let Some(lowest) = lowest {
            assert_eq!(below_of(&disk, lowest), None);
            open(&mut bench, &files, lowest, None);
        }
        open(&mut bench, &files, below, lowest);
    }
    let node = open(&mut bench, &files, top, below);
    bench.read(node, 0, SIZE as usize)
}

/// What an image says is below it.
fn below_of(disk: &Disk, image: usize) -> Option<usize> {
    let (mut bench, files) = bench(disk);
    let node = open(&mut bench, &files, image, None);
    let graph = bench.current.get();
    let Some(Body::Driver(driver)) = graph.node(node).map(|node| node.body()) else {
        panic!("an image");
    };
    let header = driver.as_qcow2().expect("an image").header();
    let name = header.backing?.name;
    let number = name.chars().last().and_then(|digit| digit.to_digit(10));
    Some(number.expect("a name of this test's") as usize)
}

/// A chain under way.
struct World {
    disk: Disk,
    bench: Bench,
    chance: Chance,
    model: Model,
    /// Where the guest is.
    top: NodeId,
    nodes: Vec<NodeId>,
}

impl World {
    /// Something of the guest's, while `other` goes on.
    fn guest(&mut self, mut other: impl FnMut()) {
        let (block, byte) = (self.chance.below(BLOCKS), self.chance.below(50) as u8 + 100);
        let flushes = self.chance.below(4) == 0;
        let mem = match flushes {
            true => Mem::none(),
            false => Mem::zeroed(BLOCK as usize).expect("memory"),
        };
        let kind = match flushes {
            true => Kind::Flush,
            false => Kind::Write(Durability::Cached),
        };
        if !flushes {
            mem.store(0, &[byte; BLOCK as usize]);
            self.model.writes(block, byte);
        }
        let at = if flushes {
            span(0, 0)
        } else {
            span(block * BLOCK, BLOCK)
        };
        let started = self.bench.start(self.top, kind, at, &mem, 7);
        let mut ends = Vec::new();
        if let Started::Done(outcome) = started {
            ends.push((7, outcome));
        }
        while ends.is_empty() {
            other();
            self.bench.turns(1, &mut ends);
        }
        assert_eq!(ends, [(7, Ok(()))]);
        if flushes {
            self.model.flushed();
        }
    }

    fn crash(&mut self, image: usize, when: &str) {
        let images = self.disk.crash(self.chance.next());
        self.model.holds(&read_after(images, image), when);
    }

    /// Puts a filter where the guest is, and says where the top is now.
    fn filter(&mut self, body: Body) -> NodeId {
        let mut edit = Edit::begin(&self.bench.current);
        let new = NewFilter {
            name: "filter".to_owned(),
            kind: "test",
            common: Common::default(),
            body,
        };
        let below = edit.insert_above(self.top, new).expect("a filter more");
        let (_, leaving) = edit.commit().expect("published");
        drop(leaving);
        below
    }
}

/// What the job copies, into a work set, and what it is counted by.
fn plan(world: &mut World, job: Job) -> CopyPlan {
    let info = world.bench.current.get().info(world.top).expect("known");
    let base = world.nodes[0];
    let transfer = |source| Transfer {
        source,
        target: base,
        select: Select::Allocated(Until::Above(base)),
        zeroes: Zeroes::Detect(Unmap::Allow),
        writing: Writing::Plain,
    };
    let full = || Arc::new(WorkSet::full(SIZE, BLOCK));
    let (parts, work): (Rc<dyn Parts>, _) = match job {
        Job::Stream | Job::StreamPart => {
            let bottom = if matches!(job, Job::Stream) {
                "q0"
            } else {
                "q1"
            };
            let filter = CopyOnRead::new(info, Some(bottom.to_owned()));
            world.filter(Body::Driver(Arc::new(filter)));
            let filter = "filter".to_owned();
            (Rc::new(Stream { filter }), full())
        }
        Job::CommitMiddle => (Rc::new(transfer(world.nodes[1])), full()),
        Job::Mirror | Job::MirrorBlocking => return mirror_plan(world, job),
        Job::CommitTop => {
            let work = Arc::new(WorkSet::new(SIZE, BLOCK));
            let dirty = Dirty::new(work.clone(), CopiedTo::Below("q0".to_owned()));
            let below = world.filter(Body::Filter(Arc::new(dirty)));
            (Rc::new(transfer(below)), work)
        }
    };
    bounded(parts, vec![world.top], work)
}

/// A mirror of the top, all of which is to be copied.
fn mirror_plan(world: &mut World, job: Job) -> CopyPlan {
    let info = world.bench.current.get().info(world.top).expect("known");
    let target = world.nodes[TARGET];
    let work = Arc::new(WorkSet::full(SIZE, BLOCK));
    let mirrored = Mirrored::new(
        work.clone(),
        target,
        Arc::<Progress>::default(),
        Arc::<Steer>::default(),
    );
    let mirrored = Arc::new(mirrored);
    mirrored.begin();
    let body = match job {
        Job::MirrorBlocking => Body::Driver(Arc::new(WriteBlocking::new(info, mirrored.clone()))),
        _ => Body::Filter(Arc::new(Dirty::new(work.clone(), CopiedTo::Elsewhere))),
    };
    let source = world.filter(body);
    let transfer = Transfer {
        source,
        target,
        select: Select::All,
        zeroes: Zeroes::Plain,
        writing: Writing::Plain,
    };
    let parts = Rc::new(Mirror { transfer, mirrored });
    bounded(parts, vec![world.top, target], work)
}

fn bounded(parts: Rc<dyn Parts>, nodes: Vec<NodeId>, work: Arc<WorkSet>) -> CopyPlan {
    CopyPlan {
        parts,
        nodes,
        work,
        bounds: Bounds {
            chunk_bytes: 4 * BLOCK,
            copies_max: 3,
            bytes_max: 12 * BLOCK,
        },
        errors: ErrorPolicy::both(OnError::Report, Ignored::Retried),
        counts: Counts::Steps,
    }
}

fn run(job: Job, seed: u64, (images, content): (Vec<Vec<u8>>, Vec<u8>)) {
    let chance = Chance(seed);
    let disk = disk(images, seed, Weather::ROUGH);
    disk.set_weather(Weather::CALM);
    let (mut bench, files) = bench(&disk);
    let nodes: Vec<NodeId> = (0..IMAGES as usize)
        .map(|n| {
            open(
                &mut bench,
                &files,
                n,
                n.checked_sub(1).filter(|_| n != TARGET),
            )
        })
        .collect();
    disk.set_weather(Weather::ROUGH);
    let mut world = World {
        disk: disk.clone(),
        chance,
        model: Model::new(content),
        top: nodes[2],
        nodes,
        bench,
    };
    let plan = plan(&mut world, job);
    let steer = Arc::<Steer>::default();
    let (current, epochs) = (world.bench.current.clone(), world.bench.epochs.clone());
    let choice = Choice::Sim(disk.clone());
    let worker = Worker::in_mode(current, epochs, choice, Mode::Fast, steer);
    let mut worker = worker.expect("a worker");
    let (parts, work, used) = (plan.parts.clone(), plan.work.clone(), plan.nodes.clone());
    if let Job::CommitTop = job {
        find_work(&mut worker, &parts, &used, &work).expect("looked at");
    }
    let progress = Progress::default();
    let tell = |_| {};
    let mut copier = Copier::new(&mut worker, plan, &progress, &tell);
    // As long as the guest writes, and until all is copied.
    let mut left = 12;
    loop {
        let mut ended = copier.round(Waits::No).expect("copied").is_some();
        if left > 0 && world.chance.below(3) == 0 {
            left -= 1;
            world.guest(|| {
                ended = copier.round(Waits::No).expect("copied").is_some();
            });
        }
        if world.chance.below(12) == 0 {
            world.crash(2, "while copying");
        }
        if ended && left == 0 && work.is_empty() {
            break;
        }
    }
    let ended = copier.run();
    ended.expect("copied");
    end(&mut world, job);
}

/// The image is on another one from now on; power may go in between.
fn end(world: &mut World, job: Job) {
    let named = |name: &str| Named {
        name: name.to_owned(),
        format: Some("qcow2".to_owned()),
    };
    let (durable, backing) = match job {
        Job::Stream => (world.top, None),
        Job::StreamPart => (world.top, Some(named("c0"))),
        Job::CommitMiddle => (world.nodes[0], Some(named("c0"))),
        Job::CommitTop => return pivot(world, 0),
        Job::Mirror | Job::MirrorBlocking => return pivot(world, TARGET),
    };
    let cut = world.chance.below(24);
    let first = world.disk.count();
    if cut < 16 {
        let rule = Rule::every(Act::Refuse(libc::EIO));
        world
            .disk
            .rule(rule.when(move |seen| seen.number >= first + cut));
    }
    let graph = world.bench.current.get();
    let image = graph.find("q2").expect("there");
    let work = move |io: Io| async move { rename_backing(&io, durable, image, backing).await };
    let renamed = world
        .bench
        .control
        .run(&graph, image, work)
        .expect("a turn");
    assert!(renamed.is_ok() || cut < 16, "{renamed:?}");
    if renamed.is_ok() && !matches!(job, Job::CommitMiddle) {
        world.model.flushed();
    }
    for _ in 0..3 {
        world.crash(2, "while the image gets another name below it");
    }
}

/// That image has all of it, and is what is opened from now on.
fn pivot(world: &mut World, image: usize) {
    let base = world.nodes[image];
    let flushed = world.bench.plain(base, Kind::Flush, span(0, 0));
    flushed.expect("flushed");
    world.model.flushed();
    for _ in 0..3 {
        world.crash(image, "after everything was copied there");
    }
}

#[test]
fn power_cuts_lose_nothing_that_was_flushed_while_images_are_streamed_committed_and_mirrored() {
    for seed in 0..12 {
        let begun = images(&mut Chance(seed));
        for job in JOBS {
            println!("{job:?} seed {seed}");
            run(job, seed, begun.clone());
        }
    }
}
