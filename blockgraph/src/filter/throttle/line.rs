//! The requests of a group that have to wait, and who of them is next.
//!
//! The rule: reads and writes take turns, so do the members among the reads (or writes), so do the threads of a member;
//! the requests of one thread go in order. One of those who wait, the keeper, keeps the time for all: when there is room it
//! lets pass whoever is next, not itself.

use crate::request::Dir;
use crate::units::Span;
use std::collections::VecDeque;
use std::task::Waker;
use std::thread::ThreadId;

/// What a request pours into the buckets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Bill {
    pub bytes: u64,
    /// In 65536ths.
    pub operations: u64,
}

impl Bill {
    pub(super) fn plus(self, other: Bill) -> Bill {
        Bill {
            bytes: self.bytes.saturating_add(other.bytes),
            operations: self.operations.saturating_add(other.operations),
        }
    }

    fn minus(self, other: Bill) -> Bill {
        Bill {
            bytes: self.bytes.saturating_sub(other.bytes),
            operations: self.operations.saturating_sub(other.operations),
        }
    }
}

/// Bills of requests that may pass and have not begun.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Promised {
    pub read: Bill,
    pub write: Bill,
}

impl Promised {
    fn of(&mut self, dir: Dir) -> &mut Bill {
        match dir {
            Dir::Read => &mut self.read,
            Dir::Write => &mut self.write,
        }
    }
}

/// The right of one request to pass. It belongs to the thread that waited, which runs nothing else until it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub thread: ThreadId,
    pub dir: Dir,
    pub span: Span,
}

/// A request that waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    pub member: u64,
    pub token: Token,
    pub bill: Bill,
}

/// Names a request in the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket(u64);

#[derive(Debug)]
struct Waiter {
    ticket: Ticket,
    bill: Bill,
    waker: Waker,
}

/// A ring of those who take turns: the first is next.
type Turns<K, T> = VecDeque<(K, VecDeque<T>)>;

/// Those who wait in one direction.
#[derive(Debug, Default)]
struct Side(Turns<u64, (ThreadId, VecDeque<Waiter>)>);

impl Side {
    fn push(&mut self, member: u64, thread: ThreadId, waiter: Waiter) {
        let threads = entry(&mut self.0, member);
        entry(threads, thread).push_back(waiter);
    }

    fn first(&self) -> Option<&Waiter> {
        let (_, threads) = self.0.front()?;
        threads.front()?.1.front()
    }

    /// Takes the first out; its thread and its member go to the back.
    fn pop(&mut self) -> Option<Waiter> {
        let (member, mut threads) = self.0.pop_front()?;
        let (thread, mut waiters) = threads.pop_front()?;
        let waiter = waiters.pop_front();
        if !waiters.is_empty() {
            threads.push_back((thread, waiters));
        }
        if !threads.is_empty() {
            self.0.push_back((member, threads));
        }
        waiter
    }

    fn waiters(&mut self) -> impl Iterator<Item = &mut Waiter> {
        let threads = self.0.iter_mut().flat_map(|(_, threads)| threads);
        threads.flat_map(|(_, waiters)| waiters)
    }

    fn remove(&mut self, ticket: Ticket) {
        for (_, threads) in &mut self.0 {
            for (_, waiters) in threads.iter_mut() {
                waiters.retain(|waiter| waiter.ticket != ticket);
            }
            threads.retain(|(_, waiters)| !waiters.is_empty());
        }
        self.0.retain(|(_, threads)| !threads.is_empty());
    }
}

/// The place of `key` in a ring, at its end if it is new.
fn entry<K: PartialEq, T>(turns: &mut Turns<K, T>, key: K) -> &mut VecDeque<T> {
    let at = turns.iter().position(|(other, _)| *other == key);
    let at = at.unwrap_or_else(|| {
        turns.push_back((key, VecDeque::new()));
        turns.len() - 1
    });
    &mut turns[at].1
}

/// What a request in the line does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It passes.
    Go,
    /// It waits to be woken.
    Wait,
    /// It keeps the time: it comes back at that tick, or when woken.
    Keep(u64),
}

#[derive(Debug)]
struct Granted {
    ticket: Ticket,
    dir: Dir,
    bill: Bill,
}

/// The line of a group.
#[derive(Debug)]
pub(super) struct Line {
    reads: Side,
    writes: Side,
    granted: Vec<Granted>,
    promised: Promised,
    pub(super) tokens: Vec<Token>,
    keeper: Option<Ticket>,
    turn: Dir,
    next_ticket: u64,
}

