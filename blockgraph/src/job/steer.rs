//! What a job at work is told: by the control thread, read by the job's own between two steps.
//!
//! The rule: to be told costs the job nothing but a look at a lock that is free; whoever tells it something wakes it.

use ring::Bell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How a job is to end before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancel {
    /// In order: one that is ready leaves a complete copy behind.
    Soft,
    /// At once, whatever that leaves behind.
    Force,
}

/// What is wanted of a job now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// To end.
    pub cancel: Option<Cancel>,
    /// To rest.
    pub pause: bool,
    /// To do its last step, of a job that is ready.
    pub complete: bool,
    /// To copy so many bytes a second at most; 0 is no limit.
    pub speed_bytes: u64,
}

/// Where wishes are left.
#[derive(Debug, Default)]
pub struct Steer {
    wish: Mutex<Wish>,
    /// The job's, once it is at work.
    bell: Mutex<Option<Bell>>,
    /// Transfers of the job are under way.
    busy: AtomicBool,
}

impl Steer {
    /// What is wanted now.
    pub fn wish(&self) -> Wish {
        *self.lock()
    }

    /// Wants something else from now on, and wakes the job.
    pub fn change(&self, change: impl FnOnce(&mut Wish)) {
        change(&mut self.lock());
        self.wake();
    }

    /// Is it to end?
    pub fn is_cancelled(&self) -> bool {
        self.lock().cancel.is_some()
    }

    /// Has the job look around.
    pub fn wake(&self) {
        let bell = self.bell.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bell) = &*bell {
            bell.ring();
        }
    }

    /// Are transfers of the job under way?
    pub fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed)
    }

    /// From now on the job is woken by `bell`.
    pub(super) fn listen(&self, bell: Bell) {
        *self.bell.lock().unwrap_or_else(PoisonError::into_inner) = Some(bell);
    }

    pub(super) fn set_busy(&self, busy: bool) {
        self.busy.store(busy, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Wish> {
        self.wish.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
