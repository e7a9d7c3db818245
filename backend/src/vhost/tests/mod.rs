//! The session against fake rings, a fake device, and a front end that says what it likes.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod hostile;
mod life;
mod memory;
mod peers;
mod random;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ring::vring::RingError;
use vhost::vhost_user::message::FrontendReq;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::memory::Slot;
use super::{
    ConfigRefused, Device, Door, DoorEvent, End, MapRegion, RingRefused, RingStart, RingStop,
    Rings, bits,
};

pub(super) const QUEUES: u16 = 4;
pub(super) const RING_SIZE_MAX: u16 = 256;
/// A device bit of no meaning here.
pub(super) const DEVICE_FEATURES: u64 = 1 << 9;
/// No test waits longer for anything.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// What the rings were told, in words.
#[derive(Default)]
pub(super) struct FakeRings {
    pub(super) log: Mutex<Vec<String>>,
    pub(super) running: Mutex<Vec<(u16, RingStart)>>,
    /// Requests each ring has done when it is stopped.
    pub(super) progress: Mutex<u16>,
    pub(super) refuse: Mutex<bool>,
}

impl FakeRings {
    fn note(&self, what: String) {
        self.log.lock().unwrap().push(what);
    }

    pub(super) fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock().unwrap())
    }

    /// Looks at the start of a ring that runs.
    pub(super) fn with<T>(&self, index: u16, look: impl FnOnce(&RingStart) -> T) -> T {
        let running = self.running.lock().unwrap();
        let (_, start) = running.iter().find(|(at, _)| *at == index).unwrap();
        look(start)
    }
}

impl Rings for FakeRings {
    fn start(&self, index: u16, ring: RingStart) -> Result<(), RingRefused> {
        self.note(format!("start {index} at {}", ring.next_avail));
        if *self.refuse.lock().unwrap() {
            return Err(RingRefused("no".to_owned()));
        }
        // The session has checked all that the walk checks.
        let map = Arc::clone(&ring.map);
        let walk = ring::vring::Vring::new(map, &ring.layout, ring.features, ring.next_avail);
        if let Err(error @ RingError::Align { .. }) = walk {
            // Depends on where the memory came to lie; not the session's to know.
            return Err(RingRefused(error.to_string()));
        }
        assert!(walk.is_ok(), "{walk:?}");
        let mut running = self.running.lock().unwrap();
        assert!(running.iter().all(|(at, _)| *at != index), "started twice");
        running.push((index, ring));
        Ok(())
    }

    fn stop(&self, index: u16) -> Option<RingStop> {
        self.note(format!("stop {index}"));
        let mut running = self.running.lock().unwrap();
        let at = running.iter().position(|(at, _)| *at == index);
        let (_, ring) = running.remove(at.expect("only running rings are stopped"));
        let next_avail = ring.next_avail.wrapping_add(*self.progress.lock().unwrap());
        Some(RingStop {
            next_avail,
            next_used: next_avail,
        })
    }

    fn set_call(&self, index: u16, call: Option<OwnedFd>) {
        self.note(format!("call {index} {}", call.is_some()));
    }

    fn set_err(&self, index: u16, err: Option<OwnedFd>) {
        self.note(format!("err {index} {}", err.is_some()));
    }

    fn set_kick(&self, index: u16, _kick: OwnedFd) {
        self.note(format!("kick {index}"));
    }
}

/// A device whose configuration space counts up.
#[derive(Default)]
pub(super) struct FakeDevice {
    pub(super) log: Mutex<Vec<String>>,
}

impl Device for FakeDevice {
    fn features(&self) -> u64 {
        DEVICE_FEATURES
    }

    fn acked(&self, features: u64) {
        self.log
            .lock()
            .unwrap()
            .push(format!("acked {features:#x}"));
    }

    fn queues(&self) -> u16 {
        QUEUES
    }

    fn ring_size_max(&self) -> u16 {
        RING_SIZE_MAX
    }

    fn config(&self) -> Vec<u8> {
        (0..60).collect()
    }

    fn set_config(&self, offset: u32, bytes: &[u8]) -> Result<(), ConfigRefused> {
        if bytes == [0xee] {
            return Err(ConfigRefused("not that one".to_owned()));
        }
        let text = format!("config {offset} {bytes:?}");
        self.log.lock().unwrap().push(text);
        Ok(())
    }

