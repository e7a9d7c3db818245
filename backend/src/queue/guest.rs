//! One virtqueue as its thread runs it, and the requests popped from it.

use super::worker::RingKey;
use crate::stats::{Counted, Ended, Tally};
use crate::vhost::{Guard, Link, RingStart, RingStop};
use crate::virtio_blk::{Disk, Reply, Status};
use ring::vring::{Chain, Notify, RingError, Vring};
use ring::{Handle, Holding, Op, OpId};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::Sender;

/// A request from its chain to its answer. Slots are kept, for the capacity of their lists.
#[derive(Debug)]
pub(super) struct Slot {
    /// Which ring it came from, by place in the loop's list.
    pub guest: usize,
    pub chain: Chain,
    pub reply: Reply,
    /// Bytes of the answer's data that a success writes.
    pub data_bytes: u64,
    /// Parts still under way, and the worst end so far.
    pub left: u32,
    pub status: Status,
    /// As what it is counted, if it is; refused requests are counted at once.
    pub op: Option<Counted>,
    /// Bytes it is about, and when its batch began.
    pub asked_bytes: u64,
    pub began_ns: u64,
}

impl Slot {
    /// It is to be counted.
    pub(super) fn count(&mut self, op: Counted, bytes: u64) {
        self.op = Some(op);
        self.asked_bytes = bytes;
    }

    /// What its end comes to for the figures.
    fn ended(&self) -> Ended {
        match self.status {
            Status::Ok => Ended::Done,
            Status::IoErr | Status::Unsupported => Ended::Failed,
        }
    }
}

/// What a ring may still do.
#[derive(Debug)]
pub(super) enum Life {
    Running,
    /// Structurally damaged: nothing is popped any more.
    Broken,
    /// Draining for whoever waits.
    Stopping(Sender<Option<RingStop>>),
}

/// A ring on this thread.
#[derive(Debug)]
pub(super) struct Guest {
    pub key: RingKey,
    pub vring: Vring,
    pub disk: Arc<Disk>,
    pub tally: Tally,
    pub life: Life,
    kick: OwnedFd,
    poll: Option<OpId>,
    call: Option<OwnedFd>,
    err: Option<OwnedFd>,
    link: Link,
    /// What the next process waits for before it begins again what this one had in flight.
    guard: Option<Arc<Guard>>,
    held_guard: Option<Holding>,
    /// Something was pushed since the last publish.
    pub pushed: bool,
    /// So many requests wait for the graph to be changed.
    pub held: u32,
}

impl Guest {
    /// Errors: the ring is not where it is said to be.
    pub(super) fn new(key: RingKey, start: RingStart, disk: Arc<Disk>) -> Result<Guest, RingError> {
        let mut vring = Vring::new(start.map, &start.layout, start.features, start.next_avail)?;
        let mut guard = None;
        if let Some(tracking) = start.tracking {
            vring.track(tracking.inflight)?;
            guard = Some(tracking.guard);
        }
        Ok(Guest {
            key,
            vring,
            tally: disk.stats.tally(),
            disk,
            life: Life::Running,
            kick: start.kick,
            poll: None,
            call: start.call,
            err: start.err,
            link: start.link,
            guard,
            held_guard: None,
            pushed: false,
            held: 0,
        })
    }

    /// Requests of the kernel's, too, keep the next process waiting, which may be under way after this one has ended.
    pub(super) fn hold_guard(&mut self, ring: &Handle) {
        if let Some(guard) = &self.guard {
            self.held_guard = ring.borrow_mut().hold(guard.as_fd());
        }
    }

    /// Nothing is under way any more.
    pub(super) fn end_tracking(&mut self, ring: &Handle) {
        self.vring.untrack();
        if let Some(held) = self.held_guard.take() {
            ring.borrow_mut().let_go(held);
        }
        self.guard = None;
    }

    /// Listens for kicks; they come out with `token`.
    pub(super) fn arm(&mut self, ring: &Handle, token: u64) {
        let fd = self.kick.as_raw_fd();
        self.poll = ring.borrow_mut().start(Op::Poll { fd }, &[], 0, 0, token);
    }

    /// True if kicks are heard.
    pub(super) fn is_armed(&self) -> bool {
        self.poll.is_some()
    }

    /// Kicks cannot be heard any more: a guest would wait for ever, so the session ends.
    pub(super) fn go_deaf(&mut self) {
        self.poll = None;
        self.link.fail("the kicks of a virtqueue cannot be heard");
    }

    /// Listens no longer. The eventfd is given back, to be kept until the poll has ended.
    pub(super) fn disarm(&mut self, ring: &Handle, next: Option<OwnedFd>) -> Option<OwnedFd> {
        if let Some(target) = self.poll.take() {
            ring.borrow_mut().tell(Op::Cancel { target });
        }
        next.map(|next| std::mem::replace(&mut self.kick, next))
    }

    /// The eventfd kicks come through.
    pub(super) fn into_kick(self) -> OwnedFd {
        self.kick
    }

    pub(super) fn set_call(&mut self, call: Option<OwnedFd>) -> Option<OwnedFd> {
        // What was published before the swap may have been signalled to nobody: the new eventfd hears of it.
        std::mem::replace(&mut self.call, call)
    }

    pub(super) fn set_err(&mut self, err: Option<OwnedFd>) {
        self.err = err;
    }

    /// True if chains may be popped.
    pub(super) fn takes_work(&self) -> bool {
        matches!(self.life, Life::Running) && self.held == 0
    }

    /// Puts an answer into the used ring; visible at the next publish.
    pub(super) fn answer(&mut self, slot: &Slot, used_bytes: u32, now_ns: u64) {
        self.vring.push(slot.chain.head, used_bytes);
        self.pushed = true;
        if let Some(op) = slot.op {
            let time_ns = now_ns.saturating_sub(slot.began_ns);
            self.tally
                .ended(op, slot.ended(), slot.asked_bytes, time_ns);
        }
    }

    /// Publishes what was answered and counted; at most one signal.
    pub(super) fn publish(&mut self, ring: &Handle, now_ns: u64) {
        self.tally.publish(self.vring.in_flight().into(), now_ns);
        if !std::mem::take(&mut self.pushed) {
            return;
        }
        if self.vring.publish() == Notify::Signal {
            self.signal(ring);
        }
    }

    /// Signals the guest unconditionally.
    pub(super) fn signal(&self, ring: &Handle) {
        if let Some(call) = &self.call {
            let fd = call.as_raw_fd();
            ring.borrow_mut().tell(Op::Signal { fd });
        }
    }

    /// The ring cannot be trusted any more: tells the front end, once, and stops popping.
    pub(super) fn break_down(&mut self, error: &RingError) {
        if !matches!(self.life, Life::Running) {
            return;
        }
        self.life = Life::Broken;
        if *error == RingError::Poisoned {
            self.link.fail(error.to_string());
            return;
        }
        tracing::warn!("a virtqueue is broken and was stopped: {error}");
        if let Some(err) = &self.err {
            ring::sys::signal(err.as_raw_fd());
        }
    }

    /// Where the ring stands, if it is drained.
    pub(super) fn drained(&self) -> Option<RingStop> {
        (self.vring.in_flight() == 0).then(|| RingStop {
            next_avail: self.vring.next_avail(),
            next_used: self.vring.next_used(),
        })
    }
}
