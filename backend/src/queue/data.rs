//! THE DATA LOOP: kicks, chains, requests, ends and answers of one queue thread.
//!
//! The rule: everything happens in batches. One turn of the ring brings what ended and takes what begins; used rings are
//! published once per batch and guests are signalled at most once; nothing here allocates, locks, logs or reads a clock
//! per request.

mod commands;
mod requests;
mod rest;

use super::guest::{Guest, Life, Slot};
use super::idle::{Poller, Polling};
use super::tenant::{TENANT, Tenants};
use super::worker::Inbox;
use crate::vhost::RingStop;
use crate::virtio_blk::{Range, Reply, Status};
use blockgraph::{Event, Kind, Lane, Span, clock};
use ring::vring::{Chain, Popped};
use ring::{Op, Wait};
use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

/// Tokens: what an event of the lane is about, in the two bits below the lane's own.
const KICK: u64 = 1 << 61;
const BELL: u64 = 2 << 61;
const CLASS: u64 = 3 << 61;
const _: () = assert!(TENANT & CLASS != KICK && TENANT & CLASS != BELL && TENANT & CLASS != 0);

/// Chains popped from one ring before the next has its turn.
const BATCH_MAX: usize = 128;

/// Data of chains popped from one ring before the next, and whoever gives commands, has its turn: filling guest memory
/// with zeroes, or looking for them, is done on this thread.
const BATCH_BYTES_MAX: u64 = 64 << 20;

/// One queue thread.
#[derive(Debug)]
pub(super) struct DataLoop {
    lane: Lane,
    inbox: Arc<Inbox>,
    guests: Vec<Option<Guest>>,
    tenants: Tenants,
    /// Which of them was popped first the last time.
    first: usize,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Requests the ring had no room for, oldest first. While there are any, nothing is popped.
    stalled: VecDeque<(u32, Kind, Span)>,
    /// Requests of guests whose part of the graph is being changed, oldest first. Nothing more is popped of those guests.
    held: VecDeque<(u32, Kind, Span)>,
    ranges: Vec<Range>,
    /// Kick eventfds whose polls have not ended yet, by token.
    retired: Vec<(u64, OwnedFd)>,
    /// Call eventfds that may be named in the kernel's queue; dropped once that is empty.
    old_calls: Vec<OwnedFd>,
    kicks: u64,
    /// The token of each guest's current poll.
    poll_tokens: Vec<u64>,
    poller: Poller,
    /// Requests started since the last sleep.
    burst: usize,
    /// Their data, in bytes.
    burst_bytes: u64,
    /// When the batch began.
    now_ns: u64,
    exit: bool,
}

impl DataLoop {
    pub(super) fn new(lane: Lane, inbox: Arc<Inbox>, polling: Arc<Polling>) -> DataLoop {
        DataLoop {
            lane,
            inbox,
            guests: Vec::new(),
            tenants: Tenants::default(),
            first: 0,
            slots: Vec::new(),
            free: Vec::new(),
            stalled: VecDeque::new(),
            held: VecDeque::new(),
            ranges: Vec::new(),
            retired: Vec::new(),
            old_calls: Vec::new(),
            kicks: 0,
            poll_tokens: Vec::new(),
            poller: Poller::new(polling),
            burst: 0,
            burst_bytes: 0,
            now_ns: 0,
            exit: false,
        }
    }

    /// Runs until told to exit.
    pub(super) fn run(mut self) {
        let bell = self.lane.ring().borrow_mut().bell();
        let fd = bell.as_raw_fd();
        self.listen_for_commands(fd);
        self.obey(&bell);
        while !self.exit {
            let wait = self.rest();
            let sleeps = wait != Wait::Not && self.poller.is_on();
            let asleep = sleeps.then(Instant::now);
            let turned = self.lane.turn(wait);
            if let Some(since) = asleep {
                self.poller.slept(since.elapsed());
            }
            if let Err(error) = turned {
                tracing::error!("a queue thread lost its ring: {error}");
                self.fail_all();
                return;
            }
            if !self.old_calls.is_empty() && !self.lane.has_unsubmitted() {
                self.old_calls.clear();
            }
            self.lane.begin_batch();
            self.now_ns = clock::now_ns();
            let commands = self.take_events(fd);
            self.retry_held();
            self.retry_stalled();
            self.pop_all();
            self.publish_all();
            self.lane.end_batch();
            if commands {
                self.obey(&bell);
            }
            self.finish_stops();
            self.tenants.turn(&mut self.lane);
        }
    }

    fn listen_for_commands(&mut self, fd: RawFd) {
        let mut ring = self.lane.ring().borrow_mut();
        ring.start(Op::Poll { fd }, &[], 0, 0, BELL);
    }

