//! The directory of persistent bitmaps and their tables (qcow2.txt, "Bitmaps").
//!
//! The rule: an entry that is marked in use holds nothing to be trusted but its name and the space it takes.

use crate::graph::errno_text;
use ring::Errno;

use super::bytes::{pad8, slice_at, u8_at, u16_at, u32_at, u64_at};

/// The part of an entry that is always there.
pub const FIXED_BYTES: usize = 24;
/// Longest name.
pub const NAME_BYTES_MAX: usize = 1023;
/// QEMU's limit on the entries of a bitmap's table.
pub const TABLE_ENTRIES_MAX: u32 = 0x800_0000;
/// QEMU's limit on the bytes of a bitmap in the image.
pub const STORED_BYTES_MAX: u64 = 0x2000_0000;
/// Log 2 of the finest granularity.
pub const GRANULARITY_BITS_MIN: u8 = 9;
/// Log 2 of the coarsest.
pub const GRANULARITY_BITS_MAX: u8 = 31;
/// "Type of the bitmap": a dirty tracking bitmap.
const DIRTY_TRACKING: u8 = 1;

const IN_USE: u32 = 1;
const AUTO: u32 = 2;
const EXTRA_COMPATIBLE: u32 = 4;

/// Why a directory is refused. The words are QEMU's where it has any.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BitmapError {
    /// An entry that breaks a rule, by name.
    #[error("Bitmap '{0}' doesn't satisfy the constraints")]
    Constraints(String),
    /// Extra data without a meaning here.
    #[error("Bitmap extra data is not supported")]
    Extra,
    /// The directory ends within an entry.
    #[error("Broken bitmap directory")]
    Broken,
    /// It ends after too few of them.
    #[error("Less bitmaps found than specified in header extension")]
    Fewer,
    /// It goes on after the last.
    #[error("More bitmaps found than specified in header extension")]
    More,
    /// Its table cannot be read, or has words that mean nothing, by name.
    #[error("Could not read bitmap_table table from image for bitmap '{name}': {}", text(*.errno))]
    Table {
        /// Which.
        name: String,
        /// Why.
        errno: Errno,
    },
    /// What it says cannot be read, by name.
    #[error("Could not read bitmap '{name}' from image: {}", text(*.errno))]
    Bits {
        /// Which.
        name: String,
        /// Why.
        errno: Errno,
    },
    /// Its table has not as many entries as the disk needs, by name.
    #[error("Could not read bitmap '{0}' from image: Invalid argument")]
    TableSize(String),
    /// It was in use and not stored again, by name.
    #[error("Bitmap '{0}' is inconsistent and cannot be used")]
    Inconsistent(String),
    /// A word of a bitmap's table.
    #[error("bitmap table entry {0:#018x} has reserved bits set or is not aligned to a cluster")]
    TableEntry(u64),
}

fn text(errno: Errno) -> String {
    errno_text(&errno.into())
}

/// Does the stored bitmap agree with the data?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// It does, as long as the autoclear bit says so.
    Whole,
    /// It was in use and not stored again.
    InUse,
}

/// Is the bitmap to record without being asked?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recording {
    /// Yes (the flag `auto`).
    Auto,
    /// Not until enabled.
    Disabled,
}

/// A bitmap's directory entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitmap {
    /// Unique; 1 to [`NAME_BYTES_MAX`] bytes of any kind.
    pub name: Vec<u8>,
    /// Offset of its table, a multiple of the cluster size.
    pub table_at: u64,
    /// Entries of its table; not 0.
    pub table_entries: u32,
    /// Can it be trusted?
    pub stored: Stored,
    /// Does it record?
    pub recording: Recording,
    /// Log 2 of the bytes of the disk behind one bit.
    pub granularity_bits: u8,
}

/// How long the entry is that begins with `fixed` ([`FIXED_BYTES`]), with its padding.
pub fn entry_bytes(fixed: &[u8]) -> Option<u64> {
    let (name, extra) = (u16_at(fixed, 18)?, u32_at(fixed, 20)?);
    let bytes = FIXED_BYTES as u64 + u64::from(name) + u64::from(extra);
    Some(bytes.next_multiple_of(8))
}

/// The image a directory is of.
#[derive(Clone, Copy, Debug)]
pub struct Of {
    /// Its cluster size.
    pub cluster_bytes: u64,
    /// The disk's size.
    pub size_bytes: u64,
}

/// Takes apart a whole directory of `count` entries.
pub fn parse_directory(bytes: &[u8], count: u32, of: Of) -> Result<Vec<Bitmap>, BitmapError> {
    let mut all = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let len = entry_bytes(rest).ok_or(BitmapError::Broken)?;
        let len = usize::try_from(len).map_err(|_| BitmapError::Broken)?;
        let (entry, after) = rest.split_at_checked(len).ok_or(BitmapError::Broken)?;
        if all.len() as u64 == u64::from(count) {
            return Err(BitmapError::More);
        }
        all.push(Bitmap::parse(entry, of)?);
        rest = after;
    }
    if all.len() as u64 != u64::from(count) {
        return Err(BitmapError::Fewer);
    }
    Ok(all)
}

