//! A queue thread as the control side sees it: commands go in through a list and a bell, answers come back through
//! channels.

use super::data::DataLoop;
use super::idle::Polling;
use super::tenant::Arrival;
use crate::vhost::{RingStart, RingStop};
use crate::virtio_blk::Disk;
use blockgraph::map::LANE_STACK_BYTES;
use blockgraph::pin::Epochs;
use blockgraph::{Current, Lane, Mode};
use ring::{Bell, Choice, Ring};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Names a started ring; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RingKey(pub u64);

/// What a queue thread can be told.
#[derive(Debug)]
pub(super) enum Command {
    Start {
        key: RingKey,
        ring: Box<RingStart>,
        disk: Arc<Disk>,
        done: Sender<Result<(), String>>,
    },
    /// Answered once nothing is in flight and everything is published.
    Stop {
        key: RingKey,
        done: Sender<Option<RingStop>>,
    },
    SetCall {
        key: RingKey,
        call: Option<OwnedFd>,
    },
    SetErr {
        key: RingKey,
        err: Option<OwnedFd>,
    },
    SetKick {
        key: RingKey,
        kick: OwnedFd,
    },
    /// Nobody is told how that goes.
    Host(Arrival),
    Exit,
}

/// Commands on their way to a thread.
#[derive(Debug, Default)]
pub(super) struct Inbox(Mutex<Letters>);

#[derive(Debug, Default)]
struct Letters {
    commands: Vec<Command>,
    /// Nobody reads them any more.
    closed: bool,
}

impl Inbox {
    /// A command to a thread that is gone is dropped, and whoever waits for its answer hears of that.
    pub(super) fn push(&self, command: Command) {
        let mut letters = self.letters();
        if !letters.closed {
            letters.commands.push(command);
        }
    }

    pub(super) fn take(&self) -> Vec<Command> {
        std::mem::take(&mut self.letters().commands)
    }

    fn close(&self) {
        let mut letters = self.letters();
        letters.closed = true;
        letters.commands.clear();
    }

    fn letters(&self) -> std::sync::MutexGuard<'_, Letters> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes a thread's inbox when the thread ends, however it does.
struct Closing(Arc<Inbox>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// What every queue thread is made with.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// The graph it serves from.
    pub current: Arc<Current>,
    /// The clock of pins.
    pub epochs: Arc<Epochs>,
    /// What carries I/O out.
    pub engine: Choice,
    /// How long it may poll before it sleeps.
    pub polling: Arc<Polling>,
    /// Whether requests take the fast walk.
    pub mode: Mode,
}

/// A running queue thread.
#[derive(Debug)]
pub(super) struct Worker {
    inbox: Arc<Inbox>,
    bell: Bell,
    thread: Option<JoinHandle<()>>,
    /// Rings it runs.
    pub(super) rings: AtomicUsize,
}

impl Worker {
    /// Errors: out of threads or descriptors, or io_uring refused where it is insisted on.
    pub(super) fn spawn(name: String, options: WorkerOptions) -> io::Result<Worker> {
        ring::sys::survive_file_size_limit();
        let inbox = Arc::new(Inbox::default());
        let (ready, is_ready) = channel();
        let its_inbox = inbox.clone();
        let thread = std::thread::Builder::new().name(name);
        let thread = thread.stack_size(LANE_STACK_BYTES).spawn(move || {
            let _closing = Closing(its_inbox.clone());
            let ring = match Ring::new(options.engine.clone()) {
                Ok(ring) => ring,
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return;
                }
            };
            let bell = ring.bell();
            let lane = Lane::new(ring, options.current, options.epochs, options.mode);
            let _ = ready.send(Ok(bell));
            DataLoop::new(lane, its_inbox, options.polling).run();
        })?;
        let gone = || io::Error::other("the queue thread ended at once");
        let bell = is_ready.recv().map_err(|_| gone())??;
        Ok(Worker {
            inbox,
            bell,
            thread: Some(thread),
            rings: AtomicUsize::new(0),
        })
    }

    pub(super) fn tell(&self, command: Command) {
        self.inbox.push(command);
        self.bell.ring();
    }

    /// Its thread has ended.
    pub(super) fn is_gone(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Starts a ring on it.
    pub(super) fn start(
        &self,
        key: RingKey,
        ring: RingStart,
        disk: Arc<Disk>,
    ) -> Result<(), String> {
        let (done, answer) = channel();
        self.tell(Command::Start {
            key,
            ring: Box::new(ring),
            disk,
            done,
        });
        let gone = |_| Err("the queue thread is gone".to_owned());
        answer.recv().unwrap_or_else(gone)?;
        self.rings.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Stops a ring, drained.
    pub(super) fn stop(&self, key: RingKey) -> Option<RingStop> {
        let (done, answer) = channel();
        self.tell(Command::Stop { key, done });
        let stop = answer.recv().ok().flatten();
        self.rings.fetch_sub(1, Ordering::Relaxed);
        stop
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.tell(Command::Exit);
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has nothing left to wait for.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_is_gone_keeps_nobody_waiting() {
        let options = WorkerOptions {
            current: Arc::default(),
            epochs: Arc::default(),
            engine: Choice::Threads,
            polling: Arc::new(Polling::up_to(0)),
            mode: Mode::Fast,
        };
        let worker = Worker::spawn("gone".to_owned(), options).unwrap();
        worker.rings.store(2, Ordering::Relaxed);
        // Both orders: a command that it leaves unread, and one that comes when it is gone.
        worker.inbox.push(Command::Exit);
        assert!(worker.stop(RingKey(1)).is_none());
        assert!(worker.stop(RingKey(2)).is_none());
    }
}
