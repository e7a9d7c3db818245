//! What became of an attack: the outcome classes, and how each is seen from outside.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Instant;

use tests::client::blk::{OK, Request, UNTOUCHED};
use tests::client::guest::Guest;
use tests::client::ring::readable;
use tests::client::wire::{NEED_REPLY, VERSION_1, is_closed, message, req};
use tests::client::{deadline, patience};

/// How an attack ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The connection was closed.
    Closed,
    /// A negative acknowledgement; the connection goes on.
    Nak,
    /// It was obeyed or ignored; the connection goes on.
    Accepted,
    /// GET_CONFIG answered without content, which is its way to refuse.
    EmptyReply,
    /// The err eventfd was signalled.
    RingError,
    /// The chain was completed with this status.
    Status(u8),
    /// The chain was completed with used.len 0 and no status.
    LenZero,
    /// The chain was completed in a way that says nothing true: wrong head, or no status although a length.
    Wrong,
    /// Nothing happened for as long as we have patience.
    Silent,
}

/// A malformed message: a negative acknowledgement, or the door.
pub const REFUSED: &[Outcome] = &[Outcome::Closed, Outcome::Nak];
/// A message that may be refused or may be harmless.
pub const HARMLESS: &[Outcome] = &[
    Outcome::Closed,
    Outcome::Nak,
    Outcome::Accepted,
    Outcome::EmptyReply,
];
/// A legal message.
pub const ACCEPTED: &[Outcome] = &[Outcome::Accepted];
/// A malformed ring: err eventfd and a stopped ring, or the door.
pub const RING_ERROR: &[Outcome] = &[Outcome::RingError, Outcome::Closed];
/// A legal if odd request.
pub const DONE: &[Outcome] = &[Outcome::Status(OK)];
/// A malformed request with a usable status byte.
pub const IO_ERROR: &[Outcome] = &[Outcome::Status(1)];
/// A request that nobody knows.
pub const UNSUPPORTED: &[Outcome] = &[Outcome::Status(2)];
/// A malformed request without a status byte.
pub const NO_STATUS: &[Outcome] = &[Outcome::LenZero, Outcome::RingError, Outcome::Closed];

/// How far the session has come when the attack begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Connected; nothing was said.
    Fresh,
    /// Features are negotiated.
    Negotiated,
    /// Memory is announced too.
    Mapped,
    /// One ring runs.
    Running,
}

/// One line of the table.
pub struct Case {
    pub name: String,
    pub stage: Stage,
    pub expect: &'static [Outcome],
    pub run: Box<dyn Fn(&mut Guest) -> Outcome>,
}

