//! Jobs as the daemon has them: each works on a thread of its own, and its state is the control thread's.
//!
//! The rule: whatever changes the graph or a job's state happens on the control thread; a job's thread works, counts, and says
//! what happens to it in words that are left for the control thread in order (`thread.rs`). A block job's part in the graph is
//! its [`Finish`]: what it leaves there is decided when it is finalized, and not before.

mod ending;
mod made;
mod shown;
mod starting;
mod thread;
mod verbs;

pub use shown::{BlockJobShown, JobShown};
pub use thread::JobHandle;

pub(super) use made::{Group, Progressing};
pub(crate) use starting::BlockJob;
pub(super) use starting::Prepared;
pub(super) use thread::{Ended, Seat, Work};

use super::executor::Daemon;
use super::mirror::CopyMode;
use crate::qmp::events::{EventKind, JOB_STATUS_CHANGE};
use blockgraph::graph::perm::Attachment;
use blockgraph::job::{IoStatus, JobState};
use ending::Abort;
use ring::Bell;
use serde_json::json;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;
use thread::{Later, Words};

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobKind {
    /// `blockdev-create`
    Create,
    /// `block-stream`
    Stream,
    /// `blockdev-backup`
    Backup,
    /// `block-commit`
    Commit,
    /// `blockdev-mirror`
    Mirror,
}

impl JobKind {
    /// Its name for clients.
    pub fn name(self) -> &'static str {
        match self {
            JobKind::Create => "create",
            JobKind::Stream => "stream",
            JobKind::Backup => "backup",
            JobKind::Commit => "commit",
            JobKind::Mirror => "mirror",
        }
    }
}

/// Does the last step of a job happen by itself?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finalization {
    /// It does.
    Auto,
    /// Somebody has to ask for it.
    Manual,
}

/// Is a job forgotten when it is over?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dismissal {
    /// It is.
    Auto,
    /// The result is kept until somebody has seen it.
    Manual,
}

/// A block job's part in the graph, done on the control thread. It keeps what the job uses, and lets go of it when it is dropped.
pub(super) trait Finish: std::fmt::Debug {
    /// The work is done: changes the graph accordingly. Errors: in QSD's words; then [`Finish::abort`] follows.
    fn prepare(&mut self, daemon: &mut Daemon) -> Result<(), String>;

    /// It is prepared, and so are all that end with it: what cannot fail is done now.
    fn commit(&mut self, _daemon: &mut Daemon) {}

    /// The job failed, or was cancelled: the graph becomes what it was without it.
    fn abort(&mut self, daemon: &mut Daemon);

    /// What a soft cancel means to it once it is ready.
    fn when_ready(&self) -> WhenReady {
        WhenReady::Ends
    }

    /// A soft cancel came when it was ready: [`Finish::prepare`] is to leave a copy behind and nothing else.
    fn give_up(&mut self) {}

    /// It is to end at once: what it waits for in vain is waited for no longer.
    fn hurry(&self, _daemon: &Daemon) {}

    /// It is to be completed. Errors: that could not be.
    fn may_complete(&self, _daemon: &Daemon) -> Result<(), String> {
        Ok(())
    }

    /// Is the target of a mirror what its source is, and stays so?
    fn is_synced(&self) -> bool {
        false
    }

    /// It is to copy in another way. Errors: there is none.
    fn change(&mut self, _daemon: &mut Daemon, _mode: CopyMode) -> Result<(), String> {
        Err("Job type does not support change".to_owned())
    }
}

/// What a soft cancel means to a job that is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WhenReady {
    /// The same as any other cancel.
    Ends,
    /// It completes, but changes nothing in the graph.
    Completes,
}

/// What block jobs have besides.
#[derive(Debug)]
struct Block {
    finalization: Finalization,
    io_status: IoStatus,
    /// Nodes that others may not do certain things with meanwhile, by name.
    nodes: Vec<String>,
    /// `None` while it is at work itself.
    finish: Option<Box<dyn Finish>>,
    /// What it will do once it is started.
    work: Option<Later>,
}

/// A job that exists.
#[derive(Debug)]
struct Job {
    id: String,
    kind: JobKind,
    state: JobState,
    dismissal: Dismissal,
    handle: Arc<JobHandle>,
    error: Option<String>,
    thread: Option<JoinHandle<()>>,
    held: Held,
    block: Option<Block>,
    /// Jobs of a group end as one.
    group: Option<Group>,
    /// Why it is aborting.
    why: Option<Abort>,
}

/// What a job keeps while it works.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Nodes it uses.
    pub(super) attachments: Vec<Attachment>,
    /// Nodes that were opened for it alone, by name.
    pub(super) nodes: Vec<String>,
}

/// Every job.
#[derive(Debug)]
pub(super) struct Jobs {
    /// The newest first, as clients are used to.
    list: Vec<Job>,
    words: Arc<Words>,
    groups: u64,
}

impl Jobs {
    /// None. Errors: out of descriptors.
    pub(super) fn new() -> std::io::Result<Jobs> {
        Ok(Jobs {
            list: Vec::new(),
            words: Arc::new(Words::new()?),
            groups: 0,
        })
    }

    /// Rings when a job has something to say.
    pub(super) fn bell(&self) -> &Bell {
        self.words.bell()
    }

    fn find(&mut self, id: &str) -> Result<&mut Job, String> {
        let mut jobs = self.list.iter_mut();
        jobs.find(|job| job.id == id)
            .ok_or_else(|| "Job not found".to_owned())
    }
}

impl Daemon {
    /// Errors: a block job is at work on a node of that name, in QSD's words.
    pub(super) fn check_free(&self, node: &str) -> Result<(), String> {
        let uses = |job: &&Job| {
            let block = job.block.as_ref();
            block.is_some_and(|block| block.nodes.iter().any(|name| name == node))
        };
        match self.jobs.list.iter().find(uses) {
            Some(job) => Err(format!(
                "Node '{node}' is busy: block device is in use by block job: {}",
                job.kind.name()
            )),
            None => Ok(()),
        }
    }

    /// How far a job is, and what it is told. Errors: there is none of that id.
    pub(super) fn job_handle(&mut self, id: &str) -> Result<Arc<JobHandle>, String> {
        Ok(self.jobs.find(id)?.handle.clone())
    }

    fn move_job(&mut self, id: &str, next: JobState) {
        let Ok(job) = self.jobs.find(id) else {
            return;
        };
        debug_assert!(job.state.may_become(next), "{} to {next}", job.state);
        job.state = next;
        let status = json!({"id": id, "status": next.name()});
        self.event(&JOB_STATUS_CHANGE, status);
    }

    /// An event of a block job that says how far it is.
    fn say_progress(&mut self, id: &str, event: &'static EventKind) {
        let Ok(job) = self.jobs.find(id) else { return };
        let mut data = job.progress_shown();
        if let Some(error) = job.error_for(event) {
            data.insert("error".into(), error.into());
        }
        self.event(event, data.into());
    }

    /// At the process's end: what works is told to end and waited for until `deadline`. Whoever does not make it ends with the
    /// process; an image that is half made is none.
    pub(super) fn end_jobs(&mut self, deadline: Instant) {
        self.cancel_all_jobs();
        let words = self.jobs.words.clone();
        while self.jobs.list.iter().any(|job| job.thread.is_some()) && words.wait(deadline) {
            self.hear_jobs();
        }
    }
}
