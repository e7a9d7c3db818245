//! `blockdev-backup`: a disk as it is at one instant, copied to a target while guests go on writing.
//!
//! The rule: a copy-before-write filter above the source keeps what the backup still needs. It comes while nothing is under way,
//! so the instant is the transaction's, and goes when the job is finalized or given up. A bitmap is the job's meanwhile
//! (`blockgraph/src/bitmap/freeze.rs`), and says afterwards what the next backup has to copy.

mod drive;
mod finish;
mod plan;
mod work;

pub(crate) use drive::DriveWanted;

use super::chains::{filter_options, name_of};
use super::executor::Daemon;
use super::jobs::{BlockJob, Group, Prepared, Progressing};
use blockgraph::bitmap::{DirtyBitmap, Frozen};
use blockgraph::filter::copy_before_write::{
    AfterCopy, CbwError, CbwOptions, Copies, CopyBeforeWrite, OnCbwError,
};
use blockgraph::graph::edit::{Edit, NewFilter};
use blockgraph::graph::perm::{Perms, Wants, attach_job};
use blockgraph::graph::{Access, Body, Edge, Role};
use blockgraph::job::copy::Writing;
use blockgraph::job::{OnError, Progress};
use finish::BackedUp;
use plan::Plan;
use std::sync::Arc;
use work::Copying;

const NS_PER_S: u64 = 1_000_000_000;

/// What is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sync {
    /// The top layer.
    Top,
    /// Everything.
    Full,
    /// What guests are about to replace, until the job is cancelled.
    None,
    /// What is dirty in a bitmap, which says afterwards what has changed since.
    Incremental,
    /// What is dirty in a bitmap.
    Bitmap,
}

impl Sync {
    pub(super) fn name(self) -> &'static str {
        match self {
            Sync::Top => "top",
            Sync::Full => "full",
            Sync::None => "none",
            Sync::Incremental => "incremental",
            Sync::Bitmap => "bitmap",
        }
    }
}

/// When does a bitmap forget what was copied?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BitmapMode {
    /// When all is copied.
    OnSuccess,
    /// Never.
    Never,
    /// Whatever comes of it.
    Always,
}

impl BitmapMode {
    fn name(self) -> &'static str {
        match self {
            BitmapMode::OnSuccess => "on-success",
            BitmapMode::Never => "never",
            BitmapMode::Always => "always",
        }
    }
}

/// `x-perf`, unchecked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Perf {
    /// How many copies at once.
    pub(crate) copies_max: i64,
    /// The most that is copied as one; 0: as the job likes it.
    pub(crate) chunk_bytes: i64,
    /// No cluster is smaller.
    pub(crate) min_cluster_bytes: i64,
}

impl Default for Perf {
    fn default() -> Perf {
        Perf {
            copies_max: 64,
            chunk_bytes: 0,
            min_cluster_bytes: 0,
        }
    }
}

/// What `blockdev-backup` is asked for.
#[derive(Debug)]
pub(crate) struct BackupWanted {
    /// The source.
    pub(crate) device: String,
    /// The target.
    pub(crate) target: String,
    /// What of it.
    pub(crate) sync: Sync,
    /// A bitmap of the source.
    pub(crate) bitmap: Option<String>,
    /// When it forgets.
    pub(crate) bitmap_mode: Option<BitmapMode>,
    /// How the target is written.
    pub(crate) writing: Writing,
    /// What becomes of the source.
    pub(crate) after: AfterCopy,
    /// What is done about errors of reading.
    pub(crate) on_source_error: OnError,
    /// And about those of writing.
    pub(crate) on_target_error: OnError,
    /// What becomes of a guest write whose copy fails.
    pub(crate) on_cbw_error: OnCbwError,
    /// How long such a copy may take; 0: as long as it likes.
    pub(crate) cbw_timeout_s: u32,
    /// The filter's name.
    pub(crate) filter: Option<String>,
    /// How it is done.
    pub(crate) perf: Perf,
    /// What every job is asked for.
    pub(crate) job: BlockJob,
}

impl Daemon {
    /// Makes a backup job that is not started yet, while its nodes are held; says what it is called. Errors: in QSD's words;
    /// nothing has changed then.
    pub(super) fn make_backup(
        &mut self,
        wanted: BackupWanted,
        group: Option<Group>,
    ) -> Result<String, String> {
        let plan = self.plan_backup(&wanted)?;
        self.check_job_id(wanted.job.id.as_deref().unwrap_or_default())?;
        let frozen = match &plan.bitmap {
            Some(bitmap) => {
                let frozen = self.bitmaps().freeze(&bitmap.node, &bitmap.name);
                Some((frozen.map_err(|error| error.to_string())?, bitmap.mode))
            }
            None => None,
        };
        let made = self.set_up_backup(&wanted, &plan, frozen)?;
        self.make_block_job(wanted.job, made, group)
    }

