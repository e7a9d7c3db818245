//! The figures of one thread's part of an export: a virtqueue, or a connection.
//!
//! The rule: one writer. It counts in plain numbers and stores the totals once per batch; a seat whose writer has gone is
//! taken over by the next with what was counted so far, so that nothing is lost and the list of seats does not grow.

use super::histogram::Bins;
use super::{Counted, Ended, OPS, Sum};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Totals as others see them.
#[derive(Debug, Default)]
struct Published {
    operations: AtomicU64,
    bytes: AtomicU64,
    time_ns: AtomicU64,
    failed: AtomicU64,
    invalid: AtomicU64,
}

impl Published {
    fn store(&self, sum: &Sum) {
        self.operations.store(sum.operations, Ordering::Relaxed);
        self.bytes.store(sum.bytes, Ordering::Relaxed);
        self.time_ns.store(sum.time_ns, Ordering::Relaxed);
        self.failed.store(sum.failed, Ordering::Relaxed);
        self.invalid.store(sum.invalid, Ordering::Relaxed);
    }

    fn load(&self) -> Sum {
        Sum {
            operations: self.operations.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            time_ns: self.time_ns.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            invalid: self.invalid.load(Ordering::Relaxed),
        }
    }
}

/// Where one writer publishes. Aligned, so that no two writers share a line of the CPU's cache.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Seat {
    taken: AtomicBool,
    sums: [Published; OPS],
    in_flight: AtomicU64,
    written_end_bytes: AtomicU64,
    /// When the last request ended; 0 if none has.
    last_ns: AtomicU64,
    /// Counts up when other bins are to be used.
    generation: AtomicU64,
    /// Held for no longer than a pointer is copied; the writer tries and goes on without.
    bins: Mutex<Option<Arc<Bins>>>,
}

impl Seat {
    /// Takes the seat; false if it is taken.
    pub(super) fn take(&self) -> bool {
        !self.taken.swap(true, Ordering::Acquire)
    }

    pub(super) fn set_bins(&self, bins: Option<Arc<Bins>>) {
        *self.bins.lock().unwrap_or_else(PoisonError::into_inner) = bins;
        self.generation.fetch_add(1, Ordering::Release);
    }

    pub(super) fn bins(&self) -> Option<Arc<Bins>> {
        let bins = self.bins.lock().unwrap_or_else(PoisonError::into_inner);
        bins.clone()
    }

    pub(super) fn sums(&self) -> [Sum; OPS] {
        std::array::from_fn(|op| self.sums[op].load())
    }

    pub(super) fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    pub(super) fn written_end_bytes(&self) -> u64 {
        self.written_end_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn last_ns(&self) -> u64 {
        self.last_ns.load(Ordering::Relaxed)
    }
}

/// A writer's own numbers.
#[derive(Debug)]
pub struct Tally {
    seat: Arc<Seat>,
    sums: [Sum; OPS],
    /// Of which kinds any ended since the last batch.
    touched: [bool; OPS],
    written_end_bytes: u64,
    in_flight: u64,
    generation: u64,
    bins: Option<Arc<Bins>>,
}

impl Tally {
    /// Goes on from what the seat's last writer left. The seat is taken.
    pub(super) fn new(seat: Arc<Seat>) -> Tally {
        let mut tally = Tally {
            sums: seat.sums(),
            touched: [false; OPS],
            written_end_bytes: seat.written_end_bytes(),
            in_flight: 0,
            generation: seat.generation.load(Ordering::Acquire),
            bins: None,
            seat,
        };
        tally.bins = tally.seat.bins();
        tally
    }

    /// A batch begins: are there other bins to count in?
    #[inline]
    pub fn begin_batch(&mut self) {
        let generation = self.seat.generation.load(Ordering::Acquire);
        if generation != self.generation {
            self.adopt(generation);
        }
    }

    #[cold]
    fn adopt(&mut self, generation: u64) {
        // Whoever has the lock sets other bins or reads these: the next batch will find out.
        if let Ok(bins) = self.seat.bins.try_lock() {
            self.bins = bins.clone();
            self.generation = generation;
        }
    }

    /// A write that goes so far was begun.
    #[inline]
    pub fn wrote_to(&mut self, end_bytes: u64) {
        self.written_end_bytes = self.written_end_bytes.max(end_bytes);
    }

    /// A request ended that began so long ago.
    #[inline]
    pub fn ended(&mut self, op: Counted, how: Ended, bytes: u64, time_ns: u64) {
        let sum = &mut self.sums[op as usize];
        match how {
            Ended::Done => {
                sum.operations += 1;
                sum.bytes += bytes;
            }
            Ended::Failed => sum.failed += 1,
        }
        sum.time_ns = sum.time_ns.wrapping_add(time_ns);
        self.touched[op as usize] = true;
        if let Some(bins) = &self.bins {
            bins.count(op, time_ns);
        }
    }

    /// A request was refused for what it asked.
    pub fn refused(&mut self, op: Counted) {
        self.sums[op as usize].invalid += 1;
        self.touched[op as usize] = true;
    }

    /// A batch is over: shows what was counted.
    #[inline]
    pub fn publish(&mut self, in_flight: u64, now_ns: u64) {
        if in_flight != self.in_flight {
            self.in_flight = in_flight;
            self.seat.in_flight.store(in_flight, Ordering::Relaxed);
        }
        if self.touched != [false; OPS] {
            self.publish_sums(now_ns);
        }
    }

    fn publish_sums(&mut self, now_ns: u64) {
        for (op, sum) in self.sums.iter().enumerate() {
            if std::mem::take(&mut self.touched[op]) {
                self.seat.sums[op].store(sum);
            }
        }
        let end = self.written_end_bytes;
        self.seat.written_end_bytes.store(end, Ordering::Relaxed);
        self.seat.last_ns.store(now_ns.max(1), Ordering::Relaxed);
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        let last_ns = self.seat.last_ns();
        self.publish(0, last_ns);
        // Whoever takes the seat next sees all of it.
        self.seat.taken.store(false, Ordering::Release);
    }
}