    fn take_up(&self, _region: MapRegion) -> Result<(), String> {
        Ok(())
    }

    fn settle(&self) {}

    fn let_go(&self) {}

    fn reset(&self) {
        self.log.lock().unwrap().push("reset".to_owned());
    }
}

/// A door with one front end inside.
pub(super) struct Visit {
    pub(super) client: Client,
    pub(super) door: Door,
    pub(super) rings: Arc<FakeRings>,
    pub(super) device: Arc<FakeDevice>,
    pub(super) events: Receiver<DoorEvent>,
}

impl Visit {
    pub(super) fn new() -> Visit {
        let (here, there) = UnixStream::pair().unwrap();
        let rings = Arc::new(FakeRings::default());
        let device = Arc::new(FakeDevice::default());
        let (tell, events) = channel();
        let send = Arc::new(move |event| tell.send(event).unwrap_or_default());
        let door = Door::connected(there, device.clone(), rings.clone(), send).unwrap();
        assert_eq!(events.recv_timeout(PATIENCE), Ok(DoorEvent::Connected));
        Visit {
            client: Client::new(here),
            door,
            rings,
            device,
            events,
        }
    }

    /// As `new`, with features and memory set up.
    pub(super) fn prepared() -> Visit {
        let mut visit = Visit::new();
        visit.client.negotiate();
        let file = memory_file(SLOT.len_bytes);
        visit.client.table(&[(SLOT, &file)]);
        visit
    }

    /// As `prepared`, with ring 0 running.
    pub(super) fn running() -> Visit {
        let mut visit = Visit::prepared();
        visit.client.start_ring(0);
        visit.client.fence();
        assert_eq!(visit.rings.take_log(), ["start 0 at 0"]);
        visit
    }

    pub(super) fn end(&self) -> End {
        match self.events.recv_timeout(PATIENCE) {
            Ok(DoorEvent::Ended(end)) => end,
            other => panic!("expected the end, got {other:?}"),
        }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.door.stop(PATIENCE).unwrap();
        let running = self.rings.running.lock().unwrap();
        assert!(running.is_empty(), "a ring outlives its session");
    }
}

/// One megabyte at 1 MiB; ring 0 begins at its start.
pub(super) const SLOT: Slot = Slot {
    gpa: 0x10_0000,
    len_bytes: 0x10_0000,
    user: 0x7000_0000_0000,
    offset: 0,
};
pub(super) const RING_SIZE: u16 = 16;

pub(super) fn memory_file(len_bytes: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(len_bytes).unwrap();
    file
}

pub(super) fn eventfd() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

/// A front end that can say anything.
pub(super) struct Client {
    pub(super) socket: UnixStream,
}

pub(super) const NEED_REPLY: u32 = 0x9;
pub(super) const PLAIN: u32 = 0x1;

impl Client {
    pub(super) fn new(socket: UnixStream) -> Client {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Client { socket }
    }

    /// Sends a message as it is.
    pub(super) fn raw(&mut self, code: u32, flags: u32, size: u32, body: &[u8], fds: &[RawFd]) {
        let mut bytes: Vec<u8> = [code, flags, size].map(u32::to_ne_bytes).concat();
        bytes.extend_from_slice(body);
        // Refused messages close the socket, perhaps before all is written.
        let _ = self.socket.send_with_fds(&[&bytes[..]], fds);
    }

    pub(super) fn send(&mut self, code: FrontendReq, flags: u32, body: &[u8], fds: &[RawFd]) {
        self.raw(code.into(), flags, body.len() as u32, body, fds);
    }

    /// The next reply's code and body, or `None` if the session is over.
    pub(super) fn reply(&mut self) -> Option<(u32, Vec<u8>)> {
        let mut header = [0; 12];
        self.socket.read_exact(&mut header).ok()?;
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        assert_eq!(word(4), 0x5, "flags of a reply");
        let mut body = vec![0; word(8) as usize];
        self.socket.read_exact(&mut body).ok()?;
        Some((word(0), body))
    }

    /// Sends a message that asks for an acknowledgement; returns its value, or `None` if the session ended instead.
    pub(super) fn ack(&mut self, code: FrontendReq, body: &[u8], fds: &[RawFd]) -> Option<u64> {
        self.send(code, NEED_REPLY, body, fds);
        let (replied, value) = self.reply()?;
        assert_eq!(replied, u32::from(code));
        Some(u64::from_ne_bytes(value.try_into().unwrap()))
    }

