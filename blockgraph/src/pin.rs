//! Who is still using what was looked up: pins, counted per thread, and the grace period that outlives them.
//!
//! The rule: a thread pins first and looks up second; whoever changes what a lookup may answer publishes the change,
//! then awaits [`Epochs::grace`], and only then relies on it. Pinning costs a thread one store and one fence per batch,
//! not per request.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

const IDLE: u64 = u64::MAX;

/// The clock that all threads of a process share.
#[derive(Debug, Default)]
pub struct Epochs {
    now: AtomicU64,
    threads: Mutex<Vec<Arc<Oldest>>>,
    waiting: AtomicBool,
    waiters: Mutex<Vec<Waker>>,
}

/// The oldest epoch a thread still has pinned.
#[derive(Debug)]
struct Oldest(AtomicU64);

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Epochs {
    /// Waits until everything pinned before the call has been unpinned.
    pub async fn grace(&self) {
        let epoch = self.begin_grace();
        poll_fn(|cx| {
            if self.has_passed(epoch) {
                return Poll::Ready(());
            }
            crate::waiting::enter(&mut lock(&self.waiters), cx);
            self.waiting.store(true, Ordering::SeqCst);
            if self.has_passed(epoch) {
                return Poll::Ready(());
            }
            Poll::Pending
        })
        .await;
    }

    /// Begins a grace period, for whoever asks now and then instead of waiting.
    pub fn begin_grace(&self) -> u64 {
        self.now.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Has everything been unpinned that was pinned before that one began?
    pub fn has_passed(&self, epoch: u64) -> bool {
        fence(Ordering::SeqCst);
        let threads = lock(&self.threads);
        threads.iter().all(|t| t.0.load(Ordering::SeqCst) >= epoch)
    }

    fn wake(&self) {
        self.waiting.store(false, Ordering::SeqCst);
        for waker in std::mem::take(&mut *lock(&self.waiters)) {
            waker.wake();
        }
    }
}

/// A pinned epoch; given back with [`Pins::unpin`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pin(u64);

/// One thread's pins.
#[derive(Debug)]
pub struct Pins {
    epochs: Arc<Epochs>,
    oldest: Arc<Oldest>,
    /// How many pins of each epoch are out, oldest first.
    out: VecDeque<(u64, u32)>,
}

impl Pins {
    /// Pins for the calling thread.
    pub fn new(epochs: Arc<Epochs>) -> Pins {
        let oldest = Arc::new(Oldest(AtomicU64::new(IDLE)));
        lock(&epochs.threads).push(oldest.clone());
        Pins {
            epochs,
            oldest,
            out: VecDeque::with_capacity(8),
        }
    }

    /// Before a batch of lookups: from here until [`Pins::settle`] nothing that is looked up is taken away.
    pub fn refresh(&mut self) {
        let now = self.epochs.now.load(Ordering::Acquire);
        match self.out.back() {
            Some(&(epoch, _)) if epoch == now => return,
            Some(_) => {}
            None => self.oldest.0.store(now, Ordering::SeqCst),
        }
        self.out.push_back((now, 0));
        // Pairs with the fence in `has_passed`: either the waiter sees our epoch, or we see what it published before.
        fence(Ordering::SeqCst);
    }

    /// Pins the epoch of the last [`Pins::refresh`].
    pub fn pin(&mut self) -> Pin {
        match self.out.back_mut() {
            Some((epoch, count)) => {
                *count += 1;
                Pin(*epoch)
            }
            None => {
                self.refresh();
                self.pin()
            }
        }
    }

    /// Gives one pin back.
    pub fn unpin(&mut self, pin: Pin) {
        let entry = self.out.iter_mut().find(|(epoch, _)| *epoch == pin.0);
        debug_assert!(entry.is_some(), "unpinned an epoch that was never pinned");
        if let Some((_, count)) = entry {
            *count -= 1;
        }
    }

    /// After a batch: lets go of epochs nobody pins any more and tells who waits for that.
    pub fn settle(&mut self) {
        let before = self.out.len();
        while self.out.front().is_some_and(|&(_, count)| count == 0) {
            self.out.pop_front();
        }
        if self.out.len() != before {
            let oldest = self.out.front().map_or(IDLE, |&(epoch, _)| epoch);
            self.oldest.0.store(oldest, Ordering::SeqCst);
            if self.epochs.waiting.load(Ordering::SeqCst) {
                self.epochs.wake();
            }
        }
    }

    /// The clock.
    pub fn epochs(&self) -> &Arc<Epochs> {
        &self.epochs
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        lock(&self.epochs.threads).retain(|t| !Arc::ptr_eq(t, &self.oldest));
        self.epochs.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::Context;

    fn is_ready(future: std::pin::Pin<&mut impl Future>) -> bool {
        future
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_ready()
    }

    #[test]
    fn grace_waits_for_older_pins_and_not_for_newer_ones() {
        let epochs = Arc::new(Epochs::default());
        let mut pins = Pins::new(epochs.clone());
        pins.refresh();
        let old = pins.pin();
        pins.settle();
        let mut grace = pin!(epochs.grace());
        assert!(!is_ready(grace.as_mut()));
        pins.refresh();
        let new = pins.pin();
        assert_ne!(old, new);
        pins.unpin(old);
        assert!(!is_ready(grace.as_mut()), "not before the batch settles");
        pins.settle();
        assert!(is_ready(grace.as_mut()));
        pins.unpin(new);
        pins.settle();
    }

    #[test]
    fn an_idle_thread_and_a_gone_thread_hold_nobody_up() {
        let epochs = Arc::new(Epochs::default());
        let idle = Pins::new(epochs.clone());
        assert!(is_ready(pin!(epochs.grace())));
        let mut gone = Pins::new(epochs.clone());
        gone.refresh();
        gone.pin();
        let mut grace = pin!(epochs.grace());
        assert!(!is_ready(grace.as_mut()));
        drop(gone);
        assert!(is_ready(grace.as_mut()));
        drop(idle);
    }
}
