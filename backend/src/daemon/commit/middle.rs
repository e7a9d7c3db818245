//! Layers in the middle of a chain are committed: nobody writes to them, and those above them read the base afterwards.

use super::{CommitWanted, Grip, Part, blocked, parents};
use crate::daemon::chains::{BackingName, flush, name_of};
use crate::daemon::executor::Daemon;
use crate::daemon::jobs::{Ended, Finish, Prepared, Seat, Work};
use crate::daemon::mirror::grow;
use blockgraph::filter::commit_top::CommitTop;
use blockgraph::graph::edit::Edit;
use blockgraph::graph::status::Until;
use blockgraph::job::OnError;
use blockgraph::job::copy::{
    Bounds, Copier, CopyPlan, Counts, ErrorPolicy, Ignored, Select, Transfer, Walked, WorkSet,
    Writing, Zeroes,
};
use blockgraph::{NodeId, Unmap};
use std::rc::Rc;
use std::sync::Arc;

/// As much is copied as one.
const CHUNK_BYTES: u64 = 512 << 10;

impl Daemon {
    pub(super) fn commit_middle(
        &mut self,
        device: NodeId,
        wanted: CommitWanted,
        part: &Part,
    ) -> Result<(), String> {
        let CommitWanted {
            backing,
            on_error,
            filter,
            job,
            ..
        } = wanted;
        self.start_block_job(job, |daemon, id| {
            let graph = daemon.kept_graph();
            let name = graph.name_for(filter.as_deref());
            let name = name.map_err(|error| error.to_string())?;
            let mut nodes = blocked(&graph, part);
            nodes.extend([name.clone(), name_of(&graph, device)]);
            let base = name_of(&graph, part.base);
            drop(graph);
            let new = (id, name, filter.is_none());
            let grip = daemon.take_hold(part, new, "commit_top", |graph| {
                let limits = graph.info(part.top);
                super::body(CommitTop::new(limits.unwrap_or(super::NOTHING), base))
            })?;
            let work = Committing {
                source: grip.source,
                base: part.base,
                top_bytes: part.top_bytes,
                base_bytes: part.base_bytes,
                unit_bytes: part.unit_bytes,
                on_error,
            };
            Ok(Prepared {
                work: work.boxed(),
                finish: Box::new(Committed { grip, backing }),
                nodes,
            })
        })
    }
}

/// The job's work.
#[derive(Debug)]
struct Committing {
    source: NodeId,
    base: NodeId,
    top_bytes: u64,
    base_bytes: u64,
    unit_bytes: u64,
    on_error: OnError,
}

impl Committing {
    fn boxed(self) -> Work {
        Box::new(move |seat| self.run(seat))
    }

    fn run(self, seat: &Seat) -> Result<Ended, String> {
        let progress = &seat.handle.progress;
        progress.set_remaining(self.top_bytes);
        let mut worker = seat.worker()?;
        if self.base_bytes < self.top_bytes {
            grow(&mut worker, self.base, self.top_bytes)?;
        }
        let transfer = Transfer {
            source: self.source,
            target: self.base,
            select: Select::Allocated(Until::Above(self.base)),
            zeroes: Zeroes::Detect(Unmap::Allow),
            writing: Writing::Plain,
        };
        let plan = CopyPlan {
            parts: Rc::new(transfer),
            nodes: vec![self.source, self.base],
            work: Arc::new(WorkSet::full(self.top_bytes, self.unit_bytes)),
            bounds: Bounds {
                chunk_bytes: CHUNK_BYTES,
                ..Bounds::default()
            },
            errors: ErrorPolicy::both(self.on_error, Ignored::Retried),
            counts: Counts::Steps,
        };
        let tell = |word| seat.tell(word);
        let walked = Copier::new(&mut worker, plan, progress, &tell).run();
        if let Walked::Cancelled(_) = walked.map_err(|error| error.to_string())? {
            return Ok(Ended::Cancelled);
        }
        flush(&mut worker, self.base)?;
        Ok(Ended::Done)
    }
}

/// What the job does to the graph.
#[derive(Debug)]
struct Committed {
    grip: Grip,
    backing: BackingName,
}

impl Committed {
    /// Images above name the base from now on, and everybody who used the top uses it.
    fn cut(&self, daemon: &mut Daemon) -> Result<(), String> {
        let graph = daemon.kept_graph();
        let gone = |name: &str| format!("Node {name} is gone");
        let find = |name: &str| graph.find(name).ok_or_else(|| gone(name));
        let (filter, base) = (find(&self.grip.filter)?, find(&self.grip.base)?);
        let overlays = parents(&graph, filter);
        let stored = self.backing.stored(&graph, base);
        drop(graph);
        for overlay in overlays {
            daemon.store_backing_writable(base, overlay, stored.clone())?;
        }
        let mut edit = Edit::begin(&daemon.current);
        edit.replace(filter, base)
            .map_err(|error| error.to_string())?;
        daemon.commit_quiet(edit, &[filter, base])
    }
}

impl Finish for Committed {
    fn prepare(&mut self, daemon: &mut Daemon) -> Result<(), String> {
        self.grip.attachments.clear();
        self.cut(daemon)?;
        daemon.restore_access(&mut self.grip);
        Ok(())
    }

    fn abort(&mut self, daemon: &mut Daemon) {
        daemon.let_go_of_all(&mut self.grip);
    }
}
