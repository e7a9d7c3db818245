//! A guest for tests: memory in separate mappings between forbidden pages, and the driver's side of a ring.
//!
//! The rule: a device that leaves a region by one byte dies of SIGSEGV.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use crate::vring::{EventIdx, GuestMap, Indirect, Layout, Region, RingFeatures, Vring};

pub(super) const PAGE: usize = 4096;
pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;
pub(super) const INDIRECT: u16 = 4;

/// Pages between two forbidden ones, so that no access can stray unseen.
pub(super) struct Pages {
    base: *mut u8,
    len: usize,
}

// SAFETY: a number pair; access is by atomics and raw copies.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

impl Pages {
    pub(super) fn new(len: usize) -> Pages {
        let whole = len.next_multiple_of(PAGE) + 2 * PAGE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping somewhere.
        let base =
            unsafe { libc::mmap(std::ptr::null_mut(), whole, libc::PROT_NONE, flags, -1, 0) };
        assert_ne!(base, libc::MAP_FAILED);
        let host = base.wrapping_byte_add(PAGE);
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: inside the mapping just made.
        let done = unsafe { libc::mprotect(host, whole - 2 * PAGE, prot) };
        assert_eq!(done, 0);
        let base = base.cast();
        Pages { base, len: whole }
    }

    pub(super) fn host(&self) -> *mut u8 {
        self.base.wrapping_add(PAGE)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the whole mapping of `new`; the map that used it is gone.
        unsafe { libc::munmap(self.base.cast(), self.len) };
    }
}

/// Memory at the given places, each region ending exactly at a forbidden page.
pub(super) fn memory(places: &[(u64, u64)]) -> Arc<GuestMap> {
    let mut keep = Vec::new();
    let mut regions = Vec::new();
    for &(gpa, len_bytes) in places {
        let pages = Pages::new(len_bytes as usize);
        let slack = (len_bytes as usize).next_multiple_of(PAGE) - len_bytes as usize;
        let host = pages.host().wrapping_add(slack);
        regions.push(Region {
            gpa,
            len_bytes,
            host,
        });
        keep.push(pages);
    }
    // SAFETY: `keep` owns the pages, which nothing refers to.
    Arc::new(unsafe { GuestMap::new(regions, Box::new(keep)) }.unwrap())
}

/// Writes bytes into guest memory, across regions.
pub(super) fn write(map: &GuestMap, gpa: u64, bytes: &[u8]) {
    let mut segs = Vec::new();
    map.translate(gpa, bytes.len() as u32, &mut segs).unwrap();
    assert_eq!(crate::seg::store(&segs, 0, bytes), bytes.len());
}

/// A descriptor as the driver writes it.
#[derive(Debug, Clone, Copy)]
pub(super) struct D(
    pub(super) u64,
    pub(super) u32,
    pub(super) u16,
    pub(super) u16,
);

impl D {
    pub(super) fn bytes(self) -> [u8; 16] {
        let mut all = [0; 16];
        all[..8].copy_from_slice(&self.0.to_le_bytes());
        all[8..12].copy_from_slice(&self.1.to_le_bytes());
        all[12..14].copy_from_slice(&self.2.to_le_bytes());
        all[14..].copy_from_slice(&self.3.to_le_bytes());
        all
    }
}

/// The driver's side of one ring.
pub(super) struct Driver {
    pub(super) map: Arc<GuestMap>,
    pub(super) layout: Layout,
    /// Its available index.
    pub(super) idx: u16,
    pub(super) used_seen: u16,
}

impl Driver {
    /// A ring whose parts lie one after the other, each at its own page, from `base`.
    pub(super) fn new(map: &Arc<GuestMap>, size: u16, base: u64) -> Driver {
        let desc_len = (16 * u64::from(size)).next_multiple_of(4096);
        let avail_len = (6 + 2 * u64::from(size)).next_multiple_of(4096);
        Driver {
            map: Arc::clone(map),
            layout: Layout {
                size,
                desc: base,
                avail: base + desc_len,
                used: base + desc_len + avail_len,
            },
            idx: 0,
            used_seen: 0,
        }
    }

    pub(super) fn device(&self, features: RingFeatures) -> Vring {
        Vring::new(Arc::clone(&self.map), &self.layout, features, self.idx).unwrap()
    }

    /// Sets both indexes in memory and here, as after a long run.
    pub(super) fn start_at(&mut self, idx: u16) {
        (self.idx, self.used_seen) = (idx, idx);
        self.avail(2).store(idx, Ordering::Relaxed);
        self.used(2).store(idx, Ordering::Relaxed);
    }

    pub(super) fn desc(&self, at: u16, desc: D) {
        let gpa = self.layout.desc + 16 * u64::from(at);
        for (half, word) in (0..2).zip(desc.bytes().chunks(8)) {
            let word = u64::from_le_bytes(word.try_into().unwrap());
            let host = self.map.contiguous(gpa + 8 * half, 8).unwrap().host();
            // SAFETY: mapped, aligned as the table is.
            unsafe { AtomicU64::from_ptr(host.cast()) }.store(word, Ordering::Relaxed);
        }
    }

    pub(super) fn avail(&self, at: u64) -> &AtomicU16 {
        let host = self.map.contiguous(self.layout.avail + at, 2).unwrap();
        // SAFETY: mapped and even.
        unsafe { AtomicU16::from_ptr(host.host().cast()) }
    }

    pub(super) fn used(&self, at: u64) -> &AtomicU16 {
        let host = self.map.contiguous(self.layout.used + at, 2).unwrap();
        // SAFETY: mapped and even.
        unsafe { AtomicU16::from_ptr(host.host().cast()) }
    }

    pub(super) fn used_event(&self) -> &AtomicU16 {
        self.avail(4 + 2 * u64::from(self.layout.size))
    }

    pub(super) fn avail_event(&self) -> &AtomicU16 {
        self.used(4 + 8 * u64::from(self.layout.size))
    }

    /// Puts a head into the next slot, not visible yet.
    pub(super) fn offer(&mut self, head: u16) {
        let slot = u64::from(self.idx % self.layout.size);
        self.avail(4 + 2 * slot).store(head, Ordering::Relaxed);
        self.idx = self.idx.wrapping_add(1);
    }

    /// Makes what was offered visible; the barrier before it reads what the device wants.
    pub(super) fn show(&self) {
        self.avail(2).store(self.idx, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// The next used chain: its head and length.
    pub(super) fn take_used(&mut self) -> Option<(u32, u32)> {
        if self.used(2).load(Ordering::Acquire) == self.used_seen {
            return None;
        }
        let slot = u64::from(self.used_seen % self.layout.size);
        self.used_seen = self.used_seen.wrapping_add(1);
        let field = |at: u64| {
            let gpa = self.layout.used + 4 + 8 * slot + at;
            let host = self.map.contiguous(gpa, 4).unwrap().host();
            // SAFETY: mapped, aligned to 4.
            unsafe { AtomicU32::from_ptr(host.cast()) }.load(Ordering::Relaxed)
        };
        Some((field(0), field(4)))
    }
}

pub(super) const PLAIN: RingFeatures = RingFeatures {
    event_idx: EventIdx::Off,
    indirect: Indirect::On,
};
pub(super) const EVENTS: RingFeatures = RingFeatures {
    event_idx: EventIdx::On,
    indirect: Indirect::On,
};
