//! The guest's virtqueue, seen from the device: memory map, split ring, chains.
//!
//! The rule: every byte of the guest is read once, checked, and only the copy is used. Nothing here allocates, locks or
//! reads the clock per request, and no guest byte makes it panic, loop or touch memory outside the map.

mod area;
mod bits;
mod chain;
mod error;
mod inflight;
mod map;
mod shared;
mod sigbus;
mod split;
#[cfg(test)]
mod tests;
mod walk;

pub use chain::{Chain, Shape};
pub use error::{Part, RingError};
pub use inflight::Inflight;
pub use map::{BadAddress, GuestMap, MapError, Region};
pub use shared::SharedWords;
pub use split::{Notify, Pending, Popped, Vring};

/// The largest split ring (virtio 1.2, 2.7: "The maximum Queue Size value is 32768").
pub const RING_SIZE_MAX: u16 = 32768;

/// The most descriptors one chain may have, those of its indirect table included.
pub const CHAIN_DESCS_MAX: u16 = 1024;

/// The most host segments one chain may become when its descriptors cross memory regions.
pub const CHAIN_SEGS_MAX: usize = 4096;

/// Where a split ring lies, in guest physical addresses, and how many entries it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Entries: a power of two from 1 to [`RING_SIZE_MAX`].
    pub size: u16,
    /// Descriptor table, aligned to 16.
    pub desc: u64,
    /// Available ring, aligned to 2.
    pub avail: u64,
    /// Used ring, aligned to 4.
    pub used: u64,
}

/// What was negotiated about the ring itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RingFeatures {
    /// VIRTIO_F_EVENT_IDX: indexes instead of flags suppress notifications.
    pub event_idx: EventIdx,
    /// VIRTIO_F_INDIRECT_DESC: a descriptor may refer to a table of them.
    pub indirect: Indirect,
}

/// VIRTIO_F_EVENT_IDX.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EventIdx {
    /// Negotiated.
    On,
    /// Not negotiated.
    #[default]
    Off,
}

/// VIRTIO_F_INDIRECT_DESC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Indirect {
    /// Negotiated.
    On,
    /// Not negotiated: such a descriptor stops the ring.
    #[default]
    Off,
}

/// True if the other side asked to be told when the index passes `event`, and it did on its way from `old` to `new`.
// virtio 1.2, 2.7.7.2 and 2.7.10.1; the formula counts modulo 2^16.
pub fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
