//! Several futures of one task, run side by side.

use crate::node::{Local, Outcome};
use std::future::poll_fn;
use std::task::Poll;

/// So many at a time.
const WIDTH: usize = 32;

/// Runs all of them to their ends, some at a time; the first error in order, if there is one.
pub(crate) async fn together<'a>(futures: Vec<Local<'a, Outcome>>) -> Outcome {
    let mut waiting = futures.into_iter();
    let mut running: Vec<Local<'a, Outcome>> = waiting.by_ref().take(WIDTH).collect();
    let mut outcome = Ok(());
    poll_fn(|cx| {
        let mut at = 0;
        while at < running.len() {
            match running[at].as_mut().poll(cx) {
                Poll::Pending => at += 1,
                Poll::Ready(end) => {
                    outcome = outcome.and(end);
                    match waiting.next() {
                        Some(next) => running[at] = next,
                        None => drop(running.swap_remove(at)),
                    }
                }
            }
        }
        match running.is_empty() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    })
    .await;
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::Errno;
    use std::cell::RefCell;
    use std::pin::pin;
    use std::rc::Rc;
    use std::task::{Context, Waker};

    #[test]
    fn all_run_and_an_error_stops_none_of_them() {
        let ran = Rc::new(RefCell::new(0));
        let futures = (0..100).map(|n| -> Local<'_, Outcome> {
            let ran = ran.clone();
            let mut polled = false;
            Box::pin(async move {
                poll_fn(|cx| {
                    cx.waker().wake_by_ref();
                    match std::mem::replace(&mut polled, true) {
                        true => Poll::Ready(()),
                        false => Poll::Pending,
                    }
                })
                .await;
                *ran.borrow_mut() += 1;
                if n == 40 { Err(Errno::IO) } else { Ok(()) }
            })
        });
        let mut all = pin!(together(futures.collect()));
        let mut cx = Context::from_waker(Waker::noop());
        let outcome = (0..200).find_map(|_| match all.as_mut().poll(&mut cx) {
            Poll::Ready(outcome) => Some(outcome),
            Poll::Pending => None,
        });
        assert_eq!((outcome, *ran.borrow()), (Some(Err(Errno::IO)), 100));
    }
}
