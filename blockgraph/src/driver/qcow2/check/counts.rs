//! How often each host cluster is referred to, for a window of the file, so that memory is bounded whatever its length.

/// Host clusters counted at once: 64 MiB of counters. A multiple of what any refcount block holds.
pub(super) const WINDOW_CLUSTERS: u64 = 1 << 24;

/// Counters for the clusters from `from` on.
#[derive(Debug)]
pub(super) struct Counts {
    from: u64,
    counts: Vec<u32>,
}

impl Counts {
    /// The window at `from`, of a file of `clusters`. `None`: out of memory.
    pub(super) fn window(from: u64, clusters: u64) -> Option<Counts> {
        let len = clusters.saturating_sub(from).min(WINDOW_CLUSTERS) as usize;
        let mut counts = Vec::new();
        counts.try_reserve_exact(len).ok()?;
        counts.resize(len, 0);
        Some(Counts { from, counts })
    }

    /// The first cluster.
    pub(super) fn from(&self) -> u64 {
        self.from
    }

    /// One past the last cluster.
    pub(super) fn end(&self) -> u64 {
        self.from + self.counts.len() as u64
    }

    /// `times` more references to the clusters `first` to `last`.
    pub(super) fn add(&mut self, first: u64, last: u64, times: u32) {
        let first = first.max(self.from);
        let end = last.saturating_add(1).min(self.end());
        if first >= end {
            return;
        }
        let range = (first - self.from) as usize..(end - self.from) as usize;
        for count in &mut self.counts[range] {
            *count = count.saturating_add(times);
        }
    }

    /// References to a cluster; 0 outside the window.
    pub(super) fn get(&self, cluster: u64) -> u64 {
        let at = cluster.checked_sub(self.from);
        let count = at.and_then(|at| self.counts.get(at as usize));
        count.map_or(0, |count| u64::from(*count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_in_the_window_is_counted() {
        let mut counts = Counts::window(0, 10).expect("memory");
        counts.add(8, 20, 2);
        counts.add(9, 9, u32::MAX);
        counts.add(30, 20, 1);
        let all: Vec<u64> = (0..12).map(|cluster| counts.get(cluster)).collect();
        let most = u64::from(u32::MAX);
        assert_eq!(all, [0, 0, 0, 0, 0, 0, 0, 0, 2, most, 0, 0]);
        assert_eq!(Counts::window(20, 10).expect("memory").end(), 20);
    }
}
