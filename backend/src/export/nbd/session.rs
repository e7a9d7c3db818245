//! One connection that carries requests: its loop, on a thread and a ring of its own.
//!
//! The rule: the loop never waits for the client alone. It reads as long as there is room for what it reads, sends as long
//! as the socket takes it, and ends when it is told to, as soon as the disk is done with what is in flight.

use super::admit::{Admission, INVALID_STATUS_PAYLOAD, Rules, admit, past_end};
use super::budget::{Budget, Permit};
use super::desk::Desk;
use super::exports::{Context, Writes};
use super::handshake::Agreed;
use super::input::{Came, Input};
use super::outbox::{Outbox, Sent};
use super::pool::Lease;
use super::serve::Job;
use super::server::Seat;
use super::transport::Transport;
use blockgraph::driver::nbd::wire::{
    EXTENDED_REQUEST_MAGIC, Form, NbdError, REQUEST_MAGIC, RequestHead, StatusPayload,
};
use blockgraph::{Event, Lane};
use ring::{Bell, Op, Wait};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Tokens of polls; those of requests are below.
const SOCKET: u64 = 1 << 61;
const SEAT: u64 = 2 << 61;
const RING: u64 = 3 << 61;

/// Requests taken before replies have their turn, and their data: what is read from the page cache should leave while the
/// CPU's cache has it.
const BATCH_MAX: usize = 64;
const BATCH_BYTES_MAX: usize = 512 << 10;

/// What the client sends next.
#[derive(Debug)]
enum Expect {
    /// A request.
    Head,
    /// Data to be written.
    Data(Payload, Durable),
    /// What block status is asked of.
    Status(Payload, HowMany),
    /// Bytes of no meaning, then it is told why.
    Skip {
        head: RequestHead,
        permit: Rc<Permit>,
        left: usize,
        text: String,
    },
}

/// A payload on its way into memory.
#[derive(Debug)]
struct Payload {
    head: RequestHead,
    permit: Rc<Permit>,
    data: Lease,
    at: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Durable {
    AsAlways,
    BeforeTheReply,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HowMany {
    All,
    One,
}

/// How far the connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// Requests are taken.
    Serving,
    /// No more requests; replies are sent.
    Finishing,
    /// Nothing is sent any more; what the disk is doing is waited for.
    Ending,
}

/// Why requests were not taken any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stopped {
    /// The socket is empty.
    Empty,
    /// There is no room for the next request.
    Full,
    /// There may be more.
    Batch,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Session {
    // First, so that its polls are over before what they poll is closed.
    lane: Lane,
    ring_bell: Bell,
    readiness: Epoll,
    transport: Transport,
    seat: Arc<Seat>,
    desk: Rc<Desk>,
    rules: Rules,
    budget: Rc<Budget>,
    input: Input,
    expect: Expect,
    phase: Phase,
    readable: bool,
    writable: bool,
}

impl Session {
    /// A connection that has agreed. Errors: out of descriptors.
    pub(super) fn new(
        agreed: Agreed,
        seat: Arc<Seat>,
        lane: Lane,
        send_timeout: Duration,
    ) -> io::Result<Session> {
        let Agreed {
            line,
            export,
            form,
            contexts,
        } = agreed;
        let transport = line.into_transport();
        let readiness = Epoll::new()?;
        let events = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP;
        readiness.ctl(
            ControlOperation::Add,
            transport.socket().as_raw_fd(),
            EpollEvent::new(events | EventSet::EDGE_TRIGGERED, 0),
        )?;
        let rules = Rules {
            form,
            size_bytes: export.options.size_bytes,
            read_only: export.options.writes == Writes::Refused,
            contexts: contexts.len(),
        };
        let ring_bell = lane.ring().borrow_mut().bell();
        Ok(Session {
            lane,
            ring_bell,
            readiness,
            transport,
            seat,
            desk: Rc::new(Desk::new(export, form, contexts, Outbox::new(send_timeout))),
            rules,
            budget: Rc::default(),
            input: Input::new(form),
            expect: Expect::Head,
            phase: Phase::Serving,
            readable: true,
            writable: true,
        })
    }

