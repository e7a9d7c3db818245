//! The work of a job that copies a disk in use until it is told to complete: `blockdev-mirror`, and `block-commit` of the layer that
//! guests write to.
//!
//! The rule: a filter above the disk adds what guests write to the work set, and that is copied again. When nothing is left for the
//! first time, or hardly anything beside guests that write all the time, the job is ready; it goes on until somebody wants it to end.
//! The last of it is copied when that happens (`pivot.rs`).

use crate::daemon::chains::flush;
use crate::daemon::jobs::{Ended, Seat, Work};
use crate::process::error_text;
use blockgraph::graph::status::Until;
use blockgraph::job::copy::{
    Bounds, Copier, CopyPlan, Counts, ErrorPolicy, Parts, Select, Transfer, Waits, Walked, WorkSet,
    find_work,
};
use blockgraph::job::{Mirror, Mirrored, Progress, Word, Worker, Zeroing};
use blockgraph::request::Prealloc;
use blockgraph::{Io, NodeId};
use std::rc::Rc;
use std::sync::Arc;

/// Guests wait for no more than this to be copied at the end, unless they write faster than is copied.
pub(super) const REST_BYTES_MAX: u64 = 4 << 20;
/// Zeroes are written in ranges of this: no bytes go anywhere.
const ZEROES_BYTES: u64 = 1 << 30;

/// What there is to copy at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::daemon) enum First {
    /// Nothing: only what guests write from now on.
    Nothing,
    /// Everything.
    All,
    /// What those layers have.
    Allocated(Until),
    /// The same, once the target reads as zeroes.
    AllocatedOnZeroes(Until),
}

/// What becomes of the target's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::daemon) enum Size {
    /// It has to be the source's, in bytes.
    Same {
        /// The source's.
        source: u64,
        /// The target's.
        target: u64,
    },
    /// It is made so large.
    Grows(u64),
    /// It is large enough.
    Enough,
}

/// The job's work.
#[derive(Debug)]
pub(in crate::daemon) struct Following {
    pub(in crate::daemon) transfer: Transfer,
    /// Where the filter is, with all that is copied below it.
    pub(in crate::daemon) place: NodeId,
    pub(in crate::daemon) work: Arc<WorkSet>,
    pub(in crate::daemon) first: First,
    pub(in crate::daemon) size: Size,
    pub(in crate::daemon) bounds: Bounds,
    pub(in crate::daemon) errors: ErrorPolicy,
    pub(in crate::daemon) mirrored: Arc<Mirrored>,
}

impl Following {
    pub(in crate::daemon) fn boxed(self) -> Work {
        Box::new(move |seat| {
            let ended = self.run(seat);
            if !matches!(ended, Ok(Ended::Done)) {
                self.mirrored.give_up();
            }
            ended
        })
    }

    fn run(&self, seat: &Seat) -> Result<Ended, String> {
        let mut worker = seat.worker()?;
        self.fit_target(&mut worker)?;
        let found = self.find_first(seat, &mut worker)?;
        if let Walked::Cancelled(_) = found {
            return Ok(Ended::Cancelled);
        }
        let progress = &seat.handle.progress;
        progress.set_remaining(self.work.left_bytes());
        self.mirrored.begin();
        let parts = Rc::new(Mirror {
            transfer: self.transfer,
            mirrored: self.mirrored.clone(),
        });
        let plan = self.plan(parts, self.work.clone(), self.bounds, Counts::Left);
        let tell = |word| seat.tell(word);
        let copier = Copier::new(&mut worker, plan, progress, &tell);
        self.follow(seat, copier)
    }

