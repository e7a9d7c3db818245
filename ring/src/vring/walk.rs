//! From a head to a chain: the ring's table, then perhaps one indirect table.
//!
//! The rule: the walk counts descriptors and stops at a limit, so a loop is just a chain that is too long.

use super::area::{self, Area, DESC_BYTES, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Desc};
use super::chain::{Chain, Shape};
use super::map::{GuestMap, Near};
use super::{CHAIN_DESCS_MAX, CHAIN_SEGS_MAX, Indirect, RingError};
use crate::Seg;

/// Where the last data and the last indirect table of a ring were found.
#[derive(Debug, Default)]
pub(super) struct Places {
    data: Near,
    table: Near,
}

/// One walk.
pub(super) struct Walk<'a> {
    pub(super) map: &'a GuestMap,
    pub(super) area: &'a Area,
    pub(super) places: &'a mut Places,
    pub(super) indirect: Indirect,
    pub(super) head: u16,
    pub(super) chain: &'a mut Chain,
}

/// An indirect table: guest address, entries, and the host address if it is in one piece.
struct Table {
    gpa: u64,
    entries: u32,
    whole: Option<Seg>,
}

impl Walk<'_> {
    /// Fills the chain, which is empty, from the head, which is inside the ring.
    #[inline]
    pub(super) fn run(mut self) -> Result<(), RingError> {
        let (head, size) = (self.head, self.area.size());
        let mut at = head;
        for count in 0..size.min(CHAIN_DESCS_MAX) {
            let desc = self.area.desc(at);
            if desc.flags & DESC_F_INDIRECT != 0 {
                return self.enter(desc, count);
            }
            self.add(desc)?;
            if desc.flags & DESC_F_NEXT == 0 {
                return Ok(());
            }
            at = self.next(desc, u32::from(size))?;
        }
        let max = size.min(CHAIN_DESCS_MAX);
        Err(RingError::TooLong { head, max })
    }

    /// Goes on in the indirect table of `desc`, after `count` others.
    fn enter(&mut self, desc: Desc, count: u16) -> Result<(), RingError> {
        let head = self.head;
        let table = self.table(desc)?;
        let mut at = 0;
        for _ in count..CHAIN_DESCS_MAX {
            let desc = self.entry(&table, at)?;
            // virtio 1.2, 2.7.5.3.1: "A driver MUST NOT set the VIRTQ_DESC_F_INDIRECT flag within an indirect
            // descriptor".
            if desc.flags & DESC_F_INDIRECT != 0 {
                return Err(RingError::IndirectNested { head });
            }
            self.add(desc)?;
            if desc.flags & DESC_F_NEXT == 0 {
                return Ok(());
            }
            at = self.next(desc, table.entries)?;
        }
        let max = CHAIN_DESCS_MAX;
        Err(RingError::TooLong { head, max })
    }

    /// Checks the descriptor of a table. Its write flag means nothing (virtio 1.2, 2.7.5.3.2).
    fn table(&mut self, desc: Desc) -> Result<Table, RingError> {
        let (head, len_bytes) = (self.head, desc.len_bytes);
        if self.indirect == Indirect::Off {
            return Err(RingError::IndirectUnexpected { head });
        }
        // virtio 1.2, 2.7.5.3.1: "A driver MUST NOT set both VIRTQ_DESC_F_INDIRECT and VIRTQ_DESC_F_NEXT in flags."
        if desc.flags & DESC_F_NEXT != 0 {
            return Err(RingError::IndirectContinued { head });
        }
        if len_bytes == 0 || !len_bytes.is_multiple_of(DESC_BYTES) {
            return Err(RingError::IndirectLength { head, len_bytes });
        }
        Ok(Table {
            gpa: desc.gpa,
            entries: len_bytes / DESC_BYTES,
            whole: self.map.near(&mut self.places.table, desc.gpa, len_bytes),
        })
    }

    /// Entry `at` of the table, which is inside it; copied once. A table may cross regions, even within an entry.
    #[inline]
    fn entry(&mut self, table: &Table, at: u16) -> Result<Desc, RingError> {
        let from = u64::from(at) * u64::from(DESC_BYTES);
        if let Some(whole) = table.whole {
            // SAFETY: `at` is below the entries of the table, all mapped while the map lives.
            return Ok(unsafe { area::load(whole.host().wrapping_add(from as usize)) });
        }
        self.scattered_entry(table.gpa, from)
    }

    #[cold]
    fn scattered_entry(&mut self, table_gpa: u64, from: u64) -> Result<Desc, RingError> {
        let bad = RingError::Address {
            head: self.head,
            gpa: table_gpa,
            len_bytes: DESC_BYTES,
        };
        let gpa = table_gpa.checked_add(from).ok_or(bad)?;
        let mut bytes = [0; DESC_BYTES as usize];
        for (byte, at) in bytes.iter_mut().zip(0..) {
            let gpa = gpa.checked_add(at).ok_or(bad)?;
            let seg = self.map.near(&mut self.places.table, gpa, 1).ok_or(bad)?;
            // SAFETY: one byte, mapped while the map lives. Volatile, so that it is read once.
            *byte = unsafe { seg.host().read_volatile() };
        }
        Ok(area::decode_bytes(bytes))
    }

    /// Where the chain goes on.
    #[inline]
    fn next(&self, desc: Desc, entries: u32) -> Result<u16, RingError> {
        let (head, next) = (self.head, desc.next);
        if u32::from(next) >= entries {
            return Err(RingError::Next {
                head,
                next,
                entries,
            });
        }
        Ok(next)
    }

    /// Adds the memory of a descriptor to its list.
    #[inline]
    fn add(&mut self, desc: Desc) -> Result<(), RingError> {
        // Of no use, and not forbidden.
        if desc.len_bytes == 0 {
            return Ok(());
        }
        let chain = &mut *self.chain;
        let len = u64::from(desc.len_bytes);
        let segs = if desc.flags & DESC_F_WRITE != 0 {
            chain.writable_bytes += len;
            &mut chain.writable
        } else {
            if chain.writable_bytes != 0 {
                chain.shape = Shape::ReadableAfterWritable;
            }
            chain.readable_bytes += len;
            &mut chain.readable
        };
        match self
            .map
            .near(&mut self.places.data, desc.gpa, desc.len_bytes)
        {
            Some(seg) => segs.push(seg),
            None => return self.add_scattered(desc),
        }
        Ok(())
    }

    /// As `add` for what crosses regions, or is outside.
    #[cold]
    fn add_scattered(&mut self, desc: Desc) -> Result<(), RingError> {
        let head = self.head;
        let segs = if desc.flags & DESC_F_WRITE != 0 {
            &mut self.chain.writable
        } else {
            &mut self.chain.readable
        };
        self.map
            .translate(desc.gpa, desc.len_bytes, segs)
            .map_err(|bad| RingError::Address {
                head,
                gpa: bad.gpa,
                len_bytes: bad.len_bytes,
            })?;
        if self.chain.readable.len() + self.chain.writable.len() > CHAIN_SEGS_MAX {
            let max = CHAIN_SEGS_MAX as u16;
            return Err(RingError::TooScattered { head, max });
        }
        Ok(())
    }
}
