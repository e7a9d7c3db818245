//! THE COPY ENGINE that all jobs share: walks what is to be copied, skips what need not be, and has several copies under way.
//!
//! The rule: a range leaves the work set before it is looked at, and comes back if it could not be copied: whoever adds to the set
//! what a guest has written finds it copied after that. Whoever takes a range away for good, as it must not be copied any more,
//! has its [`Parts`] say so too, since it may be out of the set and on its way. What is under way is bounded in number and bytes;
//! a job that is to rest or to end begins nothing more, and does so when what is under way is over.

mod ends;
mod find;
mod parts;
mod plan;
mod work_set;

pub use find::find_work;
pub use parts::{Look, Parts, Select, Transfer, What, Writing, Zeroes, read};
pub use plan::{Bounds, CopyError, CopyPlan, Counts, ErrorPolicy, Ignored, Waits, Walked};
pub use work_set::WorkSet;

use super::errors::Failure;
use super::rate::Rate;
use super::worker::Worker;
use super::{Progress, Word};
use crate::clock;
use crate::units::Span;
use ring::{Errno, Wait};
use std::cell::RefCell;
use std::rc::Rc;

/// How far ahead is looked for what may be skipped: 1 GiB of the usual units.
const LOOK_UNITS_MAX: u64 = 1 << 14;
/// Failures that are ignored are tried again after this.
const RETRY_NS: u64 = 100_000_000;

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
}
