//! A throttle group: limits that its members share.
//!
//! The rule: while nobody waits and there is room, a request costs a few loads to look and an addition per bucket to
//! account; the lock is for those who wait. `ready` and `begin` race between threads: what passes too much at once is owed,
//! so rates hold in the long run.

use super::bucket::{self, Bucket};
use super::limits::{Limits, LimitsError, Rate};
use super::line::{Bill, Claim, Line, Promised, Step, Ticket, Token};
use crate::clock;
use crate::io::Io;
use crate::request::Dir;
use crate::units::Span;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread::ThreadId;

/// Parts of an operation, where `iops-size` makes a large one count as several and a bit.
const OPERATION: u64 = 1 << 16;

/// Buckets of one kind.
#[derive(Debug, Default)]
struct Buckets {
    total: Bucket,
    read: Bucket,
    write: Bucket,
}

impl Buckets {
    fn set(&self, [total, read, write]: [Rate; 3], scale: u64) {
        self.total.set(total, scale);
        self.read.set(read, scale);
        self.write.set(write, scale);
    }

    fn of(&self, dir: Dir) -> &Bucket {
        match dir {
            Dir::Read => &self.read,
            Dir::Write => &self.write,
        }
    }
}

/// What one direction looks at first.
#[derive(Debug, Default)]
struct Gate {
    /// Is there any limit?
    limited: AtomicBool,
    /// Requests that wait or have just been let pass.
    waiting: AtomicUsize,
}

/// A group of throttled nodes.
#[derive(Debug)]
pub struct Group {
    name: String,
    bytes: Buckets,
    operations: Buckets,
    iops_size: AtomicU64,
    reads: Gate,
    writes: Gate,
    members: AtomicU64,
    /// Whoever changes the graph waits for those who wait: they pass at once.
    hurried: AtomicUsize,
    /// Never held across an await or an I/O.
    line: Mutex<Line>,
    limits: Mutex<Limits>,
}

