//! Images: sizes, what is stored in them, what is below them.

use crate::driver::qcow2::Qcow2;
use crate::driver::qcow2::format::bitmap_dir::{Bitmap, Recording, Stored};
use crate::driver::qcow2::format::header::{Compression, Header, Version};
use crate::driver::qcow2::format::snapshot_table::Snapshot;
use crate::graph::name::{Name, Text};
use crate::graph::{Body, Graph, Node, Role};
use crate::io::Io;
use crate::node::{Driver, NodeId};
use std::collections::BTreeMap;

/// An image, or what a node shows as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageReport {
    /// What it is called.
    pub filename: Name,
    /// The node's driver.
    pub format: &'static str,
    /// What its users see, in bytes.
    pub size_bytes: u64,
    /// Bytes of storage that it takes up, where somebody knows.
    pub allocated_bytes: Option<u64>,
    /// How it is stored, where there is anything to say.
    pub storage: Option<StorageReport>,
    /// What it says is below it.
    pub backing: Option<BackingReport>,
    /// Internal snapshots, its own or those of what it filters.
    pub snapshots: Vec<SnapshotReport>,
    /// What only its driver knows.
    pub specific: Specific,
}

/// How an image is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StorageReport {
    /// It allocates whole clusters of so many bytes.
    pub cluster_bytes: Option<u64>,
    /// It was not closed well, and has to be checked.
    pub is_dirty: bool,
}

/// What an image says is below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackingReport {
    /// In its words.
    pub stored: String,
    /// From here.
    pub full: String,
    /// Of which format.
    pub format: Option<String>,
}

/// An internal snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotReport {
    /// Its id.
    pub id: String,
    /// What its user calls it.
    pub name: String,
    /// Bytes of a machine's state.
    pub vm_state_bytes: u64,
    /// When it was taken, in seconds since 1970, and nanoseconds beyond.
    pub taken_s: u32,
    /// Those.
    pub taken_ns: u32,
    /// How long the machine had run.
    pub vm_clock_ns: u64,
    /// How many instructions it had executed, if they were counted.
    pub icount: Option<u64>,
}

/// What only a driver knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Specific {
    /// Nothing.
    None,
    /// A regular file; nothing is said of it.
    File,
    /// A qcow2 image.
    Qcow2(Box<Qcow2Report>),
}

/// A qcow2 image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qcow2Report {
    /// Version 2 has neither features nor bitmaps.
    pub version: Version,
    /// Its compression.
    pub compression: Compression,
    /// Bits of a refcount.
    pub refcount_bits: u32,
    /// May its refcounts be wrong until it is closed?
    pub has_lazy_refcounts: bool,
    /// It was found damaged.
    pub is_corrupt: bool,
    /// It allocates parts of clusters.
    pub has_extended_l2: bool,
    /// Its data file.
    pub data_file: Option<DataFileReport>,
    /// Its persistent bitmaps, as on disk.
    pub bitmaps: Vec<BitmapReport>,
}

/// A data file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataFileReport {
    /// What the image calls it, if it does.
    pub name: Option<String>,
    /// It can be read without the image.
    pub is_raw: bool,
}

/// A bitmap on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapReport {
    /// Its name.
    pub name: String,
    /// Bytes of the disk behind one bit.
    pub granularity_bytes: u64,
    /// What is said of it.
    pub flags: BitmapFlags,
}

/// The flags of a bitmap on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitmapFlags {
    /// It was not stored well.
    pub in_use: bool,
    /// It records by itself.
    pub auto: bool,
}

/// What every node of `io`'s generation shows as an image, by id; `text` writes names.
pub async fn images(io: &Io, text: Text) -> BTreeMap<NodeId, ImageReport> {
    let graph = io.graph().clone();
    let mut names = graph.names(text);
    let mut images: BTreeMap<NodeId, ImageReport> = BTreeMap::new();
    for id in graph.all_parents_first().into_iter().rev() {
        let (Some(node), Some(filename)) = (graph.node(id), names.remove(&id)) else {
            continue;
        };
        let below = shown(node).and_then(|below| images.get(&below));
        let mut report = report(&graph, id, node, filename, below);
        if let Some(image) = driver(node).and_then(Driver::as_qcow2) {
            add_qcow2(&io.at(id), image, &mut report).await;
        }
        report.allocated_bytes = match node.shape().filtered() {
            None => io.allocated(id).await.ok(),
            // QEMU takes blkdebug for a protocol here, of which nobody knows.
            Some(_) if node.kind() == "blkdebug" => None,
            Some(below) => images.get(&below).and_then(|image| image.allocated_bytes),
        };
        images.insert(id, report);
    }
    images
}