    fn follow(&self, seat: &Seat, mut copier: Copier<'_>) -> Result<Ended, String> {
        let mut is_ready = false;
        // More than that is what guests have written again.
        let enough = self.work.left_bytes().saturating_add(REST_BYTES_MAX);
        loop {
            let is_wanted = !is_ready || seat.handle.steer.wish().complete;
            let walked = copier.round(Waits::Yes);
            match walked.map_err(|error| error.to_string())? {
                Some(Walked::Cancelled(_)) => return Ok(Ended::Cancelled),
                Some(Walked::All) => {}
                None if is_wanted && self.is_near(seat, enough) => {
                    copier.settle().map_err(|error| error.to_string())?;
                }
                None => continue,
            }
            if !is_ready {
                flush(copier.worker(), self.transfer.target)?;
                seat.tell(Word::Ready);
                is_ready = true;
            }
            self.mirrored.all_copied();
            if seat.handle.steer.wish().complete {
                return Ok(Ended::Done);
            }
            copier.wait_for_work().map_err(|error| error.to_string())?;
        }
    }

    /// Do guests write as fast as is copied, so that nothing but the end is left, for which they have to wait a little?
    fn is_near(&self, seat: &Seat, enough: u64) -> bool {
        let wish = seat.handle.steer.wish();
        !wish.pause
            && wish.cancel.is_none()
            && seat.handle.progress.current() >= enough
            && self.work.left_bytes() <= REST_BYTES_MAX
    }

    fn nodes(&self) -> Vec<NodeId> {
        vec![self.place, self.transfer.target]
    }

    fn plan(
        &self,
        parts: Rc<dyn Parts>,
        work: Arc<WorkSet>,
        bounds: Bounds,
        counts: Counts,
    ) -> CopyPlan {
        CopyPlan {
            parts,
            nodes: self.nodes(),
            work,
            bounds,
            errors: self.errors,
            counts,
        }
    }

    fn fit_target(&self, worker: &mut Worker) -> Result<(), String> {
        match self.size {
            Size::Same { source, target } if source != target => {
                Err("Source and target image have different sizes".to_owned())
            }
            Size::Grows(size_bytes) => grow(worker, self.transfer.target, size_bytes),
            Size::Same { .. } | Size::Enough => Ok(()),
        }
    }

    fn find_first(&self, seat: &Seat, worker: &mut Worker) -> Result<Walked, String> {
        let until = match self.first {
            First::Nothing => return Ok(Walked::All),
            First::All => {
                self.work.add(self.work.whole());
                return Ok(Walked::All);
            }
            First::Allocated(until) => until,
            First::AllocatedOnZeroes(until) => match self.write_zeroes(seat, worker)? {
                Walked::All => until,
                ended => return Ok(ended),
            },
        };
        let parts: Rc<dyn Parts> = Rc::new(Transfer {
            select: Select::Allocated(until),
            ..self.transfer
        });
        let found = find_work(worker, &parts, &self.nodes(), &self.work);
        found.map_err(|error| error.to_string())
    }

    fn write_zeroes(&self, seat: &Seat, worker: &mut Worker) -> Result<Walked, String> {
        let parts = Rc::new(Zeroing {
            target: self.transfer.target,
        });
        let all = WorkSet::full(self.work.size_bytes(), self.work.unit_bytes());
        let bounds = Bounds {
            chunk_bytes: ZEROES_BYTES,
            ..self.bounds
        };
        let plan = self.plan(parts, Arc::new(all), bounds, Counts::Steps);
        let tell = |word| seat.tell(word);
        // It is no progress of the job's.
        let uncounted = Progress::default();
        let walked = Copier::new(worker, plan, &uncounted, &tell).run();
        walked.map_err(|error| error.to_string())
    }
}

/// Makes a target as large as what is copied to it.
pub(in crate::daemon) fn grow(
    worker: &mut Worker,
    target: NodeId,
    size_bytes: u64,
) -> Result<(), String> {
    let work = move |io: Io| async move { io.truncate(target, size_bytes, Prealloc::Off).await };
    let grown = worker.run(&[target], work);
    let grown = grown.map_err(|error| error_text(&error))?;
    grown.map_err(|errno| error_text(&errno.into()))
}