impl Group {
    /// A group with these limits. Errors: limits QEMU would refuse.
    pub fn new(name: &str, limits: Limits) -> Result<Group, LimitsError> {
        limits.check()?;
        let group = Group {
            name: name.to_owned(),
            bytes: Buckets::default(),
            operations: Buckets::default(),
            iops_size: AtomicU64::new(0),
            reads: Gate::default(),
            writes: Gate::default(),
            members: AtomicU64::new(0),
            hurried: AtomicUsize::new(0),
            line: Mutex::default(),
            limits: Mutex::default(),
        };
        group.apply(limits);
        Ok(group)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The limits as they are now.
    pub fn limits(&self) -> Limits {
        *lock(&self.limits)
    }

    /// Changes the limits; those who wait are judged by the new ones. The buckets begin empty. Errors: limits QEMU would
    /// refuse, and the old ones stay.
    pub fn set_limits(&self, limits: Limits) -> Result<(), LimitsError> {
        limits.check()?;
        self.apply(limits);
        let next = self.line().next();
        if let Some(waker) = next {
            waker.wake();
        }
        Ok(())
    }

    /// Somebody waits for all who wait here, or does no longer. Meanwhile nobody waits; what passes is owed.
    pub(crate) fn hurry(&self, on: bool) {
        match on {
            true => self.hurried.fetch_add(1, Ordering::Release),
            false => self.hurried.fetch_sub(1, Ordering::Release),
        };
        let next = self.line().next();
        if let Some(waker) = next {
            waker.wake();
        }
    }

    fn is_hurried(&self) -> bool {
        self.hurried.load(Ordering::Acquire) > 0
    }

    fn apply(&self, new: Limits) {
        let mut limits = lock(&self.limits);
        *limits = new;
        let bytes = [new.bps_total, new.bps_read, new.bps_write];
        self.bytes.set(bytes, 1);
        let operations = [new.iops_total, new.iops_read, new.iops_write];
        self.operations.set(operations, OPERATION);
        self.iops_size.store(new.iops_size, Ordering::Relaxed);
        let any = |rates: [Rate; 4]| rates.iter().any(|rate| rate.avg != 0);
        let (bps, iops) = (new.bps_total, new.iops_total);
        let reads = any([bps, iops, new.bps_read, new.iops_read]);
        let writes = any([bps, iops, new.bps_write, new.iops_write]);
        self.reads.limited.store(reads, Ordering::Release);
        self.writes.limited.store(writes, Ordering::Release);
    }

    /// A number for a new member.
    pub(super) fn join(&self) -> u64 {
        self.members.fetch_add(1, Ordering::Relaxed)
    }

    fn gate(&self, dir: Dir) -> &Gate {
        match dir {
            Dir::Read => &self.reads,
            Dir::Write => &self.writes,
        }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        lock(&self.line)
    }

    /// May a request pass at once?
    #[inline]
    pub(super) fn ready(&self, dir: Dir, span: Span) -> bool {
        let gate = self.gate(dir);
        if gate.waiting.load(Ordering::Acquire) != 0 {
            return self.has_token(dir, span);
        }
        !gate.limited.load(Ordering::Acquire) || self.has_room(dir)
    }

    #[cold]
    fn has_token(&self, dir: Dir, span: Span) -> bool {
        let token = token(dir, span);
        // A lock that is not free means "not ready", never a wait (rule 7).
        let line = self.line.try_lock();
        line.is_ok_and(|line| line.tokens.contains(&token))
    }

    fn has_room(&self, dir: Dir) -> bool {
        let now = bucket::ticks(clock::now_ns());
        [&self.bytes, &self.operations]
            .iter()
            .all(|kind| kind.total.has_room(now) && kind.of(dir).has_room(now))
    }

    /// A request passes.
    #[inline]
    pub(super) fn begin(&self, dir: Dir, span: Span) {
        let gate = self.gate(dir);
        if gate.waiting.load(Ordering::Acquire) != 0 {
            self.take_token(token(dir, span));
        }
        self.pass(dir, span);
    }

    /// The request of any thread that has a token passes.
    #[cfg(test)]
    pub(super) fn begin_as(&self, token: Token) {
        self.take_token(token);
        self.pass(token.dir, token.span);
    }

    #[inline]
    fn pass(&self, dir: Dir, span: Span) {
        let gate = self.gate(dir);
        if gate.limited.load(Ordering::Acquire) {
            self.account(dir, span.len);
        }
    }

    #[cold]
    fn take_token(&self, token: Token) {
        let mut line = self.line();
        if let Some(at) = line.tokens.iter().position(|t| *t == token) {
            line.tokens.swap_remove(at);
            self.gate(token.dir).waiting.fetch_sub(1, Ordering::Release);
        }
    }

    fn account(&self, dir: Dir, len_bytes: u64) {
        let now = bucket::ticks(clock::now_ns());
        let bill = self.bill(len_bytes);
        self.bytes.total.pour(now, bill.bytes);
        self.bytes.of(dir).pour(now, bill.bytes);
        self.operations.total.pour(now, bill.operations);
        self.operations.of(dir).pour(now, bill.operations);
    }

    fn bill(&self, len_bytes: u64) -> Bill {
        let operations = match self.iops_size.load(Ordering::Relaxed) {
            0 => OPERATION,
            size if len_bytes <= size => OPERATION,
            size => len_bytes.saturating_mul(OPERATION) / size,
        };
        Bill {
            bytes: len_bytes,
            operations,
        }
    }

    /// Ticks until there is room for a request in that direction, after what is promised has passed.
    fn ticks_until(&self, now: u64, dir: Dir, promised: Promised) -> u64 {
        if self.is_hurried() {
            return 0;
        }
        let (Promised { read, write }, own) = (promised, promised_in(promised, dir));
        let all = read.plus(write);
        let bytes = self.bytes.total.wait(now, all.bytes);
        let bytes = bytes.max(self.bytes.of(dir).wait(now, own.bytes));
        let operations = self.operations.total.wait(now, all.operations);
        let operations = operations.max(self.operations.of(dir).wait(now, own.operations));
        bytes.max(operations)
    }

    /// A request goes to the end of the line.
    pub(super) fn enter(&self, member: u64, token: Token, waker: &Waker) -> Place<'_> {
        let claim = Claim {
            member,
            token,
            bill: self.bill(token.span.len),
        };
        let mut line = self.line();
        // Before anybody can look again: from here on nobody overtakes.
        let gate = self.gate(token.dir);
        gate.waiting.fetch_add(1, Ordering::Release);
        let ticket = line.enter(claim, waker);
        Place {
            group: self,
            token,
            ticket: Some(ticket),
        }
    }

