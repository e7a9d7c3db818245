//! `blockdev-mirror`: a disk in use is copied to another, which takes its place when the job is told to complete.
//!
//! The rule: it is the same work (`following.rs`) and the same end (`pivot.rs`) as when the layer that guests write to is committed.
//! What is below the source stays as it is.

mod following;
mod pivot;
mod plan;

pub(super) use following::{First, Following, Size, grow};
pub(crate) use pivot::CopyMode;
pub(super) use pivot::{Pivot, Place};

use super::backup::Sync;
use super::chains::{filter_options, name_of};
use super::commit::Grip;
use super::executor::Daemon;
use super::jobs::{BlockJob, Prepared};
use blockgraph::filter::dirty::{CopiedTo, Dirty};
use blockgraph::filter::write_blocking::WriteBlocking;
use blockgraph::graph::Body;
use blockgraph::graph::edit::NewFilter;
use blockgraph::graph::perm::{Perms, Wants, attach, attach_job};
use blockgraph::job::copy::{ErrorPolicy, Ignored, Select, Transfer, WorkSet, Writing, Zeroes};
use blockgraph::job::{Mirrored, OnError};
use plan::Plan;
use std::sync::Arc;

/// What `blockdev-mirror` is asked for.
#[derive(Debug)]
pub(crate) struct MirrorWanted {
    /// The source.
    pub(crate) device: String,
    /// The target.
    pub(crate) target: String,
    /// Whose place it takes; the source's, if nobody says otherwise.
    pub(crate) replaces: Option<String>,
    /// What of it.
    pub(crate) sync: Sync,
    /// The unit of what is copied, in bytes; 0: the job's choice.
    pub(crate) granularity: u32,
    /// As much is copied at once; 0: the job's choice.
    pub(crate) buffer_bytes: i64,
    /// What is done about errors of reading.
    pub(crate) on_source_error: OnError,
    /// And about those of writing.
    pub(crate) on_target_error: OnError,
    /// The filter's name.
    pub(crate) filter: Option<String>,
    /// Do guests wait for the target?
    pub(crate) mode: CopyMode,
    /// What every job is asked for.
    pub(crate) job: BlockJob,
}

impl Daemon {
    /// Starts a mirror job. Errors: in QSD's words; nothing has changed then.
    pub(crate) fn mirror(&mut self, wanted: MirrorWanted) -> Result<(), String> {
        self.retry_leaving();
        let plan = self.plan_mirror(&wanted)?;
        let MirrorWanted {
            on_source_error,
            on_target_error,
            filter,
            mode,
            job,
            ..
        } = wanted;
        let errors = ErrorPolicy {
            read: on_source_error,
            write: on_target_error,
            ignored: Ignored::Retried,
        };
        self.start_block_job(job, |daemon, id| {
            let graph = daemon.kept_graph();
            let nodes = [plan.source, plan.target].map(|node| name_of(&graph, node));
            drop(graph);
            let nodes = nodes.into_iter().chain([plan.filter.clone()]).collect();
            let work = Arc::new(WorkSet::new(plan.source_bytes, plan.unit_bytes));
            let handle = daemon.job_handle(id)?;
            let mirrored = Arc::new(Mirrored::new(
                work.clone(),
                plan.target,
                handle.progress.clone(),
                handle.steer.clone(),
            ));
            let body = daemon.mirror_filter(&plan, mode, &mirrored)?;
            let grip = daemon.hold_mirror(&plan, id, body, filter.is_none())?;
            let transfer = Transfer {
                source: grip.source,
                target: plan.target,
                select: Select::All,
                zeroes: Zeroes::Plain,
                writing: Writing::Plain,
            };
            let following = Following {
                transfer,
                place: plan.source,
                work: work.clone(),
                first: plan.first,
                size: plan.size,
                bounds: plan.bounds,
                errors,
                mirrored: mirrored.clone(),
            };
            let finish = Pivot {
                grip,
                transfer,
                work,
                place: plan.place,
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

    fn mirror_filter(
        &self,
        plan: &Plan,
        mode: CopyMode,
        mirrored: &Arc<Mirrored>,
    ) -> Result<Body, String> {
        match mode {
            CopyMode::Background => Ok(Body::Filter(Arc::new(Dirty::new(
                mirrored.work().clone(),
                CopiedTo::Elsewhere,
            )))),
            CopyMode::WriteBlocking => {
                let below = self.current.get().info(plan.source).ok_or("No medium")?;
                mirrored.set_blocking();
                let filter = WriteBlocking::new(below, mirrored.clone());
                Ok(Body::Driver(Arc::new(filter)))
            }
        }
    }

    /// Puts the filter above the source, and takes hold of both disks. Errors: in QSD's words; nothing has changed then.
    fn hold_mirror(
        &mut self,
        plan: &Plan,
        id: &str,
        body: Body,
        implicit: bool,
    ) -> Result<Grip, String> {
        let graph = self.kept_graph();
        let mut grip = Grip {
            filter: plan.filter.clone(),
            base: name_of(&graph, plan.target),
            source: plan.source,
            was_read_only: None,
            attachments: Vec::new(),
        };
        let new = NewFilter {
            name: plan.filter.clone(),
            kind: "mirror_top",
            common: filter_options(&graph, plan.source),
            body,
        };
        drop(graph);
        grip.source = self.insert_filter(plan.source, new, implicit)?;
        let held = self.attach_mirror(plan, &mut grip, id);
        if let Err(error) = held {
            self.let_go_of_all(&mut grip);
            return Err(error);
        }
        Ok(grip)
    }

    fn attach_mirror(&mut self, plan: &Plan, grip: &mut Grip, id: &str) -> Result<(), String> {
        let reads = Perms::READ.or(Perms::WRITE_UNCHANGED).or(Perms::WRITE);
        // Neither changes its size meanwhile.
        let main = Wants {
            needs: Perms::READ,
            shares: reads,
        };
        let source = Wants {
            needs: Perms::NONE,
            shares: reads,
        };
        // Nobody relies on what a target reads as while it is made.
        let target = Wants {
            needs: Perms::WRITE,
            shares: Perms::WRITE_UNCHANGED,
        };
        let who = |role| (format!("mirror job '{id}'"), role);
        let current = &self.current;
        let error = |error: blockgraph::graph::perm::PermError| error.to_string();
        let attachments = &mut grip.attachments;
        attachments.push(attach_job(current, plan.source, main, who("main node")).map_err(error)?);
        let graph = current.get();
        let below_filters = graph.skip_filters(plan.target);
        if graph.chain(grip.source).any(|layer| layer == below_filters) {
            let why = "Cannot mirror to a filter on top of a node in the source's backing chain";
            return Err(why.to_owned());
        }
        drop(graph);
        attachments.push(attach(current, plan.target, target, None).map_err(error)?);
        attachments.push(attach_job(current, grip.source, source, who("source")).map_err(error)?);
        let attached = attach_job(current, plan.target, Wants::NOTHING, who("target"));
        attachments.push(attached.map_err(error)?);
        Ok(())
    }
}
