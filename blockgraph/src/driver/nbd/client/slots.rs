//! The requests that a server has been sent and has not answered.
//!
//! The rule: a cookie names a slot and how often a cookie was made, so no reply to an old request is taken for a new one's.

use super::link::{Call, Reply, SLOTS};
use crate::driver::nbd::wire::{Command, CommandFlags, Extent, RequestHead};
use ring::Errno;

/// A request in flight.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) call: Call,
    cookie: u64,
    /// Sent to its last byte.
    pub(super) sent: bool,
    /// A read's bytes, and how many the server has told of.
    pub(super) data: Vec<u8>,
    pub(super) told_bytes: u64,
    pub(super) extent: Option<Extent>,
    /// The first error told.
    pub(super) error: Option<Errno>,
}

impl InFlight {
    pub(super) fn head(&self) -> RequestHead {
        let ask = &self.call.ask;
        RequestHead {
            flags: CommandFlags(ask.flags),
            command: ask.command,
            cookie: self.cookie,
            at: ask.at,
            len: ask.len,
        }
    }

    /// Splits it into who asked and what to tell him; `Err` if the reply said less than it must.
    pub(super) fn into_result(mut self) -> (Call, Result<Result<Reply, Errno>, &'static str>) {
        let ask = self.call.ask;
        let result = match (self.error, ask.command) {
            (Some(error), _) => Ok(Err(error)),
            (None, Command::Read) if self.told_bytes != ask.len => {
                Err("a reply without all of the data")
            }
            (None, Command::BlockStatus) if self.extent.is_none() => {
                Err("a reply without any status")
            }
            (None, _) => Ok(Ok(Reply {
                data: std::mem::take(&mut self.data),
                extent: self.extent,
            })),
        };
        (self.call, result)
    }
}

/// All of one connection's.
#[derive(Debug)]
pub(super) struct Slots {
    list: Vec<Option<InFlight>>,
    made: u64,
}

impl Slots {
    pub(super) fn new() -> Slots {
        Slots {
            list: (0..SLOTS).map(|_| None).collect(),
            made: 0,
        }
    }

    /// Gives `call` a slot; `Err` gives it back where there is none, which permits make impossible.
    pub(super) fn insert(&mut self, call: Call) -> Result<usize, Call> {
        let free = self.list.iter().position(Option::is_none);
        let Some((index, slot)) = free.and_then(|index| Some((index, self.list.get_mut(index)?)))
        else {
            return Err(call);
        };
        self.made = self.made.wrapping_add(1);
        let data = match call.ask.command {
            // At most a piece, see `export.rs`.
            Command::Read => vec![0; call.ask.len as usize],
            _ => Vec::new(),
        };
        *slot = Some(InFlight {
            call,
            cookie: (self.made << 8) | index as u64,
            sent: false,
            data,
            told_bytes: 0,
            extent: None,
            error: None,
        });
        Ok(index)
    }

    pub(super) fn get(&mut self, index: usize) -> Option<&mut InFlight> {
        self.list.get_mut(index)?.as_mut()
    }

    pub(super) fn peek(&self, index: usize) -> Option<&InFlight> {
        self.list.get(index)?.as_ref()
    }

    /// The slot of a request that was sent, by the cookie of a reply.
    pub(super) fn find(&mut self, cookie: u64) -> Option<(usize, &mut InFlight)> {
        let index = (cookie & 0xff) as usize;
        let found = self.list.get_mut(index)?.as_mut()?;
        (found.cookie == cookie && found.sent).then_some((index, found))
    }

    pub(super) fn remove(&mut self, index: usize) -> Option<InFlight> {
        self.list.get_mut(index)?.take()
    }

    /// Everything in flight, in the order it was asked.
    pub(super) fn drain(&mut self) -> Vec<Call> {
        let drained = self.list.iter_mut().filter_map(Option::take);
        let mut calls: Vec<Call> = drained.map(|in_flight| in_flight.call).collect();
        calls.sort_by_key(|call| call.order);
        calls
    }
}

const _: () = assert!(SLOTS <= 256);
