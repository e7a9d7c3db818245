//! A job's own thread, and the words it leaves for the control thread.

use crate::daemon::executor::Daemon;
use blockgraph::Current;
use blockgraph::graph::Control;
use blockgraph::job::{Progress, Steer, Word, Worker};
use blockgraph::map::LANE_STACK_BYTES;
use blockgraph::pin::Epochs;
use ring::{Bell, Choice};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

/// What the control thread and the job's own share.
#[derive(Debug, Default)]
pub struct JobHandle {
    /// How far it is.
    pub progress: Arc<Progress>,
    /// What it is told.
    pub steer: Arc<Steer>,
}

/// How the work of a job ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::daemon) enum Ended {
    /// It is done.
    Done,
    /// It was told to end.
    Cancelled,
}

/// The work of a job, on its own thread.
pub(in crate::daemon) type Work = Box<dyn FnOnce(&Seat) -> Result<Ended, String> + Send>;

/// The work of a job that has not begun.
pub(super) struct Later(pub(super) Work);

impl std::fmt::Debug for Later {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Later")
    }
}

/// What a job's thread has to say.
#[derive(Debug)]
pub(super) enum Said {
    /// On its way.
    Word(Word),
    /// The last of it.
    Ended(Result<Ended, String>),
}

/// Words of jobs, for the control thread, in the order in which they were said.
#[derive(Debug)]
pub(super) struct Words {
    said: Mutex<VecDeque<(String, Said)>>,
    /// Signalled with each.
    more: Condvar,
    bell: Bell,
}

impl Words {
    pub(super) fn new() -> std::io::Result<Words> {
        Ok(Words {
            said: Mutex::default(),
            more: Condvar::new(),
            bell: Bell::new()?,
        })
    }

    pub(super) fn bell(&self) -> &Bell {
        &self.bell
    }

    fn say(&self, id: &str, said: Said) {
        self.list().push_back((id.to_owned(), said));
        self.more.notify_all();
        self.bell.ring();
    }

    pub(super) fn next(&self) -> Option<(String, Said)> {
        self.list().pop_front()
    }

    fn list(&self) -> MutexGuard<'_, VecDeque<(String, Said)>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until some job has said something, or until `deadline`; says which it was.
    pub(super) fn wait(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let none = |list: &mut VecDeque<_>| list.is_empty();
        let waited = self.more.wait_timeout_while(self.list(), left, none);
        !waited.unwrap_or_else(PoisonError::into_inner).0.is_empty()
    }
}

/// Where a job works.
#[derive(Debug)]
pub(in crate::daemon) struct Seat {
    id: String,
    pub(in crate::daemon) handle: Arc<JobHandle>,
    current: Arc<Current>,
    epochs: Arc<Epochs>,
    choice: Choice,
    words: Arc<Words>,
}

impl Seat {
    /// A lane for work on nodes that nobody else uses. Errors: no ring.
    pub(in crate::daemon) fn control(&self) -> Result<Control, String> {
        let control = Control::new(self.current.clone(), self.epochs.clone(), Choice::Threads);
        control.map_err(|error| format!("cannot start the job: {error}"))
    }

    /// A lane for work on nodes beside guests. Errors: no ring.
    pub(in crate::daemon) fn worker(&self) -> Result<Worker, String> {
        let (current, epochs) = (self.current.clone(), self.epochs.clone());
        let steer = self.handle.steer.clone();
        let worker = Worker::new(current, epochs, self.choice.clone(), steer);
        worker.map_err(|error| format!("cannot start the job: {error}"))
    }

    /// Something happened that others want to know.
    pub(in crate::daemon) fn tell(&self, word: Word) {
        self.words.say(&self.id, Said::Word(word));
    }
}

impl Daemon {
    /// Errors: no thread.
    pub(super) fn spawn_job(
        &self,
        id: &str,
        work: Work,
        handle: Arc<JobHandle>,
    ) -> Result<JoinHandle<()>, String> {
        let seat = Seat {
            id: id.to_owned(),
            handle,
            current: self.current.clone(),
            epochs: self.teams.epochs().clone(),
            choice: Choice::Best,
            words: self.jobs.words.clone(),
        };
        let thread = std::thread::Builder::new().name("job".to_owned());
        let thread = thread.stack_size(LANE_STACK_BYTES);
        let spawned = thread.spawn(move || {
            let result = work(&seat);
            seat.words.say(&seat.id, Said::Ended(result));
        });
        spawned.map_err(|error| format!("cannot start the job: {error}"))
    }
}
