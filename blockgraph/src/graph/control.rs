//! The control thread's own lane: opening, closing and changing nodes is async code that runs here, to its end.
//!
//! The rule: nothing runs on it but what [`Control::run`] was just given, so a node that is slow to open holds up the
//! control thread and no guest.

use super::{Current, Graph, Resources};
use crate::io::Io;
use crate::lane::{Event, Lane};
use crate::mode::Mode;
use crate::node::NodeId;
use crate::pin::Epochs;
use ring::{Bell, Choice, File, Op, Ring, Wait};
use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

const BELL: u64 = 1 << 62;
const WORK: u64 = 1;

/// Runs work on nodes, published or not, to its end.
#[derive(Debug)]
pub struct Control {
    lane: Lane,
    bell: Bell,
    /// What nodes may be opened with, by name.
    pub resources: Resources,
}

impl Control {
    /// A lane for the calling thread. Errors: the kernel gives no ring.
    pub fn new(current: Arc<Current>, epochs: Arc<Epochs>, choice: Choice) -> io::Result<Control> {
        Control::in_mode(current, epochs, choice, Mode::Fast)
    }

    /// The same for tests that serve what could be mapped.
    pub fn in_mode(
        current: Arc<Current>,
        epochs: Arc<Epochs>,
        choice: Choice,
        mode: Mode,
    ) -> io::Result<Control> {
        let ring = Ring::new(choice)?;
        let bell = ring.bell();
        let lane = Lane::aside(ring, current, epochs, mode);
        let fd = bell.as_raw_fd();
        let ring = lane.ring().clone();
        ring.borrow_mut().start(Op::Poll { fd }, &[], 0, 0, BELL);
        let resources = Resources::default();
        Ok(Control {
            lane,
            bell,
            resources,
        })
    }

    /// Runs `work` on `graph`, seen from `here`, and waits for its end. Errors: the ring's own, and final.
    pub fn run<T: 'static, F: Future<Output = T> + 'static>(
        &mut self,
        graph: &Arc<Graph>,
        here: NodeId,
        work: impl FnOnce(Io) -> F,
    ) -> io::Result<T> {
        self.run_until(graph, here, None, work)
    }

    /// The same, giving up at `deadline` with ETIMEDOUT: the work is left where it is, and the control has to be forgotten
    /// rather than dropped, as what is in flight still has its memory.
    pub fn run_until<T: 'static, F: Future<Output = T> + 'static>(
        &mut self,
        graph: &Arc<Graph>,
        here: NodeId,
        deadline: Option<Instant>,
        work: impl FnOnce(Io) -> F,
    ) -> io::Result<T> {
        let result = self.begin(graph, here, work);
        while result.borrow().is_none() {
            let turned = self.turn(deadline);
            if result.borrow().is_none() {
                turned?;
            }
        }
        self.end(&result)
    }

    /// The same, but what is still under way at the deadline is told to end by `cancel`, and has so much longer for that.
    pub(crate) fn run_or<T: 'static, F: Future<Output = T> + 'static>(
        &mut self,
        graph: &Arc<Graph>,
        here: NodeId,
        (deadline, longer): (Instant, Duration),
        cancel: impl FnOnce(),
        work: impl FnOnce(Io) -> F,
    ) -> io::Result<T> {
        let result = self.begin(graph, here, work);
        let mut deadline = deadline;
        let mut cancel = Some(cancel);
        while result.borrow().is_none() {
            match (self.turn(Some(deadline)), cancel.is_some()) {
                (Err(error), true) if error.kind() == io::ErrorKind::TimedOut => {
                    cancel.take().into_iter().for_each(|cancel| cancel());
                    deadline = Instant::now() + longer;
                }
                (turned, _) => turned?,
            }
        }
        self.end(&result)
    }

    fn begin<T: 'static, F: Future<Output = T> + 'static>(
        &mut self,
        graph: &Arc<Graph>,
        here: NodeId,
        work: impl FnOnce(Io) -> F,
    ) -> Rc<RefCell<Option<T>>> {
        let result = Rc::new(RefCell::new(None));
        let to = result.clone();
        self.lane.spawn_on(graph, here, WORK, |io| {
            let work = work(io);
            async move {
                let value = work.await;
                *to.borrow_mut() = Some(value);
                Ok(())
            }
        });
        result
    }

    fn end<T>(&mut self, result: &RefCell<Option<T>>) -> io::Result<T> {
        // Nothing turns this lane until the next work comes: what the work looked up must not stay pinned till then.
        self.lane.end_batch();
        self.hear();
        // What it looked up is pinned no longer, or everybody who awaits a grace period waits for the next time that this runs.
        self.lane.end_batch();
        // The loop ended because it is there.
        result.take().ok_or_else(|| io::ErrorKind::Other.into())
    }

    /// Lets go of the files of a generation that was thrown away: their names will be given to others.
    pub(super) fn forget<'a>(&mut self, files: impl Iterator<Item = &'a Arc<File>>) {
        let mut ring = self.lane.ring().borrow_mut();
        for file in files {
            ring.forget(file.id());
        }
    }

    /// Leaves older generations: nothing of its own is under way between two calls.
    pub(crate) fn adopt(&mut self) {
        self.lane.begin_batch();
        self.lane.end_batch();
        self.hear();
    }

    fn turn(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        let wait = match deadline {
            None => Wait::One,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    // What needs no waiting is done even so.
                    let done = self.lane.turn(Wait::Not);
                    self.hear();
                    return done.and(Err(io::ErrorKind::TimedOut.into()));
                }
                Wait::AtMost(u64::try_from(left.as_nanos()).unwrap_or(u64::MAX))
            }
        };
        self.lane.turn(wait)?;
        self.hear();
        Ok(())
    }

    fn hear(&mut self) {
        while let Some(event) = self.lane.take() {
            if let Event::Signal { token: BELL, .. } = event {
                self.bell.hush();
            }
        }
    }
}
