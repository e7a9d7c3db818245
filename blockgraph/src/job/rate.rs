//! How fast a job may copy: so many bytes in each slice of 100 ms, as QEMU counts it.
//!
//! The rule: a step is never split, so one that is larger than what a slice allows is made up for by the slices after it.

/// A slice of time.
const SLICE_NS: u64 = 100_000_000;
const SLICES_PER_SECOND: u64 = 10;

/// What was copied in the slices that are running.
#[derive(Debug, Default)]
pub struct Rate {
    speed_bytes: u64,
    began_ns: u64,
    ends_ns: u64,
    copied_bytes: u64,
}

impl Rate {
    /// At most so many bytes a second from now on; 0 is no limit. What was copied in the slices that are running counts as if that
    /// had been the limit then.
    pub fn set_speed(&mut self, speed_bytes: u64) {
        if self.speed_bytes != speed_bytes {
            self.speed_bytes = speed_bytes;
            if self.copied_bytes > 0 {
                self.make_up();
            }
        }
    }

    /// How long the next step has to wait.
    pub fn wait_ns(&self, now_ns: u64) -> u64 {
        match self.speed_bytes == 0 || self.copied_bytes < self.quota() {
            true => 0,
            false => self.ends_ns.saturating_sub(now_ns),
        }
    }

    /// A step of so many bytes begins.
    pub fn spend(&mut self, bytes: u64, now_ns: u64) {
        if self.speed_bytes == 0 {
            return;
        }
        if now_ns >= self.ends_ns {
            self.began_ns = now_ns;
            self.copied_bytes = 0;
        }
        self.copied_bytes = self.copied_bytes.saturating_add(bytes);
        self.make_up();
    }

    /// When the slices end that what was copied takes.
    fn make_up(&mut self) {
        // The time that this many bytes take; a slice at the least.
        let taken_ns = u128::from(self.copied_bytes) * u128::from(SLICE_NS);
        let taken_ns = u64::try_from(taken_ns / u128::from(self.quota())).unwrap_or(u64::MAX);
        self.ends_ns = self.began_ns.saturating_add(taken_ns.max(SLICE_NS));
    }

    fn quota(&self) -> u64 {
        (self.speed_bytes / SLICES_PER_SECOND).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Copies in steps of `step` bytes for ten seconds of a time of its own.
    fn copied(speed: u64, step: u64) -> u64 {
        let mut rate = Rate::default();
        rate.set_speed(speed);
        let (mut now, mut total) = (0, 0);
        while now < 10_000_000_000 {
            let wait = rate.wait_ns(now);
            now += wait.max(1000);
            rate.spend(step, now);
            total += step;
        }
        total
    }

    #[test]
    fn a_job_copies_as_much_as_it_may_whatever_its_steps() {
        for (speed, step) in [(1 << 20, 512), (1 << 20, 1 << 19), (100_000, 1 << 20)] {
            let (total, allowed) = (copied(speed, step), 10 * speed);
            let most = allowed + speed / 10 + 2 * step;
            let least = (allowed / 100 * 99).saturating_sub(step);
            assert!((least..=most).contains(&total), "{speed} {step}: {total}");
        }
    }

    #[test]
    fn without_a_limit_nothing_waits_and_a_new_one_counts_at_once() {
        let mut rate = Rate::default();
        rate.spend(u64::MAX, 0);
        assert_eq!(rate.wait_ns(0), 0);
        rate.set_speed(10);
        assert_eq!(rate.wait_ns(0), 0);
        rate.spend(8, 5);
        assert_eq!(rate.wait_ns(5), 8 * SLICE_NS);
        rate.set_speed(40);
        assert_eq!(rate.wait_ns(5), 2 * SLICE_NS);
        rate.set_speed(0);
        assert_eq!(rate.wait_ns(5), 0);
        rate.set_speed(10);
        rate.spend(u64::MAX, 5 + 8 * SLICE_NS);
        assert!(rate.wait_ns(u64::MAX / 2) > SLICE_NS);
    }
}
