//! The layer that guests write to is committed: when the base has all of it, the guests use the base.
//!
//! The rule: it is a mirror (`mirror/`) whose target is the lowest of the layers that are copied.

use super::{CommitWanted, Part, blocked};
use crate::daemon::chains::name_of;
use crate::daemon::executor::Daemon;
use crate::daemon::jobs::Prepared;
use crate::daemon::mirror::{First, Following, Pivot, Place, Size};
use blockgraph::Unmap;
use blockgraph::filter::dirty::{CopiedTo, Dirty};
use blockgraph::graph::Body;
use blockgraph::graph::status::Until;
use blockgraph::job::Mirrored;
use blockgraph::job::copy::{
    Bounds, ErrorPolicy, Ignored, Select, Transfer, WorkSet, Writing, Zeroes,
};
use std::sync::Arc;

impl Daemon {
    pub(super) fn commit_active(
        &mut self,
        wanted: CommitWanted,
        part: &Part,
    ) -> Result<(), String> {
        let CommitWanted {
            on_error,
            filter,
            job,
            ..
        } = wanted;
        let name = self.kept_graph().name_for(filter.as_deref());
        let name = name.map_err(|error| error.to_string())?;
        self.start_block_job(job, |daemon, id| {
            let graph = daemon.kept_graph();
            let mut nodes = blocked(&graph, part);
            nodes.push(name.clone());
            let base = name_of(&graph, part.base);
            drop(graph);
            let work = Arc::new(WorkSet::new(part.top_bytes, part.unit_bytes));
            let dirty = Dirty::new(work.clone(), CopiedTo::Below(base));
            let new = (id, name, filter.is_none());
            let grip =
                daemon.take_hold(part, new, "mirror_top", |_| Body::Filter(Arc::new(dirty)))?;
            let transfer = Transfer {
                source: grip.source,
                target: part.base,
                select: Select::Allocated(Until::Above(part.base)),
                zeroes: Zeroes::Detect(Unmap::Allow),
                writing: Writing::Plain,
            };
            let handle = daemon.job_handle(id)?;
            let mirrored = Arc::new(Mirrored::new(
                work.clone(),
                part.base,
                handle.progress.clone(),
                handle.steer.clone(),
            ));
            let following = Following {
                transfer,
                place: part.top,
                work: work.clone(),
                first: First::Allocated(Until::Above(part.base)),
                size: match part.base_bytes < part.top_bytes {
                    true => Size::Grows(part.top_bytes),
                    false => Size::Enough,
                },
                bounds: Bounds::default(),
                errors: ErrorPolicy::both(on_error, Ignored::Retried),
                mirrored: mirrored.clone(),
            };
            let finish = Pivot {
                grip,
                transfer,
                work,
                place: Place::Chain,
                mirrored,
                pivots: true,
            };
            Ok(Prepared {
                work: following.boxed(),
                finish: Box::new(finish),
                nodes,
            })
        })
    }
}
