//! What follows a request's head on the wire: data to write, what block status is asked of, bytes to be thrown away.
//!
//! The rule: a payload goes straight into the memory it is used from, as it comes; nothing waits for the rest of it.

use super::admit::{INVALID_STATUS_PAYLOAD, past_end};
use super::budget::Permit;
use super::exports::Context;
use super::input::Came;
use super::pool::Lease;
use super::session::Session;
use blockgraph::Lane;
use blockgraph::driver::nbd::wire::{NbdError, RequestHead, StatusPayload};
use std::io;
use std::rc::Rc;

/// What the client sends next.
#[derive(Debug)]
pub(super) enum Expect {
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
pub(super) struct Payload {
    head: RequestHead,
    permit: Rc<Permit>,
    data: Lease,
    at: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Durable {
    AsAlways,
    BeforeTheReply,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HowMany {
    All,
    One,
}

impl Session {
    pub(super) fn await_payload(
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

    pub(super) fn receive(
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

    pub(super) fn write(&mut self, lane: &mut Lane, payload: Payload, durable: Durable) {
        let fua = durable == Durable::BeforeTheReply;
        let data = payload.data;
        self.spawn(lane, payload.head, payload.permit, move |job| {
            job.write(data, fua)
        });
    }

    pub(super) fn status(&mut self, lane: &mut Lane, payload: Payload, how_many: HowMany) {
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
        self.spawn(lane, head, permit, move |job| async move {
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

    pub(super) fn skip(
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
}
