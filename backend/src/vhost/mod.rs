//! A vhost-user session: the front end's socket, the memory it lends us, and the rings it starts and stops.
//!
//! The rule: no message reaches the protocol crate before the front door has checked it, and no ring runs on memory
//! that is about to go: every change of memory stops the rings first and starts them anew afterwards.
//!
//! The way of a message: `wire` reads it, `message` makes it a `Request` or refuses its form, `pump`
//! checks it against the session and hands it to vhost-user-backend over a private connection (`private`), whose
//! handler (`handler`, `vring`) notes in `session` what was asked. Then `session` starts and stops rings accordingly.

mod bits;
mod channel;
mod door;
mod fds;
mod handler;
mod inflight;
mod link;
mod map_log;
mod memory;
mod message;
mod private;
mod pump;
mod session;
#[cfg(test)]
mod tests;
mod vring;
mod wire;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use ring::vring::{GuestMap, Layout, RingFeatures};

pub use door::{Accepted, Door, DoorEvent, Events, StillDraining};
pub use inflight::{Guard, Tracking};
pub use link::{End, Link};
pub use map_log::{Found, MapRegion};

/// What runs the rings: the queue threads.
///
/// Calls come one at a time from the threads of one session, and may block until they are done. None of them may wait
/// for the front end.
pub trait Rings: Send + Sync {
    /// Starts a ring; it is looked at once without waiting for a kick, as one may have come before.
    ///
    /// # Errors
    /// [`RingRefused`]: the ring does not run, and the session ends.
    fn start(&self, index: u16, ring: RingStart) -> Result<(), RingRefused>;

    /// Stops popping, waits for everything in flight, publishes. Afterwards not one byte is written to guest memory.
    /// Returns where the ring stands, also if it had stopped by itself; `None` if it is not known.
    fn stop(&self, index: u16) -> Option<RingStop>;

    /// Replaces the eventfd that tells the guest of used buffers.
    fn set_call(&self, index: u16, call: Option<OwnedFd>);

    /// Replaces the eventfd that tells of a broken ring.
    fn set_err(&self, index: u16, err: Option<OwnedFd>);

    /// Replaces the eventfd the guest kicks. The ring is looked at once afterwards, so that no kick is lost.
    fn set_kick(&self, index: u16, kick: OwnedFd);
}

/// Everything a ring needs to run.
#[derive(Debug)]
pub struct RingStart {
    /// Where it lies, in guest physical addresses.
    pub layout: Layout,
    /// The index in the available ring to go on at. The used ring's index is read from guest memory.
    pub next_avail: u16,
    /// What was negotiated.
    pub features: RingFeatures,
    /// Guest memory; whoever holds it keeps it mapped.
    pub map: Arc<GuestMap>,
    /// Where the front end keeps what is in flight, if it does.
    pub tracking: Option<Tracking>,
    /// The guest signals it for new buffers.
    pub kick: OwnedFd,
    /// We signal it for used buffers; never blocks.
    pub call: Option<OwnedFd>,
    /// We signal it when the ring is broken; never blocks.
    pub err: Option<OwnedFd>,
    /// The session it belongs to: for a queue thread that must end it.
    pub link: Link,
}

/// Where a stopped ring stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingStop {
    /// The next index it would have taken from the available ring.
    pub next_avail: u16,
    /// The next index it would have filled in the used ring.
    pub next_used: u16,
}

/// A ring cannot be started; says why, without a full stop.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RingRefused(pub String);

/// A write to the configuration space that the device does not take; says why, without a full stop.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigRefused(pub String);

/// What the device is.
pub trait Device: Send + Sync {
    /// The device's own feature bits on offer; the bits of transport and rings are added here.
    fn features(&self) -> u64;

    /// The feature bits the front end acknowledged, ring and transport bits included.
    fn acked(&self, features: u64);

    /// Number of queues, 1 to 256.
    fn queues(&self) -> u16;

    /// The largest ring it takes: a power of two up to 32768.
    fn ring_size_max(&self) -> u16;

    /// The whole configuration space, at most [`CONFIG_BYTES_MAX`] bytes.
    fn config(&self) -> Vec<u8>;

    /// Writes `bytes` at `offset` of the configuration space; both ends are inside what `config` returns, or inside
    /// [`CONFIG_SPACE_BYTES`].
    ///
    /// # Errors
    /// [`ConfigRefused`]: nothing changed.
    fn set_config(&self, offset: u32, bytes: &[u8]) -> Result<(), ConfigRefused>;

    /// Back to the state before the driver came (RESET_DEVICE). No ring runs.
    fn reset(&self);

    /// The front end keeps a region where the disk's map can be logged, or takes over one in which it was. No ring runs.
    ///
    /// # Errors
    /// What is in the region cannot be taken up: the disk is not what the guest saw.
    fn take_up(&self, region: MapRegion) -> Result<(), String>;

    /// The last ring has stopped, perhaps for the guest to go elsewhere: what is in the region is to be on the disk.
    fn settle(&self);

    /// The region is the device's no more. No ring runs.
    fn let_go(&self);
}

/// vhost-user.rst, "Virtio device config space": the largest payload (QEMU's VHOST_USER_MAX_CONFIG_SIZE).
pub const CONFIG_BYTES_MAX: usize = 256;

/// `sizeof(struct virtio_blk_config)`: what a front end may ask for however much of it the device has; zeroes follow.
pub const CONFIG_SPACE_BYTES: usize = 96;
