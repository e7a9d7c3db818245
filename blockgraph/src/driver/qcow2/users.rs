//! Who is between looking a cluster up and being done with it, on the serve path.
//!
//! The rule: enter first, look up second, leave when the I/O is over, and wait for nothing but that I/O in between:
//! whoever frees clusters waits for those who entered before. (Mapped requests are pinned, see `pin.rs`; a pin is no use
//! here, as what is below may itself be a qcow2 image that waits for pins.)

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

/// Users, counted by the epoch they entered in.
#[derive(Debug, Default)]
pub(crate) struct Users {
    /// Never held across an await.
    list: Mutex<List>,
}

#[derive(Debug, Default)]
struct List {
    now: u64,
    inside: VecDeque<(u64, u32)>,
    waiting: Vec<Waker>,
}

/// Someone who entered; leaves on drop.
#[derive(Debug)]
pub(crate) struct User<'a> {
    users: &'a Users,
    epoch: u64,
}

impl Users {
    /// From here until the answer is dropped no cluster that is looked up is given to others.
    pub(crate) fn enter(&self) -> User<'_> {
        let mut list = self.list();
        let epoch = list.now;
        match list.inside.back_mut() {
            Some((last, count)) if *last == epoch => *count += 1,
            _ => list.inside.push_back((epoch, 1)),
        }
        User { users: self, epoch }
    }

    /// Waits until everybody who entered before the call has left.
    pub(crate) async fn left(&self) {
        let before = {
            let mut list = self.list();
            list.now += 1;
            list.now
        };
        poll_fn(|cx| {
            let mut list = self.list();
            match list.inside.front() {
                Some((epoch, _)) if *epoch < before => {
                    crate::waiting::enter(&mut list.waiting, cx);
                    Poll::Pending
                }
                _ => Poll::Ready(()),
            }
        })
        .await;
    }

    fn list(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for User<'_> {
    fn drop(&mut self) {
        let waiting = {
            let mut list = self.users.list();
            let mut entries = list.inside.iter_mut();
            if let Some((_, count)) = entries.find(|(epoch, _)| *epoch == self.epoch) {
                *count -= 1;
            }
            while list.inside.front().is_some_and(|&(_, count)| count == 0) {
                list.inside.pop_front();
            }
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
    fn whoever_frees_waits_for_those_before_and_not_for_those_after() {
        let users = Users::default();
        let mut cx = Context::from_waker(Waker::noop());
        let first = users.enter();
        let second = users.enter();
        let mut left = pin!(users.left());
        assert!(left.as_mut().poll(&mut cx).is_pending());
        let late = users.enter();
        drop(second);
        assert!(left.as_mut().poll(&mut cx).is_pending());
        drop(first);
        assert!(left.as_mut().poll(&mut cx).is_ready());
        assert!(pin!(users.left()).poll(&mut cx).is_pending());
        drop(late);
        assert!(pin!(users.left()).poll(&mut cx).is_ready());
    }
}
