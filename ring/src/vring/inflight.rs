//! Which requests of a ring are in flight, kept in memory of the front end's so that it outlives this process
//! (vhost-user.rst, "Inflight I/O tracking", split virtqueues).
//!
//! The rule: a process may be killed between any two stores, and what it stored is enough to tell which requests were
//! answered: each of them is either in the used ring or is begun again, never both. The order of the stores says so, not
//! their ordering among threads: there is one thread, and the next reader is another process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering, compiler_fence};

use super::{GuestMap, RING_SIZE_MAX, RingError};

// struct QueueRegionSplit: le64 features, le16 version, le16 desc_num, le16 last_batch_head, le16 used_idx, then the
// states of the descriptors. Fields are in the byte order of the machine, as both sides are on it.
const HEADER_BYTES: u64 = 16;
const VERSION_AT: usize = 8;
const DESC_NUM_AT: usize = 10;
const LAST_BATCH_HEAD_AT: usize = 12;
const USED_IDX_AT: usize = 14;
// struct DescStateSplit: u8 inflight, u8 padding[5], u16 next, u64 counter.
const STATE_BYTES: u64 = 16;
const NEXT_AT: usize = 6;
const COUNTER_AT: usize = 8;

/// The only version there is; 0 is a region nobody has used yet.
const VERSION: u16 = 1;

/// One queue's part of the region.
#[derive(Debug)]
pub struct Inflight {
    base: *mut u8,
    size: u16,
    /// The next request's place in the order of all.
    counter: u64,
    /// Owns the memory.
    map: Arc<GuestMap>,
}

// SAFETY: the pointer leads into the map, which is shared by threads and kept alive by `map`; all access is atomic.
unsafe impl Send for Inflight {}

/// Where a ring goes on.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Heads to begin again, in the order in which they were begun.
    pub(super) again: Vec<u16>,
    /// Is the region an earlier device's, so that it says where to go on?
    pub(super) used_before: bool,
}

impl Inflight {
    /// How many bytes a queue of `size` entries takes.
    pub fn bytes(size: u16) -> u64 {
        HEADER_BYTES + STATE_BYTES * u64::from(size)
    }

    /// The part that begins `at` bytes into `map`, for a ring of up to `size` entries. Errors: it is not in the map, or
    /// not aligned to 8.
    pub fn new(map: Arc<GuestMap>, at: u64, size: u16) -> Result<Inflight, RingError> {
        let bytes = u32::try_from(Inflight::bytes(size)).ok();
        let seg = bytes.and_then(|bytes| map.contiguous(at, bytes));
        match seg {
            Some(seg) if size <= RING_SIZE_MAX && seg.host().addr().is_multiple_of(8) => {
                Ok(Inflight {
                    base: seg.host(),
                    size,
                    counter: 0,
                    map,
                })
            }
            _ => Err(RingError::Untracked { size }),
        }
    }

    /// True once its memory vanished.
    #[inline]
    pub(super) fn poisoned(&self) -> bool {
        self.map.poisoned()
    }

    /// For how many entries there is room.
    pub(super) fn size(&self) -> u16 {
        self.size
    }

    /// Takes the region over for a ring of `size` entries whose used index is `used_idx`.
    pub(super) fn take_over(&mut self, size: u16, used_idx: u16) -> Found {
        let ours = self.half(VERSION_AT).load(Ordering::Relaxed) == VERSION
            && self.half(DESC_NUM_AT).load(Ordering::Relaxed) == size;
        if !ours || !self.finish_batch(size, used_idx) {
            self.begin(size, used_idx);
            return Found::default();
        }
        let mut begun: Vec<(u64, u16)> = (0..size)
            .filter(|head| self.flag(*head).load(Ordering::Relaxed) != 0)
            .map(|head| (self.count(head).load(Ordering::Relaxed), head))
            .collect();
        begun.sort_unstable();
        self.counter = begun.last().map_or(0, |(count, _)| count.wrapping_add(1));
        Found {
            again: begun.into_iter().map(|(_, head)| head).collect(),
            used_before: true,
        }
    }

    fn begin(&mut self, size: u16, used_idx: u16) {
        (0..size).for_each(|head| self.flag(head).store(0, Ordering::Relaxed));
        self.half(USED_IDX_AT).store(used_idx, Ordering::Relaxed);
        self.half(DESC_NUM_AT).store(size, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        self.half(VERSION_AT).store(VERSION, Ordering::Relaxed);
    }

    /// The batch that was published last may still be marked in flight. False if the ring is not the one that was tracked:
    /// its index is further on, or further back, than one batch.
    fn finish_batch(&mut self, size: u16, used_idx: u16) -> bool {
        let published = used_idx.wrapping_sub(self.half(USED_IDX_AT).load(Ordering::Relaxed));
        if published > size {
            return false;
        }
        self.answered(published, used_idx);
        true
    }

    /// Nothing is in flight, and the ring stops: who starts it next says where.
    pub(super) fn end(&self) {
        self.half(VERSION_AT).store(0, Ordering::Relaxed);
    }

    /// A request was taken from the ring.
    #[inline]
    pub(super) fn began(&mut self, head: u16) {
        self.count(head).store(self.counter, Ordering::Relaxed);
        self.counter = self.counter.wrapping_add(1);
        compiler_fence(Ordering::SeqCst);
        self.flag(head).store(1, Ordering::Relaxed);
    }

    /// Its answer is in the used ring, where the guest does not look yet.
    #[inline]
    pub(super) fn pushed(&self, head: u16) {
        let last = self.half(LAST_BATCH_HEAD_AT);
        self.next(head)
            .store(last.load(Ordering::Relaxed), Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        last.store(head, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
    }

    /// The guest sees the last `count` answers, up to `used_idx`.
    #[inline]
    pub(super) fn answered(&self, count: u16, used_idx: u16) {
        compiler_fence(Ordering::SeqCst);
        let mut head = self.half(LAST_BATCH_HEAD_AT).load(Ordering::Relaxed);
        for _ in 0..count {
            // The front end's to change: a head outside is nobody's.
            if head >= self.size {
                break;
            }
            self.flag(head).store(0, Ordering::Relaxed);
            head = self.next(head).load(Ordering::Relaxed);
        }
        compiler_fence(Ordering::SeqCst);
        self.half(USED_IDX_AT).store(used_idx, Ordering::Relaxed);
    }

    fn half(&self, at: usize) -> &AtomicU16 {
        // SAFETY: inside the header, which `new` found in the map; even, as the base is aligned to 8.
        unsafe { AtomicU16::from_ptr(self.base.wrapping_add(at).cast()) }
    }

    /// The state of a descriptor; one that is outside is the last one's.
    fn state(&self, head: u16) -> *mut u8 {
        debug_assert!(head < self.size);
        let at = HEADER_BYTES + STATE_BYTES * u64::from(head.min(self.size.saturating_sub(1)));
        self.base.wrapping_add(at as usize)
    }

    fn flag(&self, head: u16) -> &AtomicU8 {
        // SAFETY: the first byte of a state, all of which `new` found in the map.
        unsafe { AtomicU8::from_ptr(self.state(head)) }
    }

    fn next(&self, head: u16) -> &AtomicU16 {
        // SAFETY: as above; states are aligned to 8.
        unsafe { AtomicU16::from_ptr(self.state(head).wrapping_add(NEXT_AT).cast()) }
    }

    fn count(&self, head: u16) -> &AtomicU64 {
        // SAFETY: as above; states are aligned to 8.
        unsafe { AtomicU64::from_ptr(self.state(head).wrapping_add(COUNTER_AT).cast()) }
    }
}
