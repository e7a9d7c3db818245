//! What a connection's client sends: requests taken off the wire one by one, each held against the rules and begun.
//!
//! The rule: nothing is taken that there is no room for, and what is refused is read to its end, so that the next request
//! is found.

use super::admit::{Admission, admit};
use super::budget::Permit;
use super::desk::UnderWay;
use super::input::Came;
use super::payload::{Durable, Expect, HowMany};
use super::serve::Job;
use super::session::{Phase, Session};
use blockgraph::Lane;
use blockgraph::driver::nbd::wire::{
    EXTENDED_REQUEST_MAGIC, Form, NbdError, REQUEST_MAGIC, RequestHead,
};
use std::io;
use std::rc::Rc;

/// Requests taken before replies have their turn, and their data: what is read from the page cache should leave while the
/// CPU's cache has it.
const BATCH_MAX: usize = 64;
const BATCH_BYTES_MAX: usize = 512 << 10;

/// Replies that wait for the client to read them: with so much data in them, and so many requests under way, no more is
/// read from the disk for it. Reading further ahead only moves data out of the CPU's caches before it is sent. A client
/// may count on QEMU's 16 requests before it reads a reply.
const AHEAD_BYTES: usize = 1 << 20;
const AHEAD_REQUESTS: usize = 16;

/// Why requests were not taken any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stopped {
    /// The socket is empty.
    Empty,
    /// There is no room for the next request.
    Full,
    /// There may be more.
    Batch,
}

impl Session {
    /// Takes requests off the wire for as long as there are any and there is room.
    pub(super) fn take_requests(&mut self, lane: &mut Lane) -> Stopped {
        let before = self.budget.bytes();
        for _ in 0..BATCH_MAX {
            if self.phase > Phase::Serving || !self.readable {
                return Stopped::Empty;
            }
            if self.budget.bytes() >= before + BATCH_BYTES_MAX {
                break;
            }
            if self.is_far_ahead() {
                return Stopped::Full;
            }
            match self.take_one(lane) {
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

    fn is_far_ahead(&self) -> bool {
        self.budget.requests() >= AHEAD_REQUESTS && self.desk.outbox.borrow().bytes() >= AHEAD_BYTES
    }

    /// One step; false if there is no room for the next request.
    fn take_one(&mut self, lane: &mut Lane) -> io::Result<Came<bool>> {
        match std::mem::replace(&mut self.expect, Expect::Head) {
            Expect::Head => self.take_head(lane),
            Expect::Data(payload, durable) => self.receive(
                payload,
                |payload| Expect::Data(payload, durable),
                |session, payload| {
                    session.write(lane, payload, durable);
                },
            ),
            Expect::Status(payload, how_many) => self.receive(
                payload,
                |payload| Expect::Status(payload, how_many),
                |session, payload| {
                    session.status(lane, payload, how_many);
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

    fn take_head(&mut self, lane: &mut Lane) -> io::Result<Came<bool>> {
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
        self.begin(lane, head, admission, permit);
        Ok(Came::Here(true))
    }

    fn begin(
        &mut self,
        lane: &mut Lane,
        head: RequestHead,
        admission: Admission,
        permit: Rc<Permit>,
    ) {
        match admission {
            Admission::Disconnect => self.end(Phase::Finishing),
            Admission::Go(ask) => self.spawn(lane, head, permit, move |job| job.perform(ask)),
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
                self.desk.refused(&head);
                self.expect = Expect::Skip {
                    head,
                    permit,
                    left: skip_bytes as usize,
                    text,
                };
            }
            Admission::Fatal(text) => {
                self.desk.refused(&head);
                self.desk.failed(&head, NbdError::Inval, &text, &permit);
                self.end(Phase::Finishing);
            }
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

    pub(super) fn spawn<F: Future<Output = ()> + 'static>(
        &mut self,
        lane: &mut Lane,
        head: RequestHead,
        permit: Rc<Permit>,
        work: impl FnOnce(Job) -> F + 'static,
    ) {
        let desk = self.desk.clone();
        desk.begin(&head, &permit);
        let node = desk.export.options.node;
        let under_way = UnderWay::begin(&desk);
        lane.spawn(node, self.token, move |io| {
            let work = work(Job {
                desk,
                io,
                head,
                permit,
            });
            async move {
                work.await;
                drop(under_way);
                Ok(())
            }
        });
    }
}