/// A whole directory.
pub fn encode_directory(all: &[Bitmap]) -> Vec<u8> {
    all.iter().flat_map(|bitmap| bitmap.encode()).collect()
}

impl Bitmap {
    /// Its name in words.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.name).into_owned()
    }

    /// Bits for a disk of `size_bytes`.
    pub fn bits(&self, size_bytes: u64) -> u64 {
        size_bytes.div_ceil(1 << self.granularity_bits)
    }

    /// Entries of its table for such a disk (qcow2.txt, "Bitmap table").
    pub fn entries_for(&self, of: Of) -> u64 {
        self.bits(of.size_bytes).div_ceil(of.cluster_bytes * 8)
    }

    /// Has its table as many entries as it should? One in use may have any number.
    pub fn fits(&self, of: Of) -> bool {
        self.stored == Stored::InUse || self.entries_for(of) == u64::from(self.table_entries)
    }

    fn parse(entry: &[u8], of: Of) -> Result<Bitmap, BitmapError> {
        let fixed = Fixed::read(entry).ok_or(BitmapError::Broken)?;
        if fixed.extra_bytes != 0 {
            return Err(BitmapError::Extra);
        }
        let name = slice_at(entry, FIXED_BYTES, fixed.name_bytes.into());
        let name = name.ok_or(BitmapError::Broken)?;
        if !fixed.is_sane(of) {
            let name = String::from_utf8_lossy(name).into_owned();
            return Err(BitmapError::Constraints(name));
        }
        Ok(Bitmap {
            name: name.to_vec(),
            table_at: fixed.table_at,
            table_entries: fixed.table_entries,
            stored: match fixed.flags & IN_USE {
                0 => Stored::Whole,
                _ => Stored::InUse,
            },
            recording: match fixed.flags & AUTO {
                0 => Recording::Disabled,
                _ => Recording::Auto,
            },
            granularity_bits: fixed.granularity_bits,
        })
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FIXED_BYTES + self.name.len() + 8);
        let flags = match self.stored {
            Stored::Whole => 0,
            Stored::InUse => IN_USE,
        } | match self.recording {
            Recording::Disabled => 0,
            Recording::Auto => AUTO,
        };
        out.extend_from_slice(&self.table_at.to_be_bytes());
        out.extend_from_slice(&self.table_entries.to_be_bytes());
        out.extend_from_slice(&flags.to_be_bytes());
        out.extend_from_slice(&[DIRTY_TRACKING, self.granularity_bits]);
        out.extend_from_slice(&(self.name.len() as u16).to_be_bytes());
        out.extend_from_slice(&0u32.to_be_bytes());
        out.extend_from_slice(&self.name);
        pad8(&mut out);
        out
    }
}

/// The fields of an entry.
struct Fixed {
    table_at: u64,
    table_entries: u32,
    flags: u32,
    kind: u8,
    granularity_bits: u8,
    name_bytes: u16,
    extra_bytes: u32,
}

impl Fixed {
    fn read(bytes: &[u8]) -> Option<Fixed> {
        Some(Fixed {
            table_at: u64_at(bytes, 0)?,
            table_entries: u32_at(bytes, 8)?,
            flags: u32_at(bytes, 12)?,
            kind: u8_at(bytes, 16)?,
            granularity_bits: u8_at(bytes, 17)?,
            name_bytes: u16_at(bytes, 18)?,
            extra_bytes: u32_at(bytes, 20)?,
        })
    }

    fn is_sane(&self, of: Of) -> bool {
        let place = self.table_at != 0
            && self.table_at.is_multiple_of(of.cluster_bytes)
            && self.table_at <= i64::MAX as u64 - u64::from(self.table_entries) * 8;
        let size = (1..=TABLE_ENTRIES_MAX).contains(&self.table_entries);
        let granularity =
            (GRANULARITY_BITS_MIN..=GRANULARITY_BITS_MAX).contains(&self.granularity_bits);
        let name = (1..=NAME_BYTES_MAX).contains(&self.name_bytes.into());
        let flags = self.flags & !(IN_USE | AUTO | EXTRA_COMPATIBLE) == 0;
        place
            && size
            && granularity
            && name
            && flags
            && self.kind == DIRTY_TRACKING
            && self.covers(of)
    }

    /// Are its clusters not too many, and enough for the disk? One in use is not asked the latter: the disk may have been
    /// resized meanwhile.
    fn covers(&self, of: Of) -> bool {
        let stored_bytes = u64::from(self.table_entries) * of.cluster_bytes;
        if stored_bytes > STORED_BYTES_MAX {
            return false;
        }
        let covered = (u128::from(stored_bytes) * 8) << self.granularity_bits;
        self.flags & IN_USE != 0 || u128::from(of.size_bytes) <= covered
    }
}

/// A word of a bitmap's table: what a cluster's worth of its bits are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableEntry {
    /// All clear.
    Zeroes,
    /// All set.
    Ones,
    /// In a cluster of the image.
    At(u64),
}

