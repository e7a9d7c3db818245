//! A dirty bitmap: which parts of a node were written since it was cleared.
//!
//! The rule: [`DirtyBitmap::mark`] may be called by any thread at any time and never fails; what cannot be noted makes the bitmap
//! inconsistent, so that nobody relies on it.

use super::bits::{Bits, NoMemory};
use super::memory::BitmapMemory;
use crate::units::Span;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The smallest granularity, in bytes.
pub(super) const GRANULARITY_BYTES_MIN: u32 = 512;

/// Does a bitmap note what is written?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It does.
    Recording,
    /// It says what it said.
    Disabled,
    /// Something that was written is missing: it must not be used any more.
    Inconsistent,
}

/// Is a bitmap there when the image is opened again?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeping {
    /// It is not.
    InMemory,
    /// It is stored with the image.
    Persistent,
}

/// A bitmap of a node.
#[derive(Debug)]
pub struct DirtyBitmap {
    name: String,
    granularity_bits: u32,
    pub(super) size_bytes: AtomicU64,
    state: AtomicU8,
    busy: AtomicBool,
    keeping: Keeping,
    /// Its image has it as it is, and is not written.
    readonly: AtomicBool,
    /// What it said when a job took it. Looked at by queries alone.
    pub(super) frozen: Mutex<Option<Arc<DirtyBitmap>>>,
    pub(super) bits: Bits,
}

/// Somebody uses a bitmap, and nobody else may meanwhile; over when this is dropped.
#[derive(Debug)]
pub struct Busy(Arc<DirtyBitmap>);

impl Busy {
    /// The bitmap.
    pub fn bitmap(&self) -> &Arc<DirtyBitmap> {
        &self.0
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.store(false, Ordering::Release);
    }
}

impl DirtyBitmap {
    /// A clean one. The granularity is a power of two.
    pub(super) fn new(
        name: String,
        granularity_bytes: u32,
        size_bytes: u64,
        state: State,
        memory: &Arc<BitmapMemory>,
    ) -> Result<DirtyBitmap, NoMemory> {
        let granularity_bits = granularity_bytes.ilog2();
        let bits = size_bytes.div_ceil(1 << granularity_bits);
        Ok(DirtyBitmap {
            name,
            granularity_bits,
            size_bytes: AtomicU64::new(size_bytes),
            state: AtomicU8::new(state as u8),
            busy: AtomicBool::new(false),
            keeping: Keeping::InMemory,
            readonly: AtomicBool::new(false),
            frozen: Mutex::default(),
            bits: Bits::new(bits, memory)?,
        })
    }

    /// The same, stored or not.
    pub(super) fn kept(self, keeping: Keeping) -> DirtyBitmap {
        DirtyBitmap { keeping, ..self }
    }

    /// Is it stored with the image?
    pub fn keeping(&self) -> Keeping {
        self.keeping
    }

    /// Has its image what it says, and is not written?
    pub fn is_readonly(&self) -> bool {
        self.readonly.load(Ordering::SeqCst)
    }

    pub(crate) fn set_readonly(&self, readonly: bool) {
        self.readonly.store(readonly, Ordering::SeqCst);
    }

    /// Has it to be written to its image before that is closed?
    pub(crate) fn is_to_be_stored(&self) -> bool {
        self.keeping == Keeping::Persistent
            && self.state() != State::Inconsistent
            && !self.is_readonly()
    }

    /// One of the same name that says the same, and records nothing.
    pub(super) fn copied(&self, memory: &Arc<BitmapMemory>) -> Result<DirtyBitmap, NoMemory> {
        let (name, unit) = (self.name.clone(), self.granularity_bytes());
        let copy = DirtyBitmap::new(name, unit, self.size_bytes(), State::Disabled, memory)?;
        copy.take_up(self);
        Ok(copy)
    }

    /// A job has what it said, or has it no more.
    pub(super) fn set_frozen(&self, content: Option<Arc<DirtyBitmap>>) {
        *self.frozen.lock().unwrap_or_else(PoisonError::into_inner) = content;
    }

