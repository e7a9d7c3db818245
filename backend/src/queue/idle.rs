//! Whether to poll before sleeping: polling doubles the speed of a queue depth of one where a wake-up is dear, and is
//! waste everywhere else.
//!
//! The rule: the window grows while news keeps coming soon after we slept, shrinks to nothing when it does not, and
//! never opens when requests come in bursts or the machine has one CPU. An idle thread sleeps for good.

use std::time::{Duration, Instant};

/// The first window, once polling looks worthwhile.
const WINDOW_MIN_NS: u64 = 4_000;
/// With more requests per wake-up than this, sleeping is cheaper than polling.
const BURST: usize = 4;
/// Looks at the rings between two looks at the clock.
const LOOKS_PER_CLOCK: u32 = 64;

/// Decides, from how long the last sleeps were.
#[derive(Debug)]
pub(super) struct Poller {
    window_max_ns: u64,
    window_ns: u64,
    /// How long was polled in vain just now: part of the same rest as the sleep that follows.
    in_vain: Duration,
}

impl Poller {
    /// `poll_max_ns` 0 turns polling off.
    pub(super) fn new(poll_max_ns: u64) -> Poller {
        // Those of the machine, not those this process may use: pinned to a CPU of its own, it polls all the better.
        let alone = ring::sys::cpus_online() == 1;
        Poller {
            window_max_ns: if alone { 0 } else { poll_max_ns },
            window_ns: 0,
            in_vain: Duration::ZERO,
        }
    }

    /// True if polling looks worthwhile now. `burst` is how many requests have begun since the last rest.
    pub(super) fn is_open(&self, burst: usize) -> bool {
        self.window_ns > 0 && burst <= BURST
    }

    /// Polls `has_news` for as long as the window says; true if there is news.
    pub(super) fn poll(&mut self, mut has_news: impl FnMut() -> bool) -> bool {
        let start = Instant::now();
        let window = Duration::from_nanos(self.window_ns);
        loop {
            for _ in 0..LOOKS_PER_CLOCK {
                if has_news() {
                    return true;
                }
                std::hint::spin_loop();
            }
            let polled = start.elapsed();
            if polled >= window {
                self.in_vain = polled;
                return false;
            }
        }
    }

    /// True if sleeps are to be timed.
    pub(super) fn is_on(&self) -> bool {
        self.window_max_ns > 0
    }

    /// Learns from a sleep of that length.
    pub(super) fn slept(&mut self, length: Duration) {
        let rested = length + std::mem::take(&mut self.in_vain);
        let rested_ns = u64::try_from(rested.as_nanos()).unwrap_or(u64::MAX);
        if rested_ns > self.window_max_ns {
            self.window_ns = 0;
        } else if rested_ns > self.window_ns {
            let grown = (self.window_ns * 2).max(WINDOW_MIN_NS).max(rested_ns);
            self.window_ns = grown.min(self.window_max_ns);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poller(window_max_ns: u64) -> Poller {
        Poller {
            window_max_ns,
            window_ns: 0,
            in_vain: Duration::ZERO,
        }
    }

    #[test]
    fn time_polled_in_vain_counts_as_rest() {
        let mut poller = poller(10_000_000);
        poller.slept(Duration::from_micros(50));
        assert!(!poller.poll(|| false));
        poller.slept(Duration::from_micros(60));
        assert!(poller.window_ns >= 110_000, "{} ns", poller.window_ns);
        poller.slept(Duration::from_micros(20));
        assert!(poller.window_ns >= 110_000, "in vain counts once");
    }

    #[test]
    fn the_window_opens_with_short_sleeps_and_shuts_with_a_long_one() {
        let mut poller = poller(32_000);
        assert!(!poller.is_open(1), "shut at first");
        poller.slept(Duration::from_nanos(10_000));
        assert!(poller.is_open(1) && poller.poll(|| true));
        assert!(!poller.is_open(BURST + 1), "bursts sleep");
        assert!(!poller.poll(|| false), "the window ends");
        poller.slept(Duration::from_millis(1));
        assert!(!poller.is_open(1));
    }

    #[test]
    fn the_window_never_exceeds_its_bound_and_zero_means_off() {
        let mut small = poller(5_000);
        for _ in 0..10 {
            small.slept(Duration::from_nanos(4_999));
        }
        assert!(small.window_ns <= 5_000);
        let mut off = poller(0);
        off.slept(Duration::ZERO);
        assert!(!off.is_on() && !off.is_open(1));
    }
}