    /// Serves until the client or the server has enough.
    pub(super) fn run(mut self) {
        for (fd, token) in self.polls() {
            self.poll(fd, token);
        }
        loop {
            self.look_around();
            // A newer generation of the graph is for the requests that come now.
            self.lane.begin_batch();
            self.lane.end_batch();
            let stopped = self.take_requests();
            let before = self.budget.requests();
            self.send();
            if self.is_over() {
                break;
            }
            let more = match stopped {
                Stopped::Empty => false,
                Stopped::Batch => true,
                Stopped::Full => self.budget.requests() < before,
            };
            let wait = if more { Wait::Not } else { self.patience() };
            if let Err(error) = self.lane.turn(wait) {
                tracing::error!("an NBD connection lost its ring: {error}");
                break;
            }
            self.hear();
        }
        if self.phase < Phase::Ending {
            self.transport.say_goodbye();
        }
    }

    fn polls(&self) -> [(RawFd, u64); 3] {
        [
            (self.readiness.as_raw_fd(), SOCKET),
            (self.seat.bell().as_raw_fd(), SEAT),
            (self.ring_bell.as_raw_fd(), RING),
        ]
    }

    fn poll(&self, fd: RawFd, token: u64) {
        let mut ring = self.lane.ring().borrow_mut();
        ring.start(Op::Poll { fd }, &[], 0, 0, token);
    }

    /// Is this connection to end?
    fn look_around(&mut self) {
        if self.seat.is_closing() || self.desk.export.is_closing() {
            self.end(Phase::Ending);
        }
    }

    fn end(&mut self, phase: Phase) {
        self.phase = self.phase.max(phase);
        self.expect = Expect::Head;
        if phase == Phase::Ending {
            self.desk.close();
        }
    }

    fn is_over(&self) -> bool {
        let idle = self.lane.in_flight() == 0;
        match self.phase {
            Phase::Serving => false,
            Phase::Finishing => {
                idle && self.desk.outbox.borrow().is_empty() && self.transport.is_flushed()
            }
            Phase::Ending => idle,
        }
    }

    /// How long to sleep: until something happens, or until the client has read nothing for too long.
    fn patience(&self) -> Wait {
        match self.desk.outbox.borrow().deadline() {
            Some(deadline) if self.phase < Phase::Ending => {
                let left = deadline.saturating_duration_since(Instant::now());
                Wait::AtMost(u64::try_from(left.as_nanos()).unwrap_or(u64::MAX))
            }
            _ => Wait::One,
        }
    }

    fn hear(&mut self) {
        while let Some(event) = self.lane.take() {
            let Event::Signal { token, result } = event else {
                continue;
            };
            match token {
                SOCKET => self.hear_socket(),
                SEAT => self.seat.bell().hush(),
                _ => self.ring_bell.hush(),
            }
            if result.is_err() {
                let polls = self.polls();
                if let Some((fd, token)) = polls.into_iter().find(|(_, t)| *t == token) {
                    self.poll(fd, token);
                }
            }
        }
    }

    fn hear_socket(&mut self) {
        let mut events = [EpollEvent::default()];
        let Ok(1) = self.readiness.wait(0, &mut events) else {
            return;
        };
        let set = events[0].event_set();
        let broken = EventSet::ERROR | EventSet::HANG_UP;
        self.readable |= set.intersects(EventSet::IN | EventSet::READ_HANG_UP | broken);
        self.writable |= set.intersects(EventSet::OUT | broken);
    }

    fn send(&mut self) {
        if self.phase == Phase::Ending && self.lane.in_flight() > 0 {
            return;
        }
        let late = |deadline| deadline <= Instant::now();
        let overdue = self.desk.outbox.borrow().deadline().is_some_and(late);
        if !self.writable && !overdue {
            return;
        }
        let desk = self.desk.clone();
        let mut outbox = desk.outbox.borrow_mut();
        let sent = outbox.send(&mut self.transport, |memory| desk.recycle_memory(memory));
        drop(outbox);
        match sent {
            Ok(Sent::All) => {}
            Ok(Sent::Some) => self.writable = false,
            Err(error) => {
                if error.kind() == io::ErrorKind::TimedOut {
                    let name = &desk.export.options.name;
                    tracing::warn!(
                        "NBD export '{name}': a client that reads no replies is cut off"
                    );
                }
                self.end(Phase::Ending);
            }
        }
    }

