//! What is still to be copied: a bit for each unit of a disk, that any thread may set or clear.
//!
//! The rule: a bit is cleared before its unit is read, and set after it was written. So what is written while it is copied is
//! copied again, and whoever finds no bit set has missed nothing that was over before it looked. Who copies on its own account and
//! fails leaves the range, and word of it, here.

use crate::job::errors::Failure;
use crate::units::Span;
use ring::Bell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

const BITS: u64 = u64::BITS as u64;
/// More units than this are not told apart: 32 MiB of memory.
const UNITS_MAX: u64 = 1 << 28;

/// Units of a disk that are still to be copied.
#[derive(Debug)]
pub struct WorkSet {
    size_bytes: u64,
    unit_bytes: u64,
    words: Box<[AtomicU64]>,
    /// How many bits are set.
    left: AtomicU64,
    /// Somebody sleeps until there is something to do.
    sleeping: AtomicBool,
    bell: OnceLock<Bell>,
    /// Failures of others, of which the job has not heard; the newest is as good as any.
    failed: Mutex<Option<(Span, Failure)>>,
}

impl WorkSet {
    /// Nothing of a disk of that size, in units of `unit_bytes` (rounded up to a power of two) or more.
    pub fn new(size_bytes: u64, unit_bytes: u64) -> WorkSet {
        let mut unit_bytes = unit_bytes.clamp(512, 1 << 40).next_power_of_two();
        while size_bytes.div_ceil(unit_bytes) > UNITS_MAX {
            unit_bytes *= 2;
        }
        let words = size_bytes.div_ceil(unit_bytes).div_ceil(BITS);
        WorkSet {
            size_bytes,
            unit_bytes,
            words: (0..words).map(|_| AtomicU64::new(0)).collect(),
            left: AtomicU64::new(0),
            sleeping: AtomicBool::new(false),
            bell: OnceLock::new(),
            failed: Mutex::default(),
        }
    }

    /// All of such a disk.
    pub fn full(size_bytes: u64, unit_bytes: u64) -> WorkSet {
        let set = WorkSet::new(size_bytes, unit_bytes);
        set.add(set.whole());
        set
    }

    /// The disk from its beginning to its end.
    pub fn whole(&self) -> Span {
        Span {
            at: 0,
            len: self.size_bytes,
        }
    }

    /// The size of the disk.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// How much is copied or not as one.
    pub fn unit_bytes(&self) -> u64 {
        self.unit_bytes
    }

    /// Every unit that `span` touches is to be copied. Says how many were not yet.
    pub fn add(&self, span: Span) -> u64 {
        let end = span.end().min(self.size_bytes);
        if span.at >= end {
            return 0;
        }
        let (first, last) = (span.at / self.unit_bytes, (end - 1) / self.unit_bytes);
        let mut added = 0;
        for (word, mask) in masks(first, last + 1) {
            let before = self.word(word).fetch_or(mask, Ordering::SeqCst);
            added += u64::from((mask & !before).count_ones());
        }
        self.left.fetch_add(added, Ordering::SeqCst);
        if added > 0 && self.sleeping.swap(false, Ordering::SeqCst) {
            self.bell.get().inspect(|bell| bell.ring());
        }
        added
    }

    /// Somebody else wanted to copy `span`, and could not: it is to be copied, and the job decides what else is done about it.
    pub(crate) fn fail(&self, span: Span, failure: Failure) {
        *self.failed() = Some((span, failure));
        self.add(span);
        if let Some(bell) = self.bell.get() {
            bell.ring();
        }
    }

    /// Such a failure, told once.
    pub(super) fn take_failed(&self) -> Option<(Span, Failure)> {
        self.failed().take()
    }

    fn failed(&self) -> std::sync::MutexGuard<'_, Option<(Span, Failure)>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Units that lie wholly within `span` need no copying any more. Says how many did.
    pub fn remove(&self, span: Span) -> u64 {
        let end = match span.end() >= self.size_bytes {
            true => self.size_bytes.div_ceil(self.unit_bytes),
            false => span.end() / self.unit_bytes,
        };
        let first = span.at.div_ceil(self.unit_bytes);
        if first >= end {
            return 0;
        }
        let mut removed = 0;
        for (word, mask) in masks(first, end) {
            let before = self.word(word).fetch_and(!mask, Ordering::SeqCst);
            removed += u64::from((mask & before).count_ones());
        }
        self.left.fetch_sub(removed, Ordering::SeqCst);
        removed
    }

    /// Is nothing left?
    pub fn is_empty(&self) -> bool {
        self.left.load(Ordering::SeqCst) == 0
    }

    /// How much is left.
    pub fn left_bytes(&self) -> u64 {
        let left = self.left.load(Ordering::SeqCst);
        let bytes = left.saturating_mul(self.unit_bytes);
        // The last unit may be a shorter one.
        let over = self.size_bytes.next_multiple_of(self.unit_bytes) - self.size_bytes;
        match over > 0 && self.has(self.size_bytes - 1) {
            true => bytes.saturating_sub(over),
            false => bytes,
        }
    }

