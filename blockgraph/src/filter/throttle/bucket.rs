//! A leaky bucket as one atomic number: the moment at which it will be empty.
//!
//! The rule: a request may pass while the bucket holds no more than its depth, however large the request is; what it
//! carries is poured in afterwards, and whoever comes later waits until the surplus has leaked out. That is QEMU's model,
//! where a bucket of level L that leaks R per second is empty L/R seconds from now.

use super::limits::Rate;
use std::sync::atomic::{AtomicU64, Ordering};

/// Time is counted in sixteenths of a nanosecond, so that a small request at a high rate costs something.
const TICKS_PER_NS: u64 = 16;
const TICKS_PER_S: u64 = 1_000_000_000 * TICKS_PER_NS;
/// Fraction bits of what a unit costs.
const COST_BITS: u32 = 28;
/// A bucket without a burst holds what leaks in a tenth of a second; so does the one that bounds a burst's rate.
const SHORT_TICKS: u64 = TICKS_PER_S / 10;

/// From the clock's nanoseconds.
pub(super) fn ticks(ns: u64) -> u64 {
    ns.saturating_mul(TICKS_PER_NS)
}

/// To nanoseconds, rounded up.
pub(super) fn ns(ticks: u64) -> u64 {
    ticks.div_ceil(TICKS_PER_NS)
}

/// One level of a bucket, leaking at one rate.
#[derive(Debug, Default)]
struct Level {
    /// When it will be empty, in ticks.
    empty_at: AtomicU64,
    /// Ticks a unit takes to leak, with `COST_BITS` fraction bits; 0: no limit.
    cost: AtomicU64,
    /// What it holds, in ticks.
    depth: AtomicU64,
}

impl Level {
    /// Empty, with a rate of `per_s` units of which there are `scale` in a byte or operation; 0: no limit.
    fn set(&self, per_s: u64, scale: u64, depth: u64) {
        let one = u128::from(TICKS_PER_S) << COST_BITS;
        let cost = match u128::from(per_s) * u128::from(scale) {
            0 => 0,
            units => saturate(one / units),
        };
        self.cost.store(cost, Ordering::Relaxed);
        self.depth.store(depth, Ordering::Relaxed);
        self.empty_at.store(0, Ordering::Relaxed);
    }

    #[inline]
    fn price(&self, units: u64) -> u64 {
        match self.cost.load(Ordering::Relaxed) {
            0 => 0,
            cost => saturate((u128::from(cost) * u128::from(units)) >> COST_BITS),
        }
    }

    #[inline]
    fn has_room(&self, now: u64) -> bool {
        let empty_at = self.empty_at.load(Ordering::Relaxed);
        // Without a limit, or at leisure, it is empty.
        empty_at <= now || empty_at <= now.saturating_add(self.depth.load(Ordering::Relaxed))
    }

    /// Ticks until it has room, once `promised` units were poured in.
    fn wait(&self, now: u64, promised: u64) -> u64 {
        let level = self.empty_at.load(Ordering::Relaxed).max(now);
        let level = level.saturating_add(self.price(promised));
        let room = now.saturating_add(self.depth.load(Ordering::Relaxed));
        level.saturating_sub(room)
    }

    fn pour(&self, now: u64, units: u64) {
        let price = self.price(units);
        if price == 0 {
            return;
        }
        let fuller = |empty_at: u64| Some(empty_at.max(now).saturating_add(price));
        let (set, get) = (Ordering::Relaxed, Ordering::Relaxed);
        // `fuller` always has an answer.
        let _ = self.empty_at.fetch_update(set, get, fuller);
    }
}

fn saturate(wide: u128) -> u64 {
    u64::try_from(wide).unwrap_or(u64::MAX)
}

/// A bucket: what leaks at the rate, and beside it what bounds the rate of a burst of more than a second.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    average: Level,
    burst: Level,
}

impl Bucket {
    /// Empty, with that rate, in units of which a byte or operation has `scale`.
    pub(super) fn set(&self, rate: Rate, scale: u64) {
        let Rate {
            avg,
            max,
            max_length_s,
        } = rate;
        let depth = match (avg, max) {
            (0, _) | (_, 0) => SHORT_TICKS,
            (avg, max) => {
                let units = u128::from(max) * u128::from(max_length_s);
                saturate(units * u128::from(TICKS_PER_S) / u128::from(avg))
            }
        };
        self.average.set(avg, scale, depth);
        let bounded = if max_length_s > 1 { max } else { 0 };
        self.burst.set(bounded, scale, SHORT_TICKS);
    }

    /// May a request pass?
    pub(super) fn has_room(&self, now: u64) -> bool {
        self.average.has_room(now) && self.burst.has_room(now)
    }

    /// Ticks until a request may pass, once `promised` units were poured in.
    pub(super) fn wait(&self, now: u64, promised: u64) -> u64 {
        let average = self.average.wait(now, promised);
        average.max(self.burst.wait(now, promised))
    }

    /// A request passes.
    pub(super) fn pour(&self, now: u64, units: u64) {
        self.average.pour(now, units);
        self.burst.pour(now, units);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(avg: u64, max: u64, max_length_s: u64) -> Bucket {
        let bucket = Bucket::default();
        let rate = Rate {
            avg,
            max,
            max_length_s,
        };
        bucket.set(rate, 1);
        bucket
    }

    const S: u64 = TICKS_PER_S;

    #[test]
    fn a_bucket_without_a_burst_holds_a_tenth_of_a_second_and_then_leaks() {
        let bucket = bucket(1000, 0, 1);
        let now = 5 * S;
        bucket.pour(now, 100);
        assert!(bucket.has_room(now), "full to the brim is not too full");
        bucket.pour(now, 500);
        assert!(!bucket.has_room(now));
        assert_eq!(bucket.wait(now, 0), S / 2);
        assert_eq!(bucket.wait(now, 250), 3 * S / 4);
        assert!(bucket.has_room(now + S / 2) && !bucket.has_room(now + S / 2 - 1));
    }

    #[test]
    fn a_long_burst_is_bounded_in_rate_and_in_volume() {
        let bucket = bucket(100, 1000, 10);
        bucket.pour(0, 1000);
        assert_eq!(bucket.wait(0, 0), 9 * S / 10, "the rate of the burst");
        bucket.pour(0, 9000 + 500);
        assert_eq!(bucket.wait(20 * S, 0), 0);
        assert_eq!(bucket.wait(0, 0), 104 * S / 10);
        // After the burst has used the bucket up, the average rules.
        let late = 11 * S;
        bucket.pour(late, 2000);
        assert!(bucket.wait(late, 0) >= 3 * S);
    }

    #[test]
    fn the_smallest_rate_and_the_largest_request_do_not_overflow() {
        let bucket = bucket(1, 0, 1);
        bucket.pour(u64::MAX - 5, u64::MAX);
        bucket.pour(0, u64::MAX);
        assert!(!bucket.has_room(0) && bucket.wait(0, u64::MAX) > 0);
        assert_eq!(ns(ticks(u64::MAX)), u64::MAX.div_ceil(TICKS_PER_NS));
    }

    #[test]
    fn no_limit_is_never_full() {
        let bucket = Bucket::default();
        bucket.set(Rate::NONE, 1);
        bucket.pour(0, u64::MAX);
        assert!(bucket.has_room(0) && bucket.wait(0, u64::MAX) == 0);
    }
}
