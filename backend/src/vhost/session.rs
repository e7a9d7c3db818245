//! What one front end has set up, and the rings that follow from it.
//!
//! The rule: the handler only notes what was asked; rings are started in one place (`settle`), after the message that
//! asked has gone through, and stopped before anything they stand on changes.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ring::vring::GuestMap;
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;
use vhost_user_backend::{VringMutex, VringT};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use super::bits;
use super::inflight::{self, InflightError, Region};
use super::link::{Link, describe};
use super::memory::{MemoryError, Table};
use super::message::RingAddress;
use super::{Device, RingRefused, RingStart, Rings};

pub(super) type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// The state of one session, shared by its front door and the handler behind it. They take turns: the door waits while
/// the handler works.
pub(super) struct Session {
    pub(super) device: Arc<dyn Device>,
    rings: Arc<dyn Rings>,
    link: Link,
    /// Held while rings are started and stopped; queue threads never take it.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Acknowledged by SET_FEATURES; `None` before it.
    features: Option<u64>,
    /// The slots in force, and those the handler is about to map.
    table: Table,
    next_table: Table,
    map: Option<Arc<GuestMap>>,
    inflight: Option<Region>,
    rings: Vec<Ring>,
    /// Why the handler refused the last message; the crate does not carry it.
    fault: Option<String>,
}

/// One ring as configured.
struct Ring {
    /// Carries size, addresses and indexes between the protocol crate and us.
    queue: VringMutex<Memory>,
    at: Option<RingAddress>,
    size: Option<u16>,
    enabled: bool,
    kick: Option<OwnedFd>,
    call: Option<OwnedFd>,
    err: Option<OwnedFd>,
    /// What changed since the running ring was told.
    news: News,
    running: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct News {
    kick: bool,
    call: bool,
    err: bool,
}

/// Why the session cannot go on, or a message is not accepted.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error("ring {index} does not start")]
    Start {
        index: u16,
        #[source]
        source: RingRefused,
    },
    #[error("ring {index} is not wholly inside one memory region")]
    Unreachable { index: u16 },
    #[error("ring {index} is running")]
    Running { index: u16 },
    #[error("ring {index} cannot have {size} entries")]
    Size { index: u16, size: u16 },
    #[error("features {features:#x} were not offered")]
    Features { features: u64 },
    #[error("protocol features were not negotiated")]
    NoProtocolFeatures,
    #[error("out of descriptors")]
    Fds(#[source] std::io::Error),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Inflight(#[from] InflightError),
}

/// What to do with a ring that should run, but whose memory is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unreachable {
    /// Refuse: the front end has just configured it so.
    Refuse,
    /// Leave it stopped until its memory is back: QEMU removes a slot and adds a larger one in its place.
    Wait,
}

impl Session {
    pub(super) fn new(device: Arc<dyn Device>, rings: Arc<dyn Rings>, link: Link) -> Session {
        Session {
            device,
            rings,
            link,
            state: Mutex::default(),
        }
    }

    /// Adds a ring; the handler makes them in order.
    pub(super) fn add_ring(&self, queue: VringMutex<Memory>) -> usize {
        let mut state = self.lock();
        state.rings.push(Ring::new(queue));
        state.rings.len() - 1
    }

    /// Every feature on offer.
    pub(super) fn features(&self) -> u64 {
        self.device.features() | bits::TRANSPORT
    }

    /// Every protocol feature on offer.
    pub(super) fn protocol(&self) -> Protocol {
        let (queues, size) = (self.device.queues(), self.device.ring_size_max());
        match inflight::may_be_made(queues, size) {
            true => bits::PROTOCOL,
            false => bits::PROTOCOL.difference(Protocol::INFLIGHT_SHMFD),
        }
    }

    pub(super) fn table(&self) -> Table {
        self.lock().table.clone()
    }

    // What must hold before a message may be forwarded.

    pub(super) fn check_features(&self, features: u64) -> Result<(), SessionError> {
        if features & !self.features() != 0 {
            return Err(SessionError::Features { features });
        }
        let state = self.lock();
        // A running ring has its features built in.
        match state.rings.iter().position(|ring| ring.running) {
            Some(index) if state.features != Some(features) => Err(running(index)),
            _ => Ok(()),
        }
    }

    pub(super) fn check_stopped(&self, index: u16) -> Result<(), SessionError> {
        match self.with_ring(index, |ring| ring.running) {
            true => Err(SessionError::Running { index }),
            false => Ok(()),
        }
    }

    pub(super) fn check_size(&self, index: u16, size: u16) -> Result<(), SessionError> {
        self.check_stopped(index)?;
        let most = self.device.ring_size_max();
        // virtio 1.2, 2.7: "Queue Size value is always a power of 2."
        match size.is_power_of_two() && size <= most {
            true => Ok(()),
            false => Err(SessionError::Size { index, size }),
        }
    }

