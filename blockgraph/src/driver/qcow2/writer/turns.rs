//! Whose turn it is to write metadata.
//!
//! The rule: one at a time; a commit that began after somebody asked for one is theirs, too.

use crate::hold::{Hold, Holds};
use crate::node::Outcome;
use crate::units::Span;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Commits go one after the other; those who ask while one is under way share the next.
#[derive(Debug)]
pub(crate) struct Commits {
    turn: Holds,
    state: Mutex<Numbers>,
}

#[derive(Debug)]
struct Numbers {
    begun: u64,
    ended: u64,
    last: Outcome,
}

impl Commits {
    pub(super) fn new() -> Commits {
        Commits {
            turn: Holds::default(),
            state: Mutex::new(Numbers {
                begun: 0,
                ended: 0,
                last: Ok(()),
            }),
        }
    }

    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of the first commit that has not begun.
    pub(crate) fn next(&self) -> u64 {
        self.numbers().begun + 1
    }

    /// Waits for a turn to commit; if commit `wanted`, or a later one, has meanwhile been made: how it ended.
    pub(crate) async fn turn(&self, wanted: u64) -> Result<Hold<'_>, Outcome> {
        let turn = self.turn.hold(Span { at: 0, len: 1 }).await;
        let mut numbers = self.numbers();
        if numbers.begun >= wanted {
            return Err(numbers.last);
        }
        numbers.begun += 1;
        Ok(turn)
    }

    /// Waits for a turn to write metadata that is no commit.
    pub(crate) async fn alone(&self) -> Hold<'_> {
        self.turn.hold(Span { at: 0, len: 1 }).await
    }

    /// The commit whose turn it is has ended.
    pub(crate) fn end(&self, outcome: Outcome) {
        let mut numbers = self.numbers();
        numbers.ended = numbers.begun;
        numbers.last = outcome;
    }

    /// True if none is under way.
    pub(crate) fn is_idle(&self) -> bool {
        let numbers = self.numbers();
        numbers.begun == numbers.ended
    }
}