    /// Is the unit at `at` to be copied?
    pub fn has(&self, at: u64) -> bool {
        at < self.size_bytes && self.bit(at / self.unit_bytes)
    }

    /// The first units to be copied from `from` on that follow on each other, at most `len_max` bytes of them but one unit at
    /// least. They stay in the set.
    pub fn next(&self, from: u64, len_max: u64) -> Option<Span> {
        let first = self.next_set(from / self.unit_bytes)?;
        let units_max = (len_max / self.unit_bytes).max(1);
        let mut len = 1;
        while len < units_max && self.bit(first + len) {
            len += 1;
        }
        let at = first * self.unit_bytes;
        let end = (at + len * self.unit_bytes).min(self.size_bytes);
        Some(Span { at, len: end - at })
    }

    /// Whoever sleeps after this is woken by `bell` when there is something to do; says whether there is already.
    pub(super) fn sleeps(&self, bell: &Bell) -> bool {
        self.wakes(bell);
        self.sleeping.store(true, Ordering::SeqCst);
        self.is_empty()
    }

    /// Whoever fails wakes the job by `bell`.
    pub(super) fn wakes(&self, bell: &Bell) {
        let _ = self.bell.set(bell.clone());
    }

    fn next_set(&self, from: u64) -> Option<u64> {
        let mut at = from / BITS;
        let mut mask = u64::MAX << (from % BITS);
        while let Some(word) = self.words.get(at as usize) {
            let set = word.load(Ordering::SeqCst) & mask;
            if set != 0 {
                return Some(at * BITS + u64::from(set.trailing_zeros()));
            }
            mask = u64::MAX;
            at += 1;
        }
        None
    }

    fn bit(&self, unit: u64) -> bool {
        let word = self.words.get((unit / BITS) as usize);
        word.is_some_and(|word| word.load(Ordering::SeqCst) & (1 << (unit % BITS)) != 0)
    }

    fn word(&self, at: u64) -> &AtomicU64 {
        // Spans were cut to the size that there are words for.
        &self.words[at as usize]
    }
}

/// Words, and the bits of each, that units `first..end` are in.
fn masks(first: u64, end: u64) -> impl Iterator<Item = (u64, u64)> {
    (first / BITS..end.div_ceil(BITS)).map(move |word| {
        let from = first.saturating_sub(word * BITS);
        let to = (end - word * BITS).min(BITS);
        let below_end = u64::MAX >> (BITS - to);
        (word, below_end & (u64::MAX << from))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(at: u64, len: u64) -> Span {
        Span::new(at, len).expect("a span")
    }

    /// Bits against a plain list, at random.
    #[test]
    fn a_set_is_what_was_added_and_not_removed() {
        let seed = u64::from(std::process::id());
        println!("seed {seed}");
        let mut state = seed;
        let mut random = |end: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % end
        };
        let size = 512 * 1000 + 17;
        let set = WorkSet::new(size, 512);
        let mut model = vec![false; 1001];
        for _ in 0..2000 {
            let at = random(size + 2000);
            let one = span(at, random(100_000));
            let units = |unit: u64| {
                let end = (unit + 1) * 512;
                (unit * 512, end.min(size))
            };
            let adds = random(2) == 0;
            let mut changed = 0;
            for (unit, bit) in model.iter_mut().enumerate() {
                let (from, to) = units(unit as u64);
                let hit = match adds {
                    true => one.at < to && from < one.end() && !one.is_empty(),
                    false => one.at <= from && to <= one.end() && !one.is_empty(),
                };
                changed += u64::from(hit && *bit != adds);
                *bit = if hit { adds } else { *bit };
            }
            let done = if adds { set.add(one) } else { set.remove(one) };
            assert_eq!(done, changed, "{one:?} {adds}");
            let from = random(size);
            let found = set.next(from, 512 * 70);
            let first = (from / 512..1001).find(|unit| model[*unit as usize]);
            assert_eq!(found.map(|found| found.at), first.map(|unit| unit * 512));
            if let Some(found) = found {
                let (_, end) = units((found.end() - 1) / 512);
                assert_eq!(found.end(), end);
                assert!((found.at / 512..found.end().div_ceil(512)).all(|u| model[u as usize]));
            }
            let left = model.iter().filter(|bit| **bit).count() as u64 * 512;
            let over = if model[1000] { 512 - 17 } else { 0 };
            assert_eq!(set.left_bytes(), left - over);
        }
    }

    #[test]
    fn the_largest_disk_takes_a_bounded_set() {
        let set = WorkSet::full(i64::MAX as u64, 1 << 16);
        assert!(set.words.len() as u64 * BITS <= UNITS_MAX);
        let end = set.size_bytes();
        assert_eq!(set.next(0, 1), Some(span(0, set.unit_bytes())));
        assert_eq!(set.remove(span(0, end)), end.div_ceil(set.unit_bytes()));
        assert!(set.is_empty() && set.next(0, u64::MAX).is_none());
        let none = WorkSet::full(0, 1 << 16);
        assert!(none.is_empty() && none.next(0, u64::MAX).is_none());
    }
}
