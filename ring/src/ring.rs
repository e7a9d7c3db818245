//! One thread's ring: operations go in, ends come out, each exactly once.
//!
//! The rule: nothing above sees a short transfer, EINTR, EAGAIN or a full queue, and nothing below outlives its slot.

mod launch;
mod settle;

use crate::engine::pool::Pool;
use crate::engine::uring::{Flavour, Uring};
use crate::engine::{Engine, NOBODY, Report, Step, Target};
use crate::file::{Align, File};
use crate::op::{Done, Errno, Op, OpId};
use crate::seg::{self, Seg};
use crate::sim;
use crate::slots::{Owner, Slots, Stage};
use crate::wait::{Bell, Wait};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::task::Waker;

/// Operations in flight on one ring; more is back-pressure.
pub const SLOTS: u32 = 2048;
/// Bounce memory of one ring, in bytes; transfers beyond wait for others to end.
const BOUNCE_BYTES_TOTAL_MAX: usize = 64 << 20;

/// Slots that transfers leave to polls and timers, so that a kick is heard however busy the ring is.
const RESERVE: usize = 256;

/// What carries a ring's operations out.
#[derive(Clone, Debug)]
pub enum Choice {
    /// io_uring, or threads where the kernel refuses it.
    Best,
    /// io_uring or an error.
    Uring(Option<Flavour>),
    /// A pool of threads.
    Threads,
    /// A simulated disk, for tests.
    Sim(sim::Disk),
}

/// A file the ring knows.
#[derive(Debug)]
struct Known {
    target: Target,
    align: Align,
    open: Arc<File>,
}

/// The ring of one thread.
#[derive(Debug)]
pub struct Ring {
    engine: Engine,
    slots: Slots,
    files: Vec<Option<Known>>,
    /// Slots whose step did not fit anywhere yet.
    backlog: VecDeque<u32>,
    bounced_bytes: usize,
    reports: Vec<Report>,
    bell: Bell,
    /// Futures that wait for a slot.
    starved: Vec<Waker>,
}

/// A file that a ring keeps open, see [`Ring::hold`].
#[derive(Debug)]
pub struct Holding(u32);

impl Ring {
    /// A ring for the calling thread, and it alone. Errors: io_uring refused (EPERM, ENOSYS) where it is insisted on,
    /// or out of memory, descriptors or threads.
    pub fn new(choice: Choice) -> io::Result<Ring> {
        let engine = match choice {
            Choice::Best => match Uring::new(None) {
                Ok(uring) => Engine::Uring(Box::new(uring)),
                Err(_) => Engine::Pool(Box::new(Pool::new()?)),
            },
            Choice::Uring(flavour) => Engine::Uring(Box::new(Uring::new(flavour)?)),
            Choice::Threads => Engine::Pool(Box::new(Pool::new()?)),
            Choice::Sim(disk) => Engine::Sim(Box::new(sim::Queue::new(disk)?)),
        };
        Ok(Ring {
            engine,
            slots: Slots::new(SLOTS),
            files: Vec::new(),
            backlog: VecDeque::new(),
            bounced_bytes: 0,
            reports: Vec::with_capacity(256),
            bell: Bell::new()?,
            starved: Vec::new(),
        })
    }