fn driver(node: &Node) -> Option<&dyn Driver> {
    match node.body() {
        Body::Driver(driver) => Some(driver.as_ref()),
        Body::Filter(_) => None,
    }
}

/// The child whose storage is the node's own. A snapshot is stored nowhere by itself.
fn shown(node: &Node) -> Option<NodeId> {
    let shape = node.shape();
    match node.kind() {
        "snapshot-access" => None,
        _ => shape.filtered().or(shape.child(Role::Image)),
    }
}

/// The internal snapshots it shows as its own: those of what it is on, if that is all it is on.
fn snapshots(node: &Node, below: Option<&ImageReport>) -> Vec<SnapshotReport> {
    match below {
        Some(below) if node.shape().edges().count() == 1 => below.snapshots.clone(),
        _ => Vec::new(),
    }
}

fn report(
    graph: &Graph,
    id: NodeId,
    node: &Node,
    filename: Name,
    below: Option<&ImageReport>,
) -> ImageReport {
    let is_file = node.origin().is_some();
    ImageReport {
        filename,
        format: node.kind(),
        size_bytes: graph.info(id).map_or(0, |info| info.size_bytes),
        allocated_bytes: None,
        storage: match is_file {
            true => Some(StorageReport::default()),
            false => below.and_then(|below| below.storage),
        },
        backing: None,
        snapshots: snapshots(node, below),
        specific: match node.kind() {
            "file" if is_file => Specific::File,
            _ => Specific::None,
        },
    }
}

/// What cannot be read now is left out: the image serves all the same.
async fn add_qcow2(io: &Io, image: &Qcow2, report: &mut ImageReport) {
    let header = image.header();
    let snapshots = image.snapshots(io).await.unwrap_or_default();
    let bitmaps = image.bitmaps();
    report.snapshots = snapshots.iter().map(SnapshotReport::of).collect();
    report.storage = Some(StorageReport {
        cluster_bytes: Some(header.cluster_bytes()),
        is_dirty: header.incompatible.dirty,
    });
    let graph = io.graph();
    let full = graph
        .node(io.here())
        .and_then(|node| graph.stored_backing(node));
    let backing = header.backing.clone();
    report.backing = backing.zip(full).map(|(backing, full)| BackingReport {
        stored: backing.name,
        full,
        format: backing.format,
    });
    report.specific = Specific::Qcow2(Box::new(qcow2(&header, &bitmaps)));
}

fn qcow2(header: &Header, bitmaps: &[Bitmap]) -> Qcow2Report {
    let has_data_file = header.incompatible.data_file;
    Qcow2Report {
        version: header.version,
        compression: header.compression,
        refcount_bits: 1 << header.refcount_order,
        has_lazy_refcounts: header.compatible.lazy_refcounts,
        is_corrupt: header.incompatible.corrupt,
        has_extended_l2: header.incompatible.extended_l2,
        data_file: has_data_file.then(|| DataFileReport {
            name: header.data_file.clone(),
            is_raw: header.autoclear.data_file_raw,
        }),
        bitmaps: bitmaps.iter().map(bitmap).collect(),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl SnapshotReport {
    /// What there is to say about one.
    pub fn of(snapshot: &Snapshot) -> SnapshotReport {
        use crate::driver::qcow2::format::snapshot_table::NO_ICOUNT;
        let taken = &snapshot.taken;
        SnapshotReport {
            id: text(&snapshot.id),
            name: text(&snapshot.name),
            vm_state_bytes: snapshot.vm_state_bytes,
            taken_s: taken.sec,
            taken_ns: taken.nsec,
            vm_clock_ns: taken.vm_clock_ns,
            icount: Some(taken.icount).filter(|count| *count != NO_ICOUNT),
        }
    }
}

fn bitmap(bitmap: &Bitmap) -> BitmapReport {
    BitmapReport {
        name: text(&bitmap.name),
        granularity_bytes: 1 << bitmap.granularity_bits,
        flags: BitmapFlags {
            in_use: bitmap.stored == Stored::InUse,
            auto: bitmap.recording == Recording::Auto,
        },
    }
}
