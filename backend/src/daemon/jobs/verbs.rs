//! What clients ask of jobs: once by `job-*`, for all of them, and once by `block-job-*`, for block jobs alone.

use super::ending::Abort;
use super::{Finish, Job, JobHandle, WhenReady};
use crate::daemon::executor::Daemon;
use crate::daemon::mirror::CopyMode;
use crate::qmp::{ErrorClass, QmpError};
use blockgraph::job::{Cancel, IoStatus, JobState, JobVerb, Wish};

impl Job {
    /// Errors: not in the state it is in.
    fn check(&self, verb: JobVerb) -> Result<(), String> {
        match self.state.takes(verb) {
            true => Ok(()),
            false => Err(format!(
                "Job '{}' in state '{}' cannot accept command verb '{}'",
                self.id,
                self.state,
                verb.name()
            )),
        }
    }

    fn tell(&self, change: impl FnOnce(&mut Wish)) {
        let handle: &JobHandle = &self.handle;
        handle.steer.change(change);
    }

    /// Was it told to rest, by a client or by an error?
    fn is_paused(&self) -> bool {
        self.thread.is_some() && self.handle.steer.wish().pause
    }

    fn finish(&mut self) -> Option<&mut Box<dyn Finish>> {
        self.block.as_mut()?.finish.as_mut()
    }

    /// What a cancel comes to: only a job that is ready, and leaves a copy behind, can be ended softly.
    fn softened(&mut self, cancel: Cancel) -> Cancel {
        let completes = match self.finish() {
            Some(finish) => finish.when_ready() == WhenReady::Completes,
            None => false,
        };
        let is_late = matches!(
            self.state,
            JobState::Ready | JobState::Standby | JobState::Waiting | JobState::Pending
        );
        match completes && is_late {
            true => cancel,
            false => Cancel::Force,
        }
    }
}

impl Daemon {
    /// Does what a client asks of a job. Errors: there is none; not in the state it is in.
    pub(crate) fn ask_job(&mut self, id: &str, verb: JobVerb) -> Result<(), String> {
        let job = self.jobs.find(id)?;
        if verb == JobVerb::Resume && !job.is_paused() {
            return Err("Can't resume a job that was not paused".to_owned());
        }
        job.check(verb)?;
        match verb {
            JobVerb::Pause if job.is_paused() => return Err("Job is already paused".to_owned()),
            // A job without a point at which it could rest takes note, as in QEMU, and goes on.
            JobVerb::Pause => job.tell(|wish| wish.pause = true),
            JobVerb::Resume => {
                if let Some(block) = &mut job.block {
                    block.io_status = IoStatus::Ok;
                }
                job.tell(|wish| wish.pause = false);
            }
            JobVerb::Cancel => self.cancel_job(id, Cancel::Force),
            JobVerb::Complete => self.complete_when_ready(id)?,
            JobVerb::Finalize => self.finalize_job(id),
            JobVerb::Dismiss => self.forget_job(id),
            // They have arguments, and ways of their own.
            JobVerb::SetSpeed | JobVerb::Change => {}
        }
        Ok(())
    }

    fn complete_when_ready(&mut self, id: &str) -> Result<(), String> {
        let finish = self.take_finish(id);
        let may = finish.as_ref().map_or(Ok(()), |own| own.may_complete(self));
        self.give_finish(id, finish);
        may?;
        self.job_handle(id)?
            .steer
            .change(|wish| wish.complete = true);
        Ok(())
    }

    /// The same of a block job. Errors: that one is none; and as [`Daemon::ask_job`].
    pub(crate) fn ask_block_job(&mut self, id: &str, verb: JobVerb) -> Result<(), QmpError> {
        self.find_block_job(id)?;
        Ok(self.ask_job(id, verb)?)
    }

    /// Ends a block job. Errors: there is none; not in the state it is in; it rests, and is not to be forced.
    pub(crate) fn cancel_block_job(&mut self, id: &str, cancel: Cancel) -> Result<(), QmpError> {
        let job = self.find_block_job(id)?;
        if job.is_paused() && cancel == Cancel::Soft {
            let why = format!("The block job for device '{id}' is currently paused");
            return Err(QmpError::new(why));
        }
        job.check(JobVerb::Cancel)?;
        self.cancel_job(id, cancel);
        Ok(())
    }

    /// Limits a block job. Errors: there is none; not in the state it is in; not a speed.
    pub(crate) fn set_job_speed(&mut self, id: &str, speed_bytes: i64) -> Result<(), QmpError> {
        let job = self.find_block_job(id)?;
        job.check(JobVerb::SetSpeed)?;
        let speed_bytes = u64::try_from(speed_bytes);
        let speed_bytes = speed_bytes
            .map_err(|_| QmpError::new("Parameter 'speed' expects a non-negative value"))?;
        job.tell(|wish| wish.speed_bytes = speed_bytes);
        Ok(())
    }

    /// Has a block job copy in another way. Errors: there is none; not in the state it is in; it knows no other.
    pub(crate) fn change_block_job(&mut self, id: &str, mode: CopyMode) -> Result<(), QmpError> {
        let job = self.find_block_job(id)?;
        job.check(JobVerb::Change)?;
        let mut finish = self.take_finish(id);
        let changed = match &mut finish {
            Some(finish) => finish.change(self, mode),
            None => Ok(()),
        };
        self.give_finish(id, finish);
        changed?;
        // Nothing was copied by that; but it may be in sync now.
        self.job_handle(id)?.steer.wake();
        Ok(())
    }

    fn find_block_job(&mut self, id: &str) -> Result<&mut Job, QmpError> {
        let found = self.jobs.find(id).ok().filter(|job| job.block.is_some());
        found.ok_or_else(|| {
            let why = format!("Block job '{id}' not found");
            QmpError::of_class(ErrorClass::DeviceNotActive, why)
        })
    }

    fn cancel_job(&mut self, id: &str, cancel: Cancel) {
        let Ok(job) = self.jobs.find(id) else { return };
        let cancel = job.softened(cancel);
        if job.thread.is_some() && cancel == Cancel::Soft {
            // It ends as one that completes, but for what it does to the graph.
            job.finish().into_iter().for_each(|finish| finish.give_up());
            job.tell(|wish| wish.complete = true);
        } else if job.thread.is_some() {
            job.tell(|wish| wish.cancel = Some(cancel));
            let finish = self.take_finish(id);
            finish.iter().for_each(|finish| finish.hurry(self));
            self.give_finish(id, finish);
        } else {
            self.abort_job(id, Abort::Cancelled);
        }
    }

    /// Every job is to end.
    pub(super) fn cancel_all_jobs(&mut self) {
        let ids = self.jobs.list.iter().map(|job| job.id.clone());
        for id in ids.collect::<Vec<_>>() {
            let alive = self
                .jobs
                .find(&id)
                .is_ok_and(|job| job.check(JobVerb::Cancel).is_ok());
            if alive {
                self.cancel_job(&id, Cancel::Force);
            }
        }
    }
}
