//! The memory a front end lends: which slots there are, and where they are mapped.
//!
//! The rule: a table is checked whole before anything is mapped, and never changed: a new table replaces it. A slot
//! that is not aligned to its file's pages is mapped with its surroundings, but only the slot itself is ever used.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use ring::vring::{GuestMap, Layout, MapError, Region};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::fds::MemoryFile;
use super::message::RingAddress;

/// What GET_MAX_MEM_SLOTS answers: as many as vhost-user-backend and libvhost-user take.
pub(super) const SLOTS_MAX: usize = 509;

/// A piece of guest memory as the front end describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    /// Guest physical address.
    pub(super) gpa: u64,
    pub(super) len_bytes: u64,
    /// Where the front end has it mapped: ring addresses are given in these.
    pub(super) user: u64,
    /// Where it begins in its file.
    pub(super) offset: u64,
}

impl Slot {
    /// The slot as it is on the wire.
    pub(super) fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        let fields = [self.gpa, self.len_bytes, self.user, self.offset];
        for (to, field) in bytes.chunks_exact_mut(8).zip(fields) {
            to.copy_from_slice(&field.to_ne_bytes());
        }
        bytes
    }

    fn wraps(&self) -> bool {
        [self.gpa, self.user, self.offset]
            .iter()
            .any(|start| start.checked_add(self.len_bytes).is_none())
    }

    fn overlaps(&self, other: &Slot) -> bool {
        let meet = |a: u64, b: u64| a < b + other.len_bytes && b < a + self.len_bytes;
        meet(self.gpa, other.gpa) || meet(self.user, other.user)
    }

    /// The guest address of `len_bytes` at user address `user`, if they are all in this slot.
    fn translate(&self, user: u64, len_bytes: u64) -> Option<u64> {
        let from = user.checked_sub(self.user)?;
        let end = from.checked_add(len_bytes)?;
        (end <= self.len_bytes).then(|| self.gpa + from)
    }
}

/// Why memory is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum MemoryError {
    #[error("memory region at {gpa:#x} of {len_bytes:#x} bytes is empty or wraps around")]
    Extent { gpa: u64, len_bytes: u64 },
    #[error("memory region at {gpa:#x} overlaps another")]
    Overlap { gpa: u64 },
    #[error("memory region at {gpa:#x} ends {missing_bytes:#x} bytes beyond its file")]
    BeyondFile { gpa: u64, missing_bytes: u64 },
    #[error("memory region at {gpa:#x} does not come with a regular file")]
    WrongKind { gpa: u64 },
    #[error("cannot examine the file of the memory region at {gpa:#x}")]
    Examine {
        gpa: u64,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "memory region at {gpa:#x} cannot be aligned to the {page_bytes} byte pages of its file"
    )]
    Align { gpa: u64, page_bytes: u64 },
    #[error("more than {SLOTS_MAX} memory regions")]
    TooMany,
    #[error("there is no memory region at {gpa:#x} of {len_bytes:#x} bytes")]
    Missing { gpa: u64, len_bytes: u64 },
    #[error("memory region at {gpa:#x} was not mapped")]
    NotMapped { gpa: u64 },
    #[error("guest memory cannot be used")]
    Map(#[source] MapError),
}

/// A slot, and what is asked to be mapped for it.
#[derive(Debug, Clone, Copy)]
struct Entry {
    slot: Slot,
    /// The slot itself, or a piece of its file around it that is aligned to pages, at a guest address of no meaning.
    mapped: Slot,
}

/// Guest addresses from here on are free to name mappings whose own address would be in the way of others.
const PARKED: u64 = 1 << 62;
/// Longest slot; no process can map more.
const SLOT_BYTES_MAX: u64 = 1 << 47;

impl Entry {
    fn new(slot: Slot, file: &MemoryFile) -> Result<Entry, MemoryError> {
        let page_bytes = file.page_bytes;
        let before = slot.offset % page_bytes;
        let len_bytes = (slot.len_bytes + before).next_multiple_of(page_bytes);
        if before == 0 && len_bytes == slot.len_bytes {
            return Ok(Entry { slot, mapped: slot });
        }
        let gpa = slot.gpa;
        let user = slot
            .user
            .checked_sub(before)
            .filter(|user| user.checked_add(len_bytes).is_some())
            .ok_or(MemoryError::Align { gpa, page_bytes })?;
        let mapped = Slot {
            // `Table::add` finds it a place of its own.
            gpa: PARKED,
            len_bytes,
            user,
            offset: slot.offset - before,
        };
        Ok(Entry { slot, mapped })
    }
}

/// All slots of a front end, sorted by guest address.
#[derive(Debug, Clone, Default)]
pub(super) struct Table {
    entries: Vec<Entry>,
}

impl Table {
    /// A whole new table (SET_MEM_TABLE), and the descriptors in its order.
    pub(super) fn replace(
        slots: Vec<(Slot, OwnedFd)>,
    ) -> Result<(Table, Vec<Slot>, Vec<OwnedFd>), MemoryError> {
        let mut table = Table::default();
        let mut added = Vec::with_capacity(slots.len());
        for (slot, fd) in slots {
            let (next, mapped) = table.add(slot, &fd)?;
            table = next;
            added.push((mapped, fd));
        }
        // vm-memory wants them sorted; front ends may send them in any order.
        added.sort_by_key(|(mapped, _)| mapped.gpa);
        let (mapped, fds) = added.into_iter().unzip();
        Ok((table, mapped, fds))
    }