impl TableEntry {
    /// Reads a word.
    pub fn decode(word: u64, cluster_bytes: u64) -> Result<TableEntry, BitmapError> {
        let at = word & 0x00ff_ffff_ffff_fe00;
        match (at, word & !0x00ff_ffff_ffff_fe00) {
            (0, 0) => Ok(TableEntry::Zeroes),
            (0, 1) => Ok(TableEntry::Ones),
            (at, 0) if at.is_multiple_of(cluster_bytes) => Ok(TableEntry::At(at)),
            _ => Err(BitmapError::TableEntry(word)),
        }
    }

    /// The word.
    pub fn encode(self) -> u64 {
        match self {
            TableEntry::Zeroes => 0,
            TableEntry::Ones => 1,
            TableEntry::At(at) => at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OF: Of = Of {
        cluster_bytes: 65536,
        size_bytes: 1 << 30,
    };

    fn bitmap(name: &[u8]) -> Bitmap {
        Bitmap {
            name: name.to_vec(),
            table_at: 65536,
            table_entries: 1,
            stored: Stored::Whole,
            recording: Recording::Auto,
            granularity_bits: 16,
        }
    }

    proptest! {
        #[test]
        fn a_directory_reads_back_as_it_was_written(
            names in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..1024), 0..6),
            at in 1u64..1 << 40, in_use in any::<bool>(), entries in 1u32..8000, bits in 13u8..=31,
        ) {
            let all: Vec<Bitmap> = names.iter().map(|name| Bitmap {
                table_at: at * 65536,
                table_entries: entries,
                stored: if in_use { Stored::InUse } else { Stored::Whole },
                granularity_bits: bits,
                ..bitmap(name)
            }).collect();
            let bytes = encode_directory(&all);
            prop_assert_eq!(parse_directory(&bytes, all.len() as u32, OF), Ok(all));
        }

        #[test]
        fn no_bytes_make_the_parser_panic(
            hits in proptest::collection::vec((0usize..64, any::<u8>()), 0..6), len in 0usize..=64,
        ) {
            let mut bytes = encode_directory(&[bitmap(b"one"), bitmap(b"two")]);
            for (at, byte) in hits {
                bytes[at] = byte;
            }
            let _ = parse_directory(&bytes[..len], 2, OF);
        }

        #[test]
        fn table_words_survive_the_round_trip(word in any::<u64>(), bits in 9u32..56) {
            for word in [word, word >> bits << bits, word & 1, word & 0xff_ffff_ffff_0000] {
                if let Ok(entry) = TableEntry::decode(word, 65536) {
                    prop_assert_eq!(entry.encode(), word);
                }
            }
        }
    }

    #[test]
    fn entries_that_break_a_rule_are_refused_by_name() {
        let break_with = |at: usize, bytes: &[u8]| {
            let mut entry = encode_directory(&[bitmap(b"one")]);
            entry[at..at + bytes.len()].copy_from_slice(bytes);
            parse_directory(&entry, 1, OF)
                .expect_err("refused")
                .to_string()
        };
        let words = "Bitmap 'one' doesn't satisfy the constraints";
        for (at, bytes) in [
            (0, &[0u8; 8][..]),
            (6, &[2]),
            (0, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
            (8, &[0; 4]),
            (8, &[8, 0, 0, 1]),
            (8, &[0, 0, 0x20, 1]),
            (15, &[8]),
            (16, &[0]),
            (16, &[2]),
            (17, &[8]),
            (17, &[32]),
        ] {
            assert_eq!(break_with(at, bytes), words, "{at} {bytes:?}");
        }
        assert_eq!(break_with(19, &[0xff]), "Broken bitmap directory");
        assert_eq!(
            break_with(18, &[0, 0, 0, 0, 0, 8]),
            "Bitmap extra data is not supported"
        );
    }

    #[test]
    fn a_bitmap_in_use_need_not_fit_the_disk_but_its_space_is_bounded() {
        let small = Bitmap {
            granularity_bits: 9,
            ..bitmap(b"x")
        };
        let of = Of {
            size_bytes: 1 << 40,
            ..OF
        };
        assert!(parse_directory(&encode_directory(std::slice::from_ref(&small)), 1, of).is_err());
        let in_use = Bitmap {
            stored: Stored::InUse,
            ..small
        };
        let bytes = encode_directory(std::slice::from_ref(&in_use));
        assert_eq!(parse_directory(&bytes, 1, of), Ok(vec![in_use.clone()]));
        let huge = Bitmap {
            table_entries: 8193,
            ..in_use
        };
        assert!(parse_directory(&encode_directory(&[huge]), 1, of).is_err());
    }

    #[test]
    fn a_count_that_lies_is_refused() {
        let bytes = encode_directory(&[bitmap(b"one"), bitmap(b"two")]);
        assert_eq!(parse_directory(&bytes, 1, OF), Err(BitmapError::More));
        assert_eq!(parse_directory(&bytes, 3, OF), Err(BitmapError::Fewer));
    }
}
