//! What bitmaps say, as a journal keeps it: each with its name and those pieces of its bits that have one set.
//!
//! The rule: whatever it is made of may change while it is made; what is set in the end and was before is in it.

use super::super::dirty::{DirtyBitmap, GRANULARITY_BYTES_MIN, Keeping, State};
use super::format::BLOCK_BYTES;
use ring::Errno;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

/// So many bytes of bits are kept or not.
const PIECE_BYTES: usize = 512;
const ENTRY_BYTES: usize = 32;
const NAME_BYTES_MAX: usize = 1023;
const GRANULARITY_BITS: Range<u32> = GRANULARITY_BYTES_MIN.ilog2()..32;
/// A size that any file may have.
const SIZE_BYTES_MAX: u64 = i64::MAX as u64;

/// A bitmap as it was kept.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Kept<'a> {
    pub(super) name: &'a str,
    pub(super) granularity_bytes: u32,
    pub(super) state: State,
    /// The size of its node then.
    pub(super) size_bytes: u64,
    pieces: &'a [u8],
}

/// Those of `bitmaps` that are persistent, by whole blocks; and how many bytes of that count. Errors: ENOMEM.
pub(super) fn encode(bitmaps: &[Arc<DirtyBitmap>]) -> Result<(Vec<u8>, u64), Errno> {
    let mut bytes = Vec::new();
    let kept = bitmaps
        .iter()
        .filter(|b| b.keeping() == Keeping::Persistent);
    for bitmap in kept {
        append(bitmap, &mut bytes)?;
    }
    let len = bytes.len();
    let whole = len.next_multiple_of(BLOCK_BYTES);
    bytes
        .try_reserve_exact(whole - len)
        .map_err(|_| Errno::NOMEM)?;
    bytes.resize(whole, 0);
    Ok((bytes, len as u64))
}

fn append(bitmap: &DirtyBitmap, bytes: &mut Vec<u8>) -> Result<(), Errno> {
    let entry_at = bytes.len();
    let name = bitmap.name().as_bytes();
    bytes
        .try_reserve(ENTRY_BYTES + name.len())
        .map_err(|_| Errno::NOMEM)?;
    bytes.resize(entry_at + ENTRY_BYTES, 0);
    bytes.extend_from_slice(name);
    // Asked first: what was inconsistent by then says nothing.
    let state = bitmap.state();
    let size_bytes = bitmap.size_bytes();
    let mut pieces = 0u64;
    let mut from = 0;
    while let Some(dirty) = bitmap
        .next_byte(from)
        .filter(|_| state != State::Inconsistent)
    {
        let at = dirty / PIECE_BYTES as u64 * PIECE_BYTES as u64;
        bytes
            .try_reserve(8 + PIECE_BYTES)
            .map_err(|_| Errno::NOMEM)?;
        bytes.extend_from_slice(&at.to_le_bytes());
        let piece_at = bytes.len();
        bytes.resize(piece_at + PIECE_BYTES, 0);
        bitmap.store_bytes(at, &mut bytes[piece_at..]);
        pieces += 1;
        from = at + PIECE_BYTES as u64;
    }
    let entry = &mut bytes[entry_at..entry_at + ENTRY_BYTES];
    entry[..2].copy_from_slice(&(name.len() as u16).to_le_bytes());
    entry[2] = bitmap.granularity_bytes().ilog2() as u8;
    entry[3] = match state {
        State::Recording => 0,
        State::Disabled => 1,
        State::Inconsistent => 2,
    };
    entry[8..16].copy_from_slice(&size_bytes.to_le_bytes());
    entry[16..24].copy_from_slice(&pieces.to_le_bytes());
    Ok(())
}

/// The bitmaps in those bytes; `None` for bytes that nothing of ours has written.
pub(super) fn decode(bytes: &[u8]) -> Option<Vec<Kept<'_>>> {
    let mut all: Vec<Kept<'_>> = Vec::new();
    let mut names = BTreeSet::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (kept, after) = decode_one(rest)?;
        if !names.insert(kept.name) {
            return None;
        }
        all.push(kept);
        rest = after;
    }
    Some(all)
}

