//! What jobs say, and their ends, in the order of steps and events that QSD has.
//!
//! The rule: a job that did its work is waiting, then pending; its last step is done when it is finalized. One that failed, or was
//! cancelled, is aborting, and the graph becomes what it was. Either way it lets go of what it held, tells, and is concluded. Jobs of
//! a group take each of these steps together.

use super::thread::Said;
use super::{Dismissal, Ended, Finalization, Finish, Held, Job};
use crate::daemon::executor::Daemon;
use crate::qmp::events::{
    BLOCK_JOB_CANCELLED, BLOCK_JOB_COMPLETED, BLOCK_JOB_ERROR, BLOCK_JOB_PENDING, BLOCK_JOB_READY,
};
use blockgraph::job::{Cancel, ErrorAction, IoStatus, JobState, Word};
use serde_json::json;

/// What is said of a job that was told to end.
pub(super) const CANCELLED: &str = "Operation canceled";

/// How a job ends.
#[derive(Clone, Debug)]
pub(super) enum Abort {
    /// It was told to.
    Cancelled,
    /// It could not do its work.
    Failed(String),
}

impl Job {
    fn is_finalized_by_hand(&self) -> bool {
        let block = self.block.as_ref();
        block.is_some_and(|block| block.finalization == Finalization::Manual)
    }
}

impl Daemon {
    /// Listens to what jobs say.
    pub(in crate::daemon) fn hear_jobs(&mut self) {
        self.jobs.bell().hush();
        while let Some((id, said)) = self.jobs.words.next() {
            match said {
                Said::Word(word) => self.hear_job(&id, word),
                Said::Ended(result) => self.end_job(&id, result),
            }
        }
    }

    fn hear_job(&mut self, id: &str, word: Word) {
        let Ok(job) = self.jobs.find(id) else { return };
        match (word, job.state) {
            (Word::Paused, JobState::Ready) => self.move_job(id, JobState::Standby),
            (Word::Paused, _) => self.move_job(id, JobState::Paused),
            (Word::Resumed, JobState::Standby) => self.move_job(id, JobState::Ready),
            (Word::Resumed, _) => self.move_job(id, JobState::Running),
            (Word::Ready, _) => {
                self.move_job(id, JobState::Ready);
                self.say_progress(id, &BLOCK_JOB_READY);
            }
            (
                Word::Failed {
                    operation,
                    action,
                    errno,
                },
                _,
            ) => {
                if let (Some(block), ErrorAction::Stop) = (&mut job.block, action) {
                    block.io_status = IoStatus::after(errno);
                }
                let data = json!({
                    "device": id, "operation": operation.name(), "action": action.name(),
                });
                self.event(&BLOCK_JOB_ERROR, data);
            }
        }
    }

    /// The work of a job is over.
    pub(super) fn end_job(&mut self, id: &str, result: Result<Ended, String>) {
        let Ok(job) = self.jobs.find(id) else {
            return;
        };
        if let Some(thread) = job.thread.take() {
            // Leaving word was the last thing it did.
            let _ = thread.join();
        }
        if job.block.is_none() {
            job.handle.progress.advance(1);
        }
        // A soft cancel of a job that is ready is no failure, but no other is outlived.
        let forced = job.handle.steer.wish().cancel == Some(Cancel::Force);
        match result {
            Ok(Ended::Done) if !forced => self.wait_for_others(id),
            Ok(_) => self.abort_job(id, Abort::Cancelled),
            Err(error) => self.abort_job(id, Abort::Failed(error)),
        }
    }

    /// The jobs that end as one with this: the newest first.
    fn companions(&self, id: &str) -> Vec<String> {
        let jobs = &self.jobs.list;
        let group = jobs.iter().find(|job| job.id == id);
        let group = group.and_then(|job| job.group);
        let is_one = |job: &&Job| {
            let with_it = group.is_some() && job.group == group;
            job.id == id || (with_it && job.state != JobState::Concluded)
        };
        let found = jobs.iter().filter(is_one);
        found.map(|job| job.id.clone()).collect()
    }

    /// Is that so of all of them?
    fn all_jobs(&mut self, ids: &[String], is_so: impl Fn(&Job) -> bool) -> bool {
        let mut jobs = self.jobs.list.iter();
        jobs.all(|job| !ids.contains(&job.id) || is_so(job))
    }

    fn wait_for_others(&mut self, id: &str) {
        self.move_job(id, JobState::Waiting);
        let all = self.companions(id);
        if !self.all_jobs(&all, |job| job.state == JobState::Waiting) {
            return;
        }
        for id in &all {
            self.be_pending(id);
        }
        if self.all_jobs(&all, |job| !job.is_finalized_by_hand()) {
            self.finalize_job(id);
        }
    }