    /// Takes requests off the wire for as long as there are any and there is room.
    fn take_requests(&mut self) -> Stopped {
        let before = self.budget.bytes();
        for _ in 0..BATCH_MAX {
            if self.phase > Phase::Serving || !self.readable {
                return Stopped::Empty;
            }
            if self.budget.bytes() >= before + BATCH_BYTES_MAX {
                break;
            }
            match self.take_one() {
                Ok(Came::Here(true)) => {}
                Ok(Came::Here(false)) => return Stopped::Full,
                Ok(Came::NotYet) => {
                    self.readable = false;
                    return Stopped::Empty;
                }
                // It may still read what it has asked for.
                Ok(Came::End) => self.end(Phase::Finishing),
                Err(_) => self.end(Phase::Ending),
            }
        }
        Stopped::Batch
    }

    /// One step; false if there is no room for the next request.
    fn take_one(&mut self) -> io::Result<Came<bool>> {
        match std::mem::replace(&mut self.expect, Expect::Head) {
            Expect::Head => self.take_head(),
            Expect::Data(payload, durable) => self.receive(
                payload,
                |payload| Expect::Data(payload, durable),
                |session, payload| {
                    session.write(payload, durable);
                },
            ),
            Expect::Status(payload, how_many) => self.receive(
                payload,
                |payload| Expect::Status(payload, how_many),
                |session, payload| {
                    session.status(payload, how_many);
                },
            ),
            Expect::Skip {
                head,
                permit,
                left,
                text,
            } => self.skip(head, permit, left, text),
        }
    }

    fn take_head(&mut self) -> io::Result<Came<bool>> {
        let head = match self.input.head(&mut self.transport)? {
            Came::Here(Ok(head)) => head,
            Came::Here(Err((head, magic))) => {
                self.input.take_head();
                self.refuse_magic(&head, magic);
                return Ok(Came::Here(true));
            }
            Came::NotYet => return Ok(Came::NotYet),
            Came::End => return Ok(Came::End),
        };
        let admission = admit(&head, &self.rules);
        let data_bytes = match &admission {
            Admission::Go(ask) => ask.data_bytes(&head),
            Admission::Write { len, .. } | Admission::StatusPayload { len, .. } => *len as usize,
            _ => 0,
        };
        let Some(permit) = self.budget.take(data_bytes) else {
            return Ok(Came::Here(false));
        };
        self.input.take_head();
        self.begin(head, admission, permit);
        Ok(Came::Here(true))
    }

    fn begin(&mut self, head: RequestHead, admission: Admission, permit: Rc<Permit>) {
        match admission {
            Admission::Disconnect => self.end(Phase::Finishing),
            Admission::Go(ask) => self.spawn(head, permit, move |job| job.perform(ask)),
            Admission::Write { len, fua } => {
                let durable = match fua {
                    true => Durable::BeforeTheReply,
                    false => Durable::AsAlways,
                };
                self.expect = self.await_payload(head, permit, len, |p| Expect::Data(p, durable));
            }
            Admission::StatusPayload { len, one } => {
                let how_many = if one { HowMany::One } else { HowMany::All };
                self.expect =
                    self.await_payload(head, permit, len, |p| Expect::Status(p, how_many));
            }
            Admission::Refuse { skip_bytes, text } => {
                self.expect = Expect::Skip {
                    head,
                    permit,
                    left: skip_bytes as usize,
                    text,
                };
            }
            Admission::Fatal(text) => {
                self.desk.failed(&head, NbdError::Inval, &text, &permit);
                self.end(Phase::Finishing);
            }
        }
    }

    fn await_payload(
        &self,
        head: RequestHead,
        permit: Rc<Permit>,
        len: u32,
        expect: impl FnOnce(Payload) -> Expect,
    ) -> Expect {
        match self.desk.memory(u64::from(len)) {
            Ok(data) => expect(Payload {
                head,
                permit,
                data,
                at: 0,
            }),
            Err(_) => Expect::Skip {
                head,
                permit,
                left: len as usize,
                text: "No memory".to_owned(),
            },
        }
    }

