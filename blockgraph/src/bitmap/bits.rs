//! The bits themselves: words that any thread may set without a lock, and a summary of which words are worth a look.
//!
//! The rule: a word is set before its summary and cleared after it. So a set bit may for a moment be missing from the summary,
//! as if it were not set yet, but what is cleared has been summarised: no bit that is set after a clear ended is lost. (What is set
//! meanwhile may be: it stands for data that landed before the clear ended, so whoever reads after it reads that data.)
//!
//! Bits grow while they are set: in segments, of which the first is as large as was asked for at first, and each further one as
//! large as all before it.

use super::memory::{BitmapMemory, MEMORY_BYTES_MAX, Reserved};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// Bits of a word, and words that a word of the summary stands for.
const WORD_BITS: u64 = 64;
/// The smallest first segment: one word of the summary.
const FIRST_WORDS_MIN: u64 = WORD_BITS;
/// More than any memory holds: each doubles what there is.
const SEGMENTS_MAX: usize = 40;

/// There is no memory for more bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoMemory;

/// Bits from 0 on; those beyond what was asked for are clear.
#[derive(Debug)]
pub(super) struct Bits {
    first_words: u64,
    segments: [OnceLock<Segment>; SEGMENTS_MAX],
    memory: Arc<BitmapMemory>,
    /// For what there is without any bit: images may have many bitmaps.
    _reserved: Reserved,
}

#[derive(Debug)]
struct Segment {
    words: Vec<AtomicU64>,
    /// A bit for each word that may have one set.
    summary: Vec<AtomicU64>,
    _reserved: Reserved,
}

fn zeroes(len: u64) -> Result<Vec<AtomicU64>, NoMemory> {
    let len = usize::try_from(len).map_err(|_| NoMemory)?;
    let mut words = Vec::new();
    words.try_reserve_exact(len).map_err(|_| NoMemory)?;
    words.resize_with(len, AtomicU64::default);
    Ok(words)
}

impl Segment {
    /// `words` is a multiple of what a word of the summary stands for.
    fn new(words: u64, memory: &Arc<BitmapMemory>) -> Result<Segment, NoMemory> {
        let summary = words / WORD_BITS;
        let bytes = words.checked_add(summary).and_then(|n| n.checked_mul(8));
        let reserved = bytes.and_then(|bytes| memory.reserve(bytes));
        Ok(Segment {
            _reserved: reserved.ok_or(NoMemory)?,
            words: zeroes(words)?,
            summary: zeroes(summary)?,
        })
    }

    #[inline]
    fn set(&self, at: usize, mask: u64) {
        let word = &self.words[at];
        if word.load(Ordering::SeqCst) & mask != mask {
            self.set_new(at, mask);
        }
    }

    fn set_new(&self, at: usize, mask: u64) {
        let word = &self.words[at];
        word.fetch_or(mask, Ordering::SeqCst);
        let summary = &self.summary[at / WORD_BITS as usize];
        let mine = 1 << (at as u64 % WORD_BITS);
        if summary.load(Ordering::SeqCst) & mine == 0 {
            summary.fetch_or(mine, Ordering::SeqCst);
        }
    }

    fn clear(&self) {
        for (at, summary) in self.summary.iter().enumerate() {
            let mut left = match summary.load(Ordering::SeqCst) {
                0 => continue,
                _ => summary.swap(0, Ordering::SeqCst),
            };
            while left != 0 {
                let word = at as u64 * WORD_BITS + u64::from(left.trailing_zeros());
                self.words[word as usize].store(0, Ordering::SeqCst);
                left &= left - 1;
            }
        }
    }

    /// The first word from `at` on that is not zero.
    fn next(&self, at: u64) -> Option<(u64, u64)> {
        let mut at = at;
        while at < self.words.len() as u64 {
            let summary = self.summary[(at / WORD_BITS) as usize].load(Ordering::SeqCst);
            match summary >> (at % WORD_BITS) {
                0 => at = (at / WORD_BITS + 1) * WORD_BITS,
                rest => {
                    at += u64::from(rest.trailing_zeros());
                    match self.words[at as usize].load(Ordering::SeqCst) {
                        0 => at += 1,
                        word => return Some((at, word)),
                    }
                }
            }
        }
        None
    }
}

/// The bits of one word from `from` up to `to`.
fn mask(from: u64, to: u64) -> u64 {
    (u64::MAX << from) & (u64::MAX >> (WORD_BITS - to))
}

impl Bits {
    /// Room for `len` bits.
    pub(super) fn new(len: u64, memory: &Arc<BitmapMemory>) -> Result<Bits, NoMemory> {
        let words = len.div_ceil(WORD_BITS).max(1);
        let reserved = memory.reserve(size_of::<Bits>() as u64);
        let bits = Bits {
            _reserved: reserved.ok_or(NoMemory)?,
            first_words: words.next_multiple_of(FIRST_WORDS_MIN),
            segments: [const { OnceLock::new() }; SEGMENTS_MAX],
            memory: memory.clone(),
        };
        bits.grow(len)?;
        Ok(bits)
    }

