//! The bytes of a journal, little-endian, every block with a checksum (CRC-32) of its own.
//!
//! The rule: bytes that are not what they should be are told apart from those that were never written; nothing here trusts a
//! length. The layout:
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0, 4096 | 4096 | headers, written in turn: the valid one with the higher sequence number counts |
//! | 8192, 12288 | 4096 | maps of regions, of even and odd epochs |
//! | 16384 | any | what bitmaps said when the header was written, where the header says |

use std::ops::Range;

/// Headers and maps.
pub(super) const BLOCK_BYTES: usize = 4096;
/// Two of each.
const MAPS_AT: u64 = 8192;
/// What bitmaps said begins here at the earliest.
pub(super) const CONTENT_AT: u64 = 16384;
/// The words of a map.
pub(super) const MAP_WORDS: usize = 504;
/// The regions of a map. The last one goes on to the end of the disk.
pub(super) const REGIONS_MAX: u64 = MAP_WORDS as u64 * 64;

const HEADER_MAGIC: &[u8; 8] = b"VBLKBMJ\x01";
const MAP_MAGIC: &[u8; 8] = b"VBLKBMR\x01";
/// Where the checksum is in both; it is taken with zeroes there.
const CRC: Range<usize> = 8..12;
const MAP_BITS_AT: usize = 64;

/// What a journal is worth to whoever finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Its writer had the image open, or did not close it.
    InUse,
    /// Its writer has closed the image: what the bitmaps said is what they say.
    Clean,
    /// Its writer could not keep it up: it says which bitmaps there were, and no more.
    Void,
}

/// Where the bitmaps are while the disk is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Home {
    /// In the journal.
    Journal,
    /// In the image.
    Image,
}

/// Which disk a journal is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subject {
    pub(super) home: Home,
    /// The file's inode, or the device's number; 0: nobody knows.
    pub(super) inode: u64,
    /// When the file was made, in ns since 1970; 0: nobody knows.
    pub(super) born_ns: u64,
    /// Where in the file the disk begins.
    pub(super) offset_bytes: u64,
}

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) phase: Phase,
    /// One more with each header.
    pub(super) sequence: u64,
    /// Maps of this epoch and later ones count.
    pub(super) from_epoch: u64,
    /// When it was written, in ns since 1970.
    pub(super) written_ns: u64,
    pub(super) subject: Subject,
    /// When the file was changed last, in ns since 1970, if it was closed; 0: nobody knows.
    pub(super) changed_ns: u64,
    pub(super) content: Content,
}

/// Where it is what the bitmaps said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) at: u64,
    pub(super) len: u64,
    pub(super) crc: u32,
}

impl Content {
    /// What it takes of the file, by whole blocks.
    pub(super) fn end(&self) -> u64 {
        self.at + self.len.next_multiple_of(BLOCK_BYTES as u64)
    }
}

/// Where the header of that sequence number is.
pub(super) fn header_at(sequence: u64) -> u64 {
    sequence % 2 * BLOCK_BYTES as u64
}

/// Where the map of that epoch is.
pub(super) fn map_at(epoch: u64) -> u64 {
    MAPS_AT + epoch % 2 * BLOCK_BYTES as u64
}

/// A block as it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Block<T> {
    /// Nothing but zeroes.
    Unwritten,
    /// That.
    Whole(T),
    /// Something else: torn, or not ours.
    Other,
}

fn crc_of(block: &[u8; BLOCK_BYTES]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&block[..CRC.start]);
    crc.update(&[0; 4]);
    crc.update(&block[CRC.end..]);
    crc.finalize()
}

fn seal(block: &mut [u8; BLOCK_BYTES]) {
    let crc = crc_of(block);
    block[CRC].copy_from_slice(&crc.to_le_bytes());
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let word = bytes.get(at..).and_then(<[u8]>::first_chunk);
    word.map_or(0, |word| u64::from_le_bytes(*word))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..).and_then(<[u8]>::first_chunk);
    word.map_or(0, |word| u32::from_le_bytes(*word))
}

/// Is it of that kind and whole?
fn found(block: &[u8; BLOCK_BYTES], magic: &[u8; 8]) -> Block<()> {
    if block.iter().all(|byte| *byte == 0) {
        return Block::Unwritten;
    }
    match block.starts_with(magic) && u32_at(block, CRC.start) == crc_of(block) {
        true => Block::Whole(()),
        false => Block::Other,
    }
}

impl Header {
    pub(super) fn encode(&self) -> [u8; BLOCK_BYTES] {
        let mut block = [0; BLOCK_BYTES];
        block[..8].copy_from_slice(HEADER_MAGIC);
        block[12] = match self.phase {
            Phase::InUse => 0,
            Phase::Clean => 1,
            Phase::Void => 2,
        };
        block[13] = match self.subject.home {
            Home::Journal => 0,
            Home::Image => 1,
        };
        let words = [
            self.sequence,
            self.from_epoch,
            self.written_ns,
            self.subject.inode,
            self.subject.born_ns,
            self.subject.offset_bytes,
            self.changed_ns,
            self.content.at,
            self.content.len,
            u64::from(self.content.crc),
        ];
        for (place, word) in block[16..].chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        seal(&mut block);
        block
    }

