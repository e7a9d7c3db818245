//! A thread's way through the graph: requests go in, ends come out.
//!
//! The rule: this is the one place that pins, walks, submits and completes, for guests, exports, jobs and tests alike.
//! On the mapped path nothing here allocates, locks, logs or reads a clock.

mod ends;
mod tasks;

use crate::clock;
use crate::graph::current::{Asked, Listener};
use crate::graph::{Current, Graph};
use crate::io::{self, Io, Thread};
use crate::map::{PASSED_MAX, Passed, Place, Plan, Walk, walk};
use crate::mode::{Chooser, Mode};
use crate::node::{NodeId, Outcome};
use crate::pin::{Epochs, Pin, Pins};
use crate::request::{Dir, Kind, Request};
use crate::units::Span;
use ends::Ends;
use ring::{Done, Errno, Mem, Op, Seg, Wait};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use tasks::{HeldTask, TasksOf};

/// Tokens with this bit belong to mapped requests; all others are the caller's.
const MAPPED: u64 = 1 << 63;

/// What came of starting a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Started {
    /// It is over already.
    Done(Outcome),
    /// Its end will come out of [`Lane::take`].
    Pending,
    /// The ring has no room; nothing was started. Try again after the next turn.
    Full,
    /// The graph is being changed; nothing was started. Try again in the next batch.
    Held,
}

/// What comes out of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A request that was started with `token` is over.
    Finished {
        /// The caller's.
        token: u64,
        /// How it ended.
        outcome: Outcome,
    },
    /// An operation the caller armed on the ring itself (a poll, a timeout) has fired.
    Signal {
        /// The caller's.
        token: u64,
        /// How.
        result: Outcome,
    },
}

/// A generation as the requests of one thread share it.
#[allow(
    clippy::redundant_allocation,
    reason = "a count that is not atomic, once per request, for an allocation once per generation"
)]
type Generation = Rc<Arc<Graph>>;

/// A mapped request in flight.
#[derive(Debug)]
struct Pending {
    token: u64,
    node: NodeId,
    left: u32,
    outcome: Outcome,
    pin: Option<Pin>,
    dir: Dir,
    /// Whom to tell, and the graph they are in, if it passed anybody. Has room for all there can be.
    passed: Vec<Passed>,
    graph: Option<Generation>,
}

/// Finished tasks leave their ends here.
type Finished = Rc<RefCell<Vec<(u64, Outcome)>>>;

/// One thread's way through the graph.
#[derive(Debug)]
pub struct Lane {
    thread: Rc<Thread>,
    /// Its ring has a time of its own.
    simulated: bool,
    tasks: ring::Tasks,
    current: Arc<Current>,
    listener: Listener,
    /// The last generation of which is known that nothing is under way on what it holds.
    quiet: u64,
    ends: Ends,
    graph: Generation,
    plan: Plan,
    pending: Vec<Pending>,
    free: Vec<u32>,
    finished: Finished,
    done: Vec<Done>,
    next: usize,
    in_flight: usize,
    /// Tasks by the node they are of.
    tasks_of: TasksOf,
    held: Vec<HeldTask>,
    /// Tasks of which nobody awaits the end.
    aside: Rc<Cell<usize>>,
}

impl Lane {
    /// A lane on `ring`, which it takes over; both stay on the calling thread.
    pub fn new(ring: ring::Ring, current: Arc<Current>, epochs: Arc<Epochs>, mode: Mode) -> Lane {
        Lane::asked(ring, current, epochs, mode, Asked::Always)
    }

    /// A lane that runs no requests but work on a generation of the caller's.
    pub(crate) fn aside(
        ring: ring::Ring,
        current: Arc<Current>,
        epochs: Arc<Epochs>,
        mode: Mode,
    ) -> Lane {
        Lane::asked(ring, current, epochs, mode, Asked::Never)
    }

    fn asked(
        ring: ring::Ring,
        current: Arc<Current>,
        epochs: Arc<Epochs>,
        mode: Mode,
        asked: Asked,
    ) -> Lane {
        let bell = ring.bell();
        let simulated = ring.virtual_ns().is_some();
        let thread = Rc::new(Thread {
            ring: ring::Handle::new(ring),
            pins: RefCell::new(Pins::new(epochs)),
            chooser: RefCell::new(Chooser::new(mode)),
            aside: RefCell::default(),
        });
        let graph = Rc::new(Arc::new(Graph::default()));
        let mut lane = Lane {
            thread,
            simulated,
            tasks: ring::Tasks::new(bell.clone()),
            listener: current.listen(bell, asked),
            quiet: 0,
            ends: Ends::default(),
            current,
            graph,
            plan: Plan::default(),
            pending: Vec::new(),
            free: Vec::new(),
            finished: Finished::default(),
            done: Vec::with_capacity(256),
            next: 0,
            in_flight: 0,
            tasks_of: TasksOf::default(),
            held: Vec::new(),
            aside: Rc::default(),
        };
        lane.adopt();
        lane
    }