    fn set_up_backup(
        &mut self,
        wanted: &BackupWanted,
        plan: &Plan,
        frozen: Option<(Frozen, BitmapMode)>,
    ) -> Result<Progressing, String> {
        let progress = Arc::<Progress>::default();
        let content = frozen.as_ref().map(|(frozen, _)| frozen.content());
        let body = self.backup_filter(wanted, plan, content, progress.clone());
        let body = match body {
            Ok(body) => body,
            Err(error) => {
                frozen
                    .into_iter()
                    .for_each(|(frozen, _)| frozen.take_back());
                return Err(error);
            }
        };
        let mut finish = BackedUp::new(plan.filter.clone(), body.clone(), frozen);
        let id = wanted.job.id.as_deref().unwrap_or_default();
        if let Err(error) = self.insert_backup_filter(id, plan, body.clone(), &mut finish) {
            finish.undo(self);
            // Whoever else uses the source is asked when the job is there already.
            self.tell_of_stillborn_job(id);
            return Err(error);
        }
        let target = name_of(&self.current.get(), plan.target);
        let work = Copying::new(wanted, plan, body);
        Ok(Progressing {
            prepared: Prepared {
                work: work.boxed(),
                finish: Box::new(finish),
                nodes: vec![plan.filter.clone(), target],
            },
            progress,
        })
    }

    /// Errors: it would have no clusters, or too small a chunk for them.
    fn backup_filter(
        &self,
        wanted: &BackupWanted,
        plan: &Plan,
        content: Option<&DirtyBitmap>,
        progress: Arc<Progress>,
    ) -> Result<Arc<CopyBeforeWrite>, String> {
        let graph = self.kept_graph();
        let options = CbwOptions {
            on_error: wanted.on_cbw_error,
            timeout_ns: u64::from(wanted.cbw_timeout_s) * NS_PER_S,
            // Less than nothing is more than anything, as in QSD's message.
            min_cluster_bytes: wanted.perf.min_cluster_bytes as u64,
        };
        let target = graph.node(plan.target).map(|node| node.common().access);
        if target == Some(Access::ReadOnly) {
            return Err("Could not create node: Block node is read-only".to_owned());
        }
        let info = graph.info(plan.source).ok_or("No medium")?;
        let content = content.filter(|_| plan.copies_dirty);
        let unit = graph.unit_bytes(plan.target);
        let body = CopyBeforeWrite::new(info, unit, options, content);
        let body = body.map_err(|error| match error {
            CbwError::Huge(bytes) => {
                let max = i64::MAX;
                format!("min-cluster-size too large: {bytes} > {max}")
            }
            other => format!("Could not create node: {other}"),
        })?;
        let (chunk, cluster) = (wanted.perf.chunk_bytes, body.cluster_bytes());
        if chunk > 0 && (chunk as u64) < cluster {
            return Err(format!(
                "Required max-chunk ({chunk}) is less than backup cluster size ({cluster})"
            ));
        }
        Ok(Arc::new(body.of_job(Copies {
            writing: wanted.writing,
            after: wanted.after,
            progress: Some(progress),
        })))
    }

    fn insert_backup_filter(
        &mut self,
        id: &str,
        plan: &Plan,
        body: Arc<CopyBeforeWrite>,
        finish: &mut BackedUp,
    ) -> Result<(), String> {
        let filter = NewFilter {
            name: plan.filter.clone(),
            kind: "copy-before-write",
            common: filter_options(&self.current.get(), plan.source),
            body: Body::Driver(body),
        };
        let target = Edge {
            role: Role::Target,
            option: "target",
            child: plan.target,
        };
        let mut edit = Edit::begin(&self.current);
        let inserted = edit.insert_above_with(plan.source, filter, target);
        inserted.map_err(|error| error.to_string())?;
        self.commit_quiet(edit, &[plan.source, plan.target])?;
        let nothing = Wants {
            needs: Perms::NONE,
            shares: Perms::ALL,
        };
        let who = (format!("backup job '{id}'"), "main node");
        let attached = attach_job(&self.current, plan.source, nothing, who);
        finish.hold(attached.map_err(|error| error.to_string())?);
        Ok(())
    }
}
