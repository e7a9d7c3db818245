//! What a bitmap says as bytes, the lowest bit of a byte being the first (qcow2.txt, "Bitmap data"), for images that keep it.
//!
//! The rule: while a job has what a bitmap said, both are stored: nothing is lost whatever becomes of the job.

use super::dirty::{DirtyBitmap, Keeping, State};
use super::error::BitmapError;
use super::memory::BitmapMemory;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

impl DirtyBitmap {
    /// One that an image has, clean as yet. Of one that is inconsistent there is nothing to be kept in memory.
    pub(crate) fn of_image(
        name: String,
        granularity_bytes: u32,
        size_bytes: u64,
        state: State,
        memory: &Arc<BitmapMemory>,
    ) -> Result<DirtyBitmap, BitmapError> {
        let kept_bytes = match state {
            State::Inconsistent => 0,
            State::Recording | State::Disabled => size_bytes,
        };
        let bitmap = DirtyBitmap::new(name, granularity_bytes, kept_bytes, state, memory)?;
        bitmap.size_bytes.store(size_bytes, Ordering::SeqCst);
        Ok(bitmap.kept(Keeping::Persistent))
    }

    /// What it says from byte `from` of its bits on, a multiple of eight, the lowest bit of a byte being the first; while a job
    /// has it, what the job has as well.
    pub(crate) fn store_bytes(&self, from: u64, bytes: &mut [u8]) {
        let frozen = self.frozen.lock().unwrap_or_else(PoisonError::into_inner);
        for (word, bytes) in (from / 8..).zip(bytes.chunks_mut(8)) {
            let also = frozen.as_ref().map_or(0, |frozen| frozen.bits.word(word));
            let word = (self.bits.word(word) | also).to_le_bytes();
            bytes.copy_from_slice(&word[..bytes.len()]);
        }
    }

    /// The first byte of its bits from `from` on that may have one set, by whole words.
    pub(crate) fn next_byte(&self, from: u64) -> Option<u64> {
        let frozen = self.frozen.lock().unwrap_or_else(PoisonError::into_inner);
        let also = frozen.as_ref().and_then(|f| f.bits.next_set(from * 8));
        let own = self.bits.next_set(from * 8);
        own.into_iter().chain(also).min().map(|bit| bit / 64 * 8)
    }

    /// How many bytes its bits are.
    pub(crate) fn len_bytes(&self) -> u64 {
        self.len_bits().div_ceil(8)
    }

    /// Makes dirty what such bytes say. What is past the end of the node is not looked at.
    pub(crate) fn load_bytes(&self, from: u64, bytes: &[u8]) {
        let end = self.len_bits();
        for (at, bytes) in (from * 8..).step_by(64).zip(bytes.chunks(8)) {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            let mut word = u64::from_le_bytes(word);
            while word != 0 {
                let first = u64::from(word.trailing_zeros());
                let len = u64::from((word >> first).trailing_ones());
                self.bits
                    .set((at + first).min(end)..(at + first + len).min(end));
                word &= u64::MAX.checked_shl((first + len) as u32).unwrap_or(0);
            }
        }
    }

    /// Makes `len` bytes of its bits from `from` on dirty, as far as there are so many.
    pub(crate) fn load_ones(&self, from: u64, len: u64) {
        let end = self.len_bits();
        self.bits
            .set((from * 8).min(end)..((from + len) * 8).min(end));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Span;
    use proptest::prelude::*;

    fn bitmap(granularity: u32, size: u64) -> DirtyBitmap {
        let memory = Arc::default();
        DirtyBitmap::new("b".into(), granularity, size, State::Recording, &memory).expect("memory")
    }

    fn span(at: u64, len: u64) -> Span {
        Span { at, len }
    }

    proptest! {
        #[test]
        fn bytes_that_were_stored_say_the_same_again_and_nothing_past_the_end(
            size in 1u64..200_000, writes in proptest::collection::vec((0u64..200_000, 1u64..9000), 0..8),
            ones in any::<bool>(),
        ) {
            let (from, to) = (bitmap(512, size), bitmap(512, size));
            for (at, len) in writes {
                from.mark(span(at.min(size - 1), len).first(size - at.min(size - 1)));
            }
            let mut bytes = vec![0; from.len_bytes().next_multiple_of(512) as usize];
            let mut read_from = 0;
            while let Some(at) = from.next_byte(read_from) {
                let part = at / 512 * 512;
                from.store_bytes(part, &mut bytes[part as usize..][..512]);
                read_from = part + 512;
            }
            for (part, stored) in bytes.chunks(512).enumerate() {
                to.load_bytes(part as u64 * 512, stored);
            }
            prop_assert_eq!(from.sha256(), to.sha256());
            to.clear();
            let garbage = vec![0xff; bytes.len()];
            match ones {
                true => to.load_ones(0, garbage.len() as u64),
                false => to.load_bytes(0, &garbage),
            }
            prop_assert_eq!(to.dirty_bytes(), size.next_multiple_of(512));
        }
    }

    #[test]
    fn what_a_job_has_is_stored_as_well() {
        let (bitmap, content) = (bitmap(512, 1 << 20), bitmap(512, 1 << 20));
        bitmap.mark(span(0, 512));
        content.mark(span(512, 512));
        bitmap.set_frozen(Some(Arc::new(content)));
        let mut bytes = [0; 8];
        assert_eq!(bitmap.next_byte(0), Some(0));
        bitmap.store_bytes(0, &mut bytes);
        assert_eq!(bytes, [3, 0, 0, 0, 0, 0, 0, 0]);
    }
}
