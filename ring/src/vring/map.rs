//! Guest memory as host pointers.
//!
//! The rule: the map never changes once made; a new memory table is a new map. It owns whatever keeps the memory
//! mapped, and while it lives a page that vanishes (a truncated memfd) poisons it instead of killing the process.

use std::any::Any;

use super::sigbus::Guard;
use crate::Seg;

/// A piece of guest memory and where it is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Guest physical address of the first byte.
    pub gpa: u64,
    /// Length in bytes, not zero.
    pub len_bytes: u64,
    /// The first byte in this process.
    pub host: *mut u8,
}

/// Why a memory table is refused.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message names its fields")]
pub enum MapError {
    /// There is no region at all.
    #[error("guest memory has no region")]
    NoRegion,
    /// A region covers nothing.
    #[error("region at guest address {gpa:#x} is empty")]
    Empty { gpa: u64 },
    /// A region passes the end of the guest's or of our address space.
    #[error("region of {len_bytes:#x} bytes at guest address {gpa:#x} wraps around")]
    Wraps { gpa: u64, len_bytes: u64 },
    /// Two regions share a guest address.
    #[error("regions overlap at guest address {gpa:#x}")]
    Overlap { gpa: u64 },
    /// Too many regions in all maps of the process.
    #[error("more than {max} memory regions in use")]
    TooMany { max: usize },
    /// The guard against vanishing pages could not be installed.
    #[error("cannot guard guest memory against truncation")]
    Guard(#[source] std::io::Error),
}

/// A guest address that no region covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{len_bytes} bytes at guest address {gpa:#x} are outside guest memory")]
pub struct BadAddress {
    /// Where it begins.
    pub gpa: u64,
    /// How long it should have been.
    pub len_bytes: u32,
}

/// All memory of a guest, shared by its queues.
pub struct GuestMap {
    /// Sorted by guest address, disjoint; neighbours on both sides are one.
    regions: Box<[Region]>,
    // Before `keep`: ranges leave the guard's table before the memory goes.
    guard: Guard,
    keep: Box<dyn Any + Send + Sync>,
}

// SAFETY: the host pointers are valid from any thread while `keep` lives, by the contract of `new`; they are only
// copied, and all access goes through atomics or through `Seg`.
unsafe impl Send for GuestMap {}
// SAFETY: as above; no method changes the map.
unsafe impl Sync for GuestMap {}

impl std::fmt::Debug for GuestMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestMap")
            .field("regions", &self.regions)
            .field("poisoned", &self.poisoned())
            .finish_non_exhaustive()
    }
}

impl GuestMap {
    /// The map of `regions`, in any order; `keep` owns the mappings and is dropped with the map.
    ///
    /// # Errors
    /// See [`MapError`]: nothing is kept then.
    ///
    /// # Safety
    /// Each region must be mapped, readable and writable for as long as `keep` lives, and no Rust reference may cover
    /// any of it: the guest writes there at any time. The mapping must be a file's or anonymous memory that nothing
    /// else in the process uses, as a page of it that vanishes is replaced by one of zeroes.
    pub unsafe fn new(
        mut regions: Vec<Region>,
        keep: Box<dyn Any + Send + Sync>,
    ) -> Result<GuestMap, MapError> {
        regions.sort_by_key(|region| region.gpa);
        check(&regions)?;
        let guard = Guard::register(&regions)?;
        Ok(GuestMap {
            regions: merge(regions).into(),
            guard,
            keep,
        })
    }

    /// Appends the host memory of `len_bytes` at `gpa` to `out`, split where it crosses regions.
    ///
    /// # Errors
    /// [`BadAddress`] if any byte is outside; `out` is as it was then.
    pub fn translate(
        &self,
        gpa: u64,
        len_bytes: u32,
        out: &mut Vec<Seg>,
    ) -> Result<(), BadAddress> {
        let before = out.len();
        let mut at = gpa;
        let mut left = u64::from(len_bytes);
        while left > 0 {
            let Some((seg, len)) = self.longest(at, left) else {
                out.truncate(before);
                return Err(BadAddress { gpa, len_bytes });
            };
            out.push(seg);
            left -= len;
            // Cannot overflow: `at + len` is at most the end of a region.
            at += len;
        }
        Ok(())
    }

    /// The host memory of `len_bytes` at `gpa` if it is in one piece.
    pub fn contiguous(&self, gpa: u64, len_bytes: u32) -> Option<Seg> {
        let region = self.regions.get(self.find(gpa)?)?;
        region.piece(gpa, u64::from(len_bytes))
    }

