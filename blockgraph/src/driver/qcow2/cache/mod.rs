//! The L2 cache: slices of L2 tables in memory, looked up without a lock.
//!
//! The rule: what is cached is the truth, and what is not cached is as on disk. A slice that the disk does not know yet
//! (dirty) and one somebody holds a [`Slot`] of stay cached. Slices are numbered over the guest's disk, not by where their
//! table is; those of tables that do not exist are cached as zero words, so that a lookup never asks the L1 table.
//!
//! Slots form sets, a slice may be in any slot of its set; consecutive slices are in consecutive sets, so a cache as
//! large as an image's tables holds them all. Each slot has a tag: the slice it holds, and a sequence number that is odd
//! while the words are being changed and never repeats while a reader looks (a sequence lock; Boehm, "Can seqlocks get
//! along with programming language memory models?", 2012).

mod clean;
mod load;
mod sizes;
mod tag;

pub use clean::{Cleaning, clean_every};
pub use load::{Miss, OnDisk, View};
pub use sizes::{CacheOptions, CacheSizes, SizeError};

use super::format::entry::{Words as EntryWords, is_compressed};
use super::geometry::Geometry;
use load::Loads;
use ring::words::PAGE_WORDS;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tag::{Holds, Tag};

/// A set has at least so many slots, unless the whole cache has fewer.
const WAYS_MIN: usize = 8;

/// What is known of a slot besides its words.
#[derive(Debug, Default)]
struct State {
    /// Looked up since the clock's hand passed.
    used: AtomicBool,
    /// How many [`Slot`]s of it are out. Changed under the lock.
    holders: AtomicU32,
    /// How often it was changed since it was loaded, and how many of those changes are on disk.
    changes: AtomicU32,
    written: AtomicU32,
}

impl State {
    fn is_dirty(&self) -> bool {
        self.changes.load(Ordering::Acquire) != self.written.load(Ordering::Acquire)
    }

    fn may_go(&self) -> bool {
        self.holders.load(Ordering::Acquire) == 0 && !self.is_dirty()
    }
}

/// The L2 slices of one image.
#[derive(Debug)]
pub struct Cache {
    slice_words: usize,
    entry_words: usize,
    /// Slots of a set.
    ways: usize,
    /// Sets less one; their number is a power of two.
    set_mask: u64,
    tags: Box<[AtomicU64]>,
    states: Box<[State]>,
    words: ring::Words,
    /// How often the entry of a compressed cluster appeared, changed or went.
    compressed_changes: AtomicU64,
    /// Guards what is loaded, given out and evicted; never held across an await.
    loads: Mutex<Loads>,
}

/// A cached slice, found without a lock. What is read of it counts only if [`Found::holds`] says so afterwards.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    cache: &'a Cache,
    slot: usize,
    tag: Tag,
}

/// A slice that stays cached as long as this lives.
#[derive(Debug)]
pub struct Slot<'a> {
    cache: &'a Cache,
    slot: usize,
    slice: u64,
}

/// A moment in the life of a slot, to be given to [`Slot::written`] when what it held then is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(u32);

