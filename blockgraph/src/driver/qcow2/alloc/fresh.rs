//! The end of what is used, and what is handed out there: a run, the refcount blocks that describe it, a longer refcount
//! table when there is no room in it for those.
//!
//! The rule: all of a run is described in memory in the step that hands it out; what that takes is worked out before.

use super::{Alloc, Content, End, Run};
use crate::driver::qcow2::refcount::{Lack, Need, Refcounts, TABLE_BYTES_MAX};

impl Alloc {
    /// Finds where what is used ends: the last refcount that is not 0, or, in files that have many blocks of nothing else,
    /// an end beyond that.
    pub(crate) fn find_end(&mut self, refs: &mut Refcounts) -> Result<(), Lack> {
        while let End::Within(from, looks) = self.end {
            let Some(index) = refs.last_block(from) else {
                // Without any refcounts nothing tells what is used: at least what the file has is.
                self.fresh = self.length.div_ceil(1 << self.cluster_bits);
                self.end = End::Known;
                break;
            };
            if let Some(last) = refs.last_used(index)? {
                self.fresh = last + 1;
                self.end = End::Known;
            } else if looks == 0 {
                self.fresh = index << refs.block_bits();
                self.end = End::Known;
            } else {
                self.end = End::Within(index, looks - 1);
            }
        }
        Ok(())
    }

    /// At most so many new blocks describe a run of `count` at the end.
    fn blocks_for(&self, count: u64, refs: &Refcounts) -> u64 {
        let first = refs.block_of(self.fresh);
        let last = refs.block_of(self.fresh.saturating_add(count.max(1) - 1));
        if first == last && refs.describes(self.fresh) {
            return 0;
        }
        let ranges = last - first + 1;
        // The blocks lie behind the run and need describing themselves; a block describes 64 clusters at least.
        ranges + ranges / 32 + 2
    }

    /// How long a run at the end may be, with the blocks that describe it, before the file has to grow.
    pub(super) fn fresh_room(&self, refs: &Refcounts) -> u64 {
        let clusters = (self.length >> self.cluster_bits).saturating_sub(self.fresh);
        clusters.saturating_sub(self.blocks_for(clusters, refs))
    }

    /// How many clusters a longer refcount table takes, if `count` more clusters need one.
    pub(super) fn table_for(&self, count: u64, refs: &Refcounts) -> u64 {
        let end = self
            .fresh
            .saturating_add(count)
            .saturating_add(self.blocks_for(count, refs));
        let last = refs.block_of(end.saturating_add(2));
        if last < refs.table_len() {
            return 0;
        }
        // Half as long again, and so that it can describe itself: 64 entries in a cluster at least, each of 64 clusters.
        let entries = last.saturating_add(last / 2).saturating_add(8);
        1 + entries.saturating_mul(8).div_ceil(1 << self.cluster_bits)
    }

    /// The length of file that `count` more clusters at its end take.
    pub(super) fn needed(&self, count: u64, refs: &Refcounts) -> u64 {
        let all = count.saturating_add(self.table_for(count, refs));
        let all = all
            .saturating_add(self.blocks_for(all, refs))
            .saturating_add(4);
        self.fresh
            .saturating_add(all)
            .saturating_mul(1 << self.cluster_bits)
    }

    pub(super) fn take_fresh(&mut self, count: u64, refs: &mut Refcounts) -> Result<Run, Lack> {
        let table = self.table_for(count, refs);
        if table > 0 {
            self.lengthen_table(table, count, refs)?;
        }
        self.fresh_run(count, refs)
    }

    /// Moves the refcount table to `clusters` clusters at the end; `count` more are to follow.
    fn lengthen_table(
        &mut self,
        clusters: u64,
        count: u64,
        refs: &mut Refcounts,
    ) -> Result<(), Lack> {
        if clusters.saturating_mul(1 << self.cluster_bits) > TABLE_BYTES_MAX {
            return Err(Lack::Full);
        }
        let needed = self.needed(count, refs);
        if needed > self.length {
            return Err(Lack::Need(Need::Length(needed)));
        }
        // Nothing may be missing once the table in memory is no longer the one on disk.
        let (_, end) = plan_blocks(self.fresh, clusters, refs);
        for cluster in edges(self.fresh, end, refs) {
            refs.get(cluster)?;
        }
        refs.widen_table(clusters);
        let run = self.fresh_run(clusters, refs)?;
        refs.move_table(run.first << self.cluster_bits);
        Ok(())
    }

    /// A run at the end and, behind it, the new blocks that describe both. The table is long enough.
    pub(super) fn fresh_run(&mut self, count: u64, refs: &mut Refcounts) -> Result<Run, Lack> {
        let first = self.fresh;
        let (blocks, end) = plan_blocks(first, count, refs);
        for cluster in edges(first, end, refs) {
            refs.get(cluster)?;
        }
        for &(index, at) in &blocks {
            refs.add_block(index, at << self.cluster_bits);
        }
        refs.claim(first, end - first)?;
        self.fresh = end;
        let content = if first >= self.zero_from {
            Content::Zeroes
        } else {
            Content::Stale
        };
        Ok(Run {
            first,
            count,
            content,
        })
    }
}

/// Which new blocks (index, cluster) a run needs, put right behind it, and where all of it ends.
fn plan_blocks(first: u64, count: u64, refs: &Refcounts) -> (Vec<(u64, u64)>, u64) {
    let mut blocks: Vec<(u64, u64)> = Vec::new();
    let mut next = first + count;
    let mut index = refs.block_of(first);
    // Blocks lie behind the run, so each may make one more range need describing: that range's block is its own first.
    while index <= refs.block_of(next - 1) {
        let known = refs.block_at(index).is_some() || blocks.iter().any(|b| b.0 == index);
        if !known {
            blocks.push((index, next));
            next += 1;
        }
        index += 1;
    }
    (blocks, next)
}

/// A cluster of each range that is described already, between `first` and `end`.
fn edges(first: u64, end: u64, refs: &Refcounts) -> Vec<u64> {
    let indexes = refs.block_of(first)..=refs.block_of(end - 1);
    let known = indexes.filter(|&index| refs.block_at(index).is_some());
    known.map(|index| index << refs.block_bits()).collect()
}
