//! How long the data loop waits: not at all, for the first end, or a little while for a whole burst.
//!
//! The rule: nobody sleeps before the guests have been told to kick, and their rings have been looked at once more.

use super::DataLoop;
use crate::queue::guest::Guest;
use ring::Wait;
use ring::vring::Pending;

/// So many requests at once are a burst.
const BURST_MIN: usize = 8;
/// How long the first end of a burst may be kept back for the others. A slow disk's ends come one by one after that, so
/// that the guest can follow up. Measured: small requests gain from one wake-up for all; large ones lose the overlap.
const PATIENCE_SMALL_NS: u64 = 2_000_000;
const PATIENCE_LARGE_NS: u64 = 200_000;
/// Requests up to this size, on average, are small.
const SMALL_BYTES_MAX: u64 = 16 << 10;

impl DataLoop {
    /// Decides how long to wait; kicks are on when it says to sleep.
    pub(super) fn rest(&mut self) -> Wait {
        let tenants = self.tenants.patience();
        if self.lane.has_news() || self.has_work() || tenants == Wait::Not {
            return Wait::Not;
        }
        // Rung for between the beginning of the batch and the commands, which silenced the bell.
        if self.lane.is_behind() {
            return Wait::Not;
        }
        if self.poller.is_open(self.burst) {
            if self.lane.has_pushed() {
                // What was begun must be under way before its end is looked for: a turn that does not wait, and here again.
                return Wait::Not;
            }
            let DataLoop {
                poller,
                lane,
                guests,
                stalled,
                ..
            } = self;
            // What is stalled waits for ends alone: until then, new chains are no news.
            if poller.poll(|| lane.has_news() || (stalled.is_empty() && any_work(guests))) {
                self.burst = 0;
                self.burst_bytes = 0;
                return Wait::Not;
            }
        }
        let burst = std::mem::take(&mut self.burst);
        let bytes = std::mem::take(&mut self.burst_bytes);
        if self.stalled.is_empty() {
            for guest in self.guests.iter_mut().flatten() {
                if guest.takes_work() && guest.vring.listen() == Pending::More {
                    return Wait::Not;
                }
            }
        }
        match tenants {
            Wait::One if self.tenants.is_empty() => self.sleep(burst, bytes),
            // A client is not kept waiting for a guest's burst.
            wait => wait,
        }
    }

    /// How to sleep: for the first end, or, when all that is in flight came in one burst, for the whole burst a little while:
    /// a fast disk ends it within that, and then one wake-up and one signal do for all of it.
    fn sleep(&mut self, burst: usize, bytes: u64) -> Wait {
        if burst >= BURST_MIN && burst == self.lane.in_flight() {
            return Wait::Batch {
                count: burst as u32,
                patience_ns: patience_ns(burst, bytes),
            };
        }
        Wait::One
    }

    fn has_work(&self) -> bool {
        self.stalled.is_empty() && any_work(&self.guests)
    }
}

fn patience_ns(burst: usize, bytes: u64) -> u64 {
    if bytes / (burst.max(1) as u64) <= SMALL_BYTES_MAX {
        PATIENCE_SMALL_NS
    } else {
        PATIENCE_LARGE_NS
    }
}

fn any_work(guests: &[Option<Guest>]) -> bool {
    let mut running = guests.iter().flatten().filter(|guest| guest.takes_work());
    running.any(|guest| guest.vring.has_work())
}
