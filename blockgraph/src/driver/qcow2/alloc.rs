//! Which host clusters are free, and who gets them.
//!
//! The rule: past the end of what is used first, where the file reads as zeroes and a write needs no padding; then freed
//! clusters; then a longer file. A cluster's refcount is raised, in memory, in the same step that hands it out.

use super::free::Free;
use super::refcount::{Lack, Need, Refcounts, TABLE_BYTES_MAX};

/// The file grows by at least this much at a time ...
const STEP_BYTES_MIN: u64 = 1 << 20;
/// ... and at most by this.
const STEP_BYTES_MAX: u64 = 256 << 20;
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

/// Compressed clusters share host clusters: where the next one goes, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pack {
    at: u64,
    end: u64,
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
        }
    }

    /// True once [`Alloc::find_end`] has found it.
    pub(crate) fn knows_end(&self) -> bool {
        self.end == End::Known
    }

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
    fn fresh_room(&self, refs: &Refcounts) -> u64 {
        let clusters = (self.length >> self.cluster_bits).saturating_sub(self.fresh);
        clusters.saturating_sub(self.blocks_for(clusters, refs))
    }

    /// How many clusters a longer refcount table takes, if `count` more clusters need one.
    fn table_for(&self, count: u64, refs: &Refcounts) -> u64 {
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
    fn needed(&self, count: u64, refs: &Refcounts) -> u64 {
        let all = count.saturating_add(self.table_for(count, refs));
        let all = all
            .saturating_add(self.blocks_for(all, refs))
            .saturating_add(4);
        self.fresh
            .saturating_add(all)
            .saturating_mul(1 << self.cluster_bits)
    }

    fn take_fresh(&mut self, count: u64, refs: &mut Refcounts) -> Result<Run, Lack> {
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
    fn fresh_run(&mut self, count: u64, refs: &mut Refcounts) -> Result<Run, Lack> {
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

    fn take_free(&mut self, first: u64, count: u64, refs: &mut Refcounts) -> Result<Run, Lack> {
        refs.claim(first, count)?;
        self.free.take(first, count);
        Ok(Run {
            first,
            count,
            content: Content::Stale,
        })
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

    /// No more compressed clusters are put into that one.
    pub(crate) fn stop_packing(&mut self, cluster: u64) {
        let at = cluster << self.cluster_bits;
        let packed = |pack: &Pack| pack.at > at && pack.at <= at + (1 << self.cluster_bits);
        if self.pack.as_ref().is_some_and(packed) {
            self.pack = None;
        }
    }

    /// Room for `len` compressed bytes (at most a cluster): beside earlier ones if possible. Raises the refcount of each
    /// cluster they lie in. Returns the offset in bytes.
    pub(crate) fn pack(&mut self, len: u64, refs: &mut Refcounts) -> Result<u64, Lack> {
        if let Some(at) = self.pack_beside(len, refs)? {
            return Ok(at);
        }
        let run = self.take(Want::Exactly(1), refs)?;
        let at = run.first << self.cluster_bits;
        self.pack = Some(Pack {
            at: at + len,
            end: at + (1 << self.cluster_bits),
        });
        Ok(at)
    }

    fn pack_beside(&mut self, len: u64, refs: &mut Refcounts) -> Result<Option<u64>, Lack> {
        let Some(pack) = self.pack.filter(|pack| pack.at < pack.end) else {
            return Ok(None);
        };
        let cluster = pack.at >> self.cluster_bits;
        if refs.get(cluster)? >= refs.width().max() {
            return Ok(None);
        }
        let mut end = pack.end;
        if pack.end - pack.at < len {
            // It may reach into the next cluster, if that is free and the very next one to be handed out.
            if pack.end >> self.cluster_bits != self.fresh || self.fresh_room(refs) == 0 {
                return Ok(None);
            }
            if refs.crowded() {
                return Err(Lack::Need(Need::Commit));
            }
            if self.table_for(1, refs) > 0 {
                return Ok(None);
            }
            self.fresh_run(1, refs)?;
            end += 1 << self.cluster_bits;
        }
        refs.increment(cluster)?;
        self.pack = Some(Pack {
            at: pack.at + len,
            end,
        });
        Ok(Some(pack.at))
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

#[cfg(test)]
mod tests {
    use super::super::width::Width;
    use super::*;
    use std::collections::BTreeMap;

    /// An image file in memory: refcount blocks as last written, and what they should say.
    struct Bench {
        refs: Refcounts,
        alloc: Alloc,
        disk: BTreeMap<u64, Vec<u8>>,
        expected: BTreeMap<u64, u64>,
        cluster_bits: u32,
        length_max: u64,
    }

    impl Bench {
        fn new(cluster_bits: u32, order: u32, length_max: u64) -> Bench {
            let width = Width::from_order(order).expect("a width");
            let cluster = 1u64 << cluster_bits;
            // Header, table of one cluster, block.
            let mut block = vec![0; cluster as usize];
            (0..3).for_each(|index| width.set(&mut block, index, 1));
            let mut table = vec![0; cluster as usize / 8];
            table[0] = 2 * cluster;
            Bench {
                refs: Refcounts::new(width, cluster_bits, table, cluster, 4),
                alloc: Alloc::new(cluster_bits, 3 * cluster),
                disk: [(0, block)].into(),
                expected: [(0, 1), (1, 1), (2, 1)].into(),
                cluster_bits,
                length_max,
            }
        }

        fn meet(&mut self, lack: Lack) -> Result<(), Lack> {
            match lack {
                Lack::Need(Need::Block(index)) => {
                    let bytes = self.disk[&index].clone().into_boxed_slice();
                    self.refs.loaded(index, bytes);
                }
                Lack::Need(Need::Length(length)) if length <= self.length_max => {
                    self.alloc
                        .grown(self.alloc.step(length).min(self.length_max));
                }
                Lack::Need(Need::Length(_)) if !self.alloc.is_stuck() => self.alloc.set_stuck(true),
                Lack::Need(Need::Commit) => self.commit(),
                other => return Err(other),
            }
            Ok(())
        }

        fn commit(&mut self) {
            let out = self.refs.take_dirty();
            let cluster = 1 << self.cluster_bits;
            for block in &out {
                let disk = self
                    .disk
                    .entry(block.index)
                    .or_insert_with(|| vec![0; cluster]);
                disk[block.within.clone()].copy_from_slice(&block.bytes);
            }
            self.refs.written(&out);
            self.refs.take_table();
        }

        fn run<T>(
            &mut self,
            mut work: impl FnMut(&mut Alloc, &mut Refcounts) -> Result<T, Lack>,
        ) -> Result<T, Lack> {
            for _ in 0..10_000 {
                match work(&mut self.alloc, &mut self.refs) {
                    Ok(done) => return Ok(done),
                    Err(lack) => self.meet(lack)?,
                }
            }
            panic!("it never ends")
        }

        fn take(&mut self, want: Want) -> Result<Run, Lack> {
            let run = self.run(|alloc, refs| {
                alloc.find_end(refs)?;
                alloc.take(want, refs)
            })?;
            for cluster in run.first..run.first + run.count {
                let before = self.expected.insert(cluster, 1);
                assert_eq!(before.unwrap_or(0), 0, "handed out twice");
            }
            Ok(run)
        }

        fn free(&mut self, cluster: u64) {
            let left = self
                .run(|_, refs| refs.decrement(cluster))
                .expect("described");
            if left == 0 {
                self.alloc.release(cluster);
            }
            self.expected.entry(cluster).and_modify(|count| *count -= 1);
        }

        /// Every refcount is what it should be: what was handed out, and the metadata.
        fn check(&mut self) {
            let (at, len) = self.refs.table_span();
            let mut expected = self.expected.clone();
            expected.remove(&1);
            expected.remove(&2);
            let blocks: Vec<u64> = self
                .refs
                .table()
                .iter()
                .copied()
                .filter(|at| *at != 0)
                .collect();
            let abandoned = self.refs.take_abandoned();
            for (at, len) in abandoned.iter().copied().chain([(at, len)]) {
                let clusters = (at >> self.cluster_bits)..((at + len) >> self.cluster_bits);
                clusters.for_each(|cluster| *expected.entry(cluster).or_insert(0) += 1);
            }
            for at in blocks {
                *expected.entry(at >> self.cluster_bits).or_insert(0) += 1;
            }
            for cluster in 0..self.alloc.fresh + 10 {
                let count = self.run(|_, refs| refs.get(cluster)).expect("described");
                assert_eq!(
                    count,
                    expected.get(&cluster).copied().unwrap_or(0),
                    "{cluster}"
                );
            }
        }
    }

    #[test]
    fn clusters_past_the_end_come_first_and_read_as_zeroes() {
        let mut bench = Bench::new(16, 4, 1 << 40);
        let first = bench.take(Want::UpTo(1)).expect("room");
        let many = bench.take(Want::UpTo(100)).expect("room");
        assert_eq!((first.first, first.content), (3, Content::Zeroes));
        assert_eq!((many.first, many.count), (4, 100));
        bench.free(3);
        assert_eq!(bench.take(Want::UpTo(1)).expect("room").first, 104);
        bench.check();
    }

    #[test]
    fn a_file_that_cannot_grow_gives_freed_clusters_and_then_none() {
        let mut bench = Bench::new(9, 4, 40 << 9);
        let mut taken = Vec::new();
        while let Ok(run) = bench.take(Want::UpTo(3)) {
            taken.push(run);
        }
        let clusters: u64 = taken.iter().map(|run| run.count).sum();
        assert_eq!(clusters, 37);
        bench.free(20);
        let run = bench.take(Want::UpTo(5)).expect("the freed one");
        assert_eq!((run.first, run.count, run.content), (20, 1, Content::Stale));
        bench.check();
    }

    #[test]
    fn blocks_and_tables_are_made_as_the_file_grows_in_every_width() {
        for order in 0..=6 {
            let mut bench = Bench::new(9, order, 1 << 40);
            for step in 0..400u64 {
                bench.take(Want::UpTo(1 + step * 7 % 90)).expect("room");
            }
            bench.check();
            assert!(order < 5 || bench.refs.table_span().1 > 512, "it has moved");
        }
    }

    #[test]
    fn a_run_that_must_be_whole_is_whole() {
        let mut bench = Bench::new(9, 6, 1 << 40);
        let run = bench.take(Want::Exactly(5000)).expect("room");
        assert_eq!(run.count, 5000);
        bench.check();
    }

    #[test]
    fn compressed_clusters_share_host_clusters_and_count_in_each() {
        let mut bench = Bench::new(16, 4, 1 << 40);
        bench
            .run(|alloc, refs| alloc.find_end(refs))
            .expect("found");
        let mut pack = |len| {
            bench
                .run(|alloc, refs| alloc.pack(len, refs))
                .expect("room")
        };
        assert_eq!(pack(40_000), 3 << 16);
        assert_eq!(pack(40_000), (3 << 16) + 40_000);
        assert_eq!(pack(10_000), (3 << 16) + 80_000);
        let mut count = |cluster| bench.run(|_, refs| refs.get(cluster)).expect("described");
        assert_eq!((count(3), count(4)), (2, 2));
    }

    #[test]
    fn a_host_cluster_holds_one_compressed_cluster_if_refcounts_are_single_bits() {
        let mut bench = Bench::new(16, 0, 1 << 40);
        bench
            .run(|alloc, refs| alloc.find_end(refs))
            .expect("found");
        let mut pack = |len| {
            bench
                .run(|alloc, refs| alloc.pack(len, refs))
                .expect("room")
        };
        assert_eq!(pack(100), 3 << 16);
        assert_eq!(pack(100), 4 << 16);
    }

    #[test]
    fn what_is_used_ends_where_the_last_used_cluster_ends() {
        let mut bench = Bench::new(16, 4, 1 << 40);
        bench.take(Want::UpTo(10)).expect("room");
        for cluster in [12, 10, 11, 5] {
            bench.free(cluster);
        }
        assert_eq!(bench.alloc.trim(), 10 << 16);
    }

    #[test]
    fn clusters_that_were_free_before_are_found_before_the_file_grows() {
        let mut bench = Bench::new(16, 4, 1 << 40);
        bench.take(Want::UpTo(50)).expect("room");
        let width = bench.refs.width();
        bench.commit();
        let mut block = bench.disk[&0].clone();
        (20..25).for_each(|index| width.set(&mut block, index, 0));
        let mut table = vec![0; 8192];
        table[0] = 2 << 16;
        bench.disk = [(0, block)].into();
        bench.refs = Refcounts::new(width, 16, table, 1 << 16, 4);
        bench.alloc = Alloc::new(16, 53 << 16);
        bench
            .expected
            .retain(|cluster, _| !(20..25).contains(cluster));
        let run = bench.take(Want::UpTo(4)).expect("room");
        assert_eq!((run.first, run.count), (20, 4));
    }
}
