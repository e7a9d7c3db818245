//! A queue thread of the backend in this very process, with its guest beside it: no socket, no protocol, no other program.
//!
//! The rule: whoever drops a [`Desk`] has stopped its ring, or the thread waits for what is in flight.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use backend::queue::{Crew, Polling, Team, WorkerOptions};
use backend::vhost::{Link, RingStart};
use backend::virtio_blk::{Cache, Disk, DiskOptions};
use blockgraph::bitmap::{BitmapAdmin, Keeping, NewBitmap, State};
use blockgraph::filter::throttle;
use blockgraph::graph::Control;
use blockgraph::graph::open::{NodeSpec, open};
use blockgraph::pin::Epochs;
use blockgraph::{Current, Mode};
use ring::Choice;
use ring::vring::{EventIdx, GuestMap, Indirect, Layout, Region, RingFeatures};

use super::memory::{HIGH, Memory};
use super::ring::{Buffer, Place, Ring, Suppression};

/// Bytes of guest memory for data.
const DATA_BYTES: u64 = 16 << 20;
/// Where headers and status bytes lie, 32 bytes for each request.
const HEADERS: u64 = 0x10_0000;
/// Entries of the ring.
const RING_SIZE: u16 = 256;
/// Data of a request at most; each has its own place.
pub const SLOT_BYTES: u64 = 64 << 10;

/// A guest at a queue thread.
#[derive(Debug)]
pub struct Desk {
    /// The guest's half of the ring.
    pub ring: Ring,
    /// Its memory.
    pub memory: Arc<Memory>,
    /// The thread and the ring on it.
    pub crew: Crew,
    /// What is on offer.
    pub disk: Arc<Disk>,
    /// The session's socket as the front end has it: readable once the session was given up.
    pub front: UnixStream,
    back: UnixStream,
    map: Arc<GuestMap>,
}

/// Throttle groups that nodes of a desk may belong to: `none` without limits, `wide` with limits nobody reaches.
fn add_groups(current: &Current) {
    let rate = throttle::Rate {
        avg: 1 << 48,
        ..throttle::Rate::NONE
    };
    let wide = throttle::Limits {
        bps_total: rate,
        iops_read: rate,
        iops_write: rate,
        iops_size: 4096,
        ..throttle::Limits::default()
    };
    let graph = current.get();
    let groups = graph.throttle_groups();
    groups.add("none", throttle::Limits::default()).unwrap();
    groups.add("wide", wide).unwrap();
}

/// A writable node on a thread of its own.
pub fn desk(choice: Choice, spec: NodeSpec) -> Desk {
    desk_with_bitmaps(choice, spec, 0)
}

/// The same, so many bitmaps recording what is written.
pub fn desk_with_bitmaps(choice: Choice, spec: NodeSpec, bitmaps: usize) -> Desk {
    let current = Arc::<Current>::default();
    add_groups(&current);
    let epochs = Arc::<Epochs>::default();
    let mut control = Control::new(current.clone(), epochs.clone(), Choice::Threads).unwrap();
    let (node, graph) = open(&current, spec, &mut control).unwrap();
    let name = graph.node(node).unwrap().name();
    for number in 0..bitmaps {
        let new = NewBitmap {
            name: format!("bitmap{number}"),
            granularity_bytes: None,
            state: State::Recording,
            keeping: Keeping::InMemory,
        };
        let (current, control) = (&current, &mut control);
        let mut admin = BitmapAdmin { current, control };
        admin.add(name, new).unwrap();
    }
    let disk = Arc::new(Disk::new(&DiskOptions {
        node,
        info: graph.info(node).unwrap(),
        writable: true,
        cache: Cache::WriteBack,
        logical_block_bytes: None,
        serial: "desk".to_owned(),
        queues: 1,
        may_unmap: false,
    }));
    let options = WorkerOptions {
        current,
        epochs: Arc::default(),
        engine: choice,
        polling: Arc::new(Polling::up_to(0)),
        mode: Mode::Fast,
    };
    let team = Arc::new(Team::new("desk", 1, options));
    let memory = Arc::new(Memory::new(DATA_BYTES).unwrap());
    let (place, _) = Place::packed_at(0x1000, RING_SIZE);
    let mut ring = Ring::new(&memory, 0, RING_SIZE, place).unwrap();
    ring.set_suppression(Suppression::EventIdx);
    let (front, back) = UnixStream::pair().unwrap();
    Desk {
        ring,
        map: map(&memory),
        memory,
        crew: Crew::new(team, disk.clone()),
        disk,
        front,
        back,
    }
}

