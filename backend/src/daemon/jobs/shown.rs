//! Jobs as queries and events show them.

use super::{Dismissal, Finalization, Job, JobKind};
use crate::daemon::executor::Daemon;
use crate::qmp::events::{BLOCK_JOB_COMPLETED, EventKind};
use blockgraph::job::{IoStatus, JobState};
use serde_json::{Map, Value, json};

/// A job, as a query shows it.
#[derive(Clone, Debug)]
pub struct JobShown {
    /// Its id.
    pub id: String,
    /// What it does.
    pub kind: JobKind,
    /// Where it is.
    pub state: JobState,
    /// What is done.
    pub current: u64,
    /// What is done and what is left.
    pub total: u64,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

/// What is shown of a block job besides.
#[derive(Clone, Debug)]
pub struct BlockJobShown {
    /// What is shown of every job.
    pub job: JobShown,
    /// Is something of it under way?
    pub busy: bool,
    /// Did somebody have it rest?
    pub paused: bool,
    /// Bytes a second at most; 0 is no limit.
    pub speed_bytes: u64,
    /// Why it rests.
    pub io_status: IoStatus,
    /// Does its last step happen by itself?
    pub finalizes: bool,
    /// Is it forgotten by itself?
    pub dismisses: bool,
    /// Of a mirror: is the target what the source is, and stays so?
    pub synced: bool,
}

impl Job {
    fn shown(&self) -> JobShown {
        JobShown {
            id: self.id.clone(),
            kind: self.kind,
            state: self.state,
            current: self.handle.progress.current(),
            total: self.handle.progress.total(),
            error: self.error.clone(),
        }
    }

    fn block_shown(&self) -> Option<BlockJobShown> {
        let block = self.block.as_ref()?;
        let wish = self.handle.steer.wish();
        Some(BlockJobShown {
            job: self.shown(),
            busy: self.handle.steer.is_busy(),
            paused: wish.pause && self.thread.is_some(),
            speed_bytes: wish.speed_bytes,
            io_status: block.io_status,
            finalizes: block.finalization == Finalization::Auto,
            dismisses: self.dismissal == Dismissal::Auto,
            synced: block.finish.as_ref().is_some_and(|own| own.is_synced()),
        })
    }

    /// What most events of block jobs say.
    pub(super) fn progress_shown(&self) -> Map<String, Value> {
        let shown = json!({
            "type": self.kind.name(),
            "device": self.id,
            "len": self.handle.progress.total(),
            "offset": self.handle.progress.current(),
            "speed": self.handle.steer.wish().speed_bytes,
        });
        match shown {
            Value::Object(members) => members,
            _ => Map::new(),
        }
    }

    pub(super) fn error_for(&self, event: &EventKind) -> Option<String> {
        let tells = event.name == BLOCK_JOB_COMPLETED.name;
        self.error.clone().filter(|_| tells)
    }
}

impl Daemon {
    /// Every job, the newest first.
    pub(crate) fn job_list(&self) -> impl Iterator<Item = JobShown> {
        self.jobs.list.iter().map(Job::shown)
    }

    /// Every block job, the newest first.
    pub(crate) fn block_job_list(&self) -> impl Iterator<Item = BlockJobShown> {
        self.jobs.list.iter().filter_map(Job::block_shown)
    }
}
