//! THE DATA LOOP: kicks, chains, requests, ends and answers of one queue thread.
//!
//! The rule: everything happens in batches. One turn of the ring brings what ended and takes what begins; used rings are
//! published once per batch and guests are signalled at most once; nothing here allocates, locks, logs or reads a clock
//! per request.

mod commands;

use super::guest::{Guest, Life, Slot};
use super::idle::Poller;
use super::worker::Inbox;
use crate::vhost::RingStop;
use crate::virtio_blk::{Ask, Range, RangeKind, Reply, Status, parse};
use blockgraph::{Event, Kind, Lane, Span, Started};
use ring::vring::{Chain, Pending, Popped};
use ring::{Op, Wait};
use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

/// Tokens: what an event of the lane is about, in the two bits below the lane's own.
const KICK: u64 = 1 << 61;
const BELL: u64 = 2 << 61;
const CLASS: u64 = 3 << 61;

/// Chains popped from one ring before the next has its turn.
const BATCH_MAX: usize = 128;

/// Data of chains popped from one ring before the next, and whoever gives commands, has its turn: filling guest memory
/// with zeroes, or looking for them, is done on this thread.
const BATCH_BYTES_MAX: u64 = 64 << 20;

/// So many requests at once are a burst.
const BURST_MIN: usize = 8;
/// How long the first end of a burst may be kept back for the others. A slow disk's ends come one by one after that, so
/// that the guest can follow up. Measured: small requests gain from one wake-up for all; large ones lose the overlap.
const PATIENCE_SMALL_NS: u64 = 2_000_000;
const PATIENCE_LARGE_NS: u64 = 200_000;
/// Requests up to this size, on average, are small.
const SMALL_BYTES_MAX: u64 = 16 << 10;

/// One queue thread.
#[derive(Debug)]
pub(super) struct DataLoop {
    lane: Lane,
    inbox: Arc<Inbox>,
    guests: Vec<Option<Guest>>,
    /// Which of them was popped first the last time.
    first: usize,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Requests the ring had no room for, oldest first. While there are any, nothing is popped.
    stalled: VecDeque<(u32, Kind, Span)>,
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
    exit: bool,
}

impl DataLoop {
    pub(super) fn new(lane: Lane, inbox: Arc<Inbox>, poll_max_ns: u64) -> DataLoop {
        DataLoop {
            lane,
            inbox,
            guests: Vec::new(),
            first: 0,
            slots: Vec::new(),
            free: Vec::new(),
            stalled: VecDeque::new(),
            ranges: Vec::new(),
            retired: Vec::new(),
            old_calls: Vec::new(),
            kicks: 0,
            poll_tokens: Vec::new(),
            poller: Poller::new(poll_max_ns),
            burst: 0,
            burst_bytes: 0,
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
            let commands = self.take_events(fd);
            self.retry_stalled();
            self.pop_all();
            self.publish_all();
            self.lane.end_batch();
            if commands {
                self.obey(&bell);
            }
            self.finish_stops();
        }
    }

    fn listen_for_commands(&mut self, fd: RawFd) {
        let mut ring = self.lane.ring().borrow_mut();
        ring.start(Op::Poll { fd }, &[], 0, 0, BELL);
    }

    /// Decides how long to wait; kicks are on when it says to sleep.
    fn rest(&mut self) -> Wait {
        if self.lane.has_news() || self.has_work() {
            return Wait::Not;
        }
        if self.poller.is_open(self.burst) {
            if self.lane.has_pushed() {
                // What was begun must be under way before its end is looked for: a turn that does not wait, and here again.
                return Wait::Not;
            }
            let DataLoop {
                poller,
                lane,
                guests,
                stalled,
                ..
            } = self;
            // What is stalled waits for ends alone: until then, new chains are no news.
            if poller.poll(|| lane.has_news() || (stalled.is_empty() && any_work(guests))) {
                self.burst = 0;
                self.burst_bytes = 0;
                return Wait::Not;
            }
        }
        let burst = std::mem::take(&mut self.burst);
        let bytes = std::mem::take(&mut self.burst_bytes);
        if self.stalled.is_empty() {
            for guest in self.guests.iter_mut().flatten() {
                if guest.is_running() && guest.vring.listen() == Pending::More {
                    return Wait::Not;
                }
            }
        }
        self.sleep(burst, bytes)
    }

    /// How to sleep: for the first end, or, when all that is in flight came in one burst, for the whole burst a little while:
    /// a fast disk ends it within that, and then one wake-up and one signal do for all of it.
    fn sleep(&mut self, burst: usize, bytes: u64) -> Wait {
        if burst >= BURST_MIN && burst == self.lane.in_flight() {
            return Wait::Batch {
                count: burst as u32,
                patience_ns: patience_ns(burst, bytes),
            };
        }
        Wait::One
    }

    fn has_work(&self) -> bool {
        self.stalled.is_empty() && any_work(&self.guests)
    }