    /// Makes room for `len` bits, while others set them.
    pub(super) fn grow(&self, len: u64) -> Result<(), NoMemory> {
        if len / 8 > MEMORY_BYTES_MAX {
            return Err(NoMemory);
        }
        for (at, segment) in self.segments.iter().enumerate() {
            let words = self.words_of(at);
            if segment.get().is_none() {
                // Whoever is first; another's is as good.
                let _ = segment.set(Segment::new(words.end - words.start, &self.memory)?);
            }
            if words.end >= len.div_ceil(WORD_BITS) {
                return Ok(());
            }
        }
        Err(NoMemory)
    }

    fn words_of(&self, segment: usize) -> Range<u64> {
        match segment {
            0 => 0..self.first_words,
            _ => {
                let start = self.first_words.saturating_mul(1 << (segment - 1));
                start..start.saturating_mul(2)
            }
        }
    }

    /// The segment that has a word, and where that segment begins.
    fn find(&self, word: u64) -> Option<(&Segment, u64)> {
        if word < self.first_words {
            return Some((self.segments[0].get()?, 0));
        }
        let at = (word / self.first_words).ilog2() as usize + 1;
        Some((self.segments.get(at)?.get()?, self.words_of(at).start))
    }

    /// Sets those bits. What there is no room for is not set: the caller grows first.
    #[inline]
    pub(super) fn set(&self, bits: Range<u64>) {
        let word = bits.start / WORD_BITS;
        let end = word * WORD_BITS + WORD_BITS;
        // As nearly every write does: within one word, of the first segment.
        match self.segments[0].get() {
            Some(first) if word < self.first_words && bits.end <= end && !bits.is_empty() => {
                let count = bits.end - bits.start;
                let mask = (u64::MAX >> (WORD_BITS - count)) << (bits.start % WORD_BITS);
                first.set(word as usize, mask);
            }
            _ => self.set_anywhere(bits),
        }
    }

    fn set_anywhere(&self, bits: Range<u64>) {
        let mut from = bits.start;
        while from < bits.end {
            let word = from / WORD_BITS;
            let to = bits.end.min((word + 1) * WORD_BITS);
            let Some((segment, start)) = self.find(word) else {
                return;
            };
            let mask = mask(from % WORD_BITS, to - word * WORD_BITS);
            segment.set((word - start) as usize, mask);
            from = to;
        }
    }

    /// Clears them all. Bits that are set meanwhile may stay set.
    pub(super) fn clear(&self) {
        self.each_segment().for_each(|(segment, _)| segment.clear());
    }

    /// Clears those from `from` on.
    pub(super) fn clear_from(&self, from: u64) {
        let mut word = from / WORD_BITS;
        while let Some((at, _)) = self.next_word(word) {
            if let Some((segment, start)) = self.find(at) {
                let kept = match at == from / WORD_BITS {
                    true => !(u64::MAX << (from % WORD_BITS)),
                    false => 0,
                };
                segment.words[(at - start) as usize].fetch_and(kept, Ordering::SeqCst);
            }
            word = at + 1;
        }
    }

    fn each_segment(&self) -> impl Iterator<Item = (&Segment, u64)> {
        let segments = self.segments.iter().enumerate();
        segments.map_while(|(at, segment)| Some((segment.get()?, self.words_of(at).start)))
    }

    /// The first word from `word` on that is not zero.
    fn next_word(&self, word: u64) -> Option<(u64, u64)> {
        for (segment, start) in self.each_segment() {
            let from = word.saturating_sub(start);
            if let Some((at, value)) = segment.next(from) {
                return Some((start + at, value));
            }
        }
        None
    }

    /// Sets those that are set in `other`, which has no more.
    pub(super) fn take_up(&self, other: &Bits) {
        let mut word = 0;
        while let Some((at, value)) = other.next_word(word) {
            if let Some((segment, start)) = self.find(at) {
                segment.set((at - start) as usize, value);
            }
            word = at + 1;
        }
    }

    /// Word by word, from the first on.
    pub(super) fn word(&self, word: u64) -> u64 {
        let found = self.find(word);
        found.map_or(0, |(segment, start)| {
            segment.words[(word - start) as usize].load(Ordering::SeqCst)
        })
    }

    /// How many are set.
    pub(super) fn count(&self) -> u64 {
        let mut count = 0;
        let mut word = 0;
        while let Some((at, value)) = self.next_word(word) {
            count += u64::from(value.count_ones());
            word = at + 1;
        }
        count
    }

    /// The first bit from `from` on that is set.
    pub(super) fn next_set(&self, from: u64) -> Option<u64> {
        let word = from / WORD_BITS;
        let first = self.word(word) & (u64::MAX << (from % WORD_BITS));
        if first != 0 {
            return Some(word * WORD_BITS + u64::from(first.trailing_zeros()));
        }
        let (at, value) = self.next_word(word + 1)?;
        Some(at * WORD_BITS + u64::from(value.trailing_zeros()))
    }

    /// The first bit from `from` on, and below `end`, that is clear; `end` if there is none.
    pub(super) fn next_clear(&self, from: u64, end: u64) -> u64 {
        let mut at = from;
        while at < end {
            let clear = !self.word(at / WORD_BITS) & (u64::MAX << (at % WORD_BITS));
            if clear != 0 {
                let found = at / WORD_BITS * WORD_BITS + u64::from(clear.trailing_zeros());
                return found.min(end);
            }
            at = (at / WORD_BITS + 1) * WORD_BITS;
        }
        end
    }
}

#[cfg(test)]
mod tests;