impl Default for Line {
    fn default() -> Line {
        Line {
            reads: Side::default(),
            writes: Side::default(),
            granted: Vec::new(),
            promised: Promised::default(),
            tokens: Vec::new(),
            keeper: None,
            turn: Dir::Read,
            next_ticket: 0,
        }
    }
}

impl Line {
    /// A request goes to the end of its line.
    pub(super) fn enter(&mut self, claim: Claim, waker: &Waker) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        let Claim {
            member,
            token,
            bill,
        } = claim;
        let waker = waker.clone();
        let waiter = Waiter {
            ticket,
            bill,
            waker,
        };
        self.side(token.dir).push(member, token.thread, waiter);
        ticket
    }

    /// A request in the line looks what it may do. `ticks_until` says how long it takes, with what was promised, until
    /// there is room for a request of that direction. `wake` gets whom to wake once the line is unlocked.
    pub(super) fn step(
        &mut self,
        (ticket, token): (Ticket, Token),
        now: u64,
        waker: &Waker,
        ticks_until: impl Fn(Dir, Promised) -> u64,
        wake: &mut Vec<Waker>,
    ) -> Step {
        if !self.is_granted(ticket) && *self.keeper.get_or_insert(ticket) == ticket {
            self.grant(&ticks_until, wake);
        }
        if self.is_granted(ticket) {
            self.leave(ticket, token.dir, wake);
            self.tokens.push(token);
            return Step::Go;
        }
        self.remember(ticket, token.dir, waker);
        if self.keeper != Some(ticket) {
            return Step::Wait;
        }
        let dirs = [Dir::Read, Dir::Write].into_iter();
        let waiting = dirs.filter(|&dir| self.side(dir).first().is_some());
        let waiting: Vec<Dir> = waiting.collect();
        let waits = waiting.iter().map(|&dir| ticks_until(dir, self.promised));
        Step::Keep(now.saturating_add(waits.min().unwrap_or(0).max(1)))
    }

    /// A request is through, or gives up.
    pub(super) fn leave(&mut self, ticket: Ticket, dir: Dir, wake: &mut Vec<Waker>) {
        match self.granted.iter().position(|g| g.ticket == ticket) {
            Some(at) => {
                let granted = self.granted.swap_remove(at);
                let promised = self.promised.of(granted.dir);
                *promised = promised.minus(granted.bill);
            }
            None => self.side(dir).remove(ticket),
        }
        if self.keeper == Some(ticket) {
            self.keeper = None;
            wake.extend(self.next());
        }
    }

    /// Whom to wake when room may have come by other means than time.
    pub(super) fn next(&mut self) -> Option<Waker> {
        let keeper = self.keeper;
        let both = self.reads.waiters().chain(self.writes.waiters());
        let mut both = both.filter(|waiter| keeper.is_none_or(|keeper| waiter.ticket == keeper));
        both.next().map(|waiter| waiter.waker.clone())
    }

    /// Lets pass as many as there is room for.
    fn grant(&mut self, ticks_until: impl Fn(Dir, Promised) -> u64, wake: &mut Vec<Waker>) {
        while let Some(dir) = self.next_dir(&ticks_until) {
            self.turn = other(dir);
            let Some(waiter) = self.side(dir).pop() else {
                return;
            };
            let promised = self.promised.of(dir);
            *promised = promised.plus(waiter.bill);
            self.granted.push(Granted {
                ticket: waiter.ticket,
                dir,
                bill: waiter.bill,
            });
            if self.keeper != Some(waiter.ticket) {
                wake.push(waiter.waker);
            }
        }
    }

    fn next_dir(&mut self, ticks_until: impl Fn(Dir, Promised) -> u64) -> Option<Dir> {
        let mut dirs = [self.turn, other(self.turn)].into_iter();
        dirs.find(|&dir| self.side(dir).first().is_some() && ticks_until(dir, self.promised) == 0)
    }

    fn is_granted(&self, ticket: Ticket) -> bool {
        self.granted.iter().any(|g| g.ticket == ticket)
    }

    fn remember(&mut self, ticket: Ticket, dir: Dir, waker: &Waker) {
        let waiter = self.side(dir).waiters().find(|w| w.ticket == ticket);
        if let Some(waiter) = waiter
            && !waiter.waker.will_wake(waker)
        {
            waiter.waker = waker.clone();
        }
    }

    fn side(&mut self, dir: Dir) -> &mut Side {
        match dir {
            Dir::Read => &mut self.reads,
            Dir::Write => &mut self.writes,
        }
    }
}

fn other(dir: Dir) -> Dir {
    match dir {
        Dir::Read => Dir::Write,
        Dir::Write => Dir::Read,
    }
}