impl Cache {
    /// A cache of `slots` slices (at least two). Its memory is taken as slices are loaded. Errors: ENOMEM.
    pub fn new(geometry: Geometry, slots: usize) -> io::Result<Cache> {
        let slots = slots.max(2);
        let sets = match slots / WAYS_MIN {
            0 => 1,
            sets => 1 << sets.ilog2(),
        };
        let ways = slots / sets;
        let slice_words = (geometry.slice_bytes() / 8) as usize;
        let entry_words = match geometry.layout().words {
            EntryWords::One => 1,
            EntryWords::Two => 2,
        };
        let words = (ways * sets)
            .checked_mul(slice_words)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Cache {
            slice_words,
            entry_words,
            ways,
            set_mask: sets as u64 - 1,
            tags: (0..ways * sets).map(|_| AtomicU64::new(0)).collect(),
            states: (0..ways * sets).map(|_| State::default()).collect(),
            words: ring::Words::new(words)?,
            compressed_changes: AtomicU64::new(0),
            loads: Mutex::default(),
        })
    }

    /// How many slices there is room for.
    pub fn slots(&self) -> usize {
        self.tags.len()
    }

    /// Looks a slice up. Lock-free; `None` if it is not cached or just being changed.
    #[inline]
    pub fn find(&self, slice: u64) -> Option<Found<'_>> {
        let set = self.set(slice);
        let first = set.start;
        let tags = self.tags.get(set)?.iter();
        let tags = tags.map(|tag| Tag(tag.load(Ordering::Acquire)));
        let (way, tag) = tags.enumerate().find(|(_, tag)| tag.is_of(slice))?;
        if tag.is_changing() {
            return None;
        }
        let slot = first + way;
        let used = &self.states[slot].used;
        if !used.load(Ordering::Relaxed) {
            used.store(true, Ordering::Relaxed);
        }
        let cache = self;
        Some(Found { cache, slot, tag })
    }

    /// The words of one entry, if its slice is cached and not just being changed. Lock-free.
    pub fn lookup(&self, slice: u64, index: usize) -> Option<[u64; 2]> {
        let found = self.find(slice)?;
        let words = found.entry(index);
        found.holds().then_some(words)
    }

    /// Does it hold changes of that slice which are not on disk?
    pub fn is_changed(&self, slice: u64) -> bool {
        self.slot_of(slice)
            .is_some_and(|slot| self.states[slot].is_dirty())
    }

    /// A number that becomes another whenever what was unpacked of a compressed cluster may be out of date.
    pub fn compressed_changes(&self) -> u64 {
        self.compressed_changes.load(Ordering::Acquire)
    }

    /// A slice, if it is cached.
    pub fn resident(&self, slice: u64) -> Option<Slot<'_>> {
        self.take(&self.lock(), slice)
    }

    /// Forgets every slice; for when the L1 table has become another. False, and nothing is forgotten, if one is dirty or
    /// in use.
    pub fn clear(&self) -> bool {
        let _loads = self.lock();
        let all = 0..self.tags.len();
        if !all.clone().all(|slot| self.states[slot].may_go()) {
            return false;
        }
        all.for_each(|slot| self.empty(slot));
        self.compressed_changes.fetch_add(1, Ordering::AcqRel);
        true
    }

    /// Forgets the slices that nobody looked up since the last call, and gives their memory back (QEMU's
    /// `cache-clean-interval`).
    pub fn clean(&self) {
        let _loads = self.lock();
        for slot in 0..self.tags.len() {
            let state = &self.states[slot];
            if !state.used.swap(false, Ordering::Relaxed) && state.may_go() {
                self.empty(slot);
            }
        }
        // Several small slices share a page, which goes back when all of them are gone.
        let group = (PAGE_WORDS / self.slice_words).max(1);
        for first in (0..self.tags.len()).step_by(group) {
            let last = (first + group).min(self.tags.len());
            if (first..last).all(|slot| self.tag(slot).slice().is_none()) {
                self.words
                    .release(first * self.slice_words..last * self.slice_words);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Loads> {
        self.loads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The slots that may hold a slice.
    fn set(&self, slice: u64) -> std::ops::Range<usize> {
        let first = (slice & self.set_mask) as usize * self.ways;
        first..first + self.ways
    }

    fn tag(&self, slot: usize) -> Tag {
        Tag(self.tags[slot].load(Ordering::Acquire))
    }

    fn slot_of(&self, slice: u64) -> Option<usize> {
        self.set(slice).find(|slot| self.tag(*slot).is_of(slice))
    }

    fn take(&self, _lock: &MutexGuard<'_, Loads>, slice: u64) -> Option<Slot<'_>> {
        let slot = self.slot_of(slice)?;
        self.states[slot].holders.fetch_add(1, Ordering::AcqRel);
        self.states[slot].used.store(true, Ordering::Relaxed);
        let cache = self;
        Some(Slot { cache, slot, slice })
    }

    /// Begins to change the words of a slot; returns what to end it with.
    fn begin_change(&self, slot: usize) -> Tag {
        let tag = self.tag(slot).changing();
        self.tags[slot].store(tag.0, Ordering::Relaxed);
        // Whoever reads a word that is stored from here on will find the tag changed.
        fence(Ordering::Release);
        tag
    }

    fn end_change(&self, slot: usize, changing: Tag, holds: Holds) {
        let tag = changing.changed(holds);
        self.tags[slot].store(tag.0, Ordering::Release);
    }

    fn empty(&self, slot: usize) {
        let tag = self.begin_change(slot);
        self.end_change(slot, tag, Holds::Nothing);
    }

    fn words_of(&self, slot: usize) -> &[AtomicU64] {
        let first = slot * self.slice_words;
        &self.words[first..first + self.slice_words]
    }

    #[inline]
    fn entry_of(&self, slot: usize, tag: Tag, index: usize) -> [u64; 2] {
        if tag.is_blank() {
            return [0, 0];
        }
        // Out of range would be another slice's entry; the mask keeps a wrong index within this one.
        let within = (index * self.entry_words) & (self.slice_words - 1);
        let at = slot * self.slice_words + within;
        let word = |at: usize| self.words[at].load(Ordering::Relaxed);
        let second = if self.entry_words == 1 {
            0
        } else {
            word(at + 1)
        };
        [word(at), second]
    }
}

impl Found<'_> {
    /// The words of one entry (the second is zero where entries have one).
    #[inline]
    pub fn entry(&self, index: usize) -> [u64; 2] {
        self.cache.entry_of(self.slot, self.tag, index)
    }

    /// Is nothing described by it? Then all its words are zero.
    #[inline]
    pub fn is_blank(&self) -> bool {
        self.tag.is_blank()
    }

    /// Was it this slice, unchanged, all the while?
    pub fn holds(&self) -> bool {
        fence(Ordering::Acquire);
        self.cache.tags[self.slot].load(Ordering::Relaxed) == self.tag.0
    }
}

impl Slot<'_> {
    /// Which slice it is.
    pub fn slice(&self) -> u64 {
        self.slice
    }

    /// The words of one entry. If another thread is just changing it, either what was or what will be.
    pub fn entry(&self, index: usize) -> [u64; 2] {
        loop {
            let tag = self.cache.tag(self.slot);
            if !tag.is_changing() {
                let words = self.cache.entry_of(self.slot, tag, index);
                fence(Ordering::Acquire);
                if self.cache.tags[self.slot].load(Ordering::Relaxed) == tag.0 {
                    return words;
                }
            }
            // A change is a few stores long.
            std::hint::spin_loop();
        }
    }

    /// Changes an entry and makes the slice dirty. Only whoever has the image's lock for changes may.
    pub fn set(&self, index: usize, words: [u64; 2]) {
        let cache = self.cache;
        let at = (index * cache.entry_words) & (cache.slice_words - 1);
        let slots_words = cache.words_of(self.slot);
        cache.states[self.slot]
            .changes
            .fetch_add(1, Ordering::AcqRel);
        self.fill_blank();
        let before = slots_words[at].load(Ordering::Relaxed);
        if is_compressed(before) || is_compressed(words[0]) {
            cache.compressed_changes.fetch_add(1, Ordering::AcqRel);
        }
        if cache.entry_words == 1 {
            // One word is always whole, so nobody has to look twice.
            slots_words[at].store(words[0], Ordering::Release);
            return;
        }
        let tag = cache.begin_change(self.slot);
        slots_words[at].store(words[0], Ordering::Relaxed);
        slots_words[at + 1].store(words[1], Ordering::Relaxed);
        cache.end_change(self.slot, tag, Holds::Stored(self.slice));
    }

    /// Stores the words of a slice that had none.
    fn fill_blank(&self) {
        let cache = self.cache;
        if cache.tag(self.slot).is_blank() {
            let tag = cache.begin_change(self.slot);
            let words = cache.words_of(self.slot).iter();
            words.for_each(|word| word.store(0, Ordering::Relaxed));
            cache.end_change(self.slot, tag, Holds::Stored(self.slice));
        }
    }

    /// Is there a change that is not on disk?
    pub fn is_dirty(&self) -> bool {
        self.cache.states[self.slot].is_dirty()
    }

    /// Before copying out what is to be written: what it holds now.
    pub fn mark(&self) -> Mark {
        Mark(self.cache.states[self.slot].changes.load(Ordering::Acquire))
    }

    /// What it held at `mark` is on disk; changes since then are not.
    pub fn written(&self, mark: Mark) {
        let state = &self.cache.states[self.slot];
        state.written.store(mark.0, Ordering::Release);
    }

    /// As on disk: the big-endian bytes of the entries `first..first + count`. Only whoever has the image's lock for changes
    /// may, or a reader who does not mind an entry changed meanwhile.
    pub fn bytes(&self, first: usize, count: usize) -> Vec<u8> {
        let size = self.cache.entry_words;
        if self.cache.tag(self.slot).is_blank() {
            return vec![0; count * size * 8];
        }
        let words = &self.cache.words_of(self.slot)[first * size..(first + count) * size];
        let word = |word: &AtomicU64| word.load(Ordering::Relaxed).to_be_bytes();
        words.iter().flat_map(word).collect()
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.cache.states[self.slot]
            .holders
            .fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests;
