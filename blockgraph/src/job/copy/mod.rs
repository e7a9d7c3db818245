//! THE COPY ENGINE that all jobs share: walks what is to be copied, skips what need not be, and has several copies under way.
//!
//! The rule: a range leaves the work set before it is looked at, and comes back if it could not be copied: whoever adds to the set
//! what a guest has written finds it copied after that. Whoever takes a range away for good, as it must not be copied any more,
//! has its [`Parts`] say so too, since it may be out of the set and on its way. What is under way is bounded in number and bytes;
//! a job that is to rest or to end begins nothing more, and does so when what is under way is over.

mod find;
mod parts;
mod work_set;

pub use find::find_work;
pub use parts::{Look, Parts, Select, Transfer, What, Writing, Zeroes, read};
pub use work_set::WorkSet;

use super::errors::{ErrorAction, Failure, OnError, Operation};
use super::rate::Rate;
use super::steer::Cancel;
use super::worker::Worker;
use super::{Progress, Word};
use crate::clock;
use crate::node::NodeId;
use crate::units::Span;
use parts::SharedParts;
use ring::{Errno, Wait};
use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

/// How far ahead is looked for what may be skipped: 1 GiB of the usual units.
const LOOK_UNITS_MAX: u64 = 1 << 14;
/// Failures that are ignored are tried again after this.
const RETRY_NS: u64 = 100_000_000;

/// What may be under way at once, as in QEMU's block-copy: so many copies, of so many bytes together.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// The most that is copied as one.
    pub chunk_bytes: u64,
    /// How many copies.
    pub copies_max: usize,
    /// Of how many bytes together; one copy is always allowed.
    pub bytes_max: u64,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds {
            chunk_bytes: 1 << 20,
            copies_max: 64,
            bytes_max: 16 << 20,
        }
    }
}

/// What becomes of a failure that is ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ignored {
    /// The range is left out, and the job fails at its end.
    LeftOut,
    /// It is tried again.
    Retried,
}

/// How a job's progress is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counts {
    /// Its total is known at the beginning.
    Steps,
    /// What is left is what is in the work set, which guests add to.
    Left,
}

/// What is done about failures.
#[derive(Clone, Copy, Debug)]
pub struct ErrorPolicy {
    /// About those of reading.
    pub read: OnError,
    /// About those of writing.
    pub write: OnError,
    /// About those that are ignored.
    pub ignored: Ignored,
}

impl ErrorPolicy {
    /// The same for both.
    pub fn both(on_error: OnError, ignored: Ignored) -> ErrorPolicy {
        ErrorPolicy {
            read: on_error,
            write: on_error,
            ignored,
        }
    }

    fn of(&self, operation: Operation) -> OnError {
        match operation {
            Operation::Read => self.read,
            Operation::Write => self.write,
        }
    }
}

/// A copy to be made.
#[derive(Debug)]
pub struct CopyPlan {
    /// What is copied, and how.
    pub parts: SharedParts,
    /// The nodes it uses: while one of them is held, nothing begins.
    pub nodes: Vec<NodeId>,
    /// What is to be copied; others may add to it and remove from it.
    pub work: Arc<WorkSet>,
    /// What may be under way.
    pub bounds: Bounds,
    /// What is done about failures.
    pub errors: ErrorPolicy,
    /// How its progress is counted.
    pub counts: Counts,
}

/// Does a step wait for what is under way?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waits {
    /// Until something has happened.
    Yes,
    /// Not at all.
    No,
}

impl Waits {
    fn or(self, wait: Wait) -> Wait {
        match self {
            Waits::Yes => wait,
            Waits::No => Wait::Not,
        }
    }
}

/// How a walk over the work ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walked {
    /// There is nothing left to copy.
    All,
    /// The job is to end.
    Cancelled(Cancel),
}

/// Why it could not go on.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A transfer failed, and that is reported.
    #[error("{}", crate::graph::errno_text(&(*.0).into()))]
    Transfer(Errno),
    /// The ring is gone.
    #[error("cannot go on: {0}")]
    Ring(#[from] io::Error),
}

/// What a task has done.
#[derive(Debug)]
enum Done {
    Looked(Span, Result<Look, Failure>),
    Copied(Span, Result<(), Failure>),
}

/// Copies, on a worker's thread.
pub struct Copier<'a> {
    worker: &'a mut Worker,
    plan: CopyPlan,
    progress: &'a Progress,
    tell: &'a dyn Fn(Word),
    rate: Rate,
    cursor: u64,
    /// What is being looked at.
    looking: Option<Span>,
    copies: usize,
    copying_bytes: u64,
    /// The next range, of which it is known that some of it has to be copied; it is in no set.
    next: Option<Span>,
    done: Rc<RefCell<Vec<Done>>>,
    /// The first failure that was left out, or is to be reported.
    left_out: Option<Errno>,
    reported: Option<Errno>,
    retry_at_ns: u64,
}

impl std::fmt::Debug for Copier<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Copier")
            .field("plan", &self.plan)
            .finish_non_exhaustive()
    }
}