    /// With one more slot (ADD_MEM_REG), and what is to be mapped for it.
    pub(super) fn add(&self, slot: Slot, fd: &OwnedFd) -> Result<(Table, Slot), MemoryError> {
        let file = self.check(&slot, fd)?;
        let mut entry = Entry::new(slot, &file)?;
        if entry.mapped != slot {
            entry.mapped.gpa = self.free_parking();
        }
        let mut entries = self.entries.clone();
        entries.push(entry);
        entries.sort_by_key(|entry| entry.slot.gpa);
        Ok((Table { entries }, entry.mapped))
    }

    /// Without a slot (REM_MEM_REG), and what is to be unmapped for it.
    // vhost-user.rst, VHOST_USER_REM_MEM_REG: "the memory region to be removed is identified by its guest address,
    // user address and size. The mmap offset is ignored."
    pub(super) fn remove(&self, slot: Slot) -> Result<(Table, Slot), MemoryError> {
        let found = |entry: &Entry| {
            let (a, b) = (&entry.slot, &slot);
            (a.gpa, a.user, a.len_bytes) == (b.gpa, b.user, b.len_bytes)
        };
        let (gpa, len_bytes) = (slot.gpa, slot.len_bytes);
        let at = self.entries.iter().position(found);
        let at = at.ok_or(MemoryError::Missing { gpa, len_bytes })?;
        let mut entries = self.entries.clone();
        let removed = entries.remove(at);
        Ok((Table { entries }, removed.mapped))
    }

    fn check(&self, slot: &Slot, fd: &OwnedFd) -> Result<MemoryFile, MemoryError> {
        let (gpa, len_bytes) = (slot.gpa, slot.len_bytes);
        if self.entries.len() == SLOTS_MAX {
            return Err(MemoryError::TooMany);
        }
        let huge = len_bytes > SLOT_BYTES_MAX || slot.wraps() || gpa + len_bytes > PARKED;
        if len_bytes == 0 || huge {
            return Err(MemoryError::Extent { gpa, len_bytes });
        }
        if self.entries.iter().any(|entry| entry.slot.overlaps(slot)) {
            return Err(MemoryError::Overlap { gpa });
        }
        let file = MemoryFile::of(fd)
            .map_err(|source| MemoryError::Examine { gpa, source })?
            .ok_or(MemoryError::WrongKind { gpa })?;
        // Beyond the end of the file every access is a SIGBUS.
        let missing_bytes = (slot.offset + len_bytes).saturating_sub(file.len_bytes);
        match missing_bytes {
            0 => Ok(file),
            _ => Err(MemoryError::BeyondFile { gpa, missing_bytes }),
        }
    }

    /// A guest address no mapping has; there are more places than slots.
    fn free_parking(&self) -> u64 {
        let taken = |at: u64| self.entries.iter().any(|entry| entry.mapped.gpa == at);
        let mut places = (0..=SLOTS_MAX as u64).map(|place| PARKED + place * (SLOT_BYTES_MAX * 2));
        places.find(|at| !taken(*at)).unwrap_or(PARKED)
    }

    /// Where a ring lies in guest addresses, if each part is wholly in one slot.
    pub(super) fn layout(&self, at: &RingAddress, size: u16) -> Option<Layout> {
        let entries = u64::from(size);
        let find = |user, len| {
            let mut slots = self.entries.iter().map(|entry| &entry.slot);
            slots.find_map(|slot| slot.translate(user, len))
        };
        Some(Layout {
            size,
            // virtio 1.2, 2.7: sizes of the parts, with the event fields at the ends of the rings.
            desc: find(at.desc, 16 * entries)?,
            avail: find(at.avail, 6 + 2 * entries)?,
            used: find(at.used, 6 + 8 * entries)?,
        })
    }

    /// The map of this table in `memory`, which the protocol crate has mapped for it. `None` for an empty table.
    pub(super) fn map(
        &self,
        memory: Arc<GuestMemoryMmap>,
    ) -> Result<Option<Arc<GuestMap>>, MemoryError> {
        if self.entries.is_empty() {
            return Ok(None);
        }
        let regions = self.entries.iter().map(|entry| entry.region(&memory));
        let regions = regions.collect::<Result<Vec<Region>, MemoryError>>()?;
        // SAFETY: `region` takes each from a mapping that `memory` owns and that covers it; it is kept by the map.
        // vm-memory makes no reference into it, and the mapping is used by nobody else in this process.
        let map = unsafe { GuestMap::new(regions, Box::new(memory)) };
        Ok(Some(Arc::new(map.map_err(MemoryError::Map)?)))
    }
}

impl Entry {
    fn region(&self, memory: &GuestMemoryMmap) -> Result<Region, MemoryError> {
        let gpa = self.slot.gpa;
        let region = memory
            .find_region(GuestAddress(self.mapped.gpa))
            .filter(|region| region.start_addr().0 == self.mapped.gpa)
            .filter(|region| region.len() == self.mapped.len_bytes)
            .ok_or(MemoryError::NotMapped { gpa })?;
        let before = self.slot.offset - self.mapped.offset;
        Ok(Region {
            gpa,
            len_bytes: self.slot.len_bytes,
            // Inside the mapping: `before + slot.len_bytes <= mapped.len_bytes`, see `Entry::new`.
            host: region.as_ptr().wrapping_add(before as usize),
        })
    }
}
