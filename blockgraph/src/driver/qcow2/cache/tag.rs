//! What a slot holds, in one word: the slice's number, whether it has any entries, and a sequence number.
//!
//! The rule: two looks at a slot that find the same tag, not one of a change, have seen the same words in between.

/// Low bits: the sequence number, odd while the words are being changed.
const SEQUENCE_BITS: u32 = 23;
const SEQUENCE: u64 = (1 << SEQUENCE_BITS) - 1;
/// Then one bit: all words are zero, whatever is stored.
const BLANK: u64 = 1 << SEQUENCE_BITS;
/// Then the slice's number plus one, or zero. (The largest L1 table times the most slices of a table is 2^34.)
const SLICE_SHIFT: u32 = SEQUENCE_BITS + 1;

/// A slot's tag; zero is an empty slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tag(pub(super) u64);

/// What a slot's words are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    /// A slice's, as they are stored.
    Stored(u64),
    /// A slice's that are all zero; none is stored.
    Blank(u64),
    /// Nobody's.
    Nothing,
}

impl Tag {
    /// Which slice the slot holds.
    #[inline]
    pub(super) fn slice(self) -> Option<u64> {
        (self.0 >> SLICE_SHIFT).checked_sub(1)
    }

    /// Does the slot hold that slice?
    #[inline]
    pub(super) fn is_of(self, slice: u64) -> bool {
        self.0 >> SLICE_SHIFT == slice + 1
    }

    /// Are its words being changed?
    #[inline]
    pub(super) fn is_changing(self) -> bool {
        self.0 & 1 != 0
    }

    /// Are they all zero?
    #[inline]
    pub(super) fn is_blank(self) -> bool {
        self.0 & BLANK != 0
    }

    /// The tag while the words are being changed.
    pub(super) fn changing(self) -> Tag {
        Tag((self.0 & !SEQUENCE) | (self.0.wrapping_add(1) & SEQUENCE))
    }

    /// The tag when they have been.
    pub(super) fn changed(self, holds: Holds) -> Tag {
        let (name, blank) = match holds {
            Holds::Stored(slice) => (slice + 1, 0),
            Holds::Blank(slice) => (slice + 1, BLANK),
            Holds::Nothing => (0, 0),
        };
        Tag(name << SLICE_SHIFT | blank | (self.0.wrapping_add(1) & SEQUENCE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_says_what_was_put_in_and_never_the_same_twice() {
        let mut seen = vec![Tag::default()];
        for holds in [
            Holds::Stored(7),
            Holds::Blank(7),
            Holds::Nothing,
            Holds::Stored((1 << 34) - 1),
            Holds::Stored(7),
        ] {
            let changing = seen[seen.len() - 1].changing();
            assert!(changing.is_changing());
            let tag = changing.changed(holds);
            assert!(!tag.is_changing());
            let (slice, blank) = match holds {
                Holds::Stored(slice) => (Some(slice), false),
                Holds::Blank(slice) => (Some(slice), true),
                Holds::Nothing => (None, false),
            };
            assert_eq!((tag.slice(), tag.is_blank()), (slice, blank));
            assert!(!seen.contains(&changing) && !seen.contains(&tag));
            seen.extend([changing, tag]);
        }
    }

    #[test]
    fn the_sequence_wraps_without_touching_its_neighbours() {
        let last = Tag((8 << SLICE_SHIFT) | (SEQUENCE - 1));
        let tag = last.changing().changed(Holds::Stored(7));
        assert_eq!(tag, Tag(8 << SLICE_SHIFT));
    }
}
