//! A stack on a simulated disk, opened as the daemon would open it, and some lanes on it.

use super::edits;
use super::plan::Plan;
use super::stack::{Blockdev, Compression, Format, Layer, Stack, Version, file_name};
use blockgraph::driver::file::{Cache, FileDriver, FileKind, FileParts, Flushes};
use blockgraph::driver::qcow2::create::{self, DataFile, Options};
use blockgraph::driver::qcow2::format::header;
use blockgraph::filter::throttle::Limits;
use blockgraph::graph::edit::{Edit, Leaving};
use blockgraph::graph::open::open;
use blockgraph::graph::{Body, Common, Control, DiscardPolicy, NewNode, Shape};
use blockgraph::pin::Epochs;
use blockgraph::{Current, Graph, Lane, Mode, NodeId};
use ring::sim::{Config, Disk, FileConfig, Images, Weather};
use ring::{Align, Choice, FileId, Ring};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tests::blockdev::node_spec;
use tests::cells::SECTOR;

/// What a world is made like.
#[derive(Clone, Copy, Debug)]
pub struct Nature {
    pub seed: u64,
    pub weather: Weather,
    pub block_bytes: u32,
    pub cache: Cache,
    pub room_bytes: u64,
    pub lanes: usize,
    pub mode: Mode,
}

impl Nature {
    pub fn of(plan: &Plan) -> Nature {
        Nature {
            seed: plan.seed,
            weather: plan.weather,
            block_bytes: plan.block_bytes,
            cache: plan.cache(),
            room_bytes: plan.room_bytes,
            lanes: plan.lanes,
            mode: plan.mode,
        }
    }

    /// Where nothing goes wrong: for looking at what is there.
    pub fn calm(plan: &Plan) -> Nature {
        Nature {
            weather: Weather::CALM,
            room_bytes: 64 << 20,
            lanes: 1,
            ..Nature::of(plan)
        }
    }
}

/// Nothing here waits for anything but a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// An open stack.
pub struct World {
    pub disk: Disk,
    pub current: Arc<Current>,
    pub epochs: Arc<Epochs>,
    pub control: Control,
    pub lanes: Vec<Lane>,
    pub stack: Stack,
    /// What the guest has.
    pub top: NodeId,
}

impl World {
    /// Opens `stack` on files of these bytes. Errors: what refuses.
    pub fn open(stack: &Stack, images: &Images, nature: Nature) -> Result<World, String> {
        let mut world = World::bare(images, nature);
        world.stack = stack.clone();
        for node in stack.blockdevs() {
            world.blockdev(&node)?;
        }
        world.top = world.node(&stack.top().top());
        Ok(world)
    }

    /// Nothing but nodes for files of these bytes.
    pub fn bare(images: &Images, nature: Nature) -> World {
        let files = images.keys().map(|file| file.0 + 1).max().unwrap_or(0);
        let disk = disk(images, files, nature);
        let current = Arc::new(Current::default());
        let epochs = Arc::new(Epochs::default());
        let graph = file_nodes(&disk, files, nature);
        let groups = graph.throttle_groups();
        groups.add("group", Limits::default()).expect("a group");
        current.publish(graph);
        let choice = Choice::Sim(disk.clone());
        let control = Control::in_mode(current.clone(), epochs.clone(), choice, nature.mode);
        let mut world = World {
            control: control.expect("a ring"),
            disk,
            current,
            epochs,
            lanes: Vec::new(),
            stack: Stack { layers: Vec::new() },
            top: NodeId(0),
        };
        for _ in 0..nature.lanes {
            let lane = world.lane(nature.mode);
            world.lanes.push(lane);
        }
        world
    }

