//! What is made of a journal that is found beside a disk: bitmaps, as far as it is believed.
//!
//! The rule: bitmaps that were in use say what was stored and every region that counts; where anything speaks against the
//! journal they are inconsistent, so that nobody relies on them, and nothing is lost but time.

use super::content::{self, Kept};
use super::format::{
    BLOCK_BYTES, Block, CONTENT_AT, Content, Header, MAP_WORDS, Map, Phase, Subject, header_at,
    is_torn_header, map_at, map_date_ns,
};
use super::{EPOCH, Journal, JournalError};
use crate::bitmap::dirty::{DirtyBitmap, State};
use crate::bitmap::memory::{BitmapMemory, MEMORY_BYTES_MAX};
use crate::io::Io;
use crate::units::Span;
use ring::{Errno, Mem, Op};
use std::sync::Arc;

/// Clocks are not that exact, nor is anybody woken at once.
const SLACK_NS: u64 = 30_000_000_000;
/// More than all bitmaps that there may be take, with their names.
const CONTENT_BYTES_MAX: u64 = MEMORY_BYTES_MAX + (64 << 20);
const STEP_BYTES: u64 = 1 << 20;

/// Why a journal is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// It is of another disk.
    OtherDisk,
    /// The disk was written by somebody who did not keep it.
    WrittenSince,
    /// Its writer could not keep it up.
    GivenUp,
}

impl std::fmt::Display for Doubt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Doubt::OtherDisk => "it is of another disk",
            Doubt::WrittenSince => "the disk was written without it",
            Doubt::GivenUp => "it could not be written any more",
        })
    }
}

/// What a journal says.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// The oldest first.
    pub(crate) bitmaps: Vec<DirtyBitmap>,
    /// Why it is not believed; its bitmaps are inconsistent then.
    pub(crate) doubt: Option<Doubt>,
    /// Did its writer not close it?
    pub(crate) after_crash: bool,
}

/// Regions that may have been written since bitmaps were stored.
#[derive(Debug)]
enum Regions {
    /// Nobody knows which.
    All,
    Some(Vec<Map>),
}

impl Journal {
    /// What is in it, for a disk of `size_bytes`. Errors: it cannot be read, is damaged, or is none.
    pub(crate) async fn find(
        &self,
        io: &Io,
        size_bytes: u64,
        memory: &Arc<BitmapMemory>,
    ) -> Result<Found, JournalError> {
        let Some(header) = self.read_headers(io).await? else {
            return Ok(Found::default());
        };
        let content = header.content;
        let bytes = self.read_content(io, content).await?;
        let kept = content::decode(&bytes).ok_or_else(|| self.damaged())?;
        let maps = [
            self.read_block(io, map_at(header.from_epoch)).await?,
            self.read_block(io, map_at(header.from_epoch + 1)).await?,
        ];
        let date_ns = maps.iter().map(map_date_ns).max().unwrap_or(0);
        let maps = maps.map(|block| Map::decode(&block));
        {
            let mut state = self.state();
            state.epoch = header.from_epoch + 1;
            state.from_epoch = header.from_epoch;
            state.sequence = header.sequence;
            state.content = content;
        }
        let regions = regions_of(&header, maps);
        let doubt = self.doubt(&header, date_ns);
        let regions = match header.phase {
            Phase::InUse => regions,
            Phase::Clean | Phase::Void => Regions::Some(Vec::new()),
        };
        let mut bitmaps = Vec::new();
        // The newest was stored first.
        for kept in kept.iter().rev() {
            let bitmap = restore(kept, size_bytes, &regions, doubt, memory);
            bitmaps.push(bitmap.map_err(|_| JournalError::Memory(self.path.clone()))?);
        }
        Ok(Found {
            bitmaps,
            doubt,
            after_crash: header.phase != Phase::Clean,
        })
    }

    fn damaged(&self) -> JournalError {
        JournalError::Damaged(self.path.clone())
    }

    /// A journal is no longer than its headers before one of them was written. What is longer and has none is somebody's, and be it
    /// nothing but zeroes.
    fn is_new(&self) -> bool {
        self.len_bytes
            .is_none_or(|len| len <= 2 * BLOCK_BYTES as u64)
    }