    /// What carries its operations out, in a word or two, for logs and tests.
    pub fn engine_name(&self) -> &'static str {
        match &self.engine {
            Engine::Uring(uring) => match uring.flavour() {
                Flavour::DeferTaskrun => "io_uring, deferred task work",
                Flavour::CoopTaskrun => "io_uring, cooperative task work",
                Flavour::Plain => "io_uring",
            },
            Engine::Pool(_) => "threads",
            Engine::Sim(_) => "simulated disk",
        }
    }

    /// The bell that tasks of this ring ring; arm [`Op::Poll`] on it to be woken by it.
    pub fn bell(&self) -> Bell {
        self.bell.clone()
    }

    /// Makes a file known, so that operations may name it; the ring keeps it open.
    pub fn adopt(&mut self, file: &Arc<File>) {
        let at = file.id().0 as usize;
        if self.files.len() <= at {
            self.files.resize_with(at + 1, || None);
        }
        if self.files[at].is_none() {
            let fd = file.as_raw_fd();
            self.files[at] = Some(Known {
                target: Target {
                    id: file.id(),
                    fd,
                    fixed: self.engine.fix(fd),
                    syncs: file.syncs(),
                },
                align: file.align(),
                open: file.clone(),
            });
        }
    }

    /// Lets go of a file that no operation names any more, nor ever will; one it does not know is no matter.
    pub fn forget(&mut self, file: crate::FileId) {
        let known = self.files.get_mut(file.0 as usize).and_then(Option::take);
        if let Some(at) = known.and_then(|known| known.target.fixed) {
            self.engine.unfix(at);
        }
    }

    /// Keeps a file open for as long as operations of this ring may be under way, be it after this process has ended: the
    /// kernel closes it when the last of them has. `None` where it has no place for it, or threads do the work: these
    /// end with the process.
    pub fn hold(&mut self, fd: BorrowedFd<'_>) -> Option<Holding> {
        self.engine.fix(fd.as_raw_fd()).map(Holding)
    }

    /// It need not be kept open any longer.
    pub fn let_go(&mut self, held: Holding) {
        self.engine.unfix(held.0);
    }

    /// How many operations may be started now; a few slots are kept for polls and timers.
    pub fn room(&self) -> usize {
        self.slots.room().saturating_sub(RESERVE)
    }

    /// Starts an operation on `len_bytes` bytes of `segs` from byte `from` (none for operations without memory). Its end
    /// comes out of [`Ring::turn`] with `token`. The caller keeps the memory valid until then, and has looked at
    /// [`Ring::room`]. The name is good for [`Op::Cancel`].
    #[inline]
    pub fn start(
        &mut self,
        op: Op,
        segs: &[Seg],
        from: usize,
        len_bytes: usize,
        token: u64,
    ) -> Option<OpId> {
        let id = self.slots.take(op, Owner::Token(token))?;
        let slot = self.slots.get(id.slot);
        slot.len_bytes = len_bytes;
        match segs {
            [seg] => slot.segs.push(seg.part(from, len_bytes)),
            _ => slot.segs.extend(seg::window(segs, from, len_bytes)),
        }
        self.launch(id.slot);
        Some(id)
    }

    /// Starts an [`Op::Signal`] or [`Op::Cancel`] whose end nobody needs; takes no slot. Others are not started.
    pub fn tell(&mut self, op: Op) {
        let step = match op {
            Op::Signal { fd } => Step::Signal { fd },
            Op::Cancel { target } => {
                self.mark_cancelled(target);
                Step::Cancel {
                    target: target.user_data(),
                }
            }
            _ => return,
        };
        if self.engine.push(step, NOBODY).is_ok() {
            return;
        }
        self.submit();
        if self.engine.push(step, NOBODY).is_ok() {
            return;
        }
        // The kernel takes nothing now, for want of memory. A signal must not be lost, or its reader waits for ever; what
        // should have been cancelled ends by itself.
        if let Op::Signal { fd } = op {
            crate::sys::signal(fd);
        }
    }

    /// Sees to it that no further step of `target` is begun: the engine only knows of the one under way, if any.
    fn mark_cancelled(&mut self, target: OpId) {
        let Some(slot) = self.slots.find(target) else {
            return;
        };
        slot.cancelled = true;
        if let Some(at) = self.backlog.iter().position(|&slot| slot == target.slot) {
            self.backlog.remove(at);
            self.fail(target.slot, Errno::CANCELED);
        }
    }

    /// Submits what was started, waits as asked, and appends the ends of operations started with tokens. Errors: the
    /// kernel's own and final (a ring that is no ring).
    #[inline]
    pub fn turn(&mut self, wait: Wait, out: &mut Vec<Done>) -> io::Result<()> {
        if !self.backlog.is_empty() {
            self.retry_backlog();
        }
        let wait = if self.reports.is_empty() {
            wait
        } else {
            Wait::Not
        };
        let mut reports = std::mem::take(&mut self.reports);
        let turned = self.engine.turn(wait, &mut reports);
        for report in reports.drain(..) {
            self.settle(report, out);
        }
        self.reports.append(&mut reports);
        if self.reports.capacity() == 0 {
            self.reports = reports;
        }
        turned
    }

    /// The time on a simulated disk, in nanoseconds since its ring was made; `None` where time is the machine's.
    pub fn virtual_ns(&self) -> Option<u64> {
        match &self.engine {
            Engine::Sim(sim) => Some(sim.now_ns()),
            Engine::Uring(_) | Engine::Pool(_) => None,
        }
    }

    /// Submits what was started and told, without waiting; what ends meanwhile comes out of the next turn.
    pub fn submit(&mut self) {
        // A final error shows again at the next turn, where it can be returned.
        let _ = self.engine.turn(Wait::Not, &mut self.reports);
    }

    /// True if a turn would find something without waiting; no system call.
    pub fn has_news(&mut self) -> bool {
        !self.reports.is_empty() || self.engine.has_news()
    }

    /// True if a turn would hand something to the kernel: as [`Ring::has_unsubmitted`], but for what waits for others to end.
    pub fn has_pushed(&mut self) -> bool {
        self.engine.has_unsubmitted()
    }

    /// True if operations were started that only the next turn hands to the kernel.
    pub fn has_unsubmitted(&mut self) -> bool {
        !self.backlog.is_empty() || self.engine.has_unsubmitted()
    }

    pub(crate) fn start_for_future(&mut self, op: Op, mem: Option<crate::Mem>) -> Option<OpId> {
        if self.room() == 0 {
            return None;
        }
        let id = self.slots.take(op, Owner::Future(None))?;
        let slot = self.slots.get(id.slot);
        if let Some(mem) = mem {
            slot.len_bytes = mem.len();
            slot.segs.extend(mem.segs());
            slot.keep = Some(mem);
        }
        self.launch(id.slot);
        Some(id)
    }

    /// The end of a future's operation, if it is over; else the waker is left with it.
    pub(crate) fn take_end(&mut self, id: OpId, waker: &Waker) -> Option<Result<(), Errno>> {
        let Some(slot) = self.slots.find(id) else {
            return Some(Err(Errno::CANCELED));
        };
        if let Stage::Over(result) = slot.stage {
            self.release(id.slot);
            return Some(result);
        }
        slot.owner = Owner::Future(Some(waker.clone()));
        None
    }

    /// The future is gone: the slot lives on until the kernel is done with it.
    pub(crate) fn orphan(&mut self, id: OpId) {
        let Some(slot) = self.slots.find(id) else {
            return;
        };
        if let Stage::Over(_) = slot.stage {
            return self.release(id.slot);
        }
        slot.owner = Owner::Orphan;
        self.tell(Op::Cancel { target: id });
    }

    /// Frees a slot, for whoever waits for one.
    #[inline]
    fn release(&mut self, at: u32) {
        self.slots.release(at);
        if !self.starved.is_empty() {
            self.starved.drain(..).for_each(Waker::wake);
        }
    }

    pub(crate) fn starve(&mut self, waker: &Waker) {
        self.starved.push(waker.clone());
    }
}

impl Drop for Ring {
    /// Waits for the kernel to let go of every slot's memory. Whoever drops a ring with guest I/O in flight waits for
    /// that I/O; polls and timers are cancelled.
    fn drop(&mut self) {
        let mut ends = Vec::new();
        for id in self.slots.busy() {
            self.tell(Op::Cancel { target: id });
        }
        while !self.slots.busy().is_empty() {
            if self.turn(Wait::One, &mut ends).is_err() {
                // The ring is lost, but the kernel may still be at work: its memory is never used for anything else.
                std::mem::forget(std::mem::replace(&mut self.slots, Slots::new(0)));
                return;
            }
        }
    }
}