    /// Waits until a request of `member` may pass; then the calling thread has a token for it.
    pub(super) async fn wait(&self, io: &Io, member: u64, dir: Dir, span: Span) {
        let token = token(dir, span);
        // `ready` may have said no to a token that is there; whoever has waited does not wait again.
        if self.line().tokens.contains(&token) {
            return;
        }
        let mut place = None;
        let mut alarm = Alarm::default();
        poll_fn(|cx| {
            let place = place.get_or_insert_with(|| self.enter(member, token, cx.waker()));
            loop {
                let now = bucket::ticks(clock::exact_ns());
                match place.step(now, cx.waker()) {
                    Step::Go => return Poll::Ready(()),
                    Step::Wait => {
                        alarm = Alarm::default();
                        return Poll::Pending;
                    }
                    Step::Keep(until) => {
                        if alarm.poll(io, now, until, cx).is_pending() {
                            return Poll::Pending;
                        }
                    }
                }
            }
        })
        .await;
    }
}

fn promised_in(promised: Promised, dir: Dir) -> Bill {
    match dir {
        Dir::Read => promised.read,
        Dir::Write => promised.write,
    }
}

/// The calling thread's token for a request.
pub(super) fn token(dir: Dir, span: Span) -> Token {
    let thread: ThreadId = std::thread::current().id();
    Token { thread, dir, span }
}

/// A request's place in the line; given up on drop.
#[derive(Debug)]
pub(super) struct Place<'a> {
    group: &'a Group,
    token: Token,
    ticket: Option<Ticket>,
}

impl Place<'_> {
    pub(super) fn step(&mut self, now: u64, waker: &Waker) -> Step {
        let Some(ticket) = self.ticket else {
            return Step::Go;
        };
        let (group, mut wake) = (self.group, Vec::new());
        let until = |dir, promised| group.ticks_until(now, dir, promised);
        let place = (ticket, self.token);
        let step = group.line().step(place, now, waker, until, &mut wake);
        if step == Step::Go {
            self.ticket = None;
        }
        wake.into_iter().for_each(Waker::wake);
        step
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket.take() else {
            return;
        };
        let (group, dir, mut wake) = (self.group, self.token.dir, Vec::new());
        let mut line = group.line();
        line.leave(ticket, dir, &mut wake);
        group.gate(dir).waiting.fetch_sub(1, Ordering::Release);
        drop(line);
        wake.into_iter().for_each(Waker::wake);
    }
}

/// The keeper's timer.
#[derive(Default)]
struct Alarm<'a> {
    until: u64,
    sleep: Option<Pin<Box<dyn Future<Output = ()> + 'a>>>,
}

impl<'a> Alarm<'a> {
    /// Ready when `until` may have come.
    fn poll(&mut self, io: &'a Io, now: u64, until: u64, cx: &mut Context<'_>) -> Poll<()> {
        if self.until != until || self.sleep.is_none() {
            let ns = bucket::ns(until.saturating_sub(now)).max(1);
            self.sleep = Some(Box::pin(io.sleep(ns)));
            self.until = until;
        }
        let Some(sleep) = &mut self.sleep else {
            return Poll::Ready(());
        };
        if sleep.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.sleep = None;
        Poll::Ready(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