fn map(memory: &Arc<Memory>) -> Arc<GuestMap> {
    let region = |r: &super::memory::Region| Region {
        gpa: r.gpa,
        len_bytes: r.len,
        host: std::ptr::with_exposed_provenance_mut(r.user as usize),
    };
    let regions = memory.regions().iter().map(region).collect();
    // SAFETY: each region is a shared mapping of a memfd, kept by `memory`, and only ever copied from and to.
    Arc::new(unsafe { GuestMap::new(regions, Box::new(memory.clone())) }.unwrap())
}

impl Desk {
    /// Starts the ring, with its own kick.
    pub fn start(&self) {
        self.start_with(self.ring.kick_fd.as_fd_owned());
    }

    /// Starts the ring with that kick.
    pub fn start_with(&self, kick: OwnedFd) {
        self.begin(kick, 0);
    }

    /// Starts the ring where it was stopped.
    pub fn start_at(&self, next_avail: u16) {
        self.begin(self.ring.kick_fd.as_fd_owned(), next_avail);
    }

    fn begin(&self, kick: OwnedFd, next_avail: u16) {
        let start = RingStart {
            layout: Layout {
                size: self.ring.size,
                desc: self.ring.place.desc,
                avail: self.ring.place.avail,
                used: self.ring.place.used,
            },
            next_avail,
            features: RingFeatures {
                event_idx: EventIdx::On,
                indirect: Indirect::Off,
            },
            map: self.map.clone(),
            tracking: None,
            kick,
            call: Some(self.ring.call_fd.as_fd_owned()),
            err: Some(self.ring.err_fd.as_fd_owned()),
            link: Link::new(&self.back).unwrap(),
        };
        self.crew.start(0, start).unwrap();
    }

    /// Offers a request of `kind` at `sector` with `len_bytes` of data in place `slot`; the status byte is 0xff until it
    /// is answered.
    pub fn offer(&mut self, slot: u64, kind: u32, sector: u64, len_bytes: u32) {
        let at = HEADERS + slot * 32;
        let mut header = [0xff; 17];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[4..8].copy_from_slice(&[0; 4]);
        header[8..16].copy_from_slice(&sector.to_le_bytes());
        self.memory.write(at, &header);
        let buffer = |gpa, len, writable| Buffer { gpa, len, writable };
        let head = buffer(at, 16, false);
        let status = buffer(at + 16, 1, true);
        let data = buffer(HIGH + slot * SLOT_BYTES, len_bytes, kind == 0);
        let whole = [head, data, status];
        let bare = [head, status];
        let chain = if len_bytes > 0 { &whole[..] } else { &bare[..] };
        self.ring.add(chain).expect("room in the ring");
    }

    /// The status byte of place `slot`.
    pub fn status(&self, slot: u64) -> u8 {
        self.memory.read(HEADERS + slot * 32 + 16, 1)[0]
    }

    /// Kicks, and waits for `count` answers.
    pub fn finish(&mut self, count: usize) {
        self.ring.submit();
        let until = super::deadline();
        for _ in 0..count {
            self.ring.wait(until).unwrap();
            self.ring.pop().expect("an answer");
        }
    }
}

/// A second descriptor of an eventfd.
trait Again {
    fn as_fd_owned(&self) -> OwnedFd;
}

impl Again for vmm_sys_util::eventfd::EventFd {
    fn as_fd_owned(&self) -> OwnedFd {
        use std::os::fd::{AsRawFd, BorrowedFd};
        // SAFETY: the eventfd is open while we borrow it.
        let fd = unsafe { BorrowedFd::borrow_raw(self.as_raw_fd()) };
        fd.as_fd().try_clone_to_owned().unwrap()
    }
}