    fn receive(
        &mut self,
        mut payload: Payload,
        expect: impl FnOnce(Payload) -> Expect,
        done: impl FnOnce(&mut Session, Payload),
    ) -> io::Result<Came<bool>> {
        match self
            .input
            .payload(&mut self.transport, &payload.data.mem, payload.at)?
        {
            Came::Here(at) if at == payload.data.mem.len() => {
                done(self, payload);
                Ok(Came::Here(true))
            }
            Came::Here(at) => {
                payload.at = at;
                self.expect = expect(payload);
                Ok(Came::NotYet)
            }
            Came::NotYet => Ok(Came::NotYet),
            Came::End => Ok(Came::End),
        }
    }

    fn write(&mut self, payload: Payload, durable: Durable) {
        let fua = durable == Durable::BeforeTheReply;
        let data = payload.data;
        self.spawn(payload.head, payload.permit, move |job| {
            job.write(data, fua)
        });
    }

    fn status(&mut self, payload: Payload, how_many: HowMany) {
        let mut bytes = vec![0; payload.data.mem.len()];
        payload.data.mem.load(0, &mut bytes);
        let (head, permit) = (payload.head, payload.permit);
        let Some((len, contexts)) = self.asked_contexts(&bytes) else {
            return self
                .desk
                .failed(&head, NbdError::Inval, INVALID_STATUS_PAYLOAD, &permit);
        };
        let objection = match len {
            0 => Some("need non-zero length".to_owned()),
            _ => past_end(head.at, len, &self.rules),
        };
        if let Some(text) = objection {
            return self.desk.failed(&head, NbdError::Inval, &text, &permit);
        }
        let one = how_many == HowMany::One;
        self.spawn(head, permit, move |job| async move {
            job.status(len, one, &contexts).await;
        });
    }

    /// Contexts that were chosen, each at most once, and answered in the export's order.
    fn asked_contexts(&self, bytes: &[u8]) -> Option<(u64, Vec<Context>)> {
        let StatusPayload { len, contexts: ids } = StatusPayload::decode(bytes).ok()?;
        let mut contexts = Vec::new();
        for id in ids {
            let chosen = self.desk.contexts.iter().find(|c| c.id() == id)?;
            if contexts.contains(chosen) {
                return None;
            }
            contexts.push(*chosen);
        }
        contexts.sort_unstable();
        (!contexts.is_empty()).then_some((len, contexts))
    }

    fn skip(
        &mut self,
        head: RequestHead,
        permit: Rc<Permit>,
        left: usize,
        text: String,
    ) -> io::Result<Came<bool>> {
        let skipped = match self.input.skip(&mut self.transport, left)? {
            Came::Here(skipped) => skipped,
            Came::End => return Ok(Came::End),
            Came::NotYet => 0,
        };
        if skipped == left {
            self.desk.failed(&head, NbdError::Inval, &text, &permit);
            return Ok(Came::Here(true));
        }
        self.expect = Expect::Skip {
            head,
            permit,
            left: left - skipped,
            text,
        };
        match skipped {
            0 => Ok(Came::NotYet),
            _ => Ok(Came::Here(true)),
        }
    }

    fn refuse_magic(&mut self, head: &RequestHead, got: u32) {
        let expected = match self.rules.form {
            Form::Extended => EXTENDED_REQUEST_MAGIC,
            Form::Simple | Form::Structured => REQUEST_MAGIC,
        };
        let text = format!("invalid magic (got {got:#x}, expected {expected:#x})");
        // The last reply of this connection; nothing else can take its room.
        if let Some(permit) = self.budget.take(0) {
            self.desk.failed(head, NbdError::Inval, &text, &permit);
        }
        self.end(Phase::Finishing);
    }

    fn spawn<F: Future<Output = ()> + 'static>(
        &mut self,
        head: RequestHead,
        permit: Rc<Permit>,
        work: impl FnOnce(Job) -> F,
    ) {
        let desk = self.desk.clone();
        let node = desk.export.options.node;
        self.lane.spawn(node, 0, |io| {
            let work = work(Job {
                desk,
                io,
                head,
                permit,
            });
            async move {
                work.await;
                Ok(())
            }
        });
    }
}