    /// Takes what the turn brought; true if the bell was among it.
    fn take_events(&mut self, bell_fd: RawFd) -> bool {
        let mut bell = false;
        while let Some(event) = self.lane.take() {
            match event {
                Event::Finished { token, outcome } => self.part_done(token as u32, outcome.into()),
                Event::Signal { token, result } if token & CLASS == BELL => {
                    bell = true;
                    if result.is_err() {
                        self.listen_for_commands(bell_fd);
                    }
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
            && guest.is_running()
            && guest.vring.has_work()
        {
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
            if !guest.is_running() || !guest.vring.has_work() {
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

    /// Starts what a chain asks for.
    fn begin(&mut self, at: usize, index: u32) {
        let Some(guest) = &self.guests[at] else {
            return;
        };
        self.burst += 1;
        let disk = &guest.disk;
        let slot = &mut self.slots[index as usize];
        slot.guest = at;
        slot.reply = Reply::of(&slot.chain);
        slot.left = 1;
        slot.status = Status::Ok;
        slot.data_bytes = 0;
        if !slot.reply.has_status() {
            // Nowhere to say how it went: given back with length 0, and nothing done.
            return self.finish(index);
        }
        match parse(disk, &mut slot.chain, &mut self.ranges) {
            Ask::Read(span) => {
                slot.data_bytes = span.len;
                self.start(index, Kind::Read, span);
            }
            Ask::Write(span) => {
                let kind = Kind::Write(disk.durability());
                self.start(index, kind, span);
            }
            Ask::Flush => self.start(index, Kind::Flush, Span { at: 0, len: 0 }),
            Ask::Id => {
                let stored = ring::seg::store(&slot.chain.writable, 0, &disk.id);
                slot.data_bytes = stored as u64;
                self.finish(index);
            }
            Ask::Ranges(kind) => self.begin_ranges(at, index, kind),
            Ask::Answer(status) => {
                slot.status = status;
                self.finish(index);
            }
        }
    }

    fn begin_ranges(&mut self, at: usize, index: u32, kind: RangeKind) {
        let Some(disk) = self.guests[at].as_ref().map(|guest| guest.disk.clone()) else {
            return;
        };
        let ranges = std::mem::take(&mut self.ranges);
        self.slots[index as usize].left = ranges.len() as u32;
        for range in &ranges {
            self.start(index, range.graph_kind(kind, &disk), range.span);
        }
        self.ranges = ranges;
    }

    /// Hands one part of a request to the lane.
    fn start(&mut self, index: u32, kind: Kind, span: Span) {
        let slot = &self.slots[index as usize];
        let Some(guest) = &self.guests[slot.guest] else {
            return;
        };
        let segs = match kind {
            Kind::Read => &slot.chain.writable[..],
            Kind::Write(_) => &slot.chain.readable[..],
            _ => &[],
        };
        if span.is_empty() && kind != Kind::Flush {
            return self.part_done(index, Status::Ok);
        }
        match self
            .lane
            .start(guest.disk.node, kind, span, segs, u64::from(index))
        {
            Started::Pending => {}
            Started::Done(outcome) => self.part_done(index, outcome.into()),
            Started::Full => self.stalled.push_back((index, kind, span)),
        }
    }

    fn retry_stalled(&mut self) {
        for _ in 0..self.stalled.len() {
            let Some((index, kind, span)) = self.stalled.pop_front() else {
                return;
            };
            self.start(index, kind, span);
        }
    }

    /// One part of a request is over.
    fn part_done(&mut self, index: u32, status: Status) {
        let slot = &mut self.slots[index as usize];
        if status != Status::Ok {
            slot.status = status;
        }
        slot.left -= 1;
        if slot.left == 0 {
            self.finish(index);
        }
    }

    /// Answers a request.
    fn finish(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        let written_bytes = match slot.status {
            Status::Ok => slot.data_bytes,
            Status::IoErr | Status::Unsupported => 0,
        };
        let used_bytes = slot.reply.finish(slot.status, written_bytes);
        if let Some(guest) = &mut self.guests[slot.guest] {
            guest.answer(slot.chain.head, used_bytes);
        }
        slot.chain.trim();
        self.free.push(index);
    }

    fn publish_all(&mut self) {
        let ring = self.lane.ring();
        for guest in self.guests.iter_mut().flatten() {
            guest.publish(ring);
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
    }
}

fn patience_ns(burst: usize, bytes: u64) -> u64 {
    if bytes / (burst.max(1) as u64) <= SMALL_BYTES_MAX {
        PATIENCE_SMALL_NS
    } else {
        PATIENCE_LARGE_NS
    }
}

fn any_work(guests: &[Option<Guest>]) -> bool {
    let mut running = guests.iter().flatten().filter(|guest| guest.is_running());
    running.any(|guest| guest.vring.has_work())
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
    });
    (slots.len() - 1) as u32
}
