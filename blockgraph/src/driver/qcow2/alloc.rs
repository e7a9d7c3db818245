//! Which host clusters are free, and who gets them.
//!
//! The rule: past the end of what is used first, where the file reads as zeroes and a write needs no padding; then freed
//! clusters; then a longer file. A cluster's refcount is raised, in memory, in the same step that hands it out.

mod fresh;
mod pack;
#[cfg(test)]
mod tests;

use super::free::Free;
use super::refcount::{Lack, Need, Refcounts};
use crate::request::Prealloc;
use pack::Pack;

/// The file grows by at least this much at a time ...
const STEP_BYTES_MIN: u64 = 1 << 20;
/// ... and at most by this.
const STEP_BYTES_MAX: u64 = 64 << 20;
/// Before the file grows so many refcount blocks are looked through for free clusters.
const LOOKS_PER_STEP: u32 = 4;

/// To find where what is used ends, so many refcount blocks are looked at.
const END_LOOKS_MAX: u32 = 16;

/// Host clusters next to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// The first one's index.
    pub(crate) first: u64,
    /// How many.
    pub(crate) count: u64,
    /// What they read as.
    pub(crate) content: Content,
}

/// What newly allocated clusters read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Zeroes: they are past what the file's end ever was.
    Zeroes,
    /// Anything.
    Stale,
}

/// How much is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// Up to so many clusters, one at least.
    UpTo(u64),
    /// So many clusters in one run.
    Exactly(u64),
}

/// What is known of where what is used ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Not beyond the end of this refcount block's clusters; so many blocks may still be looked at.
    Within(u64, u32),
    /// At `fresh`.
    Known,
}

/// The free clusters of an image file.
#[derive(Debug)]
pub(crate) struct Alloc {
    cluster_bits: u32,
    /// From this cluster on nothing is used, once that is known.
    fresh: u64,
    end: End,
    /// How long the file is, in bytes.
    length: u64,
    /// From this cluster on the file reads as zeroes where nothing was allocated.
    zero_from: u64,
    free: Free,
    /// Free clusters below this one are in `free`, but for those forgotten.
    looked: u64,
    looks_left: u32,
    pack: Option<Pack>,
    /// The file does not grow: freed clusters must do.
    stuck: bool,
    /// What becomes of what the file grows by ahead of its use.
    ahead: Prealloc,
}

impl Alloc {
    /// For a file of `length` bytes. Where what is used ends has to be found before anything is handed out.
    pub(crate) fn new(cluster_bits: u32, length: u64) -> Alloc {
        Alloc {
            cluster_bits,
            fresh: 0,
            end: End::Within(u64::MAX, END_LOOKS_MAX),
            length,
            zero_from: length.div_ceil(1 << cluster_bits),
            free: Free::default(),
            looked: 0,
            looks_left: LOOKS_PER_STEP,
            pack: None,
            stuck: false,
            ahead: Prealloc::Falloc,
        }
    }

    /// True once [`Alloc::find_end`] has found it.
    pub(crate) fn knows_end(&self) -> bool {
        self.end == End::Known
    }
    /// How long the file is, in bytes.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// The file was made so long.
    pub(crate) fn grown(&mut self, length: u64) {
        self.length = self.length.max(length);
        self.looks_left = LOOKS_PER_STEP;
        self.stuck = false;
    }

    /// The file cannot be made longer for now (true), or may be tried again (false).
    pub(crate) fn set_stuck(&mut self, stuck: bool) {
        self.stuck = stuck;
    }

    /// Space that the file system has set aside is written without its journal being asked each time; where that failed
    /// once, or would be written, the file only gets longer.
    pub(crate) fn ahead(&self) -> Prealloc {
        self.ahead
    }

    pub(crate) fn set_ahead(&mut self, ahead: Prealloc) {
        self.ahead = ahead;
    }

    /// True if the file could not be made longer.
    pub(crate) fn is_stuck(&self) -> bool {
        self.stuck
    }

    /// The length to give a file that has to be at least `needed` bytes: further than that, in a large step.
    pub(crate) fn step(&self, needed: u64) -> u64 {
        let cluster = 1u64 << self.cluster_bits;
        let least = STEP_BYTES_MIN.max(cluster * 16);
        let step = (self.length / 2).clamp(least, STEP_BYTES_MAX);
        needed.saturating_add(step) & !(cluster - 1)
    }

