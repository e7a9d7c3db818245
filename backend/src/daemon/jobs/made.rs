//! Jobs of transactions: made in one step, started in another, or taken back in between; several may have to end as one.

use super::starting::Prepared;
use super::thread::Later;
use super::{Block, BlockJob, Job, JobHandle};
use crate::daemon::executor::Daemon;
use crate::qmp::events::JOB_STATUS_CHANGE;
use blockgraph::job::{IoStatus, JobState, Progress, Steer};
use serde_json::json;
use std::sync::Arc;

/// Jobs that end as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::daemon) struct Group(u64);

/// A job that is ready to begin, and where its progress is counted already.
pub(in crate::daemon) struct Progressing {
    pub(in crate::daemon) prepared: Prepared,
    pub(in crate::daemon) progress: Arc<Progress>,
}

impl Daemon {
    /// A group without jobs yet.
    pub(in crate::daemon) fn new_job_group(&mut self) -> Group {
        self.jobs.groups += 1;
        Group(self.jobs.groups)
    }

    /// Makes a block job that does nothing yet; says what it is called. Errors: the speed is none; what was prepared is undone then.
    pub(in crate::daemon) fn make_block_job(
        &mut self,
        wanted: BlockJob,
        made: Progressing,
        group: Option<Group>,
    ) -> Result<String, String> {
        let id = wanted.id.unwrap_or_default();
        let Progressing { prepared, progress } = made;
        let mut job = Job::new(&id, wanted.kind, wanted.dismissal);
        let steer = Arc::<Steer>::default();
        job.handle = Arc::new(JobHandle { progress, steer });
        job.group = group;
        job.block = Some(Block {
            finalization: wanted.finalization,
            io_status: IoStatus::Ok,
            nodes: prepared.nodes,
            finish: Some(prepared.finish),
            work: Some(Later(prepared.work)),
        });
        self.jobs.list.insert(0, job);
        self.move_job(&id, JobState::Created);
        let Ok(speed_bytes) = u64::try_from(wanted.speed_bytes) else {
            self.undo_changes(&id);
            self.forget_job(&id);
            return Err("Parameter 'speed' expects a non-negative value".to_owned());
        };
        let handle = &self.jobs.find(&id)?.handle;
        handle.steer.change(|wish| wish.speed_bytes = speed_bytes);
        Ok(id)
    }

    /// What is heard of a job that was refused when QSD has made it already.
    pub(in crate::daemon) fn tell_of_stillborn_job(&mut self, id: &str) {
        for state in [JobState::Created, JobState::Null] {
            let status = json!({"id": id, "status": state.name()});
            self.event(&JOB_STATUS_CHANGE, status);
        }
    }

    /// A job that was made comes to nothing.
    pub(in crate::daemon) fn unmake_job(&mut self, id: &str) {
        self.move_job(id, JobState::Aborting);
        self.undo_changes(id);
        self.move_job(id, JobState::Concluded);
        self.forget_job(id);
    }

    /// Starts a job that was made. Its nodes are held, so it rests at once, as it does in QSD; that there is no thread is the job's
    /// own failure.
    pub(in crate::daemon) fn start_made_job(&mut self, id: &str) {
        let Ok(job) = self.jobs.find(id) else { return };
        let work = job.block.as_mut().and_then(|block| block.work.take());
        let (Some(Later(work)), handle) = (work, job.handle.clone()) else {
            return;
        };
        match self.spawn_job(id, work, handle) {
            Ok(thread) => {
                if let Ok(job) = self.jobs.find(id) {
                    job.thread = Some(thread);
                }
                self.move_job(id, JobState::Running);
                self.move_job(id, JobState::Paused);
            }
            Err(error) => self.end_job(id, Err(error)),
        }
    }

    /// Nodes are held no more.
    pub(in crate::daemon) fn release_made_job(&mut self, id: &str) {
        let rests = |job: &mut Job| job.state == JobState::Paused;
        if self.jobs.find(id).is_ok_and(rests) {
            self.move_job(id, JobState::Running);
        }
    }
}