    /// Checks that a ring at `at` would lie inside the memory table. A size that is not known yet counts as one entry:
    /// `settle` checks again.
    pub(super) fn check_address(&self, index: u16, at: &RingAddress) -> Result<(), SessionError> {
        let state = self.lock();
        let size = state
            .rings
            .get(usize::from(index))
            .and_then(|ring| ring.size);
        match state.table.layout(at, size.unwrap_or(1)) {
            Some(_) => Ok(()),
            None => Err(SessionError::Unreachable { index }),
        }
    }

    // vhost-user.rst, VHOST_USER_SET_VRING_ENABLE: only with VHOST_USER_F_PROTOCOL_FEATURES; without it, rings are
    // enabled from the start.
    pub(super) fn check_enable(&self) -> Result<(), SessionError> {
        match self.lock().features.unwrap_or(0) & bits::PROTOCOL_FEATURES {
            0 => Err(SessionError::NoProtocolFeatures),
            _ => Ok(()),
        }
    }

    // What was asked.

    pub(super) fn set_features(&self, features: u64) {
        self.lock().features = Some(features);
        self.device.acked(features & !bits::PROTOCOL_FEATURES);
    }

    pub(super) fn set_size(&self, index: u16, size: u16) {
        self.with_ring(index, |ring| ring.size = Some(size));
    }

    /// Notes where a ring lies. One that runs elsewhere is stopped first and goes on there.
    pub(super) fn set_address(&self, index: u16, at: RingAddress) {
        let mut state = self.lock();
        let moved = state.ring(index).is_some_and(|ring| ring.at != Some(at));
        if moved {
            self.stop_ring(&mut state, index);
        }
        if let Some(ring) = state.ring(index) {
            ring.at = Some(at);
        }
    }

    pub(super) fn set_enabled(&self, index: u16, enabled: bool) {
        self.with_ring(index, |ring| ring.enabled = enabled);
    }

    pub(super) fn set_kick(&self, index: u16, kick: Option<OwnedFd>) {
        self.with_ring(index, |ring| {
            ring.news.kick = kick.is_some();
            ring.kick = kick;
        });
    }

    pub(super) fn set_call(&self, index: u16, call: Option<OwnedFd>) {
        self.with_ring(index, |ring| {
            ring.news.call = true;
            ring.call = call;
        });
    }

    pub(super) fn set_err(&self, index: u16, err: Option<OwnedFd>) {
        self.with_ring(index, |ring| {
            ring.news.err = true;
            ring.err = err;
        });
    }

    /// What is in flight is kept in `region` from now on, and taken up from there.
    pub(super) fn set_inflight(&self, region: Region) {
        self.lock().inflight = Some(region);
    }

    /// Gives up the region there is, so that the next can be taken over. Errors: a ring that uses it is running.
    pub(super) fn drop_inflight(&self) -> Result<(), SessionError> {
        let mut state = self.lock();
        if let Some(index) = state.rings.iter().position(|ring| ring.running) {
            return Err(running(index));
        }
        if state.inflight.take().is_some() {
            self.device.let_go();
        }
        Ok(())
    }

    /// Announces the table whose slots the handler is about to map. No ring runs until `settle`.
    pub(super) fn expect_table(&self, table: Table) {
        let mut state = self.lock();
        self.stop_rings(&mut state);
        state.next_table = table;
    }

    /// The handler has mapped the announced table.
    pub(super) fn set_memory(&self, memory: &Memory) -> Result<(), MemoryError> {
        use vm_memory::GuestAddressSpace;
        let mut state = self.lock();
        // The rings have been stopped by `expect_table`; this holds whoever calls.
        self.stop_rings(&mut state);
        let map = state.next_table.map(memory.memory().into_inner());
        state.map = map.inspect_err(|error| state.fault = Some(describe(error)))?;
        state.table = state.next_table.clone();
        Ok(())
    }

    pub(super) fn take_fault(&self) -> Option<String> {
        self.lock().fault.take()
    }

    // Stopping and starting.

    /// Stops a ring for good (GET_VRING_BASE): it starts again with its next kick descriptor.
    pub(super) fn stop(&self, index: u16) {
        let mut state = self.lock();
        self.stop_ring(&mut state, index);
        if let Some(ring) = state.ring(index) {
            ring.kick = None;
            ring.call = None;
        }
        if state.inflight.is_some() && state.rings.iter().all(|ring| !ring.running) {
            self.device.settle();
        }
    }

    /// Stops every ring; what is configured stays.
    pub(super) fn stop_all(&self) {
        let mut state = self.lock();
        self.stop_rings(&mut state);
    }

    // vhost-user.rst, VHOST_USER_RESET_OWNER: deprecated; of the two readings it recommends, this is the one that does
    // something. The connection's state stays.
    pub(super) fn disable_all(&self) {
        let mut state = self.lock();
        self.stop_rings(&mut state);
        state.rings.iter_mut().for_each(|ring| ring.enabled = false);
    }

    /// Stops every ring and forgets what was configured of them (RESET_DEVICE).
    pub(super) fn reset(&self) {
        let mut state = self.lock();
        self.stop_rings(&mut state);
        state.features = None;
        for ring in &mut state.rings {
            ring.queue.set_queue_next_avail(0);
            *ring = Ring::new(ring.queue.clone());
        }
    }

