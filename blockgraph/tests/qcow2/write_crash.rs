//! qcow2 images on a disk that loses power: whatever of the unsynced sectors lands, the image has at worst leaks, what was
//! flushed is there, and no sector shows what was never written to it.

use crate::support;
use blockgraph::driver::qcow2::Options;
use blockgraph::{Kind, Mode, NodeId, Started, Unmap};
use ring::sim::{Disk, Weather};
use ring::{Durability, Mem};
use support::sectors::{SECTOR, Version, stamp, version};
use support::sim::{self, Verdict};
use support::{Bench, Chance, span};

/// Room for everything, without any freed cluster being used again.
const ROOMY: u64 = 24 << 20;
/// Hardly room for a disk of 512 KiB: what is freed is soon used again.
const TIGHT: u64 = 800 << 10;

/// What a sector may be after a crash.
#[derive(Clone)]
struct Sector {
    /// As it was when last known durable, then whatever was written since, in order.
    may_be: Vec<Version>,
}

impl Sector {
    fn keep_last(&mut self) {
        self.may_be.drain(..self.may_be.len() - 1);
    }
}

struct Rig {
    disk: Disk,
    bench: Bench,
    node: NodeId,
    sectors: Vec<Sector>,
    next: Version,
    chance: Chance,
    images: u64,
    dumped: u64,
    name: String,
}

impl Rig {
    fn new(options: &str, (size, room): (u64, u64), seed: u64, mode: Mode) -> Rig {
        let image = sim::image(options, size);
        let disk = sim::disk(image, room, seed, Weather::ROUGH);
        let (mut bench, file) = sim::bench(&disk, mode);
        let node = sim::open(&mut bench, file, Options::default());
        let sector = Sector { may_be: vec![0] };
        Rig {
            disk,
            bench,
            node,
            sectors: vec![sector; size as usize / SECTOR],
            next: 1,
            chance: Chance(seed),
            images: 0,
            dumped: 0,
            name: format!("{options} {mode:?} seed {seed}"),
        }
    }

    /// Some requests at once that do not overlap, with crashes while they are under way.
    fn batch(&mut self, discards: bool) {
        let mut taken: Vec<(usize, usize)> = Vec::new();
        let mut discarded = Vec::new();
        let mut through = Vec::new();
        let mut pending = 0;
        let mut memories = Vec::new();
        for token in 0..5 {
            let unit = [1, 8, 16][self.chance.below(3) as usize];
            let units = self.sectors.len() / unit;
            let at = self.chance.below(units as u64) as usize * unit;
            let len = (1 + self.chance.below(6) as usize) * unit;
            let len = len.min(self.sectors.len() - at);
            if taken
                .iter()
                .any(|&(from, n)| at < from + n && from < at + len)
            {
                continue;
            }
            taken.push((at, len));
            let (kind, mem) = self.request(at, len, discards);
            match kind {
                Kind::Discard => discarded.push((at, len)),
                Kind::Write(Durability::Through) | Kind::WriteZeroes(_, Durability::Through) => {
                    through.push((at, len));
                }
                _ => {}
            }
            let whole = span((at * SECTOR) as u64, (len * SECTOR) as u64);
            match self.bench.start(self.node, kind, whole, &mem, token) {
                Started::Done(outcome) => assert_eq!(outcome, Ok(())),
                _ => pending += 1,
            }
            memories.push(mem);
        }
        let mut ends = Vec::new();
        while ends.len() < pending {
            self.bench
                .turns(1 + self.chance.below(4) as usize, &mut ends);
            if self.chance.below(3) == 0 {
                self.crash();
            }
        }
        assert!(ends.iter().all(|(_, outcome)| outcome.is_ok()), "{ends:?}");
        for (at, len) in discarded {
            self.look(at, len);
        }
        for (at, len) in through {
            // Durable by itself, though nothing was flushed.
            let written = &mut self.sectors[at..at + len];
            written.iter_mut().for_each(Sector::keep_last);
        }
        self.crash();
    }

