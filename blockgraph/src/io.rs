//! The serve path: a request as ordinary async code, coming back to the fast walk for everything below it.
//!
//! The rule: policies every node has (read-only, discard, detect-zeroes, bounds) are obeyed here, once, so that no
//! driver repeats them.

use crate::bitmap::MarkAtEnd;
use crate::filter::blkdebug::BlkdebugEvent;
use crate::graph::{
    Access, Activity, Body, Common, DetectZeroes, DiscardPolicy, Graph, Node, Role,
};
use crate::map::{Passed, Place, Plan, Walk, walk};
use crate::mode::Chooser;
use crate::node::{Filter, Local, NodeId, Outcome};
use crate::pin::{Epochs, Pins};
use crate::request::{Dir, Kind, Prealloc, Request, Unmap};
use crate::status::Status;
use crate::units::Span;
use ring::{Durability, Errno, Mem, Op};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

/// What a thread shares between its fast path and its tasks.
pub struct Thread {
    pub(crate) ring: ring::Handle,
    pub(crate) pins: RefCell<Pins>,
    pub(crate) chooser: RefCell<Chooser>,
    /// Work that runs to its end whatever becomes of the request that began it, and of which node it is; the lane makes tasks
    /// of it.
    pub(crate) aside: RefCell<Vec<(NodeId, Local<'static, ()>)>>,
}

impl std::fmt::Debug for Thread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Thread").finish_non_exhaustive()
    }
}

/// A task's way to nodes and files, on one generation of the graph, as the node it serves sees them.
#[derive(Clone, Debug)]
pub struct Io {
    pub(crate) thread: Rc<Thread>,
    pub(crate) graph: Arc<Graph>,
    pub(crate) here: NodeId,
}

/// What the common policies made of a request.
enum Decision {
    Done,
    Go(Request),
}

impl Io {
    /// The generation this task runs on.
    pub fn graph(&self) -> &Arc<Graph> {
        &self.graph
    }

    /// The node that is being served: the asked one outside of a driver.
    pub fn here(&self) -> NodeId {
        self.here
    }

    /// The same, as `node` sees it.
    pub fn at(&self, node: NodeId) -> Io {
        Io {
            here: node,
            ..self.clone()
        }
    }

    /// The same on a generation of the caller's own making, whose new files this thread adopts.
    pub(crate) fn on(&self, graph: Arc<Graph>, here: NodeId) -> Io {
        for file in graph.files() {
            self.thread.ring.borrow_mut().adopt(file);
        }
        Io {
            thread: self.thread.clone(),
            graph,
            here,
        }
    }

    /// Lets go of the files of a node of such a generation.
    pub(crate) fn forget_files(&self, node: NodeId) {
        for file in self.graph.node(node).map_or(&[][..], Node::files) {
            self.thread.ring.borrow_mut().forget(file.id());
        }
    }

    /// The child of that role of the node being served. Errors: EIO if it has none.
    pub fn child(&self, role: Role) -> Result<NodeId, Errno> {
        let child = self.node(self.here)?.shape().child(role);
        child.ok_or(Errno::IO)
    }

