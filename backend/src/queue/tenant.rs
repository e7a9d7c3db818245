//! What shares a queue thread with the rings of guests: connections of other exports that were put on its iothread.
//!
//! The rule: a turn is short and never waits, whatever the other end of the connection does.

use blockgraph::{Lane, Outcome};
use ring::{Op, OpId, Wait};
use std::io;
use std::os::fd::RawFd;
use std::time::Instant;

/// What a tenant needs after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Another turn, soon.
    Turn,
    /// A turn when something has happened.
    Sleep,
    /// The same, and not later than this.
    SleepUntil(Instant),
    /// Nothing any more: nothing of it is in flight.
    End,
}

/// A connection that lives on a thread and its lane.
pub trait Tenant: std::fmt::Debug {
    /// What it wants to hear of once that is readable. They stay open for as long as the tenant is there.
    fn polls(&self) -> [RawFd; 2];

    /// One of them is readable, by place.
    fn hear(&mut self, at: usize);

    /// They cannot be heard any more: it is to end as soon as what is in flight has ended.
    fn go_deaf(&mut self);

    /// Does what there is to be done.
    fn turn(&mut self, lane: &mut Lane) -> Need;
}

/// A tenant on its way to its thread, where it is made: given the token that its tasks are to have.
pub struct Arrival(Box<dyn FnOnce(u64) -> io::Result<Box<dyn Tenant>> + Send>);

impl Arrival {
    /// `make` runs on the tenant's thread.
    pub fn new(make: impl FnOnce(u64) -> io::Result<Box<dyn Tenant>> + Send + 'static) -> Arrival {
        Arrival(Box::new(make))
    }
}

impl std::fmt::Debug for Arrival {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Arrival")
    }
}

/// What tells the tokens of tenants from all others of a queue thread.
pub(super) const TENANT: u64 = 3 << 61;

/// So many of a token's lowest bits say which poll it is of; the last place is that of tasks.
const PLACE_BITS: u32 = 2;
const PLACE: u64 = (1 << PLACE_BITS) - 1;

fn token(number: u64, place: u64) -> u64 {
    TENANT | number << PLACE_BITS | place
}

/// A tenant and its polls.
#[derive(Debug)]
struct Flat {
    number: u64,
    tenant: Box<dyn Tenant>,
    polls: [Option<OpId>; 2],
    need: Need,
}

impl Flat {
    fn poll(&mut self, at: usize, lane: &Lane) {
        let fd = self.tenant.polls()[at];
        let token = token(self.number, at as u64);
        let mut ring = lane.ring().borrow_mut();
        self.polls[at] = ring.start(Op::Poll { fd }, &[], 0, 0, token);
        if self.polls[at].is_none() {
            self.tenant.go_deaf();
        }
    }

    fn turn(&mut self, lane: &mut Lane) {
        if self.need == Need::End {
            return;
        }
        self.need = self.tenant.turn(lane);
        if self.need == Need::End {
            for target in self.polls.into_iter().flatten() {
                lane.ring().borrow_mut().tell(Op::Cancel { target });
            }
        }
    }

    fn hear(&mut self, at: usize, poll: Poll, lane: &Lane) {
        self.tenant.hear(at);
        match poll {
            Poll::GoesOn => {}
            Poll::Over if self.need == Need::End => self.polls[at] = None,
            Poll::Over => self.poll(at, lane),
        }
    }

    /// What it polls is closed with it, so it stays until the last poll is over.
    fn is_empty(&self) -> bool {
        self.need == Need::End && self.polls.iter().all(Option::is_none)
    }
}

/// What becomes of a poll that has fired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Poll {
    GoesOn,
    Over,
}

impl From<Outcome> for Poll {
    fn from(outcome: Outcome) -> Poll {
        match outcome {
            Ok(()) => Poll::GoesOn,
            Err(_) => Poll::Over,
        }
    }
}

/// The tenants of one thread.
#[derive(Debug, Default)]
pub(super) struct Tenants {
    flats: Vec<Flat>,
    numbers: u64,
}

impl Tenants {
    /// Lets one in. Errors: its own; it is gone then.
    pub(super) fn let_in(&mut self, arrival: Arrival, lane: &Lane) -> io::Result<()> {
        self.numbers += 1;
        let number = self.numbers;
        let mut flat = Flat {
            number,
            tenant: (arrival.0)(token(number, PLACE))?,
            polls: [None; 2],
            need: Need::Turn,
        };
        for at in 0..flat.polls.len() {
            flat.poll(at, lane);
        }
        self.flats.push(flat);
        Ok(())
    }

    /// Nobody is there.
    pub(super) fn is_empty(&self) -> bool {
        self.flats.is_empty()
    }

    /// The poll of that token has fired.
    pub(super) fn hear(&mut self, token: u64, poll: Poll, lane: &Lane) {
        let number = (token & !TENANT) >> PLACE_BITS;
        let at = (token & PLACE) as usize;
        if let Some(flat) = self.flats.iter_mut().find(|flat| flat.number == number) {
            flat.hear(at, poll, lane);
        }
    }

    /// Everybody's turn.
    pub(super) fn turn(&mut self, lane: &mut Lane) {
        for flat in &mut self.flats {
            flat.turn(lane);
        }
        self.flats.retain(|flat| !flat.is_empty());
    }

    /// How long the thread may sleep for all they care.
    pub(super) fn patience(&self) -> Wait {
        let mut first = None;
        for flat in &self.flats {
            match flat.need {
                Need::Turn => return Wait::Not,
                Need::SleepUntil(at) => {
                    first = Some(first.map_or(at, |first: Instant| first.min(at)))
                }
                Need::Sleep | Need::End => {}
            }
        }
        first.map_or(Wait::One, |at| {
            let left = at.saturating_duration_since(Instant::now());
            Wait::AtMost(u64::try_from(left.as_nanos()).unwrap_or(u64::MAX))
        })
    }

    /// Their thread has lost its ring: they are gone at once.
    pub(super) fn clear(&mut self) {
        self.flats.clear();
    }
}