    /// The ring, for operations of the caller's own. Their tokens must not have the top bit.
    pub fn ring(&self) -> &ring::Handle {
        &self.thread.ring
    }

    /// The generation the lane is on.
    pub fn graph(&self) -> &Arc<Graph> {
        &self.graph
    }

    /// Requests under way.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Before starting a batch of requests: pins, and adopts a newer generation if there is one.
    pub fn begin_batch(&mut self) {
        if self.is_behind() {
            self.adopt();
        }
        self.thread.pins.borrow_mut().refresh();
        self.tell_time();
    }

    /// After a batch.
    pub fn end_batch(&mut self) {
        self.thread.pins.borrow_mut().settle();
        if self.graph.is_held() {
            self.tell_quiet();
        }
    }

    /// Says so once nothing is under way on what is held.
    #[cold]
    fn tell_quiet(&mut self) {
        let generation = self.graph.generation();
        let left = self.held_in_flight();
        self.ends.look(left);
        if self.quiet < generation && left == 0 {
            self.quiet = generation;
            self.listener.is_quiet(generation, self.ends.last());
        }
    }

    /// How many are under way on what is held.
    fn held_in_flight(&self) -> usize {
        let graph = &self.graph;
        let is_held = |pending: &&Pending| pending.left > 0 && graph.holds(pending.node);
        let mapped = self.pending.iter().filter(is_held).count();
        mapped + self.tasks_of.count(|node| graph.holds(node))
    }

    #[cold]
    fn look_at_ends(&mut self) {
        let left = self.held_in_flight();
        self.ends.look(left);
    }

    /// Starts a request of `node`. `span` lies within the node; `segs` are its memory, kept valid by the caller until
    /// the end comes out (none for flush, discard, write-zeroes). `token` has its top bit clear.
    pub fn start(
        &mut self,
        node: NodeId,
        kind: Kind,
        span: Span,
        segs: &[Seg],
        token: u64,
    ) -> Started {
        debug_assert_eq!(token & MAPPED, 0);
        if self.graph.holds(node) {
            return Started::Held;
        }
        if let Some(dir) = kind.mapped_dir()
            && !span.is_empty()
            && self.thread.chooser.borrow_mut().may_map()
            && walk(&self.graph, node, dir, span, &mut self.plan) == Walk::Mapped
        {
            return self.start_mapped(node, kind, dir, segs, token);
        }
        self.start_task(node, kind, span, segs, token);
        Started::Pending
    }

    #[inline]
    fn start_mapped(
        &mut self,
        node: NodeId,
        kind: Kind,
        dir: Dir,
        segs: &[Seg],
        token: u64,
    ) -> Started {
        let files = self.plan.pieces().iter();
        let left = files.filter(|p| matches!(p.place, Place::File(..))).count();
        let thread = self.thread.clone();
        let mut ring = thread.ring.borrow_mut();
        if ring.room() < left {
            return Started::Full;
        }
        io::begin(&self.graph, &self.plan, dir);
        let slot = if left > 0 {
            self.hold((node, token), left as u32, dir)
        } else {
            0
        };
        let mut from = 0;
        for piece in self.plan.pieces() {
            let len = piece.len as usize;
            match piece.place {
                Place::Zero => ring::seg::zero(segs, from, len),
                Place::Void => {}
                Place::File(file, at) => {
                    let op = match kind {
                        Kind::Write(durability) => Op::Write {
                            file,
                            at,
                            durability,
                        },
                        _ => Op::Read { file, at },
                    };
                    ring.start(op, segs, from, len, MAPPED | u64::from(slot));
                }
            }
            from += len;
        }
        if left > 0 {
            return Started::Pending;
        }
        io::end(&self.graph, self.plan.passed(), dir, Ok(()));
        Started::Done(Ok(()))
    }

