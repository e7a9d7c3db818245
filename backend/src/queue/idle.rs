//! Whether to poll before sleeping: polling doubles the speed of a queue depth of one where a wake-up is dear, and is
//! waste everywhere else.
//!
//! The rule: the window grows while news keeps coming soon after we slept, shrinks to nothing when it does not, and
//! never opens when requests come in bursts or the machine has one CPU. An idle thread sleeps for good.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The first window, once polling looks worthwhile.
const WINDOW_MIN_NS: u64 = 4_000;
/// With more requests per wake-up than this, sleeping is cheaper than polling.
const BURST: usize = 4;
/// How fast the window grows, unless somebody says how.
const GROW: u64 = 2;
/// Looks at the rings between two looks at the clock.
const LOOKS_PER_CLOCK: u32 = 64;

/// What an operator may say about polling, and change while threads run.
#[derive(Debug)]
pub struct Polling {
    max_ns: AtomicU64,
    grow: AtomicU64,
    shrink: AtomicU64,
}

impl Polling {
    /// At most so long, in nanoseconds; 0: not at all.
    pub fn up_to(max_ns: u64) -> Polling {
        Polling {
            max_ns: AtomicU64::new(max_ns),
            grow: AtomicU64::new(0),
            shrink: AtomicU64::new(0),
        }
    }

    /// How long at most.
    pub fn max_ns(&self) -> u64 {
        self.max_ns.load(Ordering::Relaxed)
    }

    /// Changes that.
    pub fn set_max_ns(&self, max_ns: u64) {
        self.max_ns.store(max_ns, Ordering::Relaxed);
    }

    /// What the window is multiplied with while polling pays; 0: 2.
    pub fn grow(&self) -> u64 {
        self.grow.load(Ordering::Relaxed)
    }

    /// Changes that.
    pub fn set_grow(&self, grow: u64) {
        self.grow.store(grow, Ordering::Relaxed);
    }

    /// What it is divided by when polling does not pay; 0: it shuts at once.
    pub fn shrink(&self) -> u64 {
        self.shrink.load(Ordering::Relaxed)
    }

    /// Changes that.
    pub fn set_shrink(&self, shrink: u64) {
        self.shrink.store(shrink, Ordering::Relaxed);
    }
}

/// Decides, from how long the last sleeps were.
#[derive(Debug)]
pub(super) struct Poller {
    polling: Arc<Polling>,
    /// With one CPU, polling keeps whoever is waited for from running.
    alone: bool,
    window_ns: u64,
    /// How long was polled in vain just now: part of the same rest as the sleep that follows.
    in_vain: Duration,
}

impl Poller {
    /// The window is shut at first.
    pub(super) fn new(polling: Arc<Polling>) -> Poller {
        Poller {
            polling,
            // Those of the machine, not those this process may use: pinned to a CPU of its own, it polls all the better.
            alone: ring::sys::cpus_online() == 1,
            window_ns: 0,
            in_vain: Duration::ZERO,
        }
    }

    /// True if polling looks worthwhile now. `burst` is how many requests have begun since the last rest.
    pub(super) fn is_open(&self, burst: usize) -> bool {
        self.window_ns > 0 && burst <= BURST && self.is_on()
    }

    /// Polls `has_news` for as long as the window says; true if there is news.
    pub(super) fn poll(&mut self, mut has_news: impl FnMut() -> bool) -> bool {
        let start = Instant::now();
        let window = Duration::from_nanos(self.window_ns.min(self.polling.max_ns()));
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
        !self.alone && self.polling.max_ns() > 0
    }

    /// Learns from a sleep of that length.
    pub(super) fn slept(&mut self, length: Duration) {
        let rested = length + std::mem::take(&mut self.in_vain);
        let rested_ns = u64::try_from(rested.as_nanos()).unwrap_or(u64::MAX);
        let max_ns = self.polling.max_ns();
        if rested_ns > max_ns {
            let shrunk = self.window_ns.checked_div(self.polling.shrink());
            self.window_ns = shrunk.unwrap_or(0).min(max_ns);
        } else if rested_ns > self.window_ns {
            let factor = match self.polling.grow() {
                0 => GROW,
                said => said,
            };
            let grown = self.window_ns.saturating_mul(factor);
            self.window_ns = grown.max(WINDOW_MIN_NS).max(rested_ns).min(max_ns);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poller(window_max_ns: u64) -> Poller {
        Poller {
            polling: Arc::new(Polling::up_to(window_max_ns)),
            alone: false,
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

    #[test]
    fn what_is_said_of_polling_counts_at_once() {
        let mut poller = poller(1_000_000);
        poller.polling.set_grow(5);
        poller.slept(Duration::from_nanos(4_000));
        poller.slept(Duration::from_nanos(4_001));
        assert_eq!(poller.window_ns, 20_000, "grows by what was said");
        poller.polling.set_shrink(4);
        poller.slept(Duration::from_millis(2));
        assert_eq!(poller.window_ns, 5_000, "shrinks by what was said");
        poller.polling.set_max_ns(0);
        assert!(!poller.is_on() && !poller.is_open(1), "off");
        poller.polling.set_max_ns(1_000);
        poller.slept(Duration::from_millis(2));
        assert!(poller.window_ns <= 1_000, "never beyond the bound");
    }
}