    /// Hands out clusters, and raises their refcounts from 0 to 1.
    pub(crate) fn take(&mut self, want: Want, refs: &mut Refcounts) -> Result<Run, Lack> {
        if refs.crowded() {
            return Err(Lack::Need(Need::Commit));
        }
        let (least, most) = match want {
            Want::UpTo(count) => (1, count.min(refs.reach())),
            Want::Exactly(count) => (count, count),
        };
        let room = self.fresh_room(refs);
        if room >= most {
            return self.take_fresh(most, refs);
        }
        while self.looked < self.fresh && (self.looks_left > 0 || self.stuck) {
            if self.free.fit(most).is_some() {
                break;
            }
            self.look(refs)?;
        }
        if let Some((first, _)) = self.free.fit(most) {
            return self.take_free(first, most, refs);
        }
        if !self.stuck {
            return Err(Lack::Need(Need::Length(self.needed(most, refs))));
        }
        match self.free.longest() {
            Some((first, len)) if len >= least => self.take_free(first, len.min(most), refs),
            _ if room >= least => self.take_fresh(room, refs),
            _ => Err(Lack::Need(Need::Length(self.needed(least, refs)))),
        }
    }

    fn take_free(&mut self, first: u64, count: u64, refs: &mut Refcounts) -> Result<Run, Lack> {
        refs.claim(first, count)?;
        self.free.take(first, count);
        Ok(Run {
            first,
            count,
            content: Content::Stale,
        })
    }

    /// Nothing below `end` is handed out as if nobody had used it.
    pub(crate) fn skip_to(&mut self, end: u64) {
        self.fresh = self.fresh.max(end);
    }

    /// Makes the refcount of a cluster 1 that was handed out before this process began, and is below the end of what is used.
    /// The disk may have less, or more: what had it before gave it back in memory, once nothing durable referred to it.
    pub(crate) fn claim_again(&mut self, cluster: u64, refs: &mut Refcounts) -> Result<(), Lack> {
        if refs.crowded() {
            return Err(Lack::Need(Need::Commit));
        }
        if !refs.describes(cluster) {
            let block = self.take_fresh(1, refs)?;
            // Its own block may be the one that was missing.
            match refs.describes(cluster) {
                false => refs.add_block(refs.block_of(cluster), block.first << self.cluster_bits),
                true => {
                    refs.decrement(block.first)?;
                    self.release(block.first);
                }
            }
        }
        refs.claim_over(cluster)
    }

    /// Looks through the refcounts of one more block for free clusters.
    fn look(&mut self, refs: &mut Refcounts) -> Result<(), Lack> {
        let index = refs.block_of(self.looked);
        let end = ((index + 1) << refs.block_bits()).min(self.fresh);
        if refs.block_at(index).is_some() {
            let runs = refs.free_runs(index, self.looked, end)?;
            self.free.forget(self.looked, end);
            for (first, count) in runs {
                self.free.add(first, count);
            }
            self.looks_left = self.looks_left.saturating_sub(1);
        }
        self.looked = end;
        Ok(())
    }

    /// A cluster's refcount has come down to 0, and nothing durable or under way refers to it any more.
    pub(crate) fn release(&mut self, cluster: u64) {
        self.stop_packing(cluster);
        if cluster >= self.fresh {
            return;
        }
        if let Some(forgotten) = self.free.add(cluster, 1) {
            self.looked = self.looked.min(forgotten);
        }
    }

    /// Where what is used ends, in bytes: free clusters at the end are given up.
    pub(crate) fn trim(&mut self) -> u64 {
        while let Some(first) = self.free.take_last(self.fresh) {
            // What was used once does not read as zeroes should the file grow again without having been cut.
            self.zero_from = self.zero_from.max(self.fresh);
            self.fresh = first;
            self.looked = self.looked.min(first);
        }
        self.fresh << self.cluster_bits
    }

    /// The file was cut to `length` bytes, which is not below what is used.
    pub(crate) fn cut(&mut self, length: u64) {
        self.length = length;
        self.zero_from = length.div_ceil(1 << self.cluster_bits);
    }
}
