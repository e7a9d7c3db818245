//! qcow2 images whose process is killed: what the kernel was given is there, and with the log of the map's changes so is
//! everything that was answered, flushed or not.

use crate::support;
use blockgraph::driver::qcow2::{Change, MapLog, Options, ReplayError};
use blockgraph::request::Prealloc;
use blockgraph::{Kind, Mode, NodeId, Started, Unmap};
use ring::sim::{Disk, Weather};
use ring::{Durability, Mem};
use std::sync::{Arc, Mutex};
use support::sectors::{SECTOR, Version, stamp, version};
use support::sim::{self, Verdict};
use support::{Bench, Chance, span};

const ROOMY: u64 = 24 << 20;
/// Hardly room for a disk of 512 KiB: what is freed is soon used again.
const TIGHT: u64 = 800 << 10;

/// A log that outlives its image.
#[derive(Debug, Default)]
pub struct Log(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    settled: u64,
    changes: Vec<Change>,
    longest: usize,
}

impl MapLog for Log {
    fn append(&self, change: Change) {
        let mut kept = self.0.lock().expect("not poisoned");
        kept.changes.push(change);
        kept.longest = kept.longest.max(kept.changes.len());
    }

    fn position(&self) -> u64 {
        let kept = self.0.lock().expect("not poisoned");
        kept.settled + kept.changes.len() as u64
    }

    fn settle(&self, position: u64) {
        let mut kept = self.0.lock().expect("not poisoned");
        let done = position - kept.settled;
        kept.changes.drain(..done as usize);
        kept.settled = position;
    }

    fn is_filling(&self) -> bool {
        self.0.lock().expect("not poisoned").changes.len() > 200
    }

    fn give_up(&self) {
        *self.0.lock().expect("not poisoned") = Kept::default();
    }
}

impl Log {
    pub fn changes(&self) -> Vec<Change> {
        self.0.lock().expect("not poisoned").changes.clone()
    }
}

/// What a sector may read as: as it was when last answered for, then what is under way.
#[derive(Clone)]
struct Sector {
    may_be: Vec<Version>,
}

struct Rig {
    disk: Disk,
    bench: Bench,
    node: NodeId,
    log: Arc<Log>,
    sectors: Vec<Sector>,
    next: Version,
    chance: Chance,
    kills: u64,
    replayed: usize,
    below: Option<Vec<u8>>,
    name: String,
}

/// What becomes of the image's map is in `log`, too, from now on.
pub fn keep(bench: &mut Bench, node: NodeId, log: &Arc<Log>) {
    let log: Arc<dyn MapLog> = log.clone();
    let kept = sim::with(bench, node, async move |image, io| {
        image.keep_log(io, log).await
    });
    assert_eq!(kept, Ok(()));
}

/// What an earlier process had in memory is on disk after this.
pub fn replay(bench: &mut Bench, node: NodeId, changes: Vec<Change>) -> Result<usize, ReplayError> {
    sim::with(bench, node, async move |image, io| {
        image.replay(io, &changes).await
    })
}

impl Rig {
    fn new(options: &str, (size, room): (u64, u64), seed: u64, mode: Mode) -> Rig {
        let below = (seed % 2 == 1).then(|| vec![0; size as usize]);
        let image = sim::image_on(options, size, below.as_deref());
        let disk = sim::disk(image, room, seed, Weather::ROUGH);
        let (mut bench, file) = sim::bench(&disk, mode);
        let node = sim::open(&mut bench, file, Options::default());
        let log = Arc::new(Log::default());
        keep(&mut bench, node, &log);
        let sector = Sector { may_be: vec![0] };
        Rig {
            disk,
            bench,
            node,
            log,
            sectors: vec![sector; size as usize / SECTOR],
            next: 1,
            chance: Chance(seed),
            kills: 0,
            replayed: 0,
            below,
            name: format!("{options} {mode:?} seed {seed}"),
        }
    }

