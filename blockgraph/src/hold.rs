//! Ranges somebody holds: read-modify-writes now, copy-on-read and fleecing reads later.
//!
//! The rule: take the hold, await the grace period of `pin.rs`, then act. The fast walk asks [`Holds::free`] and serves
//! when the answer is no; the serve path takes a hold itself and so waits its turn.

use crate::units::Span;
use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Poll, Waker};

/// The held ranges of one node.
#[derive(Debug, Default)]
pub struct Holds {
    count: AtomicUsize,
    /// Never held across an await or an I/O.
    list: Mutex<List>,
}

#[derive(Debug, Default)]
struct List {
    next_ticket: u64,
    held: Vec<(u64, Span)>,
    waiting: Vec<Waker>,
}

/// A held range; let go on drop.
#[derive(Debug)]
pub struct Hold<'a> {
    holds: &'a Holds,
    ticket: u64,
}

impl Holds {
    /// True if nobody holds a byte of `span`. Never waits: if the list is being changed, the answer is no.
    pub fn free(&self, span: Span) -> bool {
        if self.count.load(Ordering::SeqCst) == 0 {
            return true;
        }
        let Ok(list) = self.list.try_lock() else {
            return false;
        };
        !list.held.iter().any(|(_, held)| held.overlaps(span))
    }

    /// Waits until nobody holds a byte of `span`, then holds it.
    pub async fn hold(&self, span: Span) -> Hold<'_> {
        poll_fn(|cx| {
            let mut list = self.list();
            if list.held.iter().any(|(_, held)| held.overlaps(span)) {
                crate::waiting::enter(&mut list.waiting, cx);
                return Poll::Pending;
            }
            let ticket = list.next_ticket;
            list.next_ticket += 1;
            list.held.push((ticket, span));
            self.count.store(list.held.len(), Ordering::SeqCst);
            Poll::Ready(Hold {
                holds: self,
                ticket,
            })
        })
        .await
    }

    fn list(&self) -> std::sync::MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        let waiting = {
            let mut list = self.holds.list();
            list.held.retain(|(ticket, _)| *ticket != self.ticket);
            self.holds.count.store(list.held.len(), Ordering::SeqCst);
            std::mem::take(&mut list.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::Context;

    #[test]
    fn overlapping_holds_wait_their_turn_and_others_do_not() {
        let holds = Holds::default();
        let span = |at, len| Span::new(at, len).expect("a span");
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(first) = pin!(holds.hold(span(0, 10))).poll(&mut cx) else {
            panic!("free")
        };
        assert!(holds.free(span(10, 5)) && !holds.free(span(9, 1)));
        let mut second = pin!(holds.hold(span(9, 5)));
        assert!(second.as_mut().poll(&mut cx).is_pending());
        assert!(pin!(holds.hold(span(20, 5))).poll(&mut cx).is_ready());
        drop(first);
        assert!(second.as_mut().poll(&mut cx).is_ready());
    }

    /// A read of many compressed clusters is one task that waits in many places: each wake-up had it enter the list once
    /// for each of them, and the next had as many wake-ups, until memory was gone.
    #[test]
    fn a_task_that_waits_many_times_is_woken_once() {
        let holds = Holds::default();
        let span = Span::new(0, 10).expect("a span");
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(held) = pin!(holds.hold(span)).poll(&mut cx) else {
            panic!("free")
        };
        for _ in 0..10 {
            assert!(pin!(holds.hold(span)).poll(&mut cx).is_pending());
        }
        assert_eq!(holds.list().waiting.len(), 1);
        drop(held);
        assert!(holds.list().waiting.is_empty());
    }
}
