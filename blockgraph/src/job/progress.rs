//! How far a job is: counted by the job, read by whoever asks.

use std::sync::atomic::{AtomicU64, Ordering};

/// How far a job is, in units of its own (bytes for those that copy). The total may grow while it runs.
#[derive(Debug, Default)]
pub struct Progress {
    current: AtomicU64,
    remaining: AtomicU64,
}

impl Progress {
    /// So much is left to do.
    pub fn set_remaining(&self, units: u64) {
        self.remaining.store(units, Ordering::Relaxed);
    }

    /// More has turned up.
    pub fn add_remaining(&self, units: u64) {
        self.remaining.fetch_add(units, Ordering::Relaxed);
    }

    /// So much of what was left is done.
    pub fn advance(&self, units: u64) {
        self.forget(units);
        self.current.fetch_add(units, Ordering::Relaxed);
    }

    /// So much of what was left need not be done.
    pub fn forget(&self, units: u64) {
        let less = |left: u64| Some(left.saturating_sub(units));
        // The closure always has a value.
        let _ = (self.remaining).fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// What is done.
    pub fn current(&self) -> u64 {
        self.current.load(Ordering::Relaxed)
    }

    /// What is done and what is left.
    pub fn total(&self) -> u64 {
        let remaining = self.remaining.load(Ordering::Relaxed);
        self.current().saturating_add(remaining)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_never_exceeds_the_total() {
        let progress = Progress::default();
        progress.set_remaining(10);
        progress.advance(4);
        progress.add_remaining(2);
        assert_eq!((progress.current(), progress.total()), (4, 12));
        progress.advance(100);
        assert_eq!((progress.current(), progress.total()), (104, 104));
    }
}
