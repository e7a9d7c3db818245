//! Requests that change the image, and whoever needs them all to stop for a while.
//!
//! The rule: every change enters before it looks anything up; none is under way while somebody has stopped them.

use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

/// Changes under way.
#[derive(Debug, Default)]
pub(crate) struct Traffic(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    running: usize,
    stopped: bool,
    waiting: Vec<Waker>,
}

/// A change under way; ends on drop.
#[derive(Debug)]
pub(crate) struct Pass<'a>(&'a Traffic);

/// No changes until this is dropped.
#[derive(Debug)]
pub(crate) struct Stopped<'a>(&'a Traffic);

impl Traffic {
    /// Waits while changes are stopped.
    pub(crate) async fn enter(&self) -> Pass<'_> {
        self.until(|state| {
            if state.stopped {
                return false;
            }
            state.running += 1;
            true
        })
        .await;
        Pass(self)
    }

    /// Lets no more changes begin, and waits for the end of those that have.
    pub(crate) async fn stop(&self) -> Stopped<'_> {
        self.until(|state| !std::mem::replace(&mut state.stopped, true))
            .await;
        let stopped = Stopped(self);
        self.until(|state| state.running == 0).await;
        stopped
    }

    async fn until(&self, mut ready: impl FnMut(&mut State) -> bool) {
        poll_fn(|cx| {
            let mut state = self.state();
            if ready(&mut state) {
                return Poll::Ready(());
            }
            crate::waiting::enter(&mut state.waiting, cx);
            Poll::Pending
        })
        .await;
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let waiting = {
            let mut state = self.state();
            change(&mut state);
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.change(|state| state.running -= 1);
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.change(|state| state.stopped = false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::Context;

    #[test]
    fn a_stop_waits_for_changes_under_way_and_lets_none_begin() {
        let traffic = Traffic::default();
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(first) = pin!(traffic.enter()).poll(&mut cx) else {
            panic!("nothing is stopped");
        };
        let mut stop = pin!(traffic.stop());
        assert!(stop.as_mut().poll(&mut cx).is_pending());
        let mut second = pin!(traffic.enter());
        assert!(second.as_mut().poll(&mut cx).is_pending());
        drop(first);
        let Poll::Ready(stopped) = stop.as_mut().poll(&mut cx) else {
            panic!("nothing is under way");
        };
        assert!(second.as_mut().poll(&mut cx).is_pending());
        drop(stopped);
        assert!(second.as_mut().poll(&mut cx).is_ready());
    }

    #[test]
    fn a_stop_that_is_given_up_stops_nothing() {
        let traffic = Traffic::default();
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(first) = pin!(traffic.enter()).poll(&mut cx) else {
            panic!("nothing is stopped");
        };
        {
            let mut stop = pin!(traffic.stop());
            assert!(stop.as_mut().poll(&mut cx).is_pending());
        }
        assert!(pin!(traffic.enter()).poll(&mut cx).is_ready());
        drop(first);
    }
}
