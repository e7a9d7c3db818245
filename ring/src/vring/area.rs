//! The three areas of a split ring in host memory, field by field.
//!
//! The rule: every access to a ring is an atomic of its natural size, little-endian, and happens here. The areas are
//! checked once when made; slots are masked, so no access can leave them.

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::map::GuestMap;
use super::{Layout, Part, RING_SIZE_MAX, RingError};

/// A descriptor, copied.
#[derive(Debug, Clone, Copy)]
pub(super) struct Desc {
    pub(super) gpa: u64,
    pub(super) len_bytes: u32,
    pub(super) flags: u16,
    pub(super) next: u16,
}

// virtio 1.2, 2.7.5: struct virtq_desc.
pub(super) const DESC_BYTES: u32 = 16;
pub(super) const DESC_F_NEXT: u16 = 1;
pub(super) const DESC_F_WRITE: u16 = 2;
pub(super) const DESC_F_INDIRECT: u16 = 4;

/// Host pointers to a ring's areas, valid while its map lives.
#[derive(Debug)]
pub(super) struct Area {
    desc: *mut u8,
    avail: *mut u8,
    used: *mut u8,
    mask: u16,
}

impl Area {
    /// Finds the areas; the caller keeps the map alive as long as the result.
    pub(super) fn new(map: &GuestMap, layout: &Layout) -> Result<Area, RingError> {
        let size = layout.size;
        if !size.is_power_of_two() || size > RING_SIZE_MAX {
            return Err(RingError::Size { size });
        }
        // virtio 1.2, 2.7: sizes and alignments of the parts; the rings with their event fields.
        let entries = u32::from(size);
        Ok(Area {
            desc: find(map, Part::Desc, layout.desc, DESC_BYTES * entries, 16)?,
            avail: find(map, Part::Avail, layout.avail, 6 + 2 * entries, 2)?,
            used: find(map, Part::Used, layout.used, 6 + 8 * entries, 4)?,
            mask: size - 1,
        })
    }

    /// Entries of the ring.
    #[inline]
    pub(super) fn size(&self) -> u16 {
        self.mask + 1
    }

    /// Descriptor `at` of the ring's own table, copied once.
    #[inline]
    pub(super) fn desc(&self, at: u16) -> Desc {
        let at = self.desc.wrapping_add(16 * usize::from(at & self.mask));
        // SAFETY: masked, so inside the table; aligned to 16 as the table is.
        unsafe { load_aligned(at) }
    }

    /// The driver's index: how far it has filled the available ring. What it wrote before is visible after this.
    #[inline]
    pub(super) fn avail_idx(&self) -> u16 {
        self.avail_u16(2, Ordering::Acquire)
    }

    #[inline]
    pub(super) fn avail_flags(&self) -> u16 {
        self.avail_u16(0, Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn avail_head(&self, idx: u16) -> u16 {
        self.avail_u16(4 + 2 * usize::from(idx & self.mask), Ordering::Relaxed)
    }

    /// Where the driver wants to hear of used chains.
    #[inline]
    pub(super) fn used_event(&self) -> u16 {
        self.avail_u16(4 + 2 * usize::from(self.size()), Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn used_idx(&self) -> u16 {
        u16::from_le(self.used_u16(2).load(Ordering::Relaxed))
    }

    /// Makes all used entries up to `idx` visible.
    #[inline]
    pub(super) fn set_used_idx(&self, idx: u16) {
        self.used_u16(2).store(idx.to_le(), Ordering::Release);
    }

    #[inline]
    pub(super) fn set_used_flags(&self, flags: u16) {
        self.used_u16(0).store(flags.to_le(), Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn set_used_elem(&self, idx: u16, head: u16, written_bytes: u32) {
        let at = 4 + 8 * usize::from(idx & self.mask);
        self.set_used_u32(at, u32::from(head));
        self.set_used_u32(at + 4, written_bytes);
    }

    /// Where the device wants to hear of new chains.
    #[inline]
    pub(super) fn set_avail_event(&self, idx: u16) {
        let at = 4 + 8 * usize::from(self.size());
        self.used_u16(at).store(idx.to_le(), Ordering::Relaxed);
    }

    #[inline]
    fn avail_u16(&self, at: usize, order: Ordering) -> u16 {
        let field = self.avail.wrapping_add(at).cast();
        // SAFETY: `at` is even and at most 4 + 2 * size, inside the checked and aligned area.
        let field = unsafe { AtomicU16::from_ptr(field) };
        u16::from_le(field.load(order))
    }

    #[inline]
    fn used_u16(&self, at: usize) -> &AtomicU16 {
        let field = self.used.wrapping_add(at).cast();
        // SAFETY: `at` is even and at most 4 + 8 * size, inside the checked and aligned area.
        unsafe { AtomicU16::from_ptr(field) }
    }

    #[inline]
    fn set_used_u32(&self, at: usize, value: u32) {
        let field = self.used.wrapping_add(at).cast();
        // SAFETY: `at` is a multiple of 4 below 4 + 8 * size, inside the checked and aligned area.
        let field = unsafe { AtomicU32::from_ptr(field) };
        field.store(value.to_le(), Ordering::Relaxed);
    }
}

/// The host address of a whole area. Both addresses are checked: the guest may map a region at an odd place.
fn find(map: &GuestMap, part: Part, gpa: u64, len: u32, align: u16) -> Result<*mut u8, RingError> {
    let align_error = RingError::Align { part, gpa, align };
    if !gpa.is_multiple_of(u64::from(align)) {
        return Err(align_error);
    }
    let len_bytes = len;
    let seg = map.contiguous(gpa, len).ok_or(RingError::Extent {
        part,
        gpa,
        len_bytes,
    })?;
    if !seg.host().addr().is_multiple_of(usize::from(align)) {
        return Err(align_error);
    }
    Ok(seg.host())
}

/// Copies a descriptor out of guest memory, each byte once.
///
/// # Safety
/// 16 bytes must be mapped at `at`.
#[inline]
pub(super) unsafe fn load(at: *mut u8) -> Desc {
    if at.addr().is_multiple_of(8) {
        // SAFETY: mapped by our own contract, aligned as just checked.
        return unsafe { load_aligned(at) };
    }
    let mut bytes = [0; DESC_BYTES as usize];
    for (from, byte) in bytes.iter_mut().enumerate() {
        // SAFETY: below 16, so mapped by our own contract. Volatile, so that it is read once.
        *byte = unsafe { at.wrapping_add(from).read_volatile() };
    }
    decode_bytes(bytes)
}

/// As `load`.
///
/// # Safety
/// 16 bytes must be mapped at `at`, which must be a multiple of 8.
#[inline]
unsafe fn load_aligned(at: *mut u8) -> Desc {
    // SAFETY: mapped and aligned by our own contract.
    let low = unsafe { AtomicU64::from_ptr(at.cast()) };
    let high = at.wrapping_add(8).cast();
    // SAFETY: as above, the second half.
    let high = unsafe { AtomicU64::from_ptr(high) };
    decode(
        low.load(Ordering::Relaxed).to_le(),
        high.load(Ordering::Relaxed).to_le(),
    )
}

pub(super) fn decode_bytes(bytes: [u8; DESC_BYTES as usize]) -> Desc {
    let all = u128::from_le_bytes(bytes);
    decode(all as u64, (all >> 64) as u64)
}

#[inline]
fn decode(low: u64, high: u64) -> Desc {
    Desc {
        gpa: low,
        len_bytes: high as u32,
        flags: (high >> 32) as u16,
        next: (high >> 48) as u16,
    }
}