impl<'a> Copier<'a> {
    /// A copier that has done nothing yet. What is worth telling goes to `tell`.
    pub fn new(
        worker: &'a mut Worker,
        plan: CopyPlan,
        progress: &'a Progress,
        tell: &'a dyn Fn(Word),
    ) -> Copier<'a> {
        plan.work.wakes(worker.bell());
        Copier {
            worker,
            plan,
            progress,
            tell,
            rate: Rate::default(),
            cursor: 0,
            looking: None,
            copies: 0,
            copying_bytes: 0,
            next: None,
            done: Rc::default(),
            left_out: None,
            reported: None,
            retry_at_ns: 0,
        }
    }

    /// The worker, for what else there is to do in between.
    pub fn worker(&mut self) -> &mut Worker {
        self.worker
    }

    /// Copies until nothing is left, or the job is to end; rests when it is to. Errors: a failure that is to be reported, when
    /// all else that was under way has ended.
    pub fn run(&mut self) -> Result<Walked, CopyError> {
        loop {
            if let Some(walked) = self.round(Waits::Yes)? {
                return Ok(walked);
            }
        }
    }

    /// One step of that, for whoever has something else to do as well: begins what may begin, and sees to what has ended.
    pub fn round(&mut self, waits: Waits) -> Result<Option<Walked>, CopyError> {
        self.hear_of_others();
        let wish = self.worker.steer().wish();
        self.rate.set_speed(wish.speed_bytes);
        let stops = wish.cancel.is_some() || wish.pause || self.reported.is_some();
        match stops {
            true => self.put_back_next(),
            false => self.begin_some(),
        }
        self.worker.steer().set_busy(self.is_busy());
        if self.is_busy() {
            self.turn(waits.or(Wait::One))?;
        } else if let Some(errno) = self.reported {
            return Err(CopyError::Transfer(errno));
        } else if let Some(cancel) = wish.cancel {
            return Ok(Some(Walked::Cancelled(cancel)));
        } else if wish.pause {
            self.rest()?;
        } else if self.plan.work.is_empty() && self.next.is_none() {
            return self.finish().map(Some);
        } else {
            let wait_ns = self.wait_ns().max(1);
            self.turn(waits.or(Wait::AtMost(wait_ns)))?;
        }
        Ok(None)
    }

    /// Lets end what is under way, and begins nothing more.
    pub fn settle(&mut self) -> Result<(), CopyError> {
        self.put_back_next();
        while self.is_busy() {
            self.turn(Wait::One)?;
            self.put_back_next();
        }
        Ok(())
    }

    /// Waits until there is something to copy, or something else is wanted; rests when it is to.
    pub fn wait_for_work(&mut self) -> Result<(), CopyError> {
        let before = self.worker.steer().wish();
        if before.pause {
            return self.rest();
        }
        let bell = self.worker.bell().clone();
        if self.plan.work.sleeps(&bell) && self.worker.steer().wish() == before {
            self.turn(Wait::One)?;
        }
        Ok(())
    }

    fn is_busy(&self) -> bool {
        self.looking.is_some() || self.copies > 0
    }

    fn finish(&mut self) -> Result<Walked, CopyError> {
        match self.left_out {
            Some(errno) => Err(CopyError::Transfer(errno)),
            None => Ok(Walked::All),
        }
    }

    /// Rests until somebody wants it to go on, or to end.
    fn rest(&mut self) -> Result<(), CopyError> {
        (self.tell)(Word::Paused);
        let rested = self.wait_to_go_on();
        (self.tell)(Word::Resumed);
        rested
    }

    fn wait_to_go_on(&mut self) -> Result<(), CopyError> {
        loop {
            let wish = self.worker.steer().wish();
            if !wish.pause || wish.cancel.is_some() {
                return Ok(());
            }
            self.turn(Wait::One)?;
        }
    }

    fn wait_ns(&self) -> u64 {
        let now = clock::exact_ns();
        let retry = self.retry_at_ns.saturating_sub(now);
        self.rate.wait_ns(now).max(retry)
    }

    /// Begins as much as may be under way.
    fn begin_some(&mut self) {
        while self.wait_ns() == 0 {
            match self.next {
                Some(span) if self.has_room(span.len) => self.begin_copy(span),
                Some(_) => return,
                None => {
                    if self.looking.is_some() || !self.begin_look() {
                        return;
                    }
                }
            }
        }
    }

    fn has_room(&self, len: u64) -> bool {
        let bounds = &self.plan.bounds;
        let bytes = self.copying_bytes.saturating_add(len);
        self.copies == 0 || (self.copies < bounds.copies_max && bytes <= bounds.bytes_max)
    }

    /// Looks at what comes next, if there is anything.
    fn begin_look(&mut self) -> bool {
        let work = &self.plan.work;
        let len_max = work.unit_bytes().saturating_mul(LOOK_UNITS_MAX);
        let found = work.next(self.cursor, len_max);
        let Some(span) = found.or_else(|| work.next(0, len_max)) else {
            return false;
        };
        self.looking = Some(span);
        let (parts, done) = (self.plan.parts.clone(), self.done.clone());
        // Out of the set before anybody looks: what is written from now on comes into it again.
        self.plan.work.remove(span);
        self.worker.begin(&self.plan.nodes, move |io| async move {
            let look = parts.look(&io, span).await;
            done.borrow_mut().push(Done::Looked(span, look));
        });
        true
    }

    /// The beginning of a range that is copied as one: to the next multiple of a chunk.
    fn chunk(&self, span: Span) -> Span {
        let chunk = self
            .plan
            .bounds
            .chunk_bytes
            .max(self.plan.work.unit_bytes());
        span.first(chunk - span.at % chunk)
    }

    /// The beginning of whole units that may be under way as one.
    fn most_of(&self, whole: Span) -> Span {
        let unit = self.plan.work.unit_bytes();
        let most = self.plan.bounds.bytes_max;
        whole.first((most - most % unit).max(unit))
    }

    fn begin_copy(&mut self, span: Span) {
        self.next = None;
        self.copies += 1;
        self.copying_bytes += span.len;
        self.rate.spend(span.len, clock::exact_ns());
        let (parts, done) = (self.plan.parts.clone(), self.done.clone());
        self.worker.begin(&self.plan.nodes, move |io| async move {
            let copied = parts.copy(&io, span).await;
            done.borrow_mut().push(Done::Copied(span, copied));
        });
    }

    fn turn(&mut self, wait: Wait) -> Result<(), CopyError> {
        self.worker.turn(wait)?;
        for done in self.done.take() {
            match done {
                Done::Looked(span, look) => self.looked(span, look),
                Done::Copied(span, copied) => self.copied(span, copied),
            }
        }
        self.hear_of_others();
        self.count();
        Ok(())
    }

    /// What others could not copy is a failure like its own.
    fn hear_of_others(&mut self) {
        if let Some((span, failure)) = self.plan.work.take_failed() {
            self.failed(span, failure);
        }
    }

    fn count(&self) {
        if self.plan.counts == Counts::Left {
            let out = self.looking.or(self.next).map_or(0, |span| span.len);
            let left = self.plan.work.left_bytes() + self.copying_bytes + out;
            self.progress.set_remaining(left);
        }
    }

    /// What has been looked at is either skipped, as far as that goes, or its first chunk is the next to be copied. The rest is
    /// to be looked at again.
    fn looked(&mut self, span: Span, look: Result<Look, Failure>) {
        self.looking = None;
        let chunk = self.chunk(span);
        let look = match look {
            Ok(look) => look,
            Err(failure) => {
                self.plan.work.add(span.after(chunk.len));
                return self.failed(chunk, failure);
            }
        };
        let unit = self.plan.work.unit_bytes();
        let alike = span.first(look.len);
        let whole = match alike.end() == span.end() {
            true => alike,
            false => span.first(look.len - (alike.end() % unit).min(look.len)),
        };
        let skips = look.what == What::Skip && !whole.is_empty();
        let taken = match look.what {
            What::Skip if skips => whole,
            // No bytes go anywhere: as much as may be under way.
            What::Zero if whole.len > chunk.len => self.most_of(whole),
            _ => chunk,
        };
        self.cursor = taken.end();
        self.plan.work.add(span.after(taken.len));
        match skips {
            true => self.progress.advance(whole.len),
            false => self.next = Some(taken),
        }
    }

    fn copied(&mut self, span: Span, copied: Result<(), Failure>) {
        self.copies -= 1;
        self.copying_bytes -= span.len;
        match copied {
            Ok(()) => self.progress.advance(span.len),
            Err(failure) => self.failed(span, failure),
        }
    }

    fn failed(&mut self, span: Span, failure: Failure) {
        let Failure { operation, errno } = failure;
        let action = self.plan.errors.of(operation).action(errno);
        let leaves_out =
            action == ErrorAction::Ignore && self.plan.errors.ignored == Ignored::LeftOut;
        match leaves_out {
            true => {
                self.left_out.get_or_insert(errno);
                self.progress.advance(span.len);
            }
            false => self.put_back(span),
        }
        // One that stops the job, or ends it, is told once.
        let stopped = self.reported.is_some() || self.worker.steer().wish().pause;
        if action != ErrorAction::Ignore && stopped {
            return;
        }
        (self.tell)(Word::Failed {
            operation,
            action,
            errno,
        });
        match action {
            ErrorAction::Report => self.reported = Some(errno),
            ErrorAction::Stop => self.worker.steer().change(|wish| wish.pause = true),
            ErrorAction::Ignore if leaves_out => {}
            ErrorAction::Ignore => self.retry_at_ns = clock::exact_ns().saturating_add(RETRY_NS),
        }
    }

    fn put_back_next(&mut self) {
        if let Some(span) = self.next.take() {
            self.put_back(span);
        }
    }

    fn put_back(&mut self, span: Span) {
        self.plan.work.add(span);
        self.cursor = self.cursor.min(span.at);
    }
}
