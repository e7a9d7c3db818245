//! The table of internal snapshots (qcow2.txt, "Snapshots"): entries of varying length, each aligned to 8 bytes.
//!
//! The rule: a snapshot's L1 table is only as good as [`Snapshot::check_l1`] says; an entry parses without that, so that
//! a bad snapshot can be listed and deleted.

use super::bytes::{pad8, slice_at, u16_at, u32_at, u64_at};
use super::header::{L1_BYTES_MAX, TableAt};

/// QEMU's limit on the whole table.
pub const TABLE_BYTES_MAX: u64 = 64 << 20;
/// QEMU's limit on an entry's extra data.
pub const EXTRA_BYTES_MAX: u32 = 1024;
/// The part of an entry that is always there.
pub const FIXED_BYTES: usize = 40;
/// The part of the extra data that is known here.
const EXTRA_BYTES: usize = 24;
/// What the clock of a snapshot that counts no instructions says.
pub const NO_ICOUNT: u64 = u64::MAX;

/// Why a snapshot table is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// QEMU refuses it too.
    #[error("Too much extra metadata in snapshot table entry {0}")]
    TooMuchExtra(usize),
    /// All entries together are more than [`TABLE_BYTES_MAX`].
    #[error("Snapshot table is too big")]
    TooBig,
    /// The table ends within an entry.
    #[error("snapshot table entry {0} is cut short")]
    Short(usize),
    /// A snapshot's L1 table is somewhere it cannot be.
    #[error("Snapshot L1 table offset invalid")]
    L1Offset,
    /// A snapshot's L1 table is larger than any.
    #[error("Snapshot L1 table too large")]
    L1TooLarge,
}

/// When a snapshot was taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Seconds since 1970.
    pub sec: u32,
    /// Nanoseconds of the second.
    pub nsec: u32,
    /// How long the guest had been running, in nanoseconds.
    pub vm_clock_ns: u64,
    /// Instructions the guest had run, or [`NO_ICOUNT`].
    pub icount: u64,
}

/// An internal snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Unique; a number in practice. Any bytes in an image.
    pub id: Vec<u8>,
    /// What its user calls it. Any bytes in an image.
    pub name: Vec<u8>,
    /// Its L1 table; see [`Snapshot::check_l1`].
    pub l1: TableAt,
    /// Size of the saved machine state that follows the disk in its tables; 0 if there is none.
    pub vm_state_bytes: u64,
    /// The disk's size at that time; `None` where the entry does not say (version 2).
    pub size_bytes: Option<u64>,
    /// When.
    pub taken: Taken,
    /// Extra data past what is known here.
    pub extra: Vec<u8>,
}

/// How long the entry is that begins with `fixed` ([`FIXED_BYTES`]), with its padding.
pub fn entry_bytes(fixed: &[u8]) -> Option<u64> {
    let extra = u32_at(fixed, 36)?;
    let (id, name) = (u16_at(fixed, 12)?, u16_at(fixed, 14)?);
    let bytes = FIXED_BYTES as u64 + u64::from(extra) + u64::from(id) + u64::from(name);
    Some(bytes.next_multiple_of(8))
}

impl Snapshot {
    /// Takes apart the entry at the beginning of `bytes`; `number` is for the error.
    pub fn parse(bytes: &[u8], number: usize) -> Result<Snapshot, SnapshotError> {
        let extra_bytes = u32_at(bytes, 36).ok_or(SnapshotError::Short(number))?;
        if extra_bytes > EXTRA_BYTES_MAX {
            return Err(SnapshotError::TooMuchExtra(number));
        }
        Snapshot::read(bytes, extra_bytes as usize).ok_or(SnapshotError::Short(number))
    }

    fn read(bytes: &[u8], extra_bytes: usize) -> Option<Snapshot> {
        let extra = slice_at(bytes, FIXED_BYTES, extra_bytes)?;
        let (id_bytes, name_bytes) = (u16_at(bytes, 12)?, u16_at(bytes, 14)?);
        let id_at = FIXED_BYTES + extra_bytes;
        let name_at = id_at + usize::from(id_bytes);
        Some(Snapshot {
            id: slice_at(bytes, id_at, id_bytes.into())?.to_vec(),
            name: slice_at(bytes, name_at, name_bytes.into())?.to_vec(),
            l1: TableAt {
                at: u64_at(bytes, 0)?,
                count: u32_at(bytes, 8)?,
            },
            vm_state_bytes: match u64_at(extra, 0) {
                Some(bytes) => bytes,
                None => u64::from(u32_at(bytes, 32)?),
            },
            size_bytes: u64_at(extra, 8),
            taken: Taken {
                sec: u32_at(bytes, 16)?,
                nsec: u32_at(bytes, 20)?,
                vm_clock_ns: u64_at(bytes, 24)?,
                icount: u64_at(extra, 16).unwrap_or(NO_ICOUNT),
            },
            extra: extra.get(EXTRA_BYTES..).unwrap_or_default().to_vec(),
        })
    }

