//! The feature fields of a version 3 header as named bits.
//!
//! The rule (qcow2.txt, "Header"): an unknown incompatible bit refuses the image, an unknown compatible bit is kept, an
//! unknown autoclear bit is kept for as long as nothing is written and cleared with the first write.

use super::bytes::{slice_at, u8_at};

/// Bits a program must know to open the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Incompatible {
    /// Bit 0: refcounts may be out of date and must be rebuilt before the image is written.
    pub dirty: bool,
    /// Bit 1: metadata is known to be wrong; the image must not be written before repair.
    pub corrupt: bool,
    /// Bit 2: guest data lives in another file.
    pub data_file: bool,
    /// Bit 3: the compression is not zlib.
    pub compression: bool,
    /// Bit 4: L2 entries are 128 bits wide and have subclusters.
    pub extended_l2: bool,
}

/// Bits a program may ignore.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compatible {
    /// Bit 0: refcounts may be written late, with the dirty bit set meanwhile.
    pub lazy_refcounts: bool,
    /// Bits without a name here; kept.
    pub unknown: u64,
}

/// Bits a program that does not know them must clear when it writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Autoclear {
    /// Bit 0: the bitmaps extension agrees with the data.
    pub bitmaps: bool,
    /// Bit 1: the data file reads the same when taken as a raw image.
    pub data_file_raw: bool,
    /// Bits without a name here; must be cleared before the first write.
    pub unknown: u64,
}

const INCOMPATIBLE_KNOWN: u64 = 0x1f;

impl Incompatible {
    /// The named bits, and those without a name.
    pub fn parse(bits: u64) -> (Incompatible, u64) {
        let known = Incompatible {
            dirty: bit(bits, 0),
            corrupt: bit(bits, 1),
            data_file: bit(bits, 2),
            compression: bit(bits, 3),
            extended_l2: bit(bits, 4),
        };
        (known, bits & !INCOMPATIBLE_KNOWN)
    }

    /// As stored.
    pub fn bits(self) -> u64 {
        u64::from(self.dirty)
            | u64::from(self.corrupt) << 1
            | u64::from(self.data_file) << 2
            | u64::from(self.compression) << 3
            | u64::from(self.extended_l2) << 4
    }
}

impl Compatible {
    /// All of them.
    pub fn parse(bits: u64) -> Compatible {
        Compatible {
            lazy_refcounts: bit(bits, 0),
            unknown: bits & !1,
        }
    }

    /// As stored.
    pub fn bits(self) -> u64 {
        u64::from(self.lazy_refcounts) | self.unknown
    }
}

impl Autoclear {
    /// All of them.
    pub fn parse(bits: u64) -> Autoclear {
        Autoclear {
            bitmaps: bit(bits, 0),
            data_file_raw: bit(bits, 1),
            unknown: bits & !3,
        }
    }

    /// As stored.
    pub fn bits(self) -> u64 {
        u64::from(self.bitmaps) | u64::from(self.data_file_raw) << 1 | self.unknown
    }

    /// What may stay set once somebody writes: the bits that have a name here, whose features are kept up.
    pub fn after_write(self) -> Autoclear {
        Autoclear { unknown: 0, ..self }
    }
}

fn bit(bits: u64, number: u32) -> bool {
    bits >> number & 1 == 1
}

const NAME_BYTES: usize = 46;
const ENTRY_BYTES: usize = 2 + NAME_BYTES;

/// Kind, bit and name of each feature, as other programs shall call it (qcow2.txt, "Feature name table").
const NAMES: [(u8, u8, &str); 8] = [
    (0, 0, "dirty bit"),
    (0, 1, "corrupt bit"),
    (0, 2, "external data file"),
    (0, 3, "compression type"),
    (0, 4, "extended L2 entries"),
    (1, 0, "lazy refcounts"),
    (2, 0, "bitmaps"),
    (2, 1, "raw external data"),
];

/// The feature name table of every image we make.
pub fn name_table() -> Vec<u8> {
    let mut table = vec![0; NAMES.len() * ENTRY_BYTES];
    for (entry, (kind, bit, name)) in table.chunks_exact_mut(ENTRY_BYTES).zip(NAMES) {
        entry[0] = kind;
        entry[1] = bit;
        entry[2..2 + name.len()].copy_from_slice(name.as_bytes());
    }
    table
}

/// Names incompatible `bits` by the image's own feature name table, the rest as a number.
pub fn describe_incompatible(bits: u64, table: &[u8]) -> String {
    let mut left = bits;
    let mut names = Vec::new();
    for entry in table.chunks_exact(ENTRY_BYTES) {
        let number = u8_at(entry, 1).unwrap_or(u8::MAX);
        let mask = 1u64.checked_shl(u32::from(number)).unwrap_or(0);
        if u8_at(entry, 0) == Some(0) && left & mask != 0 {
            let name = slice_at(entry, 2, NAME_BYTES).unwrap_or_default();
            names.push(until_nul(name));
            left &= !mask;
        }
    }
    if left != 0 {
        names.push(format!("Unknown incompatible feature: {left:x}"));
    }
    names.join(", ")
}

fn until_nul(name: &[u8]) -> String {
    let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(name).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_come_back_as_they_were() {
        for bits in 0..32 {
            let (known, unknown) = Incompatible::parse(bits);
            assert_eq!((known.bits(), unknown), (bits, 0));
        }
        for bits in [0, 1, 2, 3, u64::MAX, 1 << 63] {
            assert_eq!(Compatible::parse(bits).bits(), bits);
            assert_eq!(Autoclear::parse(bits).bits(), bits);
        }
        assert_eq!(Incompatible::parse(u64::MAX).1, u64::MAX << 5);
    }

    #[test]
    fn a_write_leaves_only_bits_with_a_name() {
        assert_eq!(Autoclear::parse(u64::MAX).after_write().bits(), 3);
    }

    #[test]
    fn unknown_features_are_named_by_the_image_or_by_number() {
        let mut table = name_table();
        table[1] = 40;
        assert_eq!(describe_incompatible(1 << 40, &table), "dirty bit");
        assert_eq!(
            describe_incompatible(1 << 40 | 1 << 63, &table[..48]),
            "dirty bit, Unknown incompatible feature: 8000000000000000"
        );
    }
}
