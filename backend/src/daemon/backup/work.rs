//! The work of a backup job, on its own thread.

use super::plan::Plan;
use super::{BackupWanted, Sync};
use crate::daemon::jobs::{Ended, Seat, Work};
use crate::process::error_text;
use blockgraph::filter::copy_before_write::CopyBeforeWrite;
use blockgraph::graph::Role;
use blockgraph::job::copy::{
    Bounds, Copier, CopyError, CopyPlan, Counts, ErrorPolicy, Ignored, Walked, WorkSet,
};
use blockgraph::job::{Backup, Layers, Progress, Worker};
use blockgraph::{Io, Kind, NodeId, Outcome, Request, Span};
use ring::Errno;
use std::rc::Rc;
use std::sync::Arc;

/// What a backup job does.
#[derive(Debug)]
pub(super) struct Copying {
    filter: String,
    /// Where the filter is.
    place: NodeId,
    body: Arc<CopyBeforeWrite>,
    sync: Sync,
    layers: Layers,
    size_bytes: u64,
    bounds: Bounds,
    errors: ErrorPolicy,
}

impl Copying {
    pub(super) fn new(wanted: &BackupWanted, plan: &Plan, body: Arc<CopyBeforeWrite>) -> Copying {
        let usual = Bounds::default();
        let chunk_bytes = match wanted.perf.chunk_bytes {
            chunk @ 1.. => chunk as u64,
            _ => usual.chunk_bytes,
        };
        Copying {
            filter: plan.filter.clone(),
            place: plan.source,
            body,
            sync: wanted.sync,
            layers: plan.layers,
            size_bytes: plan.size_bytes,
            bounds: Bounds {
                chunk_bytes,
                // It was checked to be a count.
                copies_max: usize::try_from(wanted.perf.copies_max).unwrap_or(1),
                ..usual
            },
            errors: ErrorPolicy {
                read: wanted.on_source_error,
                write: wanted.on_target_error,
                ignored: Ignored::Retried,
            },
        }
    }

    pub(super) fn boxed(self) -> Work {
        Box::new(move |seat| self.run(seat))
    }

    fn run(self, seat: &Seat) -> Result<Ended, String> {
        let mut worker = seat.worker()?;
        let plan = CopyPlan {
            parts: Rc::new(Backup {
                filter: self.filter.clone(),
                layers: self.layers,
            }),
            nodes: vec![self.place],
            work: Arc::new(self.work_set()),
            bounds: self.bounds,
            errors: self.errors,
            counts: Counts::Steps,
        };
        let tell = |word| seat.tell(word);
        // The filter counts what guests have copied, too.
        let counted_by_the_filter = Progress::default();
        let mut copier = Copier::new(&mut worker, plan, &counted_by_the_filter, &tell);
        let walked = match self.sync {
            Sync::None => wait_for_the_end(&mut copier),
            _ => copier.run(),
        };
        if let Walked::Cancelled(_) = walked.map_err(|error| error.to_string())? {
            return Ok(Ended::Cancelled);
        }
        if let Some(errno) = self.body.broken() {
            return Err(error_text(&errno.into()));
        }
        self.flush_target(&mut worker)?;
        Ok(Ended::Done)
    }

    /// What there is to copy: nothing for a job that leaves that to guests' writes.
    fn work_set(&self) -> WorkSet {
        let set = WorkSet::new(self.size_bytes, self.body.cluster_bytes());
        let mut rest = Span {
            at: 0,
            len: self.size_bytes,
        };
        while let Some(run) = self
            .body
            .next_left(rest)
            .filter(|_| self.sync != Sync::None)
        {
            set.add(run);
            rest = rest.after(run.end() - rest.at);
        }
        set
    }

    fn flush_target(&self, worker: &mut Worker) -> Result<(), String> {
        let filter = self.filter.clone();
        let flushed = worker.run(&[self.place], |io| flush_target_of(io, filter));
        let flushed = flushed.map_err(|error| error_text(&error))?;
        flushed.map_err(|errno| error_text(&errno.into()))
    }
}

async fn flush_target_of(io: Io, filter: String) -> Outcome {
    let filter = io.graph().find(&filter).ok_or(Errno::IO)?;
    let target = io.at(filter).child(Role::Target)?;
    let nothing = Span { at: 0, len: 0 };
    io.request(target, Request::plain(Kind::Flush, nothing))
        .await
}

/// Guests' writes copy; the job is there until it is cancelled.
fn wait_for_the_end(copier: &mut Copier<'_>) -> Result<Walked, CopyError> {
    loop {
        if let Some(cancel) = copier.worker().steer().wish().cancel {
            return Ok(Walked::Cancelled(cancel));
        }
        copier.wait_for_work()?;
    }
}