fn decode_one(bytes: &[u8]) -> Option<(Kept<'_>, &[u8])> {
    let (entry, rest) = bytes.split_at_checked(ENTRY_BYTES)?;
    let word = |at: usize| {
        entry[at..]
            .first_chunk()
            .map(|word| u64::from_le_bytes(*word))
    };
    let name_len = usize::from(u16::from_le_bytes([entry[0], entry[1]]));
    let granularity_bits = u32::from(entry[2]);
    let state = match entry[3] {
        0 => State::Recording,
        1 => State::Disabled,
        2 => State::Inconsistent,
        _ => return None,
    };
    let size_bytes = word(8)?;
    let pieces = usize::try_from(word(16)?).ok()?;
    if name_len == 0
        || name_len > NAME_BYTES_MAX
        || !GRANULARITY_BITS.contains(&granularity_bits)
        || size_bytes > SIZE_BYTES_MAX
    {
        return None;
    }
    let (name, rest) = rest.split_at_checked(name_len)?;
    let (pieces, rest) = rest.split_at_checked(pieces.checked_mul(8 + PIECE_BYTES)?)?;
    let kept = Kept {
        name: std::str::from_utf8(name).ok()?,
        granularity_bytes: 1 << granularity_bits,
        state,
        size_bytes,
        pieces,
    };
    Some((kept, rest))
}

impl Kept<'_> {
    /// Makes dirty what it says. What is past the end is not looked at.
    pub(super) fn load_into(&self, bitmap: &DirtyBitmap) {
        for piece in self.pieces.chunks_exact(8 + PIECE_BYTES) {
            let Some((at, bits)) = piece.split_first_chunk() else {
                return;
            };
            let at = u64::from_le_bytes(*at);
            if at < bitmap.len_bytes() {
                bitmap.load_bytes(at, bits);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Span;
    use proptest::prelude::*;

    fn bitmap(name: &str, granularity: u32, size: u64, state: State) -> Arc<DirtyBitmap> {
        let memory = Arc::default();
        let bitmap = DirtyBitmap::of_image(name.into(), granularity, size, state, &memory);
        Arc::new(bitmap.expect("memory"))
    }

    proptest! {
        #[test]
        fn what_was_kept_says_the_same_again(
            size in 1u64..1 << 28,
            writes in proptest::collection::vec((0u64..1 << 28, 1u64..1 << 20), 0..8),
            disabled in any::<bool>(),
        ) {
            let records = bitmap("records", 512, size, State::Recording);
            for (at, len) in &writes {
                let at = at % size;
                records.mark(Span { at, len: *len }.first(size - at));
            }
            let state = if disabled { State::Disabled } else { State::Inconsistent };
            let other = bitmap("other", 65536, size, state);
            let (bytes, len) = encode(&[records.clone(), other]).expect("memory");
            prop_assert_eq!(bytes.len() % BLOCK_BYTES, 0);
            let kept = decode(&bytes[..len as usize]).expect("what was written");
            prop_assert_eq!((kept.len(), kept[0].name, kept[1].name), (2, "records", "other"));
            prop_assert_eq!((kept[1].state, kept[1].granularity_bytes), (state, 65536));
            let again = bitmap("records", kept[0].granularity_bytes, kept[0].size_bytes, kept[0].state);
            kept[0].load_into(&again);
            prop_assert_eq!(again.sha256(), records.sha256());
        }

        #[test]
        fn two_bitmaps_of_one_name_are_none_of_ours(size in 1u64..1 << 20) {
            let one = || bitmap("one", 512, size, State::Recording);
            let (bytes, len) = encode(&[one(), one()]).expect("memory");
            prop_assert_eq!(decode(&bytes[..len as usize]), None);
        }

        #[test]
        fn no_bytes_make_it_panic_or_believe_what_is_not_there(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            at in 0usize..600, value in any::<u8>(),
        ) {
            let _ = decode(&bytes);
            let one = bitmap("one", 512, 1 << 20, State::Recording);
            one.mark(Span { at: 0, len: 1 });
            let (mut whole, len) = encode(&[one]).expect("memory");
            let len = len as usize;
            whole[at % len] = value;
            let to = bitmap("to", 512, 4096, State::Recording);
            for kept in decode(&whole[..len]).unwrap_or_default() {
                kept.load_into(&to);
            }
            prop_assert!(to.dirty_bytes() <= 4096);
        }
    }
}
