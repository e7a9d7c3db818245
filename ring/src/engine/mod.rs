//! What carries operations out: the kernel's ring, a pool of threads where that is refused, or a simulated disk.
//!
//! The rule: an engine does one transfer of an operation and reports what the kernel said; finishing short transfers,
//! bouncing and retrying is the ring's business (`transfer.rs`), the same for all three.

pub(crate) mod pool;
pub(crate) mod uring;
pub(crate) mod watch;

use crate::file::{FileId, Syncs};
use crate::op::SyncLevel;
use crate::seg::Seg;
use crate::sim;
use crate::wait::Wait;
use std::os::fd::RawFd;

/// A file as an engine addresses it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    /// The process's name for it.
    pub id: FileId,
    /// Its descriptor.
    pub fd: RawFd,
    /// Its place in the kernel ring's own table, if it has one.
    pub fixed: Option<u32>,
    /// Are writes that must be durable written so?
    pub syncs: Syncs,
}

/// How space is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    /// FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
    Punch,
    /// FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE
    Zero,
}

impl Space {
    /// The flags of fallocate(2).
    pub(crate) fn mode(self) -> i32 {
        match self {
            Space::Punch => libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            Space::Zero => libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
        }
    }
}

/// One step for an engine. What it points to stays valid until its end is reported: the ring's slot sees to it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step<'a> {
    Read {
        file: Target,
        at: u64,
        segs: &'a [Seg],
    },
    Write {
        file: Target,
        at: u64,
        segs: &'a [Seg],
        through: bool,
    },
    Sync {
        file: Target,
        level: SyncLevel,
    },
    Space {
        file: Target,
        how: Space,
        at: u64,
        len_bytes: u64,
    },
    Truncate {
        file: Target,
        len_bytes: u64,
    },
    Poll {
        fd: RawFd,
    },
    Signal {
        fd: RawFd,
    },
    Timeout {
        ns: u64,
        /// The same, as the kernel wants it.
        spec: &'a io_uring::types::Timespec,
    },
    Cancel {
        target: u64,
    },
}

/// What an engine reports: the kernel's result, and whether more will come for the same step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Report {
    pub user_data: u64,
    pub result: i32,
    pub more: bool,
}

/// Reports with this user_data are dropped: nobody waits for them.
pub(crate) const NOBODY: u64 = u64::MAX;

/// A step that did not fit; enter the engine and try again.
#[derive(Debug)]
pub(crate) struct QueueFull;

#[derive(Debug)]
pub(crate) enum Engine {
    Uring(Box<uring::Uring>),
    Pool(Box<pool::Pool>),
    Sim(Box<sim::Queue>),
}

impl Engine {
    #[inline]
    pub(crate) fn push(&mut self, step: Step<'_>, user_data: u64) -> Result<(), QueueFull> {
        match self {
            Engine::Uring(uring) => uring.push(step, user_data),
            Engine::Pool(pool) => pool.push(step, user_data),
            Engine::Sim(sim) => sim.push(step, user_data),
        }
    }

    /// False if files cannot be truncated here.
    pub(crate) fn can_truncate(&self) -> bool {
        match self {
            Engine::Uring(uring) => uring.can_truncate(),
            Engine::Pool(_) | Engine::Sim(_) => true,
        }
    }

    /// Submits, waits as asked, and appends what has ended.
    #[inline]
    pub(crate) fn turn(&mut self, wait: Wait, out: &mut Vec<Report>) -> std::io::Result<()> {
        match self {
            Engine::Uring(uring) => uring.turn(wait, out),
            Engine::Pool(pool) => pool.turn(wait, out),
            Engine::Sim(sim) => sim.turn(wait, out),
        }
    }

    /// True if a turn would find something without waiting.
    pub(crate) fn has_news(&mut self) -> bool {
        match self {
            Engine::Uring(uring) => uring.has_news(),
            Engine::Pool(pool) => pool.has_news(),
            Engine::Sim(sim) => sim.has_news(),
        }
    }

    /// True if steps were pushed that only the next turn submits.
    pub(crate) fn has_unsubmitted(&mut self) -> bool {
        match self {
            Engine::Uring(uring) => uring.has_unsubmitted(),
            // Both begin a step when it is pushed.
            Engine::Pool(_) | Engine::Sim(_) => false,
        }
    }

    /// Gives `fd` a place in the kernel ring's table, if it has one to spare.
    pub(crate) fn fix(&mut self, fd: RawFd) -> Option<u32> {
        match self {
            Engine::Uring(uring) => uring.fix(fd),
            Engine::Pool(_) | Engine::Sim(_) => None,
        }
    }

    /// Takes back the place that `fix` gave.
    pub(crate) fn unfix(&mut self, at: u32) {
        if let Engine::Uring(uring) = self {
            uring.unfix(at);
        }
    }
}
