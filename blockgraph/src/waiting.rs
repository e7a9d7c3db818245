//! Tasks that wait for something to change.
//!
//! The rule: a task is in such a list once, however often it is polled and however many of its futures wait. Were it there
//! for each, every wake-up would poll all of them, each would enter anew, and the list would grow without end.

use std::task::{Context, Waker};

/// Enters the task of `cx`.
pub(crate) fn enter(waiting: &mut Vec<Waker>, cx: &Context<'_>) {
    if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
        waiting.push(cx.waker().clone());
    }
}
