//! One exported disk as its guest may know it: fixed at export but for the cache mode, which the guest may toggle.

use super::{ID_BYTES, SECTOR_BYTES};
use crate::stats::ExportStats;
use blockgraph::node::Limits;
use blockgraph::{Info, NodeId, Span};
use ring::Durability;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use virtio_bindings::virtio_blk::VIRTIO_BLK_F_FLUSH;

/// When a write is durable (virtio 1.2, 5.2.5.2: the `writeback` field).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// At the next flush.
    WriteBack,
    /// Before it is completed.
    WriteThrough,
}

/// What an export is made with.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// The node it shows.
    pub node: NodeId,
    /// The node's size and limits.
    pub info: Info,
    /// May the guest write?
    pub writable: bool,
    /// The cache mode a guest finds.
    pub cache: Cache,
    /// `logical-block-size=`, or the node's own.
    pub logical_block_bytes: Option<u32>,
    /// What GET_ID answers, cut at 20 bytes.
    pub serial: String,
    /// Rings on offer.
    pub queues: u16,
    /// May a write of zeroes give space back?
    pub may_unmap: bool,
}

/// An exported disk, shared by its queues.
#[derive(Debug)]
pub struct Disk {
    /// The node it shows.
    pub node: NodeId,
    /// Size in sectors of 512 bytes.
    sectors: AtomicU64,
    /// The same as front ends were told of it.
    told: AtomicU64,
    /// Physical and logical limits.
    pub limits: Limits,
    /// May the guest write?
    pub writable: bool,
    /// Rings on offer.
    pub queues: u16,
    /// May a write of zeroes give space back?
    pub may_unmap: bool,
    /// The answer to GET_ID, NUL-padded.
    pub id: [u8; ID_BYTES],
    /// What its guests have asked for.
    pub stats: Arc<ExportStats>,
    cache_at_export: Cache,
    through: AtomicBool,
    /// Did the driver take FLUSH?
    flushes: AtomicBool,
}

impl Disk {
    /// The disk of an export.
    pub fn new(options: &DiskOptions) -> Disk {
        let mut id = [0; ID_BYTES];
        let serial = options.serial.as_bytes();
        let len = serial.len().min(ID_BYTES);
        id[..len].copy_from_slice(&serial[..len]);
        let mut limits = options.info.limits;
        if let Some(bytes) = options.logical_block_bytes {
            limits.logical_block_bytes = bytes;
            limits.physical_block_bytes = limits.physical_block_bytes.max(bytes);
        }
        let disk = Disk {
            node: options.node,
            sectors: AtomicU64::new(options.info.size_bytes / SECTOR_BYTES),
            told: AtomicU64::new(options.info.size_bytes / SECTOR_BYTES),
            limits,
            writable: options.writable,
            queues: options.queues,
            may_unmap: options.may_unmap,
            id,
            stats: Arc::default(),
            cache_at_export: options.cache,
            through: AtomicBool::new(false),
            flushes: AtomicBool::new(true),
        };
        disk.set_cache(options.cache);
        disk
    }

    /// Size in sectors of 512 bytes, now.
    #[inline]
    pub fn sectors(&self) -> u64 {
        self.sectors.load(Ordering::Relaxed)
    }

    /// The same in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.sectors() * SECTOR_BYTES
    }

    /// The node has another size. A request popped afterwards is checked against it.
    pub fn resize(&self, size_bytes: u64) {
        self.sectors
            .store(size_bytes / SECTOR_BYTES, Ordering::Relaxed);
    }

    /// Is the size another than when this was last asked? Then the guest has to be told.
    pub fn tells_new_size(&self) -> bool {
        let now = self.sectors();
        self.told.swap(now, Ordering::Relaxed) != now
    }

    /// Does the span lie on it?
    pub fn has(&self, span: Span) -> bool {
        span.end() <= self.size_bytes()
    }

    /// The cache mode now.
    pub fn cache(&self) -> Cache {
        if self.through.load(Ordering::Relaxed) {
            Cache::WriteThrough
        } else {
            Cache::WriteBack
        }
    }

    /// The guest's wish. A request popped afterwards obeys it.
    pub fn set_cache(&self, cache: Cache) {
        self.through
            .store(cache == Cache::WriteThrough, Ordering::Relaxed);
    }

    /// As at the export: a device reset or a new front end begins afresh.
    pub fn reset(&self) {
        self.set_cache(self.cache_at_export);
        self.flushes.store(true, Ordering::Relaxed);
    }

    /// The front end's choice of features. virtio 1.2, 5.2.5.2: a driver that did not take FLUSH cannot make its writes
    /// durable, so each is durable before it completes.
    pub fn acked(&self, features: u64) {
        let flushes = features & (1 << VIRTIO_BLK_F_FLUSH) != 0;
        self.flushes.store(flushes, Ordering::Relaxed);
    }

    /// What a write must be now.
    pub fn durability(&self) -> Durability {
        match self.cache() {
            Cache::WriteBack if self.flushes.load(Ordering::Relaxed) => Durability::Cached,
            Cache::WriteBack | Cache::WriteThrough => Durability::Through,
        }
    }
}
