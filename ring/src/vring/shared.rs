//! Words of memory that another process has as well.
//!
//! The rule: whatever is read may be anything; whoever writes is alone in doing so.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::GuestMap;

/// A table of 64-bit words in shared memory.
#[derive(Debug)]
pub struct SharedWords {
    base: *mut u8,
    count: usize,
    /// Owns the memory.
    _map: Arc<GuestMap>,
}

// SAFETY: the pointer leads into the map, which is shared by threads and kept alive with it; all access is atomic.
unsafe impl Send for SharedWords {}
// SAFETY: as above.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// `count` words from `at` bytes into `map`; `None` if they are not all there, or not aligned.
    pub fn new(map: Arc<GuestMap>, at: u64, count: u32) -> Option<SharedWords> {
        let seg = map.contiguous(at, count.checked_mul(8)?)?;
        let base = seg.host();
        base.addr().is_multiple_of(8).then_some(SharedWords {
            base,
            count: count as usize,
            _map: map,
        })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Word `at`; 0 where there is none.
    pub fn get(&self, at: usize) -> u64 {
        self.word(at).map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// Sets word `at`, after all that were set before. A word that is not there is not set.
    pub fn set(&self, at: usize, value: u64) {
        if let Some(word) = self.word(at) {
            word.store(value, Ordering::Release);
        }
    }

    fn word(&self, at: usize) -> Option<&AtomicU64> {
        let word = self.base.wrapping_add(at.checked_mul(8)?).cast();
        // SAFETY: checked to be among the words that `new` found in the map; aligned as its first.
        (at < self.count).then(|| unsafe { AtomicU64::from_ptr(word) })
    }
}