    /// The entry with its padding. The names are at most 65535 bytes each, and `size_bytes` is known.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FIXED_BYTES + EXTRA_BYTES);
        let mut word = |bytes: &[u8]| out.extend_from_slice(bytes);
        let short = u32::try_from(self.vm_state_bytes).unwrap_or(0);
        let extra_bytes = EXTRA_BYTES + self.extra.len();
        word(&self.l1.at.to_be_bytes());
        word(&self.l1.count.to_be_bytes());
        word(&(self.id.len() as u16).to_be_bytes());
        word(&(self.name.len() as u16).to_be_bytes());
        word(&self.taken.sec.to_be_bytes());
        word(&self.taken.nsec.to_be_bytes());
        word(&self.taken.vm_clock_ns.to_be_bytes());
        word(&short.to_be_bytes());
        word(&(extra_bytes as u32).to_be_bytes());
        word(&self.vm_state_bytes.to_be_bytes());
        word(&self.size_bytes.unwrap_or(0).to_be_bytes());
        word(&self.taken.icount.to_be_bytes());
        word(&self.extra);
        word(&self.id);
        word(&self.name);
        pad8(&mut out);
        out
    }

    /// Is its L1 table where a table may be?
    pub fn check_l1(&self, cluster_bytes: u64) -> Result<(), SnapshotError> {
        let len_bytes = u64::from(self.l1.count) * 8;
        if len_bytes > L1_BYTES_MAX {
            return Err(SnapshotError::L1TooLarge);
        }
        let inside = self.l1.at <= i64::MAX as u64 - len_bytes;
        let zero = self.l1.at == 0 && len_bytes > 0;
        if !inside || zero || !self.l1.at.is_multiple_of(cluster_bytes) {
            return Err(SnapshotError::L1Offset);
        }
        Ok(())
    }
}

/// Takes apart a whole table of `count` entries.
pub fn parse_table(bytes: &[u8], count: u32) -> Result<Vec<Snapshot>, SnapshotError> {
    let mut table = Vec::new();
    let mut at = 0;
    for number in 0..count as usize {
        let entry = bytes.get(at..).unwrap_or_default();
        table.push(Snapshot::parse(entry, number)?);
        let len = entry_bytes(entry).ok_or(SnapshotError::Short(number))?;
        at += len as usize;
    }
    Ok(table)
}

/// A whole table. Error: `TooBig`.
pub fn encode_table(table: &[Snapshot]) -> Result<Vec<u8>, SnapshotError> {
    let mut out = Vec::new();
    for snapshot in table {
        out.extend_from_slice(&snapshot.encode());
        if out.len() as u64 > TABLE_BYTES_MAX {
            return Err(SnapshotError::TooBig);
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    prop_compose! {
        fn snapshots()(
            id in proptest::collection::vec(any::<u8>(), 0..20),
            name in proptest::collection::vec(any::<u8>(), 0..300),
            at in any::<u64>(), count in any::<u32>(), state in any::<u64>(), size in any::<u64>(),
            taken in any::<(u32, u32, u64, u64)>(),
            extra in proptest::collection::vec(any::<u8>(), 0..1000),
        ) -> Snapshot {
            let (sec, nsec, vm_clock_ns, icount) = taken;
            Snapshot {
                id, name, extra,
                l1: TableAt { at, count },
                vm_state_bytes: state,
                size_bytes: Some(size),
                taken: Taken { sec, nsec, vm_clock_ns, icount },
            }
        }
    }

    proptest! {
        #[test]
        fn a_table_reads_back_as_it_was_written(table in proptest::collection::vec(snapshots(), 0..5)) {
            let bytes = encode_table(&table).expect("small");
            prop_assert_eq!(bytes.len() % 8, 0);
            prop_assert_eq!(parse_table(&bytes, table.len() as u32), Ok(table));
        }

        #[test]
        fn no_bytes_make_the_parser_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..500), small in any::<bool>(),
        ) {
            let mut bytes = bytes;
            if small && bytes.len() > 40 {
                bytes[12..16].copy_from_slice(&[0, 7, 0, 9]);
                bytes[36..40].copy_from_slice(&[0, 0, 0, 30]);
            }
            let _ = parse_table(&bytes, 3);
        }
    }

    #[test]
    fn an_entry_of_version_2_has_no_size_of_its_own() {
        let mut bytes = vec![0; 48];
        bytes[12..16].copy_from_slice(&[0, 1, 0, 2]);
        bytes[32..36].copy_from_slice(&[0, 0, 1, 0]);
        bytes[40..43].copy_from_slice(b"1ab");
        let snapshot = Snapshot::parse(&bytes, 0).expect("parses");
        assert_eq!((snapshot.size_bytes, snapshot.vm_state_bytes), (None, 256));
        assert_eq!(
            (&snapshot.id[..], &snapshot.name[..]),
            (&b"1"[..], &b"ab"[..])
        );
    }

    #[test]
    fn too_much_extra_data_is_refused() {
        let mut bytes = vec![0; 4000];
        bytes[36..40].copy_from_slice(&[0, 0, 4, 1]);
        assert_eq!(parse_table(&bytes, 1), Err(SnapshotError::TooMuchExtra(0)));
        assert_eq!(parse_table(&bytes[..39], 1), Err(SnapshotError::Short(0)));
    }
}
