//! Free clusters below the end of what is used, as runs.
//!
//! The rule: what is in here has refcount 0; the reverse need not hold (see `looked` in `alloc.rs`).

use std::collections::BTreeMap;

/// More runs than this are not remembered.
const RUNS_MAX: usize = 1 << 16;
/// So many runs are looked at for one that is long enough.
const FIT_TRIES: usize = 64;

/// Runs of free clusters: first cluster and how many.
#[derive(Debug, Default)]
pub(crate) struct Free {
    runs: BTreeMap<u64, u64>,
}

impl Free {
    /// Adds a run that overlaps none; returns the first cluster of a run that was forgotten for it.
    pub(crate) fn add(&mut self, first: u64, count: u64) -> Option<u64> {
        let (mut first, mut count) = (first, count);
        if let Some((&at, &len)) = self.runs.range(..first).next_back()
            && at + len == first
        {
            (first, count) = (at, len + count);
        }
        if let Some(after) = self.runs.remove(&(first + count)) {
            count += after;
        }
        self.runs.insert(first, count);
        if self.runs.len() > RUNS_MAX {
            return self.runs.pop_last().map(|(first, _)| first);
        }
        None
    }

    /// Forgets all clusters from `first` to before `end`.
    pub(crate) fn forget(&mut self, first: u64, end: u64) {
        let mut overlapping = Vec::new();
        if let Some((&at, &len)) = self.runs.range(..first).next_back()
            && at + len > first
        {
            overlapping.push((at, len));
        }
        overlapping.extend(self.runs.range(first..end).map(|(&at, &len)| (at, len)));
        for (at, len) in overlapping {
            self.runs.remove(&at);
            if at < first {
                self.runs.insert(at, first - at);
            }
            if at + len > end {
                self.runs.insert(end, at + len - end);
            }
        }
    }

    /// Among the first few runs, one of at least `count` clusters.
    pub(crate) fn fit(&self, count: u64) -> Option<(u64, u64)> {
        let mut few = self.runs.iter().take(FIT_TRIES);
        let fit = few.find(|(_, len)| **len >= count);
        fit.map(|(&first, &len)| (first, len))
    }

    /// Among the first few runs, the longest.
    pub(crate) fn longest(&self) -> Option<(u64, u64)> {
        let few = self.runs.iter().take(FIT_TRIES);
        few.map(|(&first, &len)| (first, len))
            .max_by_key(|&(_, len)| len)
    }

    /// Takes away the first `count` clusters of the run at `first`.
    pub(crate) fn take(&mut self, first: u64, count: u64) {
        if let Some(len) = self.runs.remove(&first)
            && len > count
        {
            self.runs.insert(first + count, len - count);
        }
    }

    /// Takes away the last run if it ends at `end`; returns where it began.
    pub(crate) fn take_last(&mut self, end: u64) -> Option<u64> {
        let (&first, &len) = self.runs.last_key_value()?;
        if first + len != end {
            return None;
        }
        self.runs.remove(&first);
        Some(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(free: &Free) -> Vec<(u64, u64)> {
        free.runs
            .iter()
            .map(|(&first, &len)| (first, len))
            .collect()
    }

    #[test]
    fn neighbours_become_one_run() {
        let mut free = Free::default();
        free.add(10, 2);
        free.add(14, 1);
        free.add(12, 2);
        assert_eq!(runs(&free), [(10, 5)]);
        free.take(10, 2);
        assert_eq!(runs(&free), [(12, 3)]);
        assert_eq!(free.take_last(16), None);
        assert_eq!(free.take_last(15), Some(12));
    }

    #[test]
    fn forgetting_cuts_runs() {
        let mut free = Free::default();
        free.add(10, 10);
        free.add(30, 10);
        free.forget(15, 35);
        assert_eq!(runs(&free), [(10, 5), (35, 5)]);
        free.forget(11, 12);
        assert_eq!(runs(&free), [(10, 1), (12, 3), (35, 5)]);
    }

    #[test]
    fn a_run_that_is_long_enough_is_found() {
        let mut free = Free::default();
        free.add(1, 1);
        free.add(5, 3);
        free.add(20, 8);
        assert_eq!(free.fit(2), Some((5, 3)));
        assert_eq!(free.fit(9), None);
        assert_eq!(free.longest(), Some((20, 8)));
    }
}
