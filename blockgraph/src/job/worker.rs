//! A job's thread: a lane of its own, and one place to sleep in.
//!
//! The rule: what a job does to nodes is a task like a guest's request. It begins on the newest generation, whoever changes the
//! graph waits for its end, and none begins while one of its nodes is held.

use super::steer::Steer;
use crate::io::Io;
use crate::lane::{Event, Lane};
use crate::mode::Mode;
use crate::node::NodeId;
use crate::pin::Epochs;
use crate::{Current, Graph};
use ring::{Bell, Choice, Op, Ring, Wait};
use std::cell::RefCell;
use std::io;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;

const BELL: u64 = 1 << 62;
const WORK: u64 = 1;

/// A job's thread.
#[derive(Debug)]
pub struct Worker {
    lane: Lane,
    bell: Bell,
    steer: Arc<Steer>,
}

impl Worker {
    /// A worker on the calling thread, woken by whoever steers it. Errors: the kernel gives no ring.
    pub fn new(
        current: Arc<Current>,
        epochs: Arc<Epochs>,
        choice: Choice,
        steer: Arc<Steer>,
    ) -> io::Result<Worker> {
        Worker::in_mode(current, epochs, choice, Mode::Fast, steer)
    }

    /// The same for tests that serve what could be mapped.
    pub fn in_mode(
        current: Arc<Current>,
        epochs: Arc<Epochs>,
        choice: Choice,
        mode: Mode,
        steer: Arc<Steer>,
    ) -> io::Result<Worker> {
        let ring = Ring::new(choice)?;
        let bell = ring.bell();
        let worker = Worker {
            lane: Lane::new(ring, current, epochs, mode),
            bell: bell.clone(),
            steer,
        };
        worker.listen();
        worker.steer.listen(bell);
        Ok(worker)
    }

    /// What it is told.
    pub fn steer(&self) -> &Arc<Steer> {
        &self.steer
    }

    /// What wakes it.
    pub(super) fn bell(&self) -> &Bell {
        &self.bell
    }

    /// The generation it is on.
    pub fn graph(&self) -> &Arc<Graph> {
        self.lane.graph()
    }

    /// Does `work`, which uses `nodes`, to its end. It is not interrupted. Errors: the ring's own, and final.
    pub fn run<T: 'static, F: Future<Output = T> + 'static>(
        &mut self,
        nodes: &[NodeId],
        work: impl FnOnce(Io) -> F + 'static,
    ) -> io::Result<T> {
        let result = Rc::new(RefCell::new(None));
        let to = result.clone();
        self.begin(nodes, move |io| {
            let work = work(io);
            async move {
                let value = work.await;
                *to.borrow_mut() = Some(value);
            }
        });
        loop {
            self.turn(Wait::One)?;
            if let Some(value) = result.take() {
                return Ok(value);
            }
        }
    }

    /// Begins `work`, which uses `nodes`, or will as soon as they are not held.
    pub(super) fn begin<F: Future<Output = ()> + 'static>(
        &mut self,
        nodes: &[NodeId],
        work: impl FnOnce(Io) -> F + 'static,
    ) {
        self.look_around();
        self.lane.spawn_using(nodes, WORK, move |io| {
            let work = work(io);
            async move {
                work.await;
                Ok(())
            }
        });
    }

    /// Goes on with what is under way, and waits as asked unless something has happened already.
    pub(super) fn turn(&mut self, wait: Wait) -> io::Result<()> {
        self.look_around();
        self.lane.turn(wait)?;
        while let Some(event) = self.lane.take() {
            if let Event::Signal { result, .. } = event {
                self.bell.hush();
                if result.is_err() {
                    self.listen();
                }
            }
        }
        self.look_around();
        Ok(())
    }

    /// Adopts a newer generation, and lets whoever changes the graph know that nothing is under way.
    fn look_around(&mut self) {
        self.lane.begin_batch();
        self.lane.end_batch();
    }

    fn listen(&self) {
        let mut ring = self.lane.ring().borrow_mut();
        let fd = self.bell.as_raw_fd();
        ring.start(Op::Poll { fd }, &[], 0, 0, BELL);
    }
}