    /// True once a page of the memory vanished: the session must end. Costs one relaxed load.
    #[inline]
    pub fn poisoned(&self) -> bool {
        self.guard.poisoned()
    }

    /// What keeps the memory mapped, as given to `new`.
    pub fn keep(&self) -> &(dyn Any + Send + Sync) {
        &*self.keep
    }

    /// As `contiguous`, looking first where the last addresses were found.
    #[inline]
    pub(super) fn near(&self, near: &mut Near, gpa: u64, len_bytes: u32) -> Option<Seg> {
        let len = u64::from(len_bytes);
        for region in [&near.last, &near.other] {
            if let Some(seg) = region.piece(gpa, len) {
                return Some(seg);
            }
        }
        self.seek(near, gpa, len)
    }

    #[cold]
    fn seek(&self, near: &mut Near, gpa: u64, len_bytes: u64) -> Option<Seg> {
        let region = *self.regions.get(self.find(gpa)?)?;
        near.other = std::mem::replace(&mut near.last, region);
        region.piece(gpa, len_bytes)
    }

    /// The longest single piece at `gpa` of at most `len_bytes`, not zero, and its length.
    fn longest(&self, gpa: u64, len_bytes: u64) -> Option<(Seg, u64)> {
        let region = self.regions.get(self.find(gpa)?)?;
        let len = len_bytes.min(region.len_bytes - (gpa - region.gpa));
        Some((region.segment(gpa - region.gpa, len), len))
    }

    /// Index of the region with that guest address.
    fn find(&self, gpa: u64) -> Option<usize> {
        let at = self.regions.partition_point(|region| region.gpa <= gpa);
        let at = at.checked_sub(1)?;
        let region = self.regions.get(at)?;
        (gpa - region.gpa < region.len_bytes).then_some(at)
    }
}

impl Region {
    /// The piece at `gpa` if it is wholly inside.
    #[inline]
    fn piece(&self, gpa: u64, len_bytes: u64) -> Option<Seg> {
        let from = gpa.wrapping_sub(self.gpa);
        let fits = from < self.len_bytes && len_bytes <= self.len_bytes - from;
        fits.then(|| self.segment(from, len_bytes))
    }

    /// The part from `from` of `len_bytes`; the caller checked both against the region.
    #[inline]
    fn segment(&self, from: u64, len_bytes: u64) -> Seg {
        debug_assert!(from <= self.len_bytes && len_bytes <= self.len_bytes - from);
        let host = self.host.wrapping_add(from as usize);
        // SAFETY: inside the region, which the contract of `GuestMap::new` keeps mapped while the map lives.
        unsafe { Seg::new(host, len_bytes as usize) }
    }
}

/// Where one user of a map last found addresses: two, as headers and data often lie in different regions. Belongs to that
/// one map for its whole life.
#[derive(Debug, Clone, Copy)]
pub(super) struct Near {
    last: Region,
    other: Region,
}

impl Default for Near {
    fn default() -> Near {
        let nowhere = Region {
            gpa: 0,
            len_bytes: 0,
            host: std::ptr::null_mut(),
        };
        Near {
            last: nowhere,
            other: nowhere,
        }
    }
}

/// Checks a sorted table.
fn check(regions: &[Region]) -> Result<(), MapError> {
    if regions.is_empty() {
        return Err(MapError::NoRegion);
    }
    let mut free_from = 0;
    for &Region {
        gpa,
        len_bytes,
        host,
    } in regions
    {
        if len_bytes == 0 {
            return Err(MapError::Empty { gpa });
        }
        let host_end = usize::try_from(len_bytes)
            .ok()
            .and_then(|len| host.addr().checked_add(len));
        let (Some(end), Some(_)) = (gpa.checked_add(len_bytes), host_end) else {
            return Err(MapError::Wraps { gpa, len_bytes });
        };
        if gpa < free_from {
            return Err(MapError::Overlap { gpa });
        }
        free_from = end;
    }
    Ok(())
}

/// Joins regions that follow one another both in the guest and here, so that no border is left between them.
fn merge(regions: Vec<Region>) -> Vec<Region> {
    let mut merged: Vec<Region> = Vec::with_capacity(regions.len());
    for region in regions {
        match merged.last_mut() {
            Some(last)
                if last.gpa + last.len_bytes == region.gpa
                    && last.host.addr() + last.len_bytes as usize == region.host.addr() =>
            {
                last.len_bytes += region.len_bytes;
            }
            _ => merged.push(region),
        }
    }
    merged
}