    /// Some requests at once that do not overlap, with kills while they are under way.
    fn batch(&mut self) {
        let mut taken: Vec<(usize, usize)> = Vec::new();
        let mut discarded = Vec::new();
        let mut pending = 0;
        let mut memories = Vec::new();
        for token in 0..5 {
            let unit = [1, 8, 16][self.chance.below(3) as usize];
            let units = self.sectors.len() / unit;
            let at = self.chance.below(units as u64) as usize * unit;
            let len = (1 + self.chance.below(6) as usize) * unit;
            let len = len.min(self.sectors.len() - at);
            let meets = |&(from, n): &(usize, usize)| at < from + n && from < at + len;
            if taken.iter().any(meets) {
                continue;
            }
            taken.push((at, len));
            let (kind, mem) = self.request(at, len);
            if kind == Kind::Discard {
                discarded.push((at, len));
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
            let turns = 1 + self.chance.below(4) as usize;
            self.bench.turns(turns, &mut ends);
            if self.chance.below(3) == 0 {
                self.kill();
            }
        }
        assert!(ends.iter().all(|(_, outcome)| outcome.is_ok()), "{ends:?}");
        for (at, len) in discarded {
            self.look(at, len);
        }
        // All were answered.
        for (at, len) in taken {
            for sector in &mut self.sectors[at..at + len] {
                sector.may_be.drain(..sector.may_be.len() - 1);
            }
        }
        self.kill();
    }

    fn request(&mut self, at: usize, len: usize) -> (Kind, Mem) {
        let version = self.next;
        self.next += 1;
        let durability = match self.chance.below(30) {
            0 => Durability::Through,
            _ => Durability::Cached,
        };
        let unmap = [Unmap::Allow, Unmap::Keep][self.chance.below(2) as usize];
        let (kind, version) = match self.chance.below(12) {
            0 | 1 => (Kind::WriteZeroes(unmap, durability), 0),
            2 => (Kind::Discard, 0),
            3 => (Kind::WriteCompressed, version),
            _ => (Kind::Write(durability), version),
        };
        for sector in &mut self.sectors[at..at + len] {
            sector.may_be.push(version);
        }
        if !matches!(kind, Kind::Write(_) | Kind::WriteCompressed) {
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
        assert_eq!(self.log.changes(), [], "all is durable");
        self.kill();
    }

    /// Ends the process, in thought: the next one finds the files as the kernel has them, and the log. It may be killed, too,
    /// while it does the log again.
    fn kill(&mut self) {
        self.kills += 1;
        let (mut files, changes) = (self.disk.images(), self.log.changes());
        if let Some(below) = &self.below {
            files.insert(sim::BACKING, below.clone());
        }
        if self.chance.below(4) == 0 && !changes.is_empty() {
            files = self.replay_in_part(files, changes.clone());
        }
        let next = sim::disk(files, ROOMY, self.kills, Weather::CALM);
        let (mut bench, file) = sim::bench(&next, Mode::Fast);
        let node = sim::open(&mut bench, file, Options::default());
        let what = self.name.clone();
        let replayed = replay(&mut bench, node, changes);
        self.replayed += replayed.unwrap_or_else(|error| panic!("{what}: {error}"));
        self.compare(&mut bench, node);
        // What is given out next disturbs nothing of it.
        let mem = Mem::zeroed(SECTOR).expect("memory");
        let (at, len) = (self.chance.below(self.sectors.len() as u64) as usize, 1);
        mem.store(0, &stamp(at, u64::MAX));
        let whole = span((at * SECTOR) as u64, (len * SECTOR) as u64);
        let written = bench.ask(node, Kind::Write(Durability::Through), whole, &mem);
        assert_eq!(written, Ok(()), "{what}");
        let before = std::mem::replace(&mut self.sectors[at].may_be, vec![u64::MAX]);
        self.compare(&mut bench, node);
        self.sectors[at].may_be = before;
        if what.contains("lazy") {
            // On disk they may be too low while somebody writes, as the dirty bit says.
            return;
        }
        let report = sim::look(&mut bench, file);
        assert_eq!(report.corruptions, 0, "{what}: {:?}", report.findings);
        if self.kills.is_multiple_of(60) {
            let (verdict, said) = sim::ask_qemu(&next.images());
            assert_ne!(verdict, Verdict::Errors, "{what}: {said}");
        }
    }

    /// The files as a process leaves them that is killed after some operations of doing the log again.
    fn replay_in_part(
        &mut self,
        files: ring::sim::Images,
        changes: Vec<Change>,
    ) -> ring::sim::Images {
        let disk = sim::disk(files, ROOMY, self.kills, Weather::CALM);
        let (mut bench, file) = sim::bench(&disk, Mode::Fast);
        let node = sim::open(&mut bench, file, Options::default());
        let (begun, some) = (disk.count(), self.chance.below(12));
        let refuse = ring::sim::Rule::every(ring::sim::Act::Refuse(libc::EIO));
        disk.rule(refuse.when(move |seen| seen.number >= begun + some));
        // It may be over by then.
        let _ = replay(&mut bench, node, changes);
        disk.images()
    }

    fn compare(&self, bench: &mut Bench, node: NodeId) {
        let what = &self.name;
        let bytes = bench.read(node, 0, self.sectors.len() * SECTOR);
        for (n, bytes) in bytes.chunks(SECTOR).enumerate() {
            let found = version(n, bytes);
            let may_be = &self.sectors[n].may_be;
            let fits = found.is_some_and(|found| may_be.contains(&found));
            assert!(fits, "{what}: sector {n} is {found:?}, not of {may_be:?}");
        }
    }
}

fn run(options: &str, size: (u64, u64), seeds: std::ops::Range<u64>) {
    let (mut kills, mut replayed, mut longest) = (0, 0, 0);
    for seed in seeds {
        for mode in [Mode::Fast, Mode::ServeAlways, Mode::Mixed(seed)] {
            let mut rig = Rig::new(options, size, seed, mode);
            println!("{}", rig.name);
            for _ in 0..30 {
                rig.batch();
                if rig.chance.below(5) == 0 {
                    rig.flush();
                }
            }
            kills += rig.kills;
            replayed += rig.replayed;
            longest = longest.max(rig.log.0.lock().expect("not poisoned").longest);
        }
    }
    println!("{kills} kills, {replayed} clusters were behind, {longest} changes at the most");
    assert!(kills > 200 && replayed > 200 && longest > 10);
}

#[test]
fn small_clusters_lose_nothing_that_was_answered() {
    run("cluster_size=4096", (512 << 10, ROOMY), 0..4);
}

#[test]
fn clusters_that_are_used_again_lose_nothing_that_was_answered() {
    run("cluster_size=4096", (512 << 10, TIGHT), 100..104);
}

#[test]
fn tiny_clusters_with_wide_refcounts_lose_nothing_that_was_answered() {
    run(
        "cluster_size=512,refcount_bits=64",
        (512 << 10, ROOMY),
        200..203,
    );
}

#[test]
fn subclusters_lose_nothing_that_was_answered() {
    run(
        "extended_l2=on,cluster_size=16384",
        (1 << 20, ROOMY),
        300..303,
    );
}

#[test]
fn large_clusters_lose_nothing_that_was_answered() {
    run("cluster_size=65536", (4 << 20, ROOMY), 400..403);
}

#[test]
fn late_refcounts_lose_nothing_that_was_answered() {
    run(
        "cluster_size=4096,lazy_refcounts=on",
        (512 << 10, ROOMY),
        500..503,
    );
}

#[test]
fn without_a_zero_flag_nothing_is_lost_that_was_answered() {
    run(
        "compat=0.10,cluster_size=4096",
        (512 << 10, ROOMY),
        600..602,
    );
}

#[test]
fn a_log_that_is_not_this_image_s_is_refused_and_changes_nothing() {
    let size = 512 << 10;
    let files = sim::image("cluster_size=4096", size);
    let change = |cluster, words| Change { cluster, words };
    let data = |at: u64| [at | 1 << 63, 0];
    let wrong = [
        (vec![change(1, data(1 << 40))], ReplayError::Host(1 << 40)),
        (vec![change(1, data(0x1000))], ReplayError::Host(0x1000)),
        (vec![change(1, [0x200, 0])], ReplayError::Words(1)),
    ];
    for (changes, refused) in wrong {
        let disk = sim::disk(files.clone(), ROOMY, 1, Weather::CALM);
        let (mut bench, file) = sim::bench(&disk, Mode::Fast);
        let node = sim::open(&mut bench, file, Options::default());
        assert_eq!(replay(&mut bench, node, changes), Err(refused));
        let report = sim::look(&mut bench, file);
        assert_eq!((report.corruptions, report.leaks), (0, 0));
    }
    let disk = sim::disk(files, ROOMY, 1, Weather::CALM);
    let (mut bench, file) = sim::bench(&disk, Mode::Fast);
    let node = sim::open(&mut bench, file, Options::default());
    bench.write(node, 0, &[1; 4096]).expect("written");
    let late = replay(&mut bench, node, vec![change(1, [1, 0])]);
    assert_eq!(late, Err(ReplayError::Written));
}

/// What an image says of a host cluster: with 4 KiB clusters and 16 bits, all of it is in one block.
fn refcount_on_disk(image: &[u8], host: u64) -> u16 {
    let word = |at: usize| u64::from_be_bytes(image[at..at + 8].try_into().expect("eight bytes"));
    // qcow2.txt, header: refcount_table_offset is at byte 48.
    let block = word(word(48) as usize) as usize;
    let at = block + (host >> 12) as usize * 2;
    u16::from_be_bytes([image[at], image[at + 1]])
}

/// Compressed clusters shared one, so the disk counts two references still, of which the last is gone.
#[test]
fn a_cluster_that_others_shared_before_is_the_one_s_that_has_it_now() {
    let cluster = 4096;
    let files = sim::image("cluster_size=4096", 512 << 10);
    let disk = sim::disk(files, TIGHT, 1, Weather::CALM);
    let (mut bench, file) = sim::bench(&disk, Mode::Fast);
    let node = sim::open(&mut bench, file, Options::default());
    let log = Arc::new(Log::default());
    keep(&mut bench, node, &log);
    let mem = Mem::zeroed(cluster as usize).expect("memory");
    for at in [0, cluster] {
        let packed = bench.ask(node, Kind::WriteCompressed, span(at, cluster), &mem);
        assert_eq!(packed, Ok(()));
    }
    assert_eq!(bench.plain(node, Kind::Flush, span(0, 0)), Ok(()));
    assert_eq!(
        bench.plain(node, Kind::Discard, span(0, 2 * cluster)),
        Ok(())
    );
    assert_eq!(bench.plain(node, Kind::Flush, span(0, 0)), Ok(()));

    let was_shared = |change: &Change| {
        let host = change.words[0] & 0x00ff_ffff_ffff_fe00;
        refcount_on_disk(&disk.images()[&sim::FILE], host) == 2
    };
    let mut written = 2..128u64;
    while !log.changes().iter().any(was_shared) {
        let at = written.next().expect("it is used again") * cluster;
        bench.write(node, at, &[7; 4096]).expect("written");
    }
    let next = sim::disk(disk.images(), ROOMY, 1, Weather::CALM);
    let (mut bench, file) = sim::bench(&next, Mode::Fast);
    let node = sim::open(&mut bench, file, Options::default());
    let behind = replay(&mut bench, node, log.changes());
    assert_eq!(behind, Ok(log.changes().len()));
    let whole = bench.read(node, 0, 512 << 10);
    let end = (written.start * cluster) as usize;
    assert!(whole[2 * 4096..end].iter().all(|byte| *byte == 7));
    let report = sim::look(&mut bench, file);
    assert_eq!(report.corruptions, 0, "{:?}", report.findings);
}

/// What was overwritten before the flush left a place that the log's being done again may use for a table.
#[test]
fn a_log_that_was_done_again_is_done_once_more_with_nothing_changed() {
    let mut files = sim::image("cluster_size=4096", 512 << 10);
    let image = files.get_mut(&sim::FILE).expect("an image");
    let first = (image.len() as u64).next_multiple_of(4096);
    let second = first + 4096;
    image.resize(second as usize, 0);
    image.resize(second as usize + 4096, 7);
    let change = |host| Change {
        cluster: 0,
        words: [host | 1 << 63, 0],
    };
    let changes = vec![change(first), change(second)];
    for behind in [1, 0] {
        let disk = sim::disk(files, ROOMY, 1, Weather::CALM);
        let (mut bench, file) = sim::bench(&disk, Mode::Fast);
        let node = sim::open(&mut bench, file, Options::default());
        assert_eq!(replay(&mut bench, node, changes.clone()), Ok(behind));
        assert_eq!(bench.read(node, 0, 4096), [7; 4096]);
        let report = sim::look(&mut bench, file);
        assert_eq!((report.corruptions, report.leaks), (0, 0));
        files = disk.images();
    }
    let table = (first >> 8) as u8;
    let has_table = files[&sim::FILE]
        .windows(8)
        .any(|word| word == [0x80, 0, 0, 0, 0, 0, table, 0]);
    assert!(has_table, "the place was used");
}

/// Space for what is new is set aside before the disk is larger, and is in the log then.
#[test]
fn what_was_set_aside_for_a_larger_disk_is_left_out() {
    let mut beyond = 0;
    for some in 0..120 {
        let files = sim::image("cluster_size=4096", 512 << 10);
        let disk = sim::disk(files, ROOMY, 1, Weather::CALM);
        let (mut bench, file) = sim::bench(&disk, Mode::Fast);
        let node = sim::open(&mut bench, file, Options::default());
        let log = Arc::new(Log::default());
        keep(&mut bench, node, &log);
        bench.write(node, 0, &[5; 4096]).expect("written");
        let begun = disk.count();
        let refuse = ring::sim::Rule::every(ring::sim::Act::Refuse(libc::EIO));
        disk.rule(refuse.when(move |seen| seen.number >= begun + some));
        let _ = sim::with(&mut bench, node, async |image, io| {
            image.resize(io, 1 << 20, Prealloc::Metadata).await.is_ok()
        });
        let changes = log.changes();
        beyond += usize::from(changes.iter().any(|change| change.cluster >= 128));
        let next = sim::disk(disk.images(), ROOMY, 1, Weather::CALM);
        let (mut bench, file) = sim::bench(&next, Mode::Fast);
        let node = sim::open(&mut bench, file, Options::default());
        replay(&mut bench, node, changes).expect("done again");
        assert_eq!(bench.read(node, 0, 4096), [5; 4096]);
        assert_eq!(sim::look(&mut bench, file).corruptions, 0);
    }
    assert!(beyond > 0);
}