    #[inline]
    fn hold(&mut self, (node, token): (NodeId, u64), left: u32, dir: Dir) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| self.grow());
        self.in_flight += 1;
        let pending = &mut self.pending[slot as usize];
        pending.token = token;
        pending.node = node;
        pending.left = left;
        pending.outcome = Ok(());
        pending.pin = Some(self.thread.pins.borrow_mut().pin());
        pending.dir = dir;
        if !self.plan.passed().is_empty() {
            pending.passed.extend_from_slice(self.plan.passed());
            pending.graph = Some(self.graph.clone());
        }
        slot
    }

    /// One more slot: happens until as many requests have been in flight as ever will be.
    fn grow(&mut self) -> u32 {
        self.pending.push(Pending {
            token: 0,
            node: NodeId(0),
            left: 0,
            outcome: Ok(()),
            pin: None,
            dir: Dir::Read,
            passed: Vec::with_capacity(PASSED_MAX),
            graph: None,
        });
        (self.pending.len() - 1) as u32
    }

    fn start_task(&mut self, node: NodeId, kind: Kind, span: Span, segs: &[Seg], token: u64) {
        let io = self.io(node);
        let finished = self.finished.clone();
        let mem = Mem::borrowed(segs);
        let of = self.tasks_of.enter(node);
        self.in_flight += 1;
        self.tasks.spawn(Box::pin(async move {
            let _of = of;
            let outcome = io.request(node, Request { kind, span, mem }).await;
            finished.borrow_mut().push((token, outcome));
        }));
    }

    fn io(&self, node: NodeId) -> Io {
        Io {
            thread: self.thread.clone(),
            graph: Arc::clone(&self.graph),
            here: node,
        }
    }

    /// Runs tasks that can go on, then enters the ring once: submits, and waits as asked unless something is already to
    /// be had. Not between `begin_batch` and `end_batch`, whose lookups it would leave unpinned. Errors are the ring's own
    /// and final.
    pub fn turn(&mut self, wait: Wait) -> std::io::Result<()> {
        if self.graph.is_held() {
            self.look_at_ends();
        }
        self.tell_time();
        self.run_tasks();
        // What the tasks looked up and found slow is pinned no longer; else one that waits for the grace period would
        // wait for this very thread, asleep below.
        self.thread.pins.borrow_mut().settle();
        self.drop_done();
        let busy = self.next < self.done.len()
            || !self.finished.borrow().is_empty()
            || self.tasks.can_run();
        let wait = if busy { Wait::Not } else { wait };
        self.thread.ring.borrow_mut().turn(wait, &mut self.done)?;
        if self.graph.is_held() {
            self.ends.turned();
        }
        self.tell_time();
        self.run_tasks();
        Ok(())
    }

    /// A moment at which the time of the batch before is over.
    fn tell_time(&self) {
        let virtual_ns = match self.simulated {
            true => self.thread.ring.borrow_mut().virtual_ns(),
            false => None,
        };
        clock::goes_on(virtual_ns);
    }

    /// True if [`Lane::turn`] would find something without waiting; no system call.
    pub fn has_news(&self) -> bool {
        self.next < self.done.len()
            || !self.finished.borrow().is_empty()
            || self.tasks.can_run()
            || self.thread.ring.has_news()
    }

    /// True if there is a generation that [`Lane::begin_batch`] would adopt. Whoever silences the ring's bell after that asks
    /// before the thread sleeps: the bell may have been rung for a generation in between.
    pub fn is_behind(&self) -> bool {
        self.current.generation() != self.graph.generation()
    }

    /// True if operations were started that only the next turn hands to the kernel.
    pub fn has_unsubmitted(&self) -> bool {
        self.thread.ring.borrow_mut().has_unsubmitted()
    }

    /// True if a turn would hand something to the kernel; false for operations that wait for others to end.
    pub fn has_pushed(&self) -> bool {
        self.thread.ring.borrow_mut().has_pushed()
    }

    fn drop_done(&mut self) {
        if self.next == self.done.len() {
            self.done.clear();
            self.next = 0;
        }
    }

    /// The next end, if any is left of the last turn.
    pub fn take(&mut self) -> Option<Event> {
        while let Some(&done) = self.done.get(self.next) {
            self.next += 1;
            if done.token & MAPPED == 0 {
                let (token, result) = (done.token, done.result);
                return Some(Event::Signal { token, result });
            }
            if let Some(event) = self.mapped_piece_done((done.token & !MAPPED) as u32, done.result)
            {
                return Some(event);
            }
        }
        let (token, outcome) = self.finished.borrow_mut().pop()?;
        self.in_flight -= 1;
        Some(Event::Finished { token, outcome })
    }

    fn mapped_piece_done(&mut self, slot: u32, result: Result<(), Errno>) -> Option<Event> {
        let pending = self.pending.get_mut(slot as usize)?;
        pending.outcome = pending.outcome.and(result);
        pending.left -= 1;
        if pending.left > 0 {
            return None;
        }
        self.free.push(slot);
        self.in_flight -= 1;
        if let Some(graph) = pending.graph.take() {
            io::end(&graph, &pending.passed, pending.dir, pending.outcome);
            pending.passed.clear();
        }
        if let Some(pin) = pending.pin.take() {
            self.thread.pins.borrow_mut().unpin(pin);
        }
        Some(Event::Finished {
            token: pending.token,
            outcome: pending.outcome,
        })
    }

    /// Moves to the newest generation; requests in flight stay on theirs.
    fn adopt(&mut self) {
        self.graph = Rc::new(self.current.get());
        self.ends.forget();
        self.adopt_files(&self.graph);
        self.spawn_held();
    }

    fn adopt_files(&self, graph: &Graph) {
        let mut ring = self.thread.ring.borrow_mut();
        for file in graph.files() {
            ring.adopt(file);
        }
        for file in graph.gone() {
            ring.forget(*file);
        }
    }
}