    /// Asks a child of the node being served. Errors: as [`Io::request`].
    pub fn below(&self, role: Role, request: Request) -> Local<'_, Outcome> {
        match self.child(role) {
            Ok(child) => self.request(child, request),
            Err(errno) => Box::pin(std::future::ready(Err(errno))),
        }
    }

    /// Asks `node`. Errors: EROFS for a change of a read-only node, EINVAL past its end, and whatever it answers.
    pub fn request(&self, node: NodeId, request: Request) -> Local<'_, Outcome> {
        Box::pin(self.dispatch(node, request))
    }

    /// Reads `mem.len()` bytes at `at` of `node`.
    pub async fn read(&self, node: NodeId, at: u64, mem: &Mem) -> Outcome {
        let span = Span::new(at, mem.len() as u64).ok_or(Errno::INVAL)?;
        let mem = mem.clone();
        let kind = Kind::Read;
        self.request(node, Request { kind, span, mem }).await
    }

    /// Writes `mem` at `at` of `node`.
    pub async fn write(&self, node: NodeId, at: u64, mem: &Mem) -> Outcome {
        let span = Span::new(at, mem.len() as u64).ok_or(Errno::INVAL)?;
        let mem = mem.clone();
        let kind = Kind::Write(Durability::Cached);
        self.request(node, Request { kind, span, mem }).await
    }

    /// What is known of the beginning of `span` of `node`; filters answer as what they filter.
    pub async fn status(&self, node: NodeId, span: Span) -> Result<Status, Errno> {
        let id = self.skip_filters(node)?;
        match self.node(id)?.body() {
            Body::Driver(driver) => driver.status(&self.at(id), span).await,
            Body::Filter(_) => Err(Errno::IO),
        }
    }

    /// Bytes of storage that `node` takes up, without what is below it in a backing chain. Errors: ENOTSUP where nobody knows.
    pub async fn allocated(&self, node: NodeId) -> Result<u64, Errno> {
        let id = self.skip_filters(node)?;
        match self.node(id)?.body() {
            Body::Driver(driver) => driver.allocated(&self.at(id)).await,
            Body::Filter(_) => Err(Errno::IO),
        }
    }

    fn skip_filters(&self, node: NodeId) -> Result<NodeId, Errno> {
        let mut id = node;
        for _ in 0..crate::map::DEPTH_MAX {
            match self.node(id)?.shape().filtered() {
                Some(below) => id = below,
                None => return Ok(id),
            }
        }
        Err(Errno(libc::ELOOP))
    }

    /// Changes the size of `node`. Errors: EROFS for a read-only node, and whatever it answers.
    pub async fn truncate(&self, node: NodeId, size_bytes: u64, how: Prealloc) -> Outcome {
        self.truncate_driver(node, size_bytes, how).await?;
        self.resize_bitmaps(node, size_bytes)
    }

    /// `node` has another size: so have its bitmaps, and those of the filters and of what is filtered below it. What is beyond a
    /// new end must not be dirty when the node grows again.
    pub(crate) fn resize_bitmaps(&self, node: NodeId, size_bytes: u64) -> Outcome {
        let mut id = node;
        for _ in 0..crate::map::DEPTH_MAX {
            let node = self.node(id)?;
            node.bitmaps().resize(size_bytes);
            match node.shape().filtered() {
                Some(below) => id = below,
                None => return Ok(()),
            }
        }
        Err(Errno(libc::ELOOP))
    }

    async fn truncate_driver(&self, node: NodeId, size_bytes: u64, how: Prealloc) -> Outcome {
        let mut id = node;
        for _ in 0..crate::map::DEPTH_MAX {
            let node = self.node(id)?;
            check_writes(&node.common())?;
            node.bitmaps().say_a_word(self).await;
            match node.body() {
                Body::Driver(driver) => {
                    return driver.truncate(&self.at(id), size_bytes, how).await;
                }
                Body::Filter(_) => id = self.at(id).child(Role::Filtered)?,
            }
        }
        Err(Errno(libc::ELOOP))
    }

    /// Tells the child of that role what the node being served is about to do with it, for rules that wait for it
    /// (`filter/blkdebug`). Costs a look at the child and is not for the mapped path.
    pub fn event(&self, role: Role, event: BlkdebugEvent) {
        let child = self.child(role).and_then(|child| self.node(child));
        if let Ok(Body::Driver(driver)) = child.map(Node::body) {
            driver.event(event);
        }
    }

    /// Runs one operation on a file of this thread's ring.
    pub async fn file(&self, op: Op, mem: Mem) -> Outcome {
        self.thread.ring.run(op, mem).await
    }

    /// Runs `work` to its end as a task of this thread and of the node being served; the thread does not end before it.
    pub(crate) fn run_aside(&self, work: impl Future<Output = ()> + 'static) {
        let work = Box::pin(work);
        self.thread.aside.borrow_mut().push((self.here, work));
    }

    /// Waits at least `ns` nanoseconds.
    pub async fn sleep(&self, ns: u64) {
        // A timeout has no other way to end than to end; an error would only make it short.
        let _ = self.thread.ring.run(Op::Timeout { ns }, Mem::none()).await;
    }

    /// Waits until every mapped request that was under way at the call, on any thread, has completed.
    pub async fn grace(&self) {
        let epochs: Arc<Epochs> = self.thread.pins.borrow().epochs().clone();
        epochs.grace().await;
    }

    /// Begins such a wait for [`Io::has_passed`] to ask about.
    pub(crate) fn begin_grace(&self) -> u64 {
        self.thread.pins.borrow().epochs().begin_grace()
    }

    /// Have they all completed?
    pub(crate) fn has_passed(&self, grace: u64) -> bool {
        self.thread.pins.borrow().epochs().has_passed(grace)
    }

    fn node(&self, id: NodeId) -> Result<&Node, Errno> {
        self.graph.node(id).ok_or(Errno::IO)
    }

    async fn dispatch(&self, id: NodeId, request: Request) -> Outcome {
        let node = self.node(id)?;
        let request = match self.decide(id, node, request)? {
            Decision::Done => return Ok(()),
            Decision::Go(request) => request,
        };
        // Let go of after the bitmaps are marked.
        let _covering = match request.kind.writes() {
            true => node.bitmaps().cover(self, request.span).await?,
            false => None,
        };
        if request.kind == Kind::Flush {
            node.bitmaps().say_a_word(self).await;
        }
        let _marks = request.kind.writes().then(|| MarkAtEnd {
            tracker: node.bitmaps(),
            span: request.span,
        });
        match node.body() {
            Body::Filter(filter) => self.at(id).pass(filter.as_ref(), request).await,
            Body::Driver(driver) => match self.mapped(id, &request) {
                Some(plan) => self.run(&plan, &request).await,
                None => driver.serve(&self.at(id), request).await,
            },
        }
    }

    fn decide(&self, id: NodeId, node: &Node, mut request: Request) -> Result<Decision, Errno> {
        if request.kind == Kind::Flush {
            return Ok(Decision::Go(request));
        }
        let info = self.graph.info(id).ok_or(Errno::IO)?;
        if request.span.end() > info.size_bytes {
            return Err(Errno::INVAL);
        }
        let common = node.common();
        if request.kind.writes() {
            check_writes(&common)?;
        }
        if request.span.is_empty() {
            return Ok(Decision::Done);
        }
        if request.kind.writes() {
            node.tell_threshold(request.span);
        }
        if let Kind::Write(durability) = request.kind
            && common.detect_zeroes != DetectZeroes::Off
            && request.mem.is_zero()
        {
            let unmap = match common.detect_zeroes {
                DetectZeroes::Unmap => Unmap::Allow,
                _ => Unmap::Keep,
            };
            request = Request::plain(Kind::WriteZeroes(unmap, durability), request.span);
        }
        if common.discard == DiscardPolicy::Ignore {
            match request.kind {
                Kind::Discard => return Ok(Decision::Done),
                Kind::WriteZeroes(_, durability) => {
                    request.kind = Kind::WriteZeroes(Unmap::Keep, durability);
                }
                _ => {}
            }
        }
        Ok(Decision::Go(request))
    }

    async fn pass(&self, filter: &dyn Filter, request: Request) -> Outcome {
        let (dir, span) = (request.kind.dir(), request.span);
        let below = self.child(Role::Filtered)?;
        if request.kind == Kind::Flush {
            return self.request(below, request).await;
        }
        while !filter.ready(dir, span) {
            filter.before(self, dir, span).await?;
        }
        filter.begin(dir, span);
        let outcome = self.request(below, request).await;
        filter.end(dir, span, outcome);
        outcome
    }

    fn mapped(&self, id: NodeId, request: &Request) -> Option<Plan> {
        let dir = request.kind.mapped_dir()?;
        if !self.thread.chooser.borrow_mut().may_map() {
            return None;
        }
        // The policies of this node are obeyed already, and `walk` would stop at them again.
        if dir == Dir::Write && self.node(id).ok()?.writes_serve() {
            return None;
        }
        self.thread.pins.borrow_mut().refresh();
        let mut plan = Plan::default();
        match walk(&self.graph, id, dir, request.span, &mut plan) {
            Walk::Mapped => Some(plan),
            Walk::Slow => None,
        }
    }

    /// Carries out a plan that was made with pins just refreshed; nothing may await in between.
    async fn run(&self, plan: &Plan, request: &Request) -> Outcome {
        let pin = self.thread.pins.borrow_mut().pin();
        let _unpin = Unpin { io: self, pin };
        begin(&self.graph, plan, request.kind.dir());
        let mut running = Vec::with_capacity(plan.pieces().len());
        let mut from = 0;
        for piece in plan.pieces() {
            let mem = request.mem.slice(from, piece.len as usize);
            from += piece.len as usize;
            match piece.place {
                Place::Zero => mem.zero(),
                Place::Void => {}
                Place::File(file, at) => {
                    let op = match request.kind {
                        Kind::Write(durability) => Op::Write {
                            file,
                            at,
                            durability,
                        },
                        _ => Op::Read { file, at },
                    };
                    running.push(self.thread.ring.run(op, mem));
                }
            }
        }
        let mut outcome = Ok(());
        for op in running {
            outcome = outcome.and(op.await);
        }
        end(&self.graph, plan.passed(), request.kind.dir(), outcome);
        outcome
    }
}

