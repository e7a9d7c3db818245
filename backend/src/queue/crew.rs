//! All queue threads of the process, and which ring runs on which.

use super::tenant::Arrival;
use super::worker::{Command, RingKey, Worker, WorkerOptions};
use crate::vhost::{RingStart, RingStop};
use crate::virtio_blk::Disk;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Threads for rings: made when a ring first needs one, at most so many, then shared evenly.
#[derive(Debug)]
pub struct Team {
    name: String,
    options: WorkerOptions,
    threads_max: usize,
    workers: Mutex<Vec<Arc<Worker>>>,
}

impl Team {
    /// A team without threads yet.
    pub fn new(name: &str, threads_max: usize, options: WorkerOptions) -> Team {
        Team {
            name: name.to_owned(),
            options,
            threads_max: threads_max.max(1),
            workers: Mutex::default(),
        }
    }

    /// Puts a tenant on one of its threads. Errors: out of threads or descriptors, or io_uring refused where it is insisted on.
    pub fn host(&self, arrival: Arrival) -> std::io::Result<()> {
        self.pick()?.tell(Command::Host(arrival));
        Ok(())
    }

    /// The thread with the fewest rings, or a new one while there may be more. Errors: out of threads or descriptors, or io_uring refused where it is insisted on.
    fn pick(&self) -> std::io::Result<Arc<Worker>> {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        // One that lost its ring serves nobody any more.
        workers.retain(|worker| !worker.is_gone());
        let rings = |worker: &Arc<Worker>| worker.rings.load(Ordering::Relaxed);
        let least = workers.iter().min_by_key(|worker| rings(worker)).cloned();
        match least {
            Some(worker) if rings(&worker) == 0 || workers.len() >= self.threads_max => Ok(worker),
            _ => {
                let name = format!("{}{}", self.name, workers.len());
                let worker = Arc::new(Worker::spawn(name, self.options.clone())?);
                workers.push(worker.clone());
                Ok(worker)
            }
        }
    }
}

/// A ring that was started, and where.
#[derive(Debug)]
struct Started {
    key: RingKey,
    worker: Arc<Worker>,
}

/// The rings of one export.
#[derive(Debug)]
pub struct Crew {
    team: Arc<Team>,
    disk: Arc<Disk>,
    started: Mutex<Vec<Option<Started>>>,
}

static KEYS: AtomicU64 = AtomicU64::new(0);

impl Crew {
    /// No ring runs yet.
    pub fn new(team: Arc<Team>, disk: Arc<Disk>) -> Crew {
        let started = (0..disk.queues).map(|_| None).collect();
        Crew {
            team,
            disk,
            started: Mutex::new(started),
        }
    }

    /// Starts ring `index`. Errors: no thread can be had, or the ring is not where it is said to be.
    pub fn start(&self, index: u16, ring: RingStart) -> Result<(), String> {
        let worker = self.team.pick().map_err(|error| error.to_string())?;
        let key = RingKey(KEYS.fetch_add(1, Ordering::Relaxed));
        worker.start(key, ring, self.disk.clone())?;
        let mut started = self.rings();
        let slot = started.get_mut(usize::from(index)).ok_or("no such ring")?;
        *slot = Some(Started { key, worker });
        Ok(())
    }

    /// Stops ring `index`, drained; `None` if it does not run.
    pub fn stop(&self, index: u16) -> Option<RingStop> {
        let started = self.rings().get_mut(usize::from(index))?.take()?;
        started.worker.stop(started.key)
    }

    /// Replaces the eventfd that tells the guest.
    pub fn set_call(&self, index: u16, call: Option<OwnedFd>) {
        self.tell(index, |key| Command::SetCall { key, call });
    }

    /// Replaces the eventfd that tells of a broken ring.
    pub fn set_err(&self, index: u16, err: Option<OwnedFd>) {
        self.tell(index, |key| Command::SetErr { key, err });
    }

    /// Replaces the eventfd the guest kicks.
    pub fn set_kick(&self, index: u16, kick: OwnedFd) {
        self.tell(index, |key| Command::SetKick { key, kick });
    }

    fn tell(&self, index: u16, command: impl FnOnce(RingKey) -> Command) {
        if let Some(Some(started)) = self.rings().get(usize::from(index)) {
            started.worker.tell(command(started.key));
        }
    }

    fn rings(&self) -> std::sync::MutexGuard<'_, Vec<Option<Started>>> {
        self.started.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::Polling;
    use blockgraph::Mode;
    use ring::Choice;

    #[test]
    fn a_thread_that_is_gone_is_replaced() {
        let options = WorkerOptions {
            current: Arc::default(),
            epochs: Arc::default(),
            engine: Choice::Threads,
            polling: Arc::new(Polling::up_to(0)),
            mode: Mode::Fast,
        };
        let team = Team::new("team", 1, options);
        let first = team.pick().unwrap();
        assert!(Arc::ptr_eq(&first, &team.pick().unwrap()));
        first.tell(Command::Exit);
        while !first.is_gone() {
            std::thread::yield_now();
        }
        assert!(!Arc::ptr_eq(&first, &team.pick().unwrap()));
    }
}
