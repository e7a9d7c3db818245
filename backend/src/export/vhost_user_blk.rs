//! A node shown to virtual machines: a door for front ends, a disk for the guest, and queue threads for its rings.

use super::map_keeper::MapKeeper;
use crate::queue::Crew;
use crate::vhost::{
    ConfigRefused, Device, Door, Events, MapRegion, RingRefused, RingStart, RingStop, Rings,
};
use crate::virtio_blk::Disk;
use blockgraph::graph::Control;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Instant;

/// The largest ring on offer: QEMU takes no larger one.
const RING_SIZE_MAX: u16 = 1024;

/// Where front ends come from.
#[derive(Debug)]
pub enum Socket {
    /// One after the other.
    Listening(UnixListener),
    /// Just this one.
    Connected(UnixStream),
}

/// A disk on offer.
#[derive(Debug)]
pub struct VhostUserBlk {
    door: Door,
    disk: Arc<Disk>,
    maps: Option<Arc<MapKeeper>>,
}

/// The socket for the protocol handler could not be made, or the session's thread.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve vhost-user")]
pub struct VhostUserBlkError(#[from] pub std::io::Error);

impl VhostUserBlk {
    /// Offers `disk` at `socket`; its rings run on `crew`. `maps` is for a disk that may be written.
    pub fn new(
        socket: Socket,
        disk: Arc<Disk>,
        maps: Option<MapKeeper>,
        crew: Crew,
        events: Events,
    ) -> Result<VhostUserBlk, VhostUserBlkError> {
        let maps = maps.map(Arc::new);
        let device = Arc::new(Front {
            disk: disk.clone(),
            maps: maps.clone(),
        });
        let rings = Arc::new(Back { crew });
        let door = match socket {
            Socket::Listening(listener) => Door::listen(listener, device, rings, events)?,
            Socket::Connected(stream) => Door::connected(stream, device, rings, events)?,
        };
        Ok(VhostUserBlk { door, disk, maps })
    }

    /// The graph may have changed.
    pub fn follow_image(&self, control: &mut Control, deadline: fn() -> Instant) {
        if let Some(maps) = &self.maps {
            maps.follow(control, deadline);
        }
    }

    /// Where front ends knock.
    pub fn door(&self) -> &Door {
        &self.door
    }

    /// The disk.
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }
}

/// The disk as a session asks about it.
struct Front {
    disk: Arc<Disk>,
    maps: Option<Arc<MapKeeper>>,
}

impl Device for Front {
    fn features(&self) -> u64 {
        self.disk.features()
    }

    fn acked(&self, features: u64) {
        self.disk.acked(features);
    }

    fn queues(&self) -> u16 {
        self.disk.queues
    }

    fn ring_size_max(&self) -> u16 {
        RING_SIZE_MAX
    }

    fn config(&self) -> Vec<u8> {
        self.disk.config().to_vec()
    }

    fn set_config(&self, offset: u32, bytes: &[u8]) -> Result<(), ConfigRefused> {
        let refused = |error: crate::virtio_blk::ConfigRefused| ConfigRefused(error.to_string());
        self.disk.set_config(offset, bytes).map_err(refused)
    }

    fn reset(&self) {
        self.disk.reset();
    }

    fn take_up(&self, region: MapRegion) -> Result<(), String> {
        match &self.maps {
            Some(maps) => maps.take_up(region),
            None => Ok(()),
        }
    }

    fn settle(&self) {
        if let Some(maps) = &self.maps {
            maps.settle();
        }
    }

    fn let_go(&self) {
        if let Some(maps) = &self.maps {
            maps.let_go();
        }
    }
}

/// The queue threads as a session uses them.
struct Back {
    crew: Crew,
}

impl Rings for Back {
    fn start(&self, index: u16, ring: RingStart) -> Result<(), RingRefused> {
        self.crew.start(index, ring).map_err(RingRefused)
    }

    fn stop(&self, index: u16) -> Option<RingStop> {
        self.crew.stop(index)
    }

    fn set_call(&self, index: u16, call: Option<OwnedFd>) {
        self.crew.set_call(index, call);
    }

    fn set_err(&self, index: u16, err: Option<OwnedFd>) {
        self.crew.set_err(index, err);
    }

    fn set_kick(&self, index: u16, kick: OwnedFd) {
        self.crew.set_kick(index, kick);
    }
}
