//! The memory that bitmaps take, counted and bounded for all of them together.
//!
//! The rule: memory is reserved before it is allocated and given back when it is dropped, so that no number of bitmaps of no
//! size can take more than [`MEMORY_BYTES_MAX`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What all bitmaps together may take.
pub const MEMORY_BYTES_MAX: u64 = 512 << 20;

/// How much is taken; the same for all generations of a graph.
#[derive(Debug, Default)]
pub struct BitmapMemory(AtomicU64);

/// A part of it; given back when dropped.
#[derive(Debug)]
pub(super) struct Reserved {
    of: Arc<BitmapMemory>,
    bytes: u64,
}

impl BitmapMemory {
    /// What bitmaps take now.
    pub fn used_bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// `None` if that is too much.
    pub(super) fn reserve(self: &Arc<BitmapMemory>, bytes: u64) -> Option<Reserved> {
        let more = |used: u64| {
            let used = used.checked_add(bytes)?;
            (used <= MEMORY_BYTES_MAX).then_some(used)
        };
        let taken = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.ok().map(|_| Reserved {
            of: self.clone(),
            bytes,
        })
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.of.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_the_bound_is_reserved_and_all_of_it_comes_back() {
        let memory = Arc::<BitmapMemory>::default();
        let most = memory.reserve(MEMORY_BYTES_MAX - 1).expect("room");
        assert!(memory.reserve(2).is_none());
        assert!(memory.reserve(u64::MAX).is_none());
        let last = memory.reserve(1).expect("room");
        drop((most, last));
        assert_eq!(memory.used_bytes(), 0);
    }
}