/// Errors: EROFS for a node that takes no writes, EPERM for one whose image another process has.
fn check_writes(common: &Common) -> Outcome {
    match (common.access, common.activity) {
        (Access::ReadOnly, _) => Err(Errno::RDONLY),
        (_, Activity::Inactive) => Err(Errno::PERM),
        _ => Ok(()),
    }
}

struct Unpin<'a> {
    io: &'a Io,
    pin: crate::pin::Pin,
}

impl Drop for Unpin<'_> {
    fn drop(&mut self) {
        self.io.thread.pins.borrow_mut().unpin(self.pin);
    }
}

/// Tells the filters of a plan that the request passes.
#[inline]
pub(crate) fn begin(graph: &Graph, plan: &Plan, dir: Dir) {
    for passed in plan.passed() {
        if let Some(Body::Filter(filter)) = graph.node(passed.node).map(Node::body) {
            filter.begin(dir, passed.span);
        }
    }
}

/// Tells the filters of a plan, lowest first, how the request ended, and marks bitmaps: a write that failed may have been
/// written all the same.
#[inline]
pub(crate) fn end(graph: &Graph, passed: &[Passed], dir: Dir, outcome: Outcome) {
    for passed in passed.iter().rev() {
        let Some(node) = graph.node(passed.node) else {
            continue;
        };
        if dir == Dir::Write && node.bitmaps().is_recording() {
            node.bitmaps().mark(passed.span);
        }
        if let Body::Filter(filter) = node.body() {
            filter.end(dir, passed.span, outcome);
        }
    }
}