    fn request(&mut self, at: usize, len: usize, discards: bool) -> (Kind, Mem) {
        let version = self.next;
        self.next += 1;
        let durability = match self.chance.below(20) {
            0 => Durability::Through,
            _ => Durability::Cached,
        };
        let unmap = [Unmap::Allow, Unmap::Keep][self.chance.below(2) as usize];
        let (kind, version) = match self.chance.below(8) {
            0 => (Kind::WriteZeroes(unmap, durability), 0),
            1 if discards => (Kind::Discard, 0),
            _ => (Kind::Write(durability), version),
        };
        for sector in &mut self.sectors[at..at + len] {
            sector.may_be.push(version);
        }
        if !matches!(kind, Kind::Write(_)) {
            return (kind, Mem::none());
        }
        let mem = Mem::zeroed(len * SECTOR).expect("memory");
        for n in 0..len {
            mem.store(n * SECTOR, &stamp(at + n, version));
        }
        (kind, mem)
    }

    /// What a discard has made of sectors is what they are from now on.
    fn look(&mut self, at: usize, len: usize) {
        let bytes = self
            .bench
            .read(self.node, (at * SECTOR) as u64, len * SECTOR);
        for (n, bytes) in bytes.chunks(SECTOR).enumerate() {
            let now = version(at + n, bytes).expect("something of its own");
            let may_be = &mut self.sectors[at + n].may_be;
            assert!(may_be.contains(&now));
            may_be.push(now);
        }
    }

    fn flush(&mut self) {
        let flushed = self.bench.plain(self.node, Kind::Flush, span(0, 0));
        assert_eq!(flushed, Ok(()));
        self.sectors.iter_mut().for_each(Sector::keep_last);
        self.crash();
    }

    /// Loses power, in one of the ways there are, and looks at what is left.
    fn crash(&mut self) {
        self.images += 1;
        let seed = self.chance.next();
        let image = self.disk.crash(seed);
        if self.images.is_multiple_of(50) {
            self.dumped += 1;
            let (verdict, said) = sim::ask_qemu(&image);
            assert_ne!(verdict, Verdict::Errors, "{}: {said}", self.name);
        }
        let left = sim::disk(image, ROOMY, seed, Weather::CALM);
        let (mut bench, file) = sim::bench(&left, Mode::Fast);
        let report = sim::look(&mut bench, file);
        let what = &self.name;
        assert_eq!(report.corruptions, 0, "{what}: {:?}", report.findings);
        let node = sim::open(&mut bench, file, Options::default());
        let bytes = bench.read(node, 0, self.sectors.len() * SECTOR);
        for (n, bytes) in bytes.chunks(SECTOR).enumerate() {
            let found = version(n, bytes);
            let may_be = &self.sectors[n].may_be;
            let fits = found.is_some_and(|found| may_be.contains(&found));
            assert!(fits, "{what}: sector {n} is {found:?}, not of {may_be:?}");
        }
    }
}

fn run(options: &str, size: (u64, u64), seeds: std::ops::Range<u64>, discards: bool) -> u64 {
    let mut images = 0;
    for seed in seeds {
        for mode in [Mode::Fast, Mode::Mixed(seed)] {
            let mut rig = Rig::new(options, size, seed, mode);
            println!("{}", rig.name);
            for _ in 0..30 {
                rig.batch(discards);
                if rig.chance.below(3) == 0 {
                    rig.flush();
                }
            }
            assert!(rig.dumped > 0 || rig.images < 50);
            images += rig.images;
        }
    }
    images
}

#[test]
fn small_clusters_lose_nothing_that_was_flushed() {
    let images = run("cluster_size=4096", (512 << 10, ROOMY), 0..8, false);
    assert!(images > 500, "{images}");
}

#[test]
fn small_clusters_with_discards_never_show_what_is_another_ones() {
    let images = run("cluster_size=4096", (512 << 10, ROOMY), 100..112, true);
    assert!(images > 800, "{images}");
}

#[test]
fn tiny_clusters_with_wide_refcounts_grow_their_tables_in_order() {
    let images = run(
        "cluster_size=512,refcount_bits=64",
        (512 << 10, ROOMY),
        200..206,
        true,
    );
    assert!(images > 400, "{images}");
}

#[test]
fn subclusters_lose_nothing_that_was_flushed() {
    let images = run(
        "extended_l2=on,cluster_size=16384",
        (1 << 20, ROOMY),
        300..306,
        true,
    );
    assert!(images > 400, "{images}");
}

#[test]
fn large_clusters_lose_nothing_that_was_flushed() {
    let images = run("cluster_size=65536", (1 << 20, ROOMY), 400..404, true);
    assert!(images > 250, "{images}");
}

#[test]
fn clusters_that_are_used_again_never_show_what_is_another_ones() {
    let images = run("cluster_size=4096", (512 << 10, TIGHT), 500..512, true);
    assert!(images > 800, "{images}");
}
