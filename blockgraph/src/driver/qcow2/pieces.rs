//! The pieces of one request, several at a time.
//!
//! The rule: a piece is under way from the moment it is added, so that one that waits holds up no other.

use crate::node::{Local, Outcome};
use std::future::poll_fn;
use std::task::{Context, Poll};

/// Pieces of one request that are under way together.
pub(crate) const TOGETHER_MAX: usize = 16;

/// What is under way, and how what is over ended.
pub(crate) struct Pieces<'a> {
    running: Vec<Local<'a, Outcome>>,
    outcome: Outcome,
}

impl<'a> Pieces<'a> {
    /// None yet.
    pub(crate) fn new() -> Pieces<'a> {
        Pieces {
            running: Vec::new(),
            outcome: Ok(()),
        }
    }

    /// Starts one more, when there is room. The error of one that failed; there is no sense in adding more then.
    pub(crate) async fn add(&mut self, piece: Local<'a, Outcome>) -> Outcome {
        self.running.push(piece);
        poll_fn(|cx| {
            self.poll(cx);
            match self.running.len() < TOGETHER_MAX {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
        self.outcome
    }

    /// Waits for all of them. The first error, if there was one.
    pub(crate) async fn finish(mut self) -> Outcome {
        poll_fn(|cx| {
            self.poll(cx);
            match self.running.is_empty() {
                true => Poll::Ready(self.outcome),
                false => Poll::Pending,
            }
        })
        .await
    }

    fn poll(&mut self, cx: &mut Context<'_>) {
        let outcome = &mut self.outcome;
        self.running
            .retain_mut(|piece| match piece.as_mut().poll(cx) {
                Poll::Ready(end) => {
                    *outcome = outcome.and(end);
                    false
                }
                Poll::Pending => true,
            });
    }
}