    /// The newest that is whole; `None` for a journal that was never written.
    async fn read_headers(&self, io: &Io) -> Result<Option<Header>, JournalError> {
        let mut found: Option<Header> = None;
        let mut unwritten = 0;
        let mut torn = 0;
        for sequence in 0..2 {
            let block = self.read_block(io, header_at(sequence)).await?;
            match Header::decode(&block) {
                Block::Unwritten => unwritten += 1,
                Block::Other => torn += u32::from(is_torn_header(&block)),
                Block::Whole(header) => {
                    let is_newer = found.is_none_or(|found| header.sequence > found.sequence);
                    found = if is_newer { Some(header) } else { found };
                }
            }
        }
        match (found, unwritten, torn) {
            // With the very first header, should that be torn, nothing was said yet.
            (None, 2, _) | (None, 1, 1) if self.is_new() => Ok(None),
            (None, _, 2) => Err(self.damaged()),
            (None, _, _) => Err(JournalError::NotOne(self.path.clone())),
            (Some(header), _, _)
                if header.from_epoch >= u64::MAX / 2 || header.sequence >= u64::MAX / 2 =>
            {
                Err(self.damaged())
            }
            (found, _, _) => Ok(found),
        }
    }

    async fn read_content(&self, io: &Io, content: Content) -> Result<Vec<u8>, JournalError> {
        let Content { at, len, crc } = content;
        let aligned = at % BLOCK_BYTES as u64 == 0 && (CONTENT_AT..1 << 60).contains(&at);
        if len == 0 {
            return Ok(Vec::new());
        }
        if !aligned || len > CONTENT_BYTES_MAX {
            return Err(self.damaged());
        }
        let mut bytes: Vec<u8> = Vec::new();
        let mut from = 0;
        while from < len {
            let step = (len - from).min(STEP_BYTES);
            // Step by step, as a file may not have what its header says.
            let read = self
                .read(io, at + from, step.next_multiple_of(BLOCK_BYTES as u64))
                .await?;
            let no_memory = |_| JournalError::Memory(self.path.clone());
            bytes.try_reserve(step as usize).map_err(no_memory)?;
            bytes.extend_from_slice(&read[..step as usize]);
            from += step;
        }
        match crc32fast::hash(&bytes) == crc {
            true => Ok(bytes),
            false => Err(self.damaged()),
        }
    }

    async fn read_block(&self, io: &Io, at: u64) -> Result<[u8; BLOCK_BYTES], JournalError> {
        let bytes = self.read(io, at, BLOCK_BYTES as u64).await?;
        bytes.first_chunk().copied().ok_or_else(|| self.damaged())
    }

    async fn read(&self, io: &Io, at: u64, len: u64) -> Result<Vec<u8>, JournalError> {
        let error = |errno| JournalError::Read {
            path: self.path.clone(),
            errno,
        };
        let mem = Mem::zeroed(len as usize).ok_or_else(|| error(Errno::NOMEM))?;
        let file = self.file.id();
        io.file(Op::Read { file, at }, mem.clone())
            .await
            .map_err(error)?;
        let mut bytes = vec![0; len as usize];
        mem.load(0, &mut bytes);
        Ok(bytes)
    }

    /// What speaks against it.
    fn doubt(&self, header: &Header, map_date_ns: u64) -> Option<Doubt> {
        let (subject, changed_ns) = self.subject();
        if !is_same(&header.subject, &subject) {
            return Some(Doubt::OtherDisk);
        }
        let is_home = self.is_home();
        match header.phase {
            Phase::Void => Some(Doubt::GivenUp),
            // The image has its bitmaps, and whoever writes it says so in it.
            Phase::Clean if !is_home => None,
            Phase::Clean => (changed_ns != header.changed_ns).then_some(Doubt::WrittenSince),
            Phase::InUse => {
                let last_word_ns = header.written_ns.max(map_date_ns);
                is_anothers(changed_ns, last_word_ns).then_some(Doubt::WrittenSince)
            }
        }
    }
}