    /// Takes what the turn brought; true if the bell was among it.
    fn take_events(&mut self, bell_fd: RawFd) -> bool {
        let mut bell = false;
        while let Some(event) = self.lane.take() {
            match event {
                Event::Finished { token, .. } if token & CLASS == TENANT => {}
                Event::Finished { token, outcome } => self.part_done(token as u32, outcome.into()),
                Event::Signal { token, result } if token & CLASS == BELL => {
                    bell = true;
                    if result.is_err() {
                        self.listen_for_commands(bell_fd);
                    }
                }
                Event::Signal { token, result } if token & CLASS == TENANT => {
                    self.tenants.hear(token, result.into(), &self.lane);
                }
                // A kick: its ring is looked at like all others.
                Event::Signal { result: Ok(()), .. } => {}
                Event::Signal { token, .. } => self.poll_ended(token),
            }
        }
        bell
    }

    /// A poll for kicks is over. If it was to be, its eventfd may go.
    fn poll_ended(&mut self, token: u64) {
        self.retired.retain(|(retired, _)| *retired != token);
        let current = self.poll_tokens.iter().position(|t| *t == token);
        if let Some(Some(guest)) = current.and_then(|at| self.guests.get_mut(at))
            && guest.is_armed()
        {
            guest.go_deaf();
        }
    }

    /// Pops every ring until all are empty or the kernel's ring is full. Each time another is the first: else, while there
    /// is room for few, the first ones would have all of it for as long as they ask.
    fn pop_all(&mut self) {
        let count = self.guests.len();
        self.first = if self.first + 1 < count {
            self.first + 1
        } else {
            0
        };
        for at in (self.first..count).chain(0..self.first) {
            self.pop_guest(at);
        }
    }

    fn pop_guest(&mut self, at: usize) {
        if let Some(guest) = &mut self.guests[at]
            && guest.takes_work()
            && guest.vring.has_work()
        {
            guest.tally.begin_batch();
            guest.vring.hush();
        }
        let mut bytes = 0;
        for _ in 0..BATCH_MAX {
            if !self.stalled.is_empty() || bytes > BATCH_BYTES_MAX {
                return;
            }
            let Some(guest) = self.guests[at].as_mut() else {
                return;
            };
            if !guest.takes_work() || !guest.vring.has_work() {
                return;
            }
            let slot = self.free.pop().unwrap_or_else(|| grow(&mut self.slots));
            let chain = &mut self.slots[slot as usize].chain;
            match guest.vring.pop(chain) {
                Ok(Popped::Chain) => {
                    let chain_bytes = chain.readable_bytes + chain.writable_bytes;
                    bytes += chain_bytes;
                    self.burst_bytes = self.burst_bytes.saturating_add(chain_bytes);
                    self.begin(at, slot);
                }
                Ok(Popped::Empty) => return self.free.push(slot),
                Err(error) => {
                    guest.break_down(&error);
                    return self.free.push(slot);
                }
            }
        }
    }

    fn publish_all(&mut self) {
        let ring = self.lane.ring();
        for guest in self.guests.iter_mut().flatten() {
            guest.publish(ring, self.now_ns);
        }
    }

    /// Answers whoever waits for a ring that has drained.
    fn finish_stops(&mut self) {
        for at in 0..self.guests.len() {
            let Some(guest) = &self.guests[at] else {
                continue;
            };
            if let (Life::Stopping(_), Some(stop)) = (&guest.life, guest.drained()) {
                self.drop_guest(at, stop);
            }
        }
    }

    fn drop_guest(&mut self, at: usize, stop: RingStop) {
        let Some(mut guest) = self.guests[at].take() else {
            return;
        };
        let armed = guest.is_armed();
        guest.disarm(self.lane.ring(), None);
        guest.end_tracking(self.lane.ring());
        // The last signal leaves before whoever stops the ring is told, and by its own descriptor, not by what the number
        // means next.
        self.lane.ring().borrow_mut().submit();
        self.old_calls.extend(guest.set_call(None));
        let life = std::mem::replace(&mut guest.life, Life::Broken);
        if armed {
            self.retired.push((self.poll_tokens[at], guest.into_kick()));
        }
        if let Life::Stopping(done) = life {
            // Whoever asked may have given up waiting.
            let _ = done.send(Some(stop));
        }
    }

    /// The kernel's ring is gone: nothing popped can ever be answered, so every session must end.
    fn fail_all(&mut self) {
        for guest in self.guests.iter_mut().flatten() {
            guest.break_down(&ring::vring::RingError::Poisoned);
        }
        self.tenants.clear();
    }
}

/// One more slot: happens until as many requests have been in flight as ever will be.
fn grow(slots: &mut Vec<Slot>) -> u32 {
    let chain = Chain::new();
    slots.push(Slot {
        guest: 0,
        reply: Reply::of(&chain),
        chain,
        data_bytes: 0,
        left: 0,
        status: Status::Ok,
        op: None,
        asked_bytes: 0,
        began_ns: 0,
    });
    (slots.len() - 1) as u32
}
