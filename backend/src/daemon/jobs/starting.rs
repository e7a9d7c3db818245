//! The beginning of jobs: with an id of their own, and what they use in their hands.

use super::thread::Work;
use super::{Block, Dismissal, Finalization, Finish, Held, Job, JobHandle, JobKind};
use crate::daemon::executor::Daemon;
use blockgraph::job::{IoStatus, JobState};
use std::sync::Arc;

/// What every block job is asked for.
#[derive(Debug)]
pub(crate) struct BlockJob {
    /// Its id; without one it is refused, as there are no devices to take it from.
    pub(crate) id: Option<String>,
    /// What it does.
    pub(crate) kind: JobKind,
    /// Bytes a second at most; 0 is no limit.
    pub(crate) speed_bytes: i64,
    /// Does its last step happen by itself?
    pub(crate) finalization: Finalization,
    /// Is it forgotten by itself?
    pub(crate) dismissal: Dismissal,
}

/// A block job that is ready to begin.
pub(in crate::daemon) struct Prepared {
    /// What it does, on its own thread.
    pub(in crate::daemon) work: Work,
    /// What it does to the graph, on the control thread, and what it uses there.
    pub(in crate::daemon) finish: Box<dyn Finish>,
    /// Nodes that others may not do certain things with meanwhile, by name.
    pub(in crate::daemon) nodes: Vec<String>,
}

impl Job {
    pub(super) fn new(id: &str, kind: JobKind, dismissal: Dismissal) -> Job {
        Job {
            id: id.to_owned(),
            kind,
            state: JobState::Undefined,
            dismissal,
            handle: Arc::new(JobHandle::default()),
            error: None,
            thread: None,
            held: Held::default(),
            block: None,
            group: None,
            why: None,
        }
    }
}

impl Daemon {
    /// Errors: it is no id, or somebody has it.
    pub(in crate::daemon) fn check_job_id(&self, id: &str) -> Result<(), String> {
        if !crate::cli::id_is_well_formed(id) {
            return Err(format!("Invalid job ID '{id}'"));
        }
        if self.jobs.list.iter().any(|job| job.id == id) {
            return Err(format!("Job ID '{id}' already in use"));
        }
        Ok(())
    }

    /// Makes a job and sets it to work. `prepare` gets hold of what it uses. Errors: the id is taken or no id. What `prepare`
    /// refuses is the job's own failure, as is that there is no thread.
    pub(in crate::daemon) fn start_job(
        &mut self,
        id: &str,
        kind: JobKind,
        dismissal: Dismissal,
        prepare: impl FnOnce(&mut Daemon, &mut Held) -> Result<Work, String>,
    ) -> Result<(), String> {
        self.check_job_id(id)?;
        let job = Job::new(id, kind, dismissal);
        let handle = job.handle.clone();
        // Making an image is one step, whatever it takes.
        handle.progress.set_remaining(1);
        self.jobs.list.insert(0, job);
        self.move_job(id, JobState::Created);
        self.move_job(id, JobState::Running);
        let mut held = Held::default();
        let work = prepare(self, &mut held);
        let spawned = work.and_then(|work| self.spawn_job(id, work, handle));
        let job = self.jobs.find(id)?;
        job.held = held;
        match spawned {
            Ok(thread) => job.thread = Some(thread),
            Err(error) => self.end_job(id, Err(error)),
        }
        Ok(())
    }

    /// Makes a block job and sets it to work. Errors: the id is taken or no id, the speed is none, `prepare` refuses, or there is
    /// no thread; then there is no job.
    pub(in crate::daemon) fn start_block_job(
        &mut self,
        wanted: BlockJob,
        prepare: impl FnOnce(&mut Daemon, &str) -> Result<Prepared, String>,
    ) -> Result<(), String> {
        let id = wanted.id.unwrap_or_default();
        self.check_job_id(&id)?;
        let mut job = Job::new(&id, wanted.kind, wanted.dismissal);
        job.block = Some(Block {
            finalization: wanted.finalization,
            io_status: IoStatus::Ok,
            nodes: Vec::new(),
            finish: None,
            work: None,
        });
        self.jobs.list.insert(0, job);
        self.move_job(&id, JobState::Created);
        let begun = self.begin_block_job(&id, wanted.speed_bytes, prepare);
        if begun.is_err() {
            self.forget_job(&id);
        }
        begun
    }

    fn begin_block_job(
        &mut self,
        id: &str,
        speed_bytes: i64,
        prepare: impl FnOnce(&mut Daemon, &str) -> Result<Prepared, String>,
    ) -> Result<(), String> {
        let speed_bytes = u64::try_from(speed_bytes);
        let speed_bytes =
            speed_bytes.map_err(|_| "Parameter 'speed' expects a non-negative value")?;
        let prepared = prepare(self, id)?;
        let Prepared {
            work,
            mut finish,
            nodes,
        } = prepared;
        let handle = self.jobs.find(id)?.handle.clone();
        handle.steer.change(|wish| wish.speed_bytes = speed_bytes);
        let thread = match self.spawn_job(id, work, handle) {
            Ok(thread) => thread,
            Err(error) => {
                finish.abort(self);
                return Err(error);
            }
        };
        let job = self.jobs.find(id)?;
        job.thread = Some(thread);
        if let Some(block) = &mut job.block {
            block.finish = Some(finish);
            block.nodes = nodes;
        }
        self.move_job(id, JobState::Running);
        Ok(())
    }
}
