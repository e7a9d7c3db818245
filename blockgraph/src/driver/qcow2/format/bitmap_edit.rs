//! Changes of a bitmap directory where it stands.
//!
//! The rule: an entry keeps its place and its length, and no more than one byte of it is changed, which cannot be torn.

use super::bitmap_dir::{Bitmap, BitmapError, Of, Stored, entry_bytes, parse_directory};

/// The last byte of the flags, which has the flag IN_USE.
const FLAGS_AT: usize = 15;
const IN_USE: u8 = 1;

/// A directory's bytes, and what they say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    bytes: Vec<u8>,
    /// Where its entries begin.
    entries: Vec<usize>,
    bitmaps: Vec<Bitmap>,
}

impl Directory {
    /// A whole directory of `count` entries. Errors: as [`parse_directory`].
    pub fn parse(bytes: Vec<u8>, count: u32, of: Of) -> Result<Directory, BitmapError> {
        let bitmaps = parse_directory(&bytes, count, of)?;
        let mut entries = Vec::with_capacity(bitmaps.len());
        let mut at = 0;
        for _ in &bitmaps {
            entries.push(at);
            // It was parsed: it is all there.
            let rest = bytes.get(at..).unwrap_or_default();
            at += entry_bytes(rest).ok_or(BitmapError::Broken)? as usize;
        }
        Ok(Directory {
            bytes,
            entries,
            bitmaps,
        })
    }

    /// Its entries, in order.
    pub fn bitmaps(&self) -> &[Bitmap] {
        &self.bitmaps
    }

    /// As it is to stand in the image.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Says whether the stored bitmap can be trusted.
    pub fn set_stored(&mut self, index: usize, stored: Stored) {
        let Some(bitmap) = self.bitmaps.get_mut(index) else {
            return;
        };
        bitmap.stored = stored;
        let flags = &mut self.bytes[self.entries[index] + FLAGS_AT];
        match stored {
            Stored::InUse => *flags |= IN_USE,
            Stored::Whole => *flags &= !IN_USE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::bitmap_dir::{Recording, encode_directory};
    use super::*;
    use proptest::prelude::*;

    const OF: Of = Of {
        cluster_bytes: 65536,
        size_bytes: 1 << 30,
    };

    fn bitmap(name: String) -> Bitmap {
        Bitmap {
            name: name.into_bytes(),
            table_at: 65536,
            table_entries: 1,
            stored: Stored::Whole,
            recording: Recording::Auto,
            granularity_bits: 16,
        }
    }

    proptest! {
        #[test]
        fn what_is_changed_is_what_is_read_back(
            names in proptest::collection::vec("[a-z]{1,40}", 1..8),
            which in any::<prop::sample::Index>(),
        ) {
            let mut all: Vec<Bitmap> = names.into_iter().map(bitmap).collect();
            let (count, index) = (all.len() as u32, which.index(all.len()));
            let bytes = encode_directory(&all);
            let mut directory = Directory::parse(bytes.clone(), count, OF).expect("sound");
            directory.set_stored(index, Stored::InUse);
            let differ = bytes.iter().zip(directory.bytes()).filter(|(a, b)| a != b);
            prop_assert_eq!(differ.count(), 1, "one byte, which cannot be torn");
            all[index].stored = Stored::InUse;
            prop_assert_eq!(directory.bytes(), encode_directory(&all));
            prop_assert_eq!(directory.bitmaps(), &all[..]);
            directory.set_stored(index, Stored::Whole);
            all[index].stored = Stored::Whole;
            prop_assert_eq!(directory.bytes(), encode_directory(&all));
        }
    }
}
