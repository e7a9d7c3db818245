//! A simulated disk under a graph under some lanes, all by seed.

use blockgraph::driver::file::{Cache, FileDriver, FileKind, FileParts, Flushes};
use blockgraph::driver::raw::{Raw, Window};
use blockgraph::filter::delay::Delay;
use blockgraph::graph::{Body, Common, DetectZeroes, DiscardPolicy, NewNode, Shape};
use blockgraph::pin::Epochs;
use blockgraph::{Current, Graph, Info, Lane, Limits, Mode, NodeId};
use ring::sim::{Config, Disk, FileConfig, Rng, Weather};
use ring::{Align, Choice, FileId, Ring};
use std::sync::Arc;
use tests::cells::{Cells, Overlap, SECTOR};

pub const FILE: FileId = FileId(0);
/// Sectors of the guest's disk.
pub const SECTORS: u64 = 256;

/// How a world is made.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub seed: u64,
    /// What the file's transfers must be multiples of, in bytes.
    pub block_bytes: u32,
    pub cache: Cache,
    /// Where the guest's disk begins in the file, in bytes; 0: no raw node.
    pub offset_bytes: u64,
    /// The latency of a delay filter; `None`: no filter.
    pub delay_ns: Option<u64>,
    pub discard: DiscardPolicy,
    pub detect_zeroes: DetectZeroes,
    pub lanes: usize,
    pub weather: Weather,
    pub overlap: Overlap,
}

impl Plan {
    /// A plan by seed.
    pub fn by_seed(seed: u64) -> Plan {
        let mut rng = Rng::new(seed);
        let block_bytes = [1, 512, 4096][rng.below(3) as usize];
        Plan {
            seed,
            block_bytes,
            cache: match block_bytes {
                1 => Cache::Page,
                _ => Cache::Direct,
            },
            offset_bytes: rng.below(3) * u64::from(block_bytes.max(512)),
            delay_ns: [None, Some(0), Some(5000)][rng.below(3) as usize],
            discard: match rng.coin() {
                true => DiscardPolicy::Ignore,
                false => DiscardPolicy::Unmap,
            },
            detect_zeroes: [DetectZeroes::Off, DetectZeroes::On, DetectZeroes::Unmap]
                [rng.below(3) as usize],
            lanes: 1 + rng.below(3) as usize,
            weather: Weather::ROUGH,
            overlap: Overlap::Never,
        }
    }
}

/// What a plan became.
pub struct World {
    pub disk: Disk,
    pub top: NodeId,
    pub lanes: Vec<Lane>,
    pub current: Arc<Current>,
    pub epochs: Arc<Epochs>,
}

/// A file whose window for the guest holds `cells`; what lies around it must stay as it is.
pub fn disk(plan: &Plan, cells: &Cells) -> Disk {
    let mut bytes = vec![0xa5; plan.offset_bytes as usize];
    bytes.extend(cells.image());
    bytes.extend([0x5a; 8192]);
    let size_bytes_max = bytes.len() as u64;
    let (memory_bytes, offset_bytes) = (plan.block_bytes.min(512), plan.block_bytes);
    let file = FileConfig {
        id: FILE,
        bytes,
        align: Align {
            memory_bytes,
            offset_bytes,
        },
        size_bytes_max,
    };
    let config = Config::new(plan.seed).weather(plan.weather);
    config.file_with(file).disk()
}

/// The window of an image that the guest sees.
pub fn window<'a>(plan: &Plan, image: &'a [u8]) -> &'a [u8] {
    &image[plan.offset_bytes as usize..][..(SECTORS * SECTOR) as usize]
}

/// True if an image still holds what lies around the window.
pub fn surroundings_are_whole(plan: &Plan, image: &[u8]) -> bool {
    let (before, rest) = image.split_at(plan.offset_bytes as usize);
    let after = &rest[(SECTORS * SECTOR) as usize..];
    before.iter().all(|&b| b == 0xa5) && after.iter().all(|&b| b == 0x5a) && after.len() == 8192
}

fn insert(graph: &mut Graph, kind: &'static str, plan: &Plan, body: Body, shape: Shape) -> NodeId {
    graph.insert(NewNode {
        name: format!("{kind}-node"),
        kind,
        common: Common {
            discard: plan.discard,
            detect_zeroes: match kind {
                // A policy of one node is enough; the others must leave it alone.
                "file" => plan.detect_zeroes,
                _ => DetectZeroes::Off,
            },
            ..Common::default()
        },
        body,
        shape,
        files: Vec::new(),
    })
}

fn graph(plan: &Plan, disk: &Disk) -> (Graph, NodeId) {
    let mut graph = Graph::default();
    let file = disk.open(FILE).expect("a file");
    let size_bytes = disk.images()[&FILE].len() as u64;
    let limits = Limits {
        discard_bytes: plan.block_bytes.max(512),
        ..Limits::PLAIN
    };
    let driver = FileDriver::from_parts(FileParts {
        file: file.clone(),
        kind: FileKind::Regular,
        size_bytes,
        limits,
        cache: plan.cache,
        flushes: Flushes::Sync,
    });
    let mut top = graph.insert(NewNode {
        name: "file-node".to_owned(),
        kind: "file",
        common: Common {
            discard: plan.discard,
            detect_zeroes: plan.detect_zeroes,
            ..Common::default()
        },
        body: Body::Driver(Arc::new(driver)),
        shape: Shape::Leaf,
        files: vec![file],
    });
    if let Some(delay_ns) = plan.delay_ns {
        let delay = Delay::new(delay_ns);
        let shape = Shape::filter(top);
        top = insert(
            &mut graph,
            "delay",
            plan,
            Body::Filter(Arc::new(delay)),
            shape,
        );
    }
    let window = Window {
        offset_bytes: plan.offset_bytes,
        size_bytes: Some(SECTORS * SECTOR),
    };
    let below = Info { size_bytes, limits };
    let raw = Raw::new(below, window).expect("a window");
    top = insert(
        &mut graph,
        "raw",
        plan,
        Body::Driver(Arc::new(raw)),
        Shape::image(top),
    );
    (graph, top)
}

impl World {
    pub fn new(plan: &Plan, cells: &Cells, mode: Mode) -> World {
        let disk = disk(plan, cells);
        let (graph, top) = graph(plan, &disk);
        let current = Arc::new(Current::default());
        current.publish(graph);
        let epochs = Arc::new(Epochs::default());
        let mut world = World {
            disk,
            top,
            lanes: Vec::new(),
            current,
            epochs,
        };
        for _ in 0..plan.lanes {
            let lane = lane(&world.disk, &world.current, &world.epochs, mode);
            world.lanes.push(lane);
        }
        world
    }
}

/// A lane for the calling thread.
pub fn lane(disk: &Disk, current: &Arc<Current>, epochs: &Arc<Epochs>, mode: Mode) -> Lane {
    let ring = Ring::new(Choice::Sim(disk.clone())).expect("a ring");
    Lane::new(ring, current.clone(), epochs.clone(), mode)
}
