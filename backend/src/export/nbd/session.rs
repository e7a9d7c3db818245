//! One connection that carries requests: what it does in a turn of whatever thread it lives on.
//!
//! The rule: a turn never waits. It reads as long as there is room for what it reads, sends as long as the socket takes
//! it, and the connection ends when it is told to, as soon as the disk is done with what is in flight.

use super::admit::Rules;
use super::budget::Budget;
use super::desk::Desk;
use super::exports::Writes;
use super::handshake::Agreed;
use super::input::Input;
use super::intake::Stopped;
use super::outbox::{Outbox, Sent};
use super::payload::Expect;
use super::seat::Taken;
use super::transport::Transport;
use crate::queue::{Need, Tenant};
use blockgraph::Lane;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// What a connection hears of, by place in [`Tenant::polls`].
const SOCKET: usize = 0;

/// How far the connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Requests are taken.
    Serving,
    /// No more requests; replies are sent.
    Finishing,
    /// Nothing is sent any more; what the disk is doing is waited for.
    Ending,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Session {
    readiness: Epoll,
    pub(super) transport: Transport,
    pub(super) desk: Rc<Desk>,
    pub(super) rules: Rules,
    pub(super) budget: Rc<Budget>,
    pub(super) input: Input,
    pub(super) expect: Expect,
    pub(super) phase: Phase,
    pub(super) readable: bool,
    writable: bool,
    /// What the lane calls its tasks.
    pub(super) token: u64,
    /// Given back last: whoever waits for that finds the export let go.
    seat: Arc<Taken>,
}

impl Session {
    /// A connection that has agreed. Errors: out of descriptors.
    pub(super) fn new(
        agreed: Agreed,
        seat: Arc<Taken>,
        send_timeout: Duration,
        token: u64,
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
        Ok(Session {
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
            token,
        })
    }

    /// Is this connection to end?
    fn look_around(&mut self) {
        if self.seat.is_closing() || self.desk.export.is_closing() {
            self.end(Phase::Ending);
        }
    }

    pub(super) fn end(&mut self, phase: Phase) {
        self.phase = self.phase.max(phase);
        self.expect = Expect::Head;
        if phase == Phase::Ending {
            self.desk.close();
        }
    }

    fn is_over(&self) -> bool {
        let idle = self.desk.in_flight() == 0;
        match self.phase {
            Phase::Serving => false,
            Phase::Finishing => {
                idle && self.desk.outbox.borrow().is_empty() && self.transport.is_flushed()
            }
            Phase::Ending => idle,
        }
    }

    /// Until when to sleep: until something happens, or until the client has read nothing for too long.
    fn patience(&self) -> Need {
        match self.desk.outbox.borrow().deadline() {
            Some(deadline) if self.phase < Phase::Ending => Need::SleepUntil(deadline),
            _ => Need::Sleep,
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

    /// Sends what there is; true if it stopped for the sake of others.
    fn send(&mut self) -> bool {
        if self.phase == Phase::Ending && self.desk.in_flight() > 0 {
            return false;
        }
        let late = |deadline| deadline <= Instant::now();
        let overdue = self.desk.outbox.borrow().deadline().is_some_and(late);
        if !self.writable && !overdue {
            return false;
        }
        let desk = self.desk.clone();
        let mut outbox = desk.outbox.borrow_mut();
        let sent = outbox.send(&mut self.transport, |memory| desk.recycle_memory(memory));
        drop(outbox);
        match sent {
            Ok(Sent::All) => {}
            Ok(Sent::Enough) => return true,
            Ok(Sent::Some) => self.writable = false,
            Err(error) => self.cut_off(&error),
        }
        false
    }

    fn cut_off(&mut self, error: &io::Error) {
        if error.kind() == io::ErrorKind::TimedOut {
            let name = &self.desk.export.options.name;
            tracing::warn!("NBD export '{name}': a client that reads no replies is cut off");
        }
        self.end(Phase::Ending);
    }
}

impl Tenant for Session {
    fn polls(&self) -> [RawFd; 2] {
        [self.readiness.as_raw_fd(), self.seat.bell().as_raw_fd()]
    }

    fn hear(&mut self, at: usize) {
        match at {
            SOCKET => self.hear_socket(),
            _ => self.seat.bell().hush(),
        }
    }

    fn go_deaf(&mut self) {
        self.end(Phase::Ending);
    }

    fn turn(&mut self, lane: &mut Lane) -> Need {
        self.look_around();
        self.desk.begin_batch();
        let stopped = self.take_requests(lane);
        self.desk.publish();
        let before = self.budget.requests();
        let enough = self.send();
        if self.is_over() {
            if self.phase < Phase::Ending {
                self.transport.say_goodbye();
            }
            return Need::End;
        }
        let more = match stopped {
            Stopped::Empty => false,
            Stopped::Batch => true,
            Stopped::Full => self.budget.requests() < before,
        };
        match more || enough {
            true => Need::Turn,
            false => self.patience(),
        }
    }
}