    /// How many bytes a query shows to be dirty: while a job has it, what the job has.
    pub(super) fn shown_bytes(&self) -> u64 {
        let frozen = self.frozen.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = frozen.as_ref().map(|content| content.dirty_bytes());
        shown.unwrap_or_else(|| self.dirty_bytes())
    }

    /// Its name among those of its node.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How much a bit stands for.
    pub fn granularity_bytes(&self) -> u32 {
        1 << self.granularity_bits
    }

    /// The size of its node.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::SeqCst)
    }

    /// Does it note what is written?
    pub fn state(&self) -> State {
        match self.state.load(Ordering::SeqCst) {
            0 => State::Recording,
            1 => State::Disabled,
            _ => State::Inconsistent,
        }
    }

    /// What is inconsistent stays so.
    pub(super) fn set_state(&self, state: State) {
        let now = self.state() as u8;
        if now != State::Inconsistent as u8 {
            // Lost only to a thread that has just found it inconsistent.
            let order = Ordering::SeqCst;
            let _ = self.state.compare_exchange(now, state as u8, order, order);
        }
    }

    /// It may miss something.
    pub(crate) fn distrust(&self) {
        self.set_state(State::Inconsistent);
    }

    /// Does somebody use it?
    pub fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Acquire)
    }

    /// Takes it for the caller alone; `None` if somebody else has it.
    pub(super) fn occupy(self: &Arc<DirtyBitmap>) -> Option<Busy> {
        let was = self.busy.swap(true, Ordering::AcqRel);
        (!was).then(|| Busy(self.clone()))
    }

    /// Notes that `span` was written, if it records.
    #[inline]
    pub(super) fn mark(&self, span: Span) {
        if self.state.load(Ordering::SeqCst) == State::Recording as u8 && !span.is_empty() {
            self.set(span);
        }
    }

    /// The same whether it records or not.
    #[inline]
    pub(super) fn set(&self, span: Span) {
        if span.end() > self.size_bytes() && self.grow(span.end()).is_err() {
            return;
        }
        self.bits.set(self.bits_of(span));
    }

    /// The node is larger.
    #[cold]
    fn grow(&self, size_bytes: u64) -> Result<(), NoMemory> {
        if self.state() == State::Inconsistent {
            return Err(NoMemory);
        }
        let bits = size_bytes.div_ceil(1 << self.granularity_bits);
        if self.bits.grow(bits).is_err() {
            self.state
                .store(State::Inconsistent as u8, Ordering::SeqCst);
            return Err(NoMemory);
        }
        self.size_bytes.fetch_max(size_bytes, Ordering::SeqCst);
        Ok(())
    }

    /// The node has that size now; what is beyond it is forgotten. Nothing is written there meanwhile.
    pub(crate) fn resize(&self, size_bytes: u64) {
        self.fit(size_bytes);
        if size_bytes < self.size_bytes() {
            self.size_bytes.store(size_bytes, Ordering::SeqCst);
            self.bits.clear_from(self.len_bits());
        }
    }

    /// The node has at least that size.
    pub(super) fn fit(&self, size_bytes: u64) {
        if size_bytes > self.size_bytes() {
            // It is inconsistent if that fails.
            let _ = self.grow(size_bytes);
        }
    }

    /// Forgets what was written before the call.
    pub(super) fn clear(&self) {
        self.bits.clear();
    }

    /// Makes dirty what is dirty in another bitmap of a node of that size.
    pub(super) fn take_up(&self, other: &DirtyBitmap) {
        if other.granularity_bits == self.granularity_bits {
            return self.bits.take_up(&other.bits);
        }
        let whole = Span {
            at: 0,
            len: other.size_bytes(),
        };
        let mut rest = whole;
        while let Some(dirty) = other.next_dirty(rest) {
            self.set(dirty);
            // What else is dirty in a unit makes it no dirtier.
            rest = whole.after(dirty.widened(u64::from(self.granularity_bytes())).end());
        }
    }

    fn bits_of(&self, span: Span) -> Range<u64> {
        let unit = self.granularity_bits;
        span.at >> unit..((span.end() - 1) >> unit) + 1
    }

    pub(super) fn len_bits(&self) -> u64 {
        self.size_bytes().div_ceil(1 << self.granularity_bits)
    }

    /// How many bytes are dirty, by whole bits.
    pub fn dirty_bytes(&self) -> u64 {
        self.bits.count() << self.granularity_bits
    }

    /// The first dirty part of `span`: all of it that is dirty without a gap.
    pub fn next_dirty(&self, span: Span) -> Option<Span> {
        let end = span.end().min(self.size_bytes());
        if span.at >= end {
            return None;
        }
        let unit = self.granularity_bits;
        let first = self.bits.next_set(span.at >> unit)?;
        let at = span.at.max(first << unit);
        if at >= end {
            return None;
        }
        let clear = self.bits.next_clear(first, end.div_ceil(1 << unit));
        Some(Span {
            at,
            len: end.min(clear << unit) - at,
        })
    }

    /// The words, the first bit being the lowest of the first: never none.
    pub(super) fn words(&self) -> impl Iterator<Item = u64> {
        let words = self.len_bits().div_ceil(64).max(1);
        (0..words).map(|word| self.bits.word(word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bitmap(granularity: u32, size: u64) -> DirtyBitmap {
        let memory = Arc::default();
        DirtyBitmap::new("b".into(), granularity, size, State::Recording, &memory).expect("memory")
    }

    fn span(at: u64, len: u64) -> Span {
        Span { at, len }
    }

    #[test]
    fn a_byte_makes_its_whole_unit_dirty_and_no_more_than_the_node_has_is_told() {
        let bitmap = bitmap(4096, 10_000);
        bitmap.mark(span(9000, 1));
        assert_eq!(bitmap.dirty_bytes(), 4096);
        assert_eq!(bitmap.next_dirty(span(0, 10_000)), Some(span(8192, 1808)));
        assert_eq!(bitmap.next_dirty(span(9500, 100)), Some(span(9500, 100)));
        assert_eq!(bitmap.next_dirty(span(0, 8192)), None);
        bitmap.clear();
        assert_eq!(bitmap.next_dirty(span(0, 10_000)), None);
    }

    #[test]
    fn only_a_recording_bitmap_is_marked() {
        let bitmap = bitmap(512, 4096);
        bitmap.set_state(State::Disabled);
        bitmap.mark(span(0, 4096));
        assert_eq!(bitmap.dirty_bytes(), 0);
    }

    #[test]
    fn what_is_beyond_the_end_of_a_smaller_node_is_forgotten() {
        let bitmap = bitmap(512, 1 << 20);
        bitmap.mark(span(0, 1 << 20));
        bitmap.resize(1000);
        bitmap.resize(1 << 20);
        assert_eq!(bitmap.dirty_bytes(), 1024);
    }

    #[test]
    fn writes_beyond_the_end_grow_the_bitmap_and_without_memory_it_is_inconsistent_for_good() {
        let bitmap = bitmap(512, 0);
        bitmap.mark(span(1 << 30, 1));
        assert_eq!(
            (bitmap.size_bytes(), bitmap.dirty_bytes()),
            ((1 << 30) + 1, 512)
        );
        bitmap.mark(span(1 << 60, 1));
        assert_eq!(bitmap.state(), State::Inconsistent);
        bitmap.set_state(State::Recording);
        assert_eq!(bitmap.state(), State::Inconsistent);
    }

    #[test]
    fn nobody_else_uses_what_somebody_has_taken() {
        let bitmap = Arc::new(bitmap(512, 4096));
        let busy = bitmap.occupy().expect("free");
        assert!(bitmap.is_busy() && bitmap.occupy().is_none());
        drop(busy);
        assert!(bitmap.occupy().is_some());
    }
}