    /// Makes the file of a layer an empty image. Errors: what refuses.
    pub fn create(&mut self, layer: &Layer, backing: Option<&Layer>) -> Result<(), String> {
        let Format::Qcow2(layout) = layer.format else {
            return Err("only qcow2 is created here".to_owned());
        };
        let file = self.node(&file_name(layer.file));
        let data_file = layer.data.map(|data| DataFile {
            node: self.node(&file_name(data)),
            name: file_name(data),
        });
        let format = |below: &Layer| match below.format {
            Format::Raw => "raw".to_owned(),
            Format::Qcow2(_) => "qcow2".to_owned(),
        };
        let options = Options {
            version: match layout.version {
                Version::V2 => header::Version::V2,
                Version::V3 => header::Version::V3,
            },
            cluster_bytes: layout.cluster_bytes,
            refcount_bits: u64::from(layout.refcount_bits),
            backing_file: backing.map(|below| below.name.clone()),
            backing_format: backing.map(format),
            data_file,
            extended_l2: layout.subclusters,
            lazy_refcounts: layout.lazy_refcounts,
            compression: match layout.compression {
                Compression::Zlib => header::Compression::Zlib,
                Compression::Zstd => header::Compression::Zstd,
            },
            ..Options::new(layer.sectors * SECTOR)
        };
        let graph = self.current.get();
        let created = self.control.run(&graph, file, move |io| async move {
            create::create(&io, file, &options).await
        });
        let created = created.map_err(|error| error.to_string())?;
        created.map_err(|error| format!("creating {}: {error}", layer.name))
    }

    /// Opens one node.
    pub fn blockdev(&mut self, node: &Blockdev) -> Result<NodeId, String> {
        let spec = node_spec(&node.options)?;
        let opened = open(&self.current, spec, &mut self.control);
        let (id, _) = opened.map_err(|error| format!("{}: {error}", node.options))?;
        Ok(id)
    }

    pub fn node(&self, name: &str) -> NodeId {
        let found = self.current.get().find(name);
        found.unwrap_or_else(|| panic!("there is no node {name}"))
    }

    /// Makes everything durable and lets go of every node.
    pub fn close(&mut self) -> Result<(), String> {
        let mut edit = Edit::begin(&self.current);
        edits::remove_layers(&mut edit, &self.stack.layers)?;
        let (_, leaving) = edit.commit().map_err(|error| error.to_string())?;
        self.let_go(leaving)
    }

    /// Closes nodes that left the graph. Errors: what they could not write.
    pub fn let_go(&mut self, leaving: Leaving) -> Result<(), String> {
        for lane in &mut self.lanes {
            // A lane looks at the newest generation when it has something to do.
            lane.begin_batch();
            lane.end_batch();
        }
        let soon = Instant::now() + PATIENCE;
        let finished = leaving.finish(&mut self.control, soon);
        finished.map_err(|(error, _)| error.to_string())
    }

    fn lane(&self, mode: Mode) -> Lane {
        let ring = Ring::new(Choice::Sim(self.disk.clone())).expect("a ring");
        Lane::new(ring, self.current.clone(), self.epochs.clone(), mode)
    }
}

fn disk(images: &Images, files: u32, nature: Nature) -> Disk {
    let align = Align {
        memory_bytes: nature.block_bytes.min(512),
        offset_bytes: nature.block_bytes,
    };
    let mut config = Config::new(nature.seed).weather(nature.weather);
    for id in (0..files).map(FileId) {
        let mut bytes = images.get(&id).cloned().unwrap_or_default();
        // A disk has whole sectors; what a read past the end of a file finds is zeroes.
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        let size_bytes_max = bytes.len() as u64 + nature.room_bytes;
        config = config.file_with(FileConfig {
            id,
            bytes,
            align,
            size_bytes_max,
        });
    }
    config.disk()
}

/// A generation with a node for each file, as no option can say which file of a simulated disk is meant.
fn file_nodes(disk: &Disk, files: u32, nature: Nature) -> Graph {
    let mut graph = Graph::default();
    let images = disk.images();
    for id in (0..files).map(FileId) {
        assert_eq!(graph.new_file_id(), id);
        let file = disk.open(id).expect("a file of the disk");
        let driver = FileDriver::from_parts(FileParts {
            file: file.clone(),
            kind: FileKind::Regular,
            size_bytes: images[&id].len() as u64,
            limits: blockgraph::Limits {
                discard_bytes: nature.block_bytes.max(512),
                ..blockgraph::Limits::PLAIN
            },
            cache: nature.cache,
            flushes: Flushes::Sync,
        });
        graph.insert(NewNode {
            name: file_name(id),
            kind: "file",
            common: Common {
                discard: DiscardPolicy::Unmap,
                ..Common::default()
            },
            body: Body::Driver(Arc::new(driver)),
            shape: Shape::Leaf,
            files: vec![file],
        });
    }
    graph
}