/// A message as bytes, and the descriptors that go with it.
pub struct Sent {
    pub request: u32,
    pub bytes: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

/// A message with a truthful header that asks for an acknowledgement.
pub fn say(request: u32, payload: &[u8]) -> Sent {
    let bytes = message(
        request,
        VERSION_1 | NEED_REPLY,
        payload.len() as u32,
        payload,
    );
    Sent {
        request,
        bytes,
        fds: vec![],
    }
}

impl Sent {
    pub fn with(mut self, fds: impl IntoIterator<Item = impl Into<OwnedFd>>) -> Sent {
        self.fds = fds.into_iter().map(Into::into).collect();
        self
    }
}

/// Sends messages one by one until one is not accepted.
pub fn send_all(guest: &Guest, all: &[Sent]) -> Outcome {
    for sent in all {
        match send(guest, sent) {
            Outcome::Accepted => {}
            other => return other,
        }
    }
    Outcome::Accepted
}

/// Sends a message and a harmless question behind it, and reads what comes.
fn send(guest: &Guest, sent: &Sent) -> Outcome {
    let fds: Vec<RawFd> = sent.fds.iter().map(AsRawFd::as_raw_fd).collect();
    let wire = guest.wire();
    let asked = wire
        .send_raw(&sent.bytes, &fds)
        .and_then(|()| wire.send(req::GET_FEATURES, 0, &[], &[]));
    asked
        .and_then(|()| hear(guest, sent))
        .unwrap_or_else(from_error)
}

fn from_error(error: io::Error) -> Outcome {
    if is_closed(&error) {
        Outcome::Closed
    } else {
        Outcome::Silent
    }
}

fn hear(guest: &Guest, sent: &Sent) -> io::Result<Outcome> {
    let mut outcome = Outcome::Accepted;
    let mut pongs = if sent.request == req::GET_FEATURES {
        2
    } else {
        1
    };
    while pongs > 0 {
        let reply = guest.wire().recv()?;
        if reply.request == req::GET_FEATURES {
            pongs -= 1;
        } else if refuses(sent, &reply.payload) {
            outcome = Outcome::Nak;
        } else if reply.request == req::GET_CONFIG && reply.payload.len() <= 12 {
            outcome = Outcome::EmptyReply;
        }
    }
    Ok(outcome)
}

/// Whether a reply says no. Messages with replies of their own say so in their own way.
fn refuses(sent: &Sent, payload: &[u8]) -> bool {
    match sent.request {
        req::GET_CONFIG
        | req::GET_PROTOCOL_FEATURES
        | req::GET_QUEUE_NUM
        | req::GET_MAX_MEM_SLOTS => false,
        req::GET_INFLIGHT_FD => payload.len() != 24,
        // An answer about another queue than the one asked for.
        req::GET_VRING_BASE => payload.first_chunk::<4>() != sent.bytes[12..].first_chunk::<4>(),
        _ => payload
            .first_chunk::<8>()
            .is_some_and(|code| u64::from_le_bytes(*code) != 0),
    }
}

/// A chain that was offered.
#[derive(Clone, Copy, Debug)]
pub struct Shot {
    pub head: u16,
    /// Where its status byte would be.
    pub status: Option<u64>,
}

/// Publishes, kicks, and waits until the chain is answered, the ring broken or the connection closed.
pub fn fire(guest: &mut Guest, shot: Shot) -> Outcome {
    guest.rings[0].publish();
    guest.rings[0].kick();
    watch(guest, shot)
}

pub fn watch(guest: &mut Guest, shot: Shot) -> Outcome {
    let until = deadline();
    loop {
        guest.rings[0].want_call(Some(1));
        if let Some(used) = guest.rings[0].peek_pop() {
            return answered(guest, shot, used.id, used.len);
        }
        let ring = &guest.rings[0];
        if readable(&ring.err_fd, std::time::Duration::ZERO).unwrap_or(false) {
            return Outcome::RingError;
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Outcome::Silent;
        }
        let fds = [
            ring.call_fd.as_raw_fd(),
            ring.err_fd.as_raw_fd(),
            guest.wire().as_raw_fd(),
        ];
        if wait_any(&fds) == Some(2) && guest.wire().closed_within(patience()) {
            return Outcome::Closed;
        }
        let _ = guest.rings[0].call_fd.read();
    }
}

fn answered(guest: &Guest, shot: Shot, id: u32, len: u32) -> Outcome {
    if id != u32::from(shot.head) {
        return Outcome::Wrong;
    }
    match shot.status.map(|gpa| guest.memory.read(gpa, 1)[0]) {
        Some(UNTOUCHED) | None if len == 0 => Outcome::LenZero,
        Some(UNTOUCHED) | None => Outcome::Wrong,
        Some(status) => Outcome::Status(status),
    }
}

/// Which descriptor is readable first; `None` after a while.
fn wait_any(fds: &[RawFd; 3]) -> Option<usize> {
    let mut polls = fds.map(|fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    });
    // SAFETY: three valid pollfds on this stack.
    unsafe { libc::poll(polls.as_mut_ptr(), 3, 1000) };
    polls.iter().position(|p| p.revents != 0)
}

/// After an answered chain the same ring must go on; after a broken one a restart must mend it.
pub fn goes_on(guest: &mut Guest, outcome: Outcome) -> Result<(), String> {
    match outcome {
        _ if guest.memory.is_torn() => return Ok(()),
        Outcome::Status(_) | Outcome::LenZero => {}
        Outcome::RingError => {
            restart(guest).map_err(|e| format!("the ring does not start again: {e}"))?
        }
        _ => return Ok(()),
    }
    let done = guest
        .run(0, &Request::read(0, 512))
        .map_err(|e| format!("the ring does not go on: {e}"))?;
    if done.status == OK {
        Ok(())
    } else {
        Err(format!("the ring goes on with {done:?}"))
    }
}

fn restart(guest: &mut Guest) -> io::Result<()> {
    guest.stop_rings()?;
    guest.rings[0].clear();
    guest.start_rings()
}