    fn be_pending(&mut self, id: &str) {
        self.move_job(id, JobState::Pending);
        let Ok(job) = self.jobs.find(id) else { return };
        if job.is_finalized_by_hand() {
            let data = json!({"type": job.kind.name(), "id": id});
            self.event(&BLOCK_JOB_PENDING, data);
        }
    }

    /// Does the last step of a job that is pending, and of all that end with it.
    pub(super) fn finalize_job(&mut self, id: &str) {
        let all = self.companions(id);
        for id in &all {
            let mut finish = self.take_finish(id);
            let prepared = finish
                .as_mut()
                .map_or(Ok(()), |finish| finish.prepare(self));
            self.give_finish(id, finish);
            if let Err(error) = prepared {
                return self.abort_job(id, Abort::Failed(error));
            }
        }
        for id in &all {
            self.complete_job(id);
        }
    }

    fn complete_job(&mut self, id: &str) {
        if let Some(mut finish) = self.take_finish(id) {
            finish.commit(self);
        }
        self.let_go_of(id);
        self.drop_unused();
        self.say_completed(id);
        self.conclude_job(id);
    }

    /// Ends a job that did not come to its end, and all that end with it, once they are at rest.
    pub(super) fn abort_job(&mut self, id: &str, why: Abort) {
        self.be_aborting(id, why);
        let all = self.companions(id);
        for other in &all {
            self.drag_down(other);
        }
        if self.all_jobs(&all, |job| job.why.is_some()) {
            for id in &all {
                self.undo_job(id);
            }
        }
    }

    fn be_aborting(&mut self, id: &str, why: Abort) {
        let Ok(job) = self.jobs.find(id) else { return };
        let error = match &why {
            Abort::Cancelled => CANCELLED.to_owned(),
            // A hint on a second line is for the command line.
            Abort::Failed(error) => error.lines().next().unwrap_or_default().to_owned(),
        };
        job.error = Some(error);
        job.why = Some(why);
        self.move_job(id, JobState::Aborting);
    }

    /// Another that ends with this is aborting.
    fn drag_down(&mut self, id: &str) {
        let Ok(job) = self.jobs.find(id) else { return };
        if job.why.is_some() {
            return;
        }
        match job.thread.is_some() {
            true => job
                .handle
                .steer
                .change(|wish| wish.cancel = Some(Cancel::Force)),
            false => self.be_aborting(id, Abort::Cancelled),
        }
    }

    fn undo_job(&mut self, id: &str) {
        let Ok(job) = self.jobs.find(id) else { return };
        let (is_block, why) = (job.block.is_some(), job.why.clone());
        self.undo_changes(id);
        match why {
            Some(Abort::Cancelled) if is_block => self.say_progress(id, &BLOCK_JOB_CANCELLED),
            _ => self.say_completed(id),
        }
        self.conclude_job(id);
    }

    pub(super) fn undo_changes(&mut self, id: &str) {
        let finish = self.take_finish(id);
        self.let_go_of(id);
        if let Some(mut finish) = finish {
            finish.abort(self);
            drop(finish);
            self.drop_unused();
        }
    }

    fn say_completed(&mut self, id: &str) {
        if self.jobs.find(id).is_ok_and(|job| job.block.is_some()) {
            self.say_progress(id, &BLOCK_JOB_COMPLETED);
        }
    }

    fn conclude_job(&mut self, id: &str) {
        self.move_job(id, JobState::Concluded);
        let dismissal = self.jobs.find(id).map(|job| job.dismissal);
        if dismissal == Ok(Dismissal::Auto) {
            self.forget_job(id);
        }
    }

    /// There is no such job any more.
    pub(super) fn forget_job(&mut self, id: &str) {
        self.move_job(id, JobState::Null);
        self.jobs.list.retain(|job| job.id != id);
    }

    pub(super) fn take_finish(&mut self, id: &str) -> Option<Box<dyn Finish>> {
        let block = self.jobs.find(id).ok()?.block.as_mut()?;
        block.finish.take()
    }

    pub(super) fn give_finish(&mut self, id: &str, finish: Option<Box<dyn Finish>>) {
        if let Ok(job) = self.jobs.find(id)
            && let Some(block) = &mut job.block
        {
            block.finish = finish;
        }
    }

    fn let_go_of(&mut self, id: &str) {
        let Ok(job) = self.jobs.find(id) else { return };
        let held = std::mem::take(&mut job.held);
        if let Some(block) = &mut job.block {
            block.nodes.clear();
        }
        self.let_go(held);
    }

    /// Parents go before the nodes that were opened for them.
    fn let_go(&mut self, held: Held) {
        drop(held.attachments);
        for name in held.nodes {
            if let Err(error) = self.remove_node(&name) {
                tracing::warn!("cannot close node {name} of a job: {error}");
            }
        }
    }
}