    /// Sends a message that must be accepted.
    pub(super) fn ok(&mut self, code: FrontendReq, body: &[u8], fds: &[RawFd]) {
        assert_eq!(self.ack(code, body, fds), Some(0), "{code:?}");
    }

    /// Sends a message with a reply of its own.
    pub(super) fn get(&mut self, code: FrontendReq, body: &[u8]) -> Vec<u8> {
        self.send(code, PLAIN, body, &[]);
        let (replied, body) = self.reply().unwrap();
        assert_eq!(replied, u32::from(code));
        body
    }

    /// Waits until everything before has been served.
    pub(super) fn fence(&mut self) {
        self.get(FrontendReq::GET_FEATURES, &[]);
    }

    pub(super) fn negotiate(&mut self) {
        let offered = self.get(FrontendReq::GET_FEATURES, &[]);
        let protocol = self.get(FrontendReq::GET_PROTOCOL_FEATURES, &[]);
        self.send(FrontendReq::SET_PROTOCOL_FEATURES, PLAIN, &protocol, &[]);
        self.ok(FrontendReq::SET_OWNER, &[], &[]);
        self.ok(FrontendReq::SET_FEATURES, &offered, &[]);
    }

    pub(super) fn table(&mut self, slots: &[(Slot, &File)]) {
        let (body, fds) = table(slots);
        self.ok(FrontendReq::SET_MEM_TABLE, &body, &fds);
    }

    /// Configures a ring in QEMU's order.
    pub(super) fn configure_ring(&mut self, index: u32, base: u32) {
        self.ok(
            FrontendReq::SET_VRING_NUM,
            &state(index, RING_SIZE.into()),
            &[],
        );
        self.ok(FrontendReq::SET_VRING_BASE, &state(index, base), &[]);
        self.ok(
            FrontendReq::SET_VRING_ADDR,
            &ring_at(index, ring_user(index)),
            &[],
        );
    }

    pub(super) fn kick(&mut self, index: u64) {
        let kick = eventfd();
        self.ok(
            FrontendReq::SET_VRING_KICK,
            &index.to_ne_bytes(),
            &[kick.as_raw_fd()],
        );
    }

    pub(super) fn call(&mut self, index: u64) {
        let call = eventfd();
        self.ok(
            FrontendReq::SET_VRING_CALL,
            &index.to_ne_bytes(),
            &[call.as_raw_fd()],
        );
    }

    pub(super) fn enable(&mut self, index: u32, on: u32) {
        self.ok(FrontendReq::SET_VRING_ENABLE, &state(index, on), &[]);
    }

    pub(super) fn start_ring(&mut self, index: u32) {
        self.configure_ring(index, 0);
        self.kick(index.into());
        self.call(index.into());
        self.enable(index, 1);
    }

    /// True once the door has closed the socket.
    pub(super) fn is_closed(&mut self) -> bool {
        matches!(self.socket.read(&mut [0]), Ok(0))
            || matches!(self.socket.write(&[0]), Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe)
    }
}

pub(super) fn state(index: u32, num: u32) -> Vec<u8> {
    [index, num].map(u32::to_ne_bytes).concat()
}

/// The user address of a ring in `SLOT`.
pub(super) fn ring_user(index: u32) -> u64 {
    SLOT.user + u64::from(index) * 0x3000
}

/// The body of SET_VRING_ADDR for a ring whose parts follow one another by pages.
pub(super) fn ring_at(index: u32, user: u64) -> Vec<u8> {
    let mut body = state(index, 0);
    let (desc, used, avail, log) = (user, user + 0x2000, user + 0x1000, 0u64);
    body.extend([desc, used, avail, log].map(u64::to_ne_bytes).concat());
    body
}

pub(super) fn table(slots: &[(Slot, &File)]) -> (Vec<u8>, Vec<RawFd>) {
    let mut body = (slots.len() as u64).to_ne_bytes().to_vec();
    slots
        .iter()
        .for_each(|(slot, _)| body.extend(slot.to_bytes()));
    (
        body,
        slots.iter().map(|(_, file)| file.as_raw_fd()).collect(),
    )
}

pub(super) fn single(slot: Slot) -> Vec<u8> {
    let mut body = vec![0; 8];
    body.extend(slot.to_bytes());
    body
}

pub(super) fn all_features() -> u64 {
    DEVICE_FEATURES | bits::TRANSPORT
}
