//! The virtio block device (virtio 1.2, section 5.2): what a guest's bytes ask for, and what it is told.
//!
//! The rule: a guest's header is copied once and checked here, at the border; past it no guest byte is trusted or needed.

mod config;
mod disk;
mod reply;
mod request;

pub use config::{CONFIG_BYTES, ConfigRefused};
pub use disk::{Cache, Disk, DiskOptions};
pub use reply::{Reply, Status};
pub use request::{Ask, Range, RangeKind, parse};

/// Bytes of a sector in every field of the protocol, whatever the block size (virtio 1.2, 5.2.4).
pub const SECTOR_BYTES: u64 = 512;
/// Segments of a request beyond header and status that we ask guests to keep to; longer chains are served too.
pub const SEG_MAX: u32 = 126;
/// Sectors of one segment of a discard or write-zeroes.
pub const RANGE_SECTORS_MAX: u32 = 32768;
/// Segments of one discard or write-zeroes request.
pub const RANGES_MAX: u32 = 32;
/// Bytes of a read or write; QEMU's own limit (2 GiB less a sector).
pub const TRANSFER_BYTES_MAX: u64 = 0x7fff_fe00;
/// Bytes of the answer to GET_ID (virtio 1.2, 5.2.6).
pub const ID_BYTES: usize = 20;