    pub(super) fn decode(block: &[u8; BLOCK_BYTES]) -> Block<Header> {
        match found(block, HEADER_MAGIC) {
            Block::Unwritten => return Block::Unwritten,
            Block::Other => return Block::Other,
            Block::Whole(()) => {}
        }
        let word = |index: usize| u64_at(block, 16 + index * 8);
        let phase = match block[12] {
            0 => Phase::InUse,
            1 => Phase::Clean,
            2 => Phase::Void,
            _ => return Block::Other,
        };
        let home = match block[13] {
            0 => Home::Journal,
            1 => Home::Image,
            _ => return Block::Other,
        };
        Block::Whole(Header {
            phase,
            sequence: word(0),
            from_epoch: word(1),
            written_ns: word(2),
            subject: Subject {
                home,
                inode: word(3),
                born_ns: word(4),
                offset_bytes: word(5),
            },
            changed_ns: word(6),
            content: Content {
                at: word(7),
                len: word(8),
                crc: word(9) as u32,
            },
        })
    }
}

/// Which regions may have been written in an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Map {
    pub(super) epoch: u64,
    /// When it was written, in ns since 1970.
    pub(super) written_ns: u64,
    /// How large a region is, as a power of two.
    pub(super) region_bits: u32,
    pub(super) words: [u64; MAP_WORDS],
}

/// When a map was written of which maybe only the beginning is what it should be; 0 for what is none.
pub(super) fn map_date_ns(block: &[u8; BLOCK_BYTES]) -> u64 {
    match block.starts_with(MAP_MAGIC) {
        true => u64_at(block, 24),
        false => 0,
    }
}

/// Is that what can be left of the first header of a new journal, if a power cut tore it?
pub(super) fn is_torn_header(block: &[u8; BLOCK_BYTES]) -> bool {
    block.starts_with(HEADER_MAGIC) || block[..512].iter().all(|byte| *byte == 0)
}

impl Map {
    pub(super) fn encode(&self) -> [u8; BLOCK_BYTES] {
        let mut block = [0; BLOCK_BYTES];
        block[..8].copy_from_slice(MAP_MAGIC);
        block[12..16].copy_from_slice(&self.region_bits.to_le_bytes());
        block[16..24].copy_from_slice(&self.epoch.to_le_bytes());
        block[24..32].copy_from_slice(&self.written_ns.to_le_bytes());
        let places = block[MAP_BITS_AT..].chunks_exact_mut(8);
        for (place, word) in places.zip(self.words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        seal(&mut block);
        block
    }

    pub(super) fn decode(block: &[u8; BLOCK_BYTES]) -> Block<Map> {
        match found(block, MAP_MAGIC) {
            Block::Unwritten => return Block::Unwritten,
            Block::Other => return Block::Other,
            Block::Whole(()) => {}
        }
        let region_bits = u32_at(block, 12);
        if region_bits >= 63 {
            return Block::Other;
        }
        let mut words = [0; MAP_WORDS];
        for (index, word) in words.iter_mut().enumerate() {
            *word = u64_at(block, MAP_BITS_AT + index * 8);
        }
        Block::Whole(Map {
            epoch: u64_at(block, 16),
            written_ns: u64_at(block, 24),
            region_bits,
            words,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> Header {
        Header {
            phase: Phase::Clean,
            sequence: 7,
            from_epoch: 3,
            written_ns: 5,
            subject: Subject {
                home: Home::Image,
                inode: 11,
                born_ns: 12,
                offset_bytes: 512,
            },
            changed_ns: 13,
            content: Content {
                at: CONTENT_AT,
                len: 100,
                crc: 0xdead_beef,
            },
        }
    }

    fn map() -> Map {
        let mut words = [0; MAP_WORDS];
        words[0] = 1;
        words[MAP_WORDS - 1] = 1 << 63;
        Map {
            epoch: 9,
            written_ns: 4,
            region_bits: 20,
            words,
        }
    }

    #[test]
    fn what_was_encoded_says_the_same_again() {
        assert_eq!(Header::decode(&header().encode()), Block::Whole(header()));
        assert_eq!(Map::decode(&map().encode()), Block::Whole(map()));
    }

    #[test]
    fn nothing_but_zeroes_was_never_written_and_one_kind_is_not_the_other() {
        assert_eq!(Header::decode(&[0; BLOCK_BYTES]), Block::Unwritten);
        assert_eq!(Map::decode(&[0; BLOCK_BYTES]), Block::Unwritten);
        assert_eq!(Header::decode(&map().encode()), Block::Other);
        assert_eq!(Map::decode(&header().encode()), Block::Other);
    }

    proptest! {
        #[test]
        fn a_block_of_which_any_bit_is_another_is_not_whole(bit in 0usize..BLOCK_BYTES * 8) {
            let flip = |mut block: [u8; BLOCK_BYTES]| {
                block[bit / 8] ^= 1 << (bit % 8);
                block
            };
            prop_assert_eq!(Header::decode(&flip(header().encode())), Block::Other);
            prop_assert_eq!(Map::decode(&flip(map().encode())), Block::Other);
        }
    }
}
