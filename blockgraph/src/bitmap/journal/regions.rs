//! Before a write: its regions are made durable, by whoever comes first for all who wait.
//!
//! The rule: a region is covered in memory after the map that has it is on disk, and only of the epoch that map was of. A
//! served write counts as under way in its epoch from before it asks until its bitmaps are marked.

use super::format::{MAP_WORDS, Map, REGIONS_MAX, map_at};
use super::{Journal, Stage, WORD, date_ns};
use crate::io::Io;
use crate::node::Outcome;
use crate::notice::Notice;
use crate::units::Span;
use ring::{Durability, Errno, Mem, Op};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// With more regions than this a few are covered at once, and with more than [`MANY`] more.
const SOME: u64 = 1024;
const MANY: u64 = 4096;
/// Who writes on and on has so many regions covered ahead at most.
const AHEAD_MAX: u64 = 64;

/// A served write that is under way; over when this is dropped.
#[derive(Debug)]
pub(crate) struct Covering<'a> {
    served: &'a AtomicU64,
}

impl Drop for Covering<'_> {
    fn drop(&mut self) {
        self.served.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Journal {
    /// Has the regions of `span` durably said to be written, before that is done. Errors: that cannot be done, nor can the journal be
    /// given up.
    pub(crate) async fn cover(&self, io: &Io, span: Span) -> Result<Covering<'_>, Errno> {
        loop {
            let covering = self.enter();
            if self.covers(span) {
                return Ok(covering);
            }
            drop(covering);
            self.write_map(io, self.regions_of(span)).await?;
        }
    }

    /// The disk's file is about to be changed, though nothing in the disk is: an image writes what it has in memory. That must not look
    /// like somebody else's doing after a crash.
    pub(crate) async fn say_a_word(&self, io: &Io) {
        let is_due = {
            let state = self.state();
            let is_old = state.dated.is_none_or(|dated| dated.elapsed() >= WORD);
            state.stage == Stage::Kept && is_old
        };
        if is_due && let Err(errno) = self.write_date(io).await {
            // It is believed less than it could be, and that is all.
            tracing::warn!("bitmap journal {}: {errno}", self.path.display());
        }
    }

    /// Writes the map for its date.
    pub(super) async fn write_date(&self, io: &Io) -> Outcome {
        let _turn = self.mapping.hold(super::store::ONE).await;
        let map = self.next_map();
        self.put_map(io, &map).await?;
        self.take_over(io, &map);
        Ok(())
    }

    fn enter(&self) -> Covering<'_> {
        // With the lock, as an epoch that ends looks at the count after it.
        let state = self.state();
        let served = &self.served[(state.epoch % 2) as usize];
        served.fetch_add(1, Ordering::SeqCst);
        drop(state);
        Covering { served }
    }

    async fn write_map(&self, io: &Io, regions: RangeInclusive<u64>) -> Outcome {
        self.state().wanted.push(regions.clone());
        let _turn = self.mapping.hold(super::store::ONE).await;
        if regions.into_iter().all(|region| self.is_covered(region)) {
            return Ok(());
        }
        let map = self.next_map();
        match self.put_map(io, &map).await {
            Ok(()) => self.take_over(io, &map),
            Err(errno) => self.give_up(io, errno).await?,
        }
        Ok(())
    }

    /// What is covered and what somebody waits for.
    fn next_map(&self) -> Map {
        let mut state = self.state();
        let wanted = std::mem::take(&mut state.wanted);
        let mut words: [u64; MAP_WORDS] =
            std::array::from_fn(|at| self.covered[at].load(Ordering::SeqCst));
        let count: u64 = words.iter().map(|word| u64::from(word.count_ones())).sum();
        for regions in wanted {
            for region in widened(&words, count, regions) {
                words[(region / 64) as usize] |= 1 << (region % 64);
            }
        }
        Map {
            epoch: state.epoch,
            written_ns: date_ns(),
            region_bits: self.region_bits,
            words,
        }
    }

    async fn put_map(&self, io: &Io, map: &Map) -> Outcome {
        let block = map.encode();
        let mem = Mem::zeroed(block.len()).ok_or(Errno::NOMEM)?;
        mem.store(0, &block);
        let op = Op::Write {
            file: self.file.id(),
            at: map_at(map.epoch),
            durability: Durability::Through,
        };
        io.file(op, mem).await?;
        self.state().dated = Some(Instant::now());
        Ok(())
    }

    fn take_over(&self, io: &Io, map: &Map) {
        let mut state = self.state();
        debug_assert_eq!(state.epoch, map.epoch, "an epoch ends between two maps");
        for (covered, word) in self.covered.iter().zip(map.words) {
            covered.store(word, Ordering::SeqCst);
        }
        if state.since.is_none() {
            state.since = Some(Instant::now());
            drop(state);
            io.graph().notices().post(Notice::JournalDue);
        }
    }

    /// The map cannot be written. The guest's write is worth more than its bitmaps if the journal can say that it is worth nothing; if
    /// not even that, a journal that says too little must not be found. Errors: that one.
    async fn give_up(&self, io: &Io, errno: Errno) -> Outcome {
        if self.state().stage == Stage::GivenUp {
            return Ok(());
        }
        self.write_void(io).await.map_err(|_| errno)?;
        self.state().stage = Stage::GivenUp;
        tracing::error!(
            "the bitmap journal {} cannot be written ({errno}): bitmaps do not survive a crash any more",
            self.path().display()
        );
        for covered in &self.covered {
            covered.store(u64::MAX, Ordering::SeqCst);
        }
        Ok(())
    }
}

/// As many as are worth covering together. Who writes on and on has as many covered ahead as are behind, and where much is written
/// already a little more is not much.
fn widened(
    words: &[u64; MAP_WORDS],
    count: u64,
    regions: RangeInclusive<u64>,
) -> RangeInclusive<u64> {
    let is_set = |region: u64| words[(region / 64) as usize] >> (region % 64) & 1 == 1;
    let (first, last) = regions.into_inner();
    let before = (first.saturating_sub(AHEAD_MAX)..first).rev();
    let run = before.take_while(|region| is_set(*region)).count() as u64;
    let unit = match count {
        0..SOME => 1,
        SOME..MANY => 8,
        _ => 64,
    };
    let last = (last + run) / unit * unit + unit - 1;
    first / unit * unit..=last.min(REGIONS_MAX - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(regions: impl IntoIterator<Item = u64>) -> [u64; MAP_WORDS] {
        let mut words = [0; MAP_WORDS];
        for region in regions {
            words[(region / 64) as usize] |= 1 << (region % 64);
        }
        words
    }

    #[test]
    fn one_write_covers_its_region_and_a_stream_twice_as_much_each_time() {
        assert_eq!(widened(&with([]), 0, 5..=5), 5..=5);
        assert_eq!(widened(&with([4]), 1, 5..=5), 5..=6);
        assert_eq!(widened(&with(0..10), 10, 10..=10), 10..=20);
        assert_eq!(widened(&with(0..1000), 1000, 1000..=1000), 1000..=1064);
    }

    #[test]
    fn where_much_is_written_a_little_more_is_covered() {
        assert_eq!(widened(&with([]), SOME, 13..=13), 8..=15);
        assert_eq!(widened(&with([]), MANY, 13..=70), 0..=127);
    }

    #[test]
    fn there_are_no_more_regions_than_a_map_has() {
        let last = REGIONS_MAX - 1;
        assert_eq!(widened(&with([last - 1]), 1, last..=last), last..=last);
    }
}