    /// Stops the rings that should not run, starts those that should, and tells the others what is new to them.
    pub(super) fn settle(&self, unreachable: Unreachable) -> Result<(), SessionError> {
        let mut state = self.lock();
        for index in (0..).take(state.rings.len()) {
            let Some(ring) = state.ring(index) else {
                continue;
            };
            match (ring.should_run(), ring.running) {
                (false, true) => self.stop_ring(&mut state, index),
                (true, false) => self.start_ring(&mut state, index, unreachable)?,
                (true, true) => self.tell_ring(&mut state, index)?,
                (false, false) => {}
            }
        }
        Ok(())
    }

    fn start_ring(
        &self,
        state: &mut State,
        index: u16,
        unreachable: Unreachable,
    ) -> Result<(), SessionError> {
        let link = self.link.clone();
        let Some(ring_start) = state.ring_start(index, link)? else {
            return match unreachable {
                Unreachable::Refuse => Err(SessionError::Unreachable { index }),
                Unreachable::Wait => {
                    tracing::info!("ring {index} waits for its memory region");
                    Ok(())
                }
            };
        };
        self.rings
            .start(index, ring_start)
            .map_err(|source| SessionError::Start { index, source })?;
        if let Some(ring) = state.ring(index) {
            ring.running = true;
            ring.news = News::default();
        }
        Ok(())
    }

    fn tell_ring(&self, state: &mut State, index: u16) -> Result<(), SessionError> {
        let Some(ring) = state.ring(index) else {
            return Ok(());
        };
        let news = std::mem::take(&mut ring.news);
        if news.call {
            self.rings.set_call(index, clone_fd(ring.call.as_ref())?);
        }
        if news.err {
            self.rings.set_err(index, clone_fd(ring.err.as_ref())?);
        }
        if let (true, Some(kick)) = (news.kick, clone_fd(ring.kick.as_ref())?) {
            self.rings.set_kick(index, kick);
        }
        Ok(())
    }

    fn stop_rings(&self, state: &mut State) {
        for index in (0..).take(state.rings.len()) {
            self.stop_ring(state, index);
        }
    }

    /// Waits until nothing of the ring is in flight, and notes where it stands.
    fn stop_ring(&self, state: &mut State, index: u16) {
        let Some(ring) = state.ring(index).filter(|ring| ring.running) else {
            return;
        };
        ring.running = false;
        if let Some(stop) = self.rings.stop(index) {
            ring.queue.set_queue_next_avail(stop.next_avail);
            ring.queue.set_queue_next_used(stop.next_used);
        }
    }

    fn with_ring<T: Default>(&self, index: u16, work: impl FnOnce(&mut Ring) -> T) -> T {
        // The index was checked against the number of queues; the crate makes that many rings.
        self.lock().ring(index).map(work).unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn ring(&mut self, index: u16) -> Option<&mut Ring> {
        self.rings.get_mut(usize::from(index))
    }

    /// What a ring needs to run; `None` if its memory is not there.
    fn ring_start(&self, index: u16, link: Link) -> Result<Option<RingStart>, SessionError> {
        let Some(ring) = self.rings.get(usize::from(index)) else {
            return Ok(None);
        };
        let layout = match (&ring.at, ring.size) {
            (Some(at), Some(size)) => self.table.layout(at, size),
            _ => None,
        };
        let kick = clone_fd(ring.kick.as_ref())?;
        let (Some(layout), Some(map), Some(kick)) = (layout, self.map.clone(), kick) else {
            return Ok(None);
        };
        let region = self.inflight.as_ref();
        let tracking = region.map(|region| region.tracking(index)).transpose()?;
        Ok(Some(RingStart {
            tracking,
            layout,
            next_avail: ring.queue.queue_next_avail(),
            features: bits::ring_features(self.features.unwrap_or(0)),
            map,
            kick,
            call: clone_fd(ring.call.as_ref())?,
            err: clone_fd(ring.err.as_ref())?,
            link,
        }))
    }
}

impl Ring {
    fn new(queue: VringMutex<Memory>) -> Ring {
        Ring {
            queue,
            at: None,
            size: None,
            enabled: false,
            kick: None,
            call: None,
            err: None,
            news: News::default(),
            running: false,
        }
    }

    // vhost-user.rst, "Ring states": started by its kick, stopped by GET_VRING_BASE; processed only while enabled.
    fn should_run(&self) -> bool {
        self.enabled && self.kick.is_some() && self.at.is_some() && self.size.is_some()
    }
}

fn running(index: usize) -> SessionError {
    let index = u16::try_from(index).unwrap_or(u16::MAX);
    SessionError::Running { index }
}

fn clone_fd(fd: Option<&OwnedFd>) -> Result<Option<OwnedFd>, SessionError> {
    fd.map(OwnedFd::try_clone)
        .transpose()
        .map_err(SessionError::Fds)
}
