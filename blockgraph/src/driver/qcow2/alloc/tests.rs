//! The allocator against refcounts kept by hand.

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