/// Was a disk that was changed then changed by somebody who did not keep the journal? Its own writer says another word before it
/// writes for longer than an epoch.
fn is_anothers(changed_ns: u64, last_word_ns: u64) -> bool {
    changed_ns > last_word_ns.saturating_add(EPOCH.as_nanos() as u64 + SLACK_NS)
}

/// Where both are known they are the same.
fn is_same(was: &Subject, is: &Subject) -> bool {
    let same = |was: u64, is: u64| was == 0 || is == 0 || was == is;
    was.home == is.home
        && was.offset_bytes == is.offset_bytes
        && same(was.inode, is.inode)
        && same(was.born_ns, is.born_ns)
}

/// Those that count; a map that was torn may have said anything.
fn regions_of(header: &Header, maps: [Block<Map>; 2]) -> Regions {
    let mut counting = Vec::new();
    for map in maps {
        match map {
            Block::Unwritten => {}
            Block::Whole(map) if map.epoch < header.from_epoch => {}
            Block::Whole(map) if map.epoch <= header.from_epoch + 1 => counting.push(map),
            Block::Whole(_) | Block::Other => return Regions::All,
        }
    }
    Regions::Some(counting)
}

/// A bitmap as it was, and more if its disk may have been written since.
fn restore(
    kept: &Kept<'_>,
    size_bytes: u64,
    regions: &Regions,
    doubt: Option<Doubt>,
    memory: &Arc<BitmapMemory>,
) -> Result<DirtyBitmap, crate::bitmap::BitmapError> {
    let state = match doubt {
        Some(_) => State::Inconsistent,
        None => kept.state,
    };
    let name = kept.name.to_owned();
    let bitmap =
        DirtyBitmap::of_image(name, kept.granularity_bytes, kept.size_bytes, state, memory)?;
    if state == State::Inconsistent {
        return Ok(bitmap);
    }
    kept.load_into(&bitmap);
    bitmap.resize(size_bytes);
    if state == State::Recording {
        mark(&bitmap, size_bytes, regions);
    }
    Ok(bitmap)
}

fn mark(bitmap: &DirtyBitmap, size_bytes: u64, regions: &Regions) {
    let whole = Span {
        at: 0,
        len: size_bytes,
    };
    match regions {
        Regions::All => bitmap.mark(whole),
        Regions::Some(maps) => {
            for map in maps {
                spans_of(map, whole).for_each(|span| bitmap.mark(span));
            }
        }
    }
}

/// The regions of a map as far as they are within `whole`; the last goes on to its end.
fn spans_of(map: &Map, whole: Span) -> impl Iterator<Item = Span> {
    let last = MAP_WORDS as u64 * 64 - 1;
    let bits = map.region_bits;
    let is_set = |region: &u64| map.words[(region / 64) as usize] >> (region % 64) & 1 == 1;
    let at = move |region: u64| region.saturating_mul(1 << bits).min(whole.len);
    (0..=last).filter(is_set).map(move |region| {
        let end = if region == last {
            whole.len
        } else {
            at(region + 1)
        };
        Span {
            at: at(region),
            len: end - at(region),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::format::Home;
    use super::*;

    #[test]
    fn a_disk_changed_a_minute_after_the_last_word_was_changed_by_somebody_else() {
        let minute = 60_000_000_000;
        for (changed, anothers) in [(0, false), (7 + minute, false), (8 + minute, true)] {
            assert_eq!(is_anothers(changed, 7), anothers, "{changed}");
        }
        assert!(!is_anothers(u64::MAX, u64::MAX - 1));
    }

    #[test]
    fn a_file_of_another_inode_or_birth_is_another_disk_and_what_nobody_knows_is_none() {
        let was = Subject {
            home: Home::Journal,
            inode: 5,
            born_ns: 9,
            offset_bytes: 512,
        };
        let others = [
            Subject { inode: 6, ..was },
            Subject { born_ns: 8, ..was },
            Subject {
                offset_bytes: 0,
                ..was
            },
            Subject {
                home: Home::Image,
                ..was
            },
        ];
        assert!(others.iter().all(|other| !is_same(&was, other)));
        let unknown = [Subject { inode: 0, ..was }, Subject { born_ns: 0, ..was }];
        assert!(unknown.iter().all(|other| is_same(&was, other)));
    }
}
