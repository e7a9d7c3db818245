//! Bitmaps that a journal keeps, on a disk that loses power, refuses and is written by others: what is dirty is never missed.

mod support;

use blockgraph::bitmap::{BitmapAdmin, Keeping, NewBitmap, State};
use blockgraph::graph::{Body, journals, open};
use blockgraph::{Kind, Mode, NodeId, Started};
use ring::sim::{Act, Disk, Images, Rule, Weather};
use ring::{Durability, Mem};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use support::sim::{self, Format};
use support::{Bench, Chance, modes, span};

const SIZE: u64 = 4 << 20;
const ROOM: u64 = 24 << 20;
const SECTOR: u64 = 512;
/// Of so small a disk.
const REGION: u64 = 64 << 10;

fn empty(format: Format) -> Images {
    let mut files = match format {
        Format::Qcow2 => sim::image("cluster_size=4096", SIZE),
        Format::Raw => [(sim::FILE, vec![0; SIZE as usize])].into_iter().collect(),
    };
    files.insert(sim::JOURNAL, Vec::new());
    files
}

/// A disk with its journal, on a simulated one.
struct Stage {
    bench: Bench,
    node: NodeId,
}

impl Stage {
    fn open(disk: &Disk, format: Format, mode: Mode) -> Stage {
        Stage::try_open(disk, format, mode).unwrap_or_else(|error| panic!("{error}"))
    }

    fn try_open(disk: &Disk, format: Format, mode: Mode) -> Result<Stage, open::OpenError> {
        let (mut bench, file) = sim::bench(disk, mode);
        let spec = sim::journaled(&bench, file, format);
        let opened = open::open(&bench.current, spec, &mut bench.control);
        opened.map(|(node, _)| Stage { bench, node })
    }

    fn admin(&mut self) -> BitmapAdmin<'_> {
        BitmapAdmin {
            current: &self.bench.current,
            control: &mut self.bench.control,
        }
    }

    fn add(&mut self, name: &str, state: State) -> bool {
        let new = NewBitmap {
            name: name.to_owned(),
            granularity_bytes: Some(SECTOR as u32),
            state,
            keeping: Keeping::Persistent,
        };
        let mut admin = self.admin();
        admin.add("disk", new).expect("added");
        admin.store("disk").is_ok()
    }

    /// Ends epochs as far as that goes; nothing is under way.
    fn look(&mut self) {
        for _ in 0..4 {
            journals::look(&self.bench.current, &mut self.bench.control);
        }
    }

    fn bitmaps(&self) -> BTreeMap<String, Arc<blockgraph::bitmap::DirtyBitmap>> {
        let graph = self.bench.current.get();
        let bitmaps = graph.node(self.node).expect("open").bitmaps().bitmaps();
        let named = bitmaps
            .into_iter()
            .map(|bitmap| (bitmap.name().to_owned(), bitmap));
        named.collect()
    }

    fn dirty_bytes(&self, name: &str) -> u64 {
        self.bitmaps()[name].dirty_bytes()
    }

    fn close(mut self) {
        assert_eq!(self.try_close(), Ok(()));
    }

    fn try_close(&mut self) -> blockgraph::node::Outcome {
        let graph = self.bench.current.get();
        let node = graph.node(self.node).expect("open");
        let Body::Driver(driver) = node.body().clone() else {
            panic!("a driver");
        };
        let close = |io| async move { driver.close(&io).await };
        let control = &mut self.bench.control;
        let closed = control.run(&graph, self.node, close).expect("a ring");
        let ended = control.run(&graph, self.node, journals::end_here);
        ended.expect("a ring");
        closed
    }
}

/// What the disk held when a bitmap was cleared last, and whether it records since.
struct Truth {
    base: Vec<u8>,
    state: State,
}

/// Everything in the disk that is not as it was when a bitmap began is dirty in it.
fn check(files: Images, format: Format, truths: &BTreeMap<String, Truth>, what: &str) -> u64 {
    let calm = sim::disk(files, ROOM, 1, Weather::CALM);
    let mut stage = Stage::open(&calm, format, Mode::Fast);
    let disk = stage.bench.read(stage.node, 0, SIZE as usize);
    let bitmaps = stage.bitmaps();
    let mut spare = 0;
    for (name, truth) in truths {
        let bitmap = bitmaps
            .get(name)
            .unwrap_or_else(|| panic!("{what}: {name} is lost"));
        assert_eq!(bitmap.state(), truth.state, "{what}: {name}");
        if truth.state != State::Recording {
            continue;
        }
        for at in (0..SIZE).step_by(SECTOR as usize) {
            let sector = at as usize..(at + SECTOR) as usize;
            let dirty = bitmap.next_dirty(span(at, SECTOR)).is_some();
            let changed = disk[sector.clone()] != truth.base[sector];
            assert!(
                dirty || !changed,
                "{what}: {name} misses what was written at {at}"
            );
            spare += u64::from(dirty && !changed) * SECTOR;
        }
    }
    spare
}

/// Random work on a disk that loses power again and again.
fn weather(seed: u64, format: Format, mode: Mode) -> (u64, u64) {
    let mut chance = Chance(seed);
    let mut rough = sim::disk(empty(format), ROOM, seed, Weather::ROUGH);
    let mut stage = Stage::open(&rough, format, mode);
    let mut model = vec![0; SIZE as usize];
    let mut truths: BTreeMap<String, Truth> = BTreeMap::new();
    let (mut crashes, mut spare) = (0, 0);
    for step in 0..60u64 {
        let what = format!("{format:?} {mode:?} seed {seed} step {step}");
        let names: Vec<String> = truths.keys().cloned().collect();
        let pick =
            |chance: &mut Chance| names.get(chance.below(names.len().max(1) as u64) as usize);
        match chance.below(12) {
            0 if truths.len() < 3 => {
                let name = format!("b{step}");
                let state = [State::Recording, State::Disabled][chance.below(2) as usize];
                assert!(stage.add(&name, state));
                let base = model.clone();
                truths.insert(name, Truth { base, state });
            }
            1 => {
                if let Some(name) = pick(&mut chance) {
                    let mut admin = stage.admin();
                    admin.clear("disk", name).expect("cleared");
                    admin.store("disk").expect("stored");
                    truths
                        .get_mut(name)
                        .expect("known")
                        .base
                        .copy_from_slice(&model);
                }
            }
            2 => {
                if let Some(name) = pick(&mut chance).cloned() {
                    let truth = truths.get_mut(&name).expect("known");
                    let mut admin = stage.admin();
                    if truth.state == State::Recording {
                        admin.disable("disk", &name).expect("disabled");
                        truth.state = State::Disabled;
                    } else {
                        admin.clear("disk", &name).expect("cleared");
                        admin.enable("disk", &name).expect("enabled");
                        truth.state = State::Recording;
                        truth.base.copy_from_slice(&model);
                    }
                    admin.store("disk").expect("stored");
                }
            }
            3 => {
                if let Some(name) = pick(&mut chance).cloned() {
                    let mut admin = stage.admin();
                    admin.remove("disk", &name).expect("removed");
                    admin.store("disk").expect("stored");
                    truths.remove(&name);
                }
            }
            4 => stage.look(),
            5 => {
                let flushed = stage.bench.plain(stage.node, Kind::Flush, span(0, 0));
                assert_eq!(flushed, Ok(()));
            }
            6 => {
                // Another daemon takes the disk over, after a crash or not.
                let files = match chance.below(2) {
                    0 => rough.crash(seed * 1000 + step),
                    _ => {
                        stage.close();
                        rough.crash(seed * 1000 + step)
                    }
                };
                crashes += 1;
                spare += check(files.clone(), format, &truths, &what);
                rough = sim::disk(files, ROOM, seed * 1000 + step, Weather::ROUGH);
                stage = Stage::open(&rough, format, mode);
                model = stage.bench.read(stage.node, 0, SIZE as usize);
            }
            _ => {
                let len = SECTOR * (1 + chance.below(16));
                let at = chance.below((SIZE - len) / SECTOR) * SECTOR;
                let bytes = vec![1 + chance.below(255) as u8; len as usize];
                crashes += write_through_crashes(&mut stage, &rough, at, &bytes, |files| {
                    spare += check(files, format, &truths, &what);
                });
                model[at as usize..(at + len) as usize].copy_from_slice(&bytes);
            }
        }
        if chance.below(3) == 0 {
            crashes += 1;
            spare += check(rough.crash(seed * 1000 + step), format, &truths, &what);
        }
    }
    (crashes, spare)
}

/// Writes, and looks at what a power cut would leave now and then meanwhile. Says how often.
fn write_through_crashes(
    stage: &mut Stage,
    disk: &Disk,
    at: u64,
    bytes: &[u8],
    mut look: impl FnMut(Images),
) -> u64 {
    let mem = Mem::zeroed(bytes.len()).expect("memory");
    mem.store(0, bytes);
    let write = Kind::Write(Durability::Cached);
    let whole = span(at, bytes.len() as u64);
    let started = stage.bench.start(stage.node, write, whole, &mem, 1);
    let mut ends = Vec::new();
    let mut turns = 0;
    let mut crashes = 0;
    while ends.is_empty() && !matches!(started, Started::Done(_)) {
        stage.bench.turns(1, &mut ends);
        turns += 1;
        if (at / SECTOR + turns).is_multiple_of(5) && crashes < 3 {
            crashes += 1;
            look(disk.crash(at + turns));
        }
    }
    assert!(ends.iter().all(|(_, outcome)| outcome.is_ok()), "{ends:?}");
    crashes
}

#[test]
fn nothing_that_was_written_is_missed_whenever_power_is_lost() {
    for format in [Format::Raw, Format::Qcow2] {
        let (mut crashes, mut spare) = (0, 0);
        for seed in 0..12 {
            let mode = modes(seed)[seed as usize % 3];
            println!("{format:?} {mode:?} seed {seed}");
            let (some, more) = weather(seed, format, mode);
            crashes += some;
            spare += more;
        }
        println!(
            "{format:?}: {crashes} crashes, {} KiB spare each",
            (spare >> 10) / crashes
        );
        assert!(crashes > 300, "{crashes}");
        // Much is dirty that need not be, and still it is not all there is.
        assert!(spare > 0 && spare / crashes < SIZE, "{spare}");
    }
}

/// A script on a disk that does nothing more from its operation `count` on. Answers what a power cut leaves then, what the bitmap began
/// with, and whether it came to that.
fn cut_short(format: Format, count: u64, seed: u64) -> (Images, Option<Vec<u8>>, bool) {
    let disk = sim::disk(empty(format), ROOM, seed, Weather::CALM);
    disk.set_weather(Weather::ROUGH);
    let refused = Arc::new(AtomicBool::new(false));
    let noted = refused.clone();
    disk.rule(Rule::every(Act::Refuse(libc::EIO)).when(move |seen| {
        let refuses = seen.number >= count && seen.kind != ring::sim::Kind::Read;
        noted.fetch_or(refuses, Ordering::Relaxed);
        refuses
    }));
    let mut base = None;
    if let Ok(mut stage) = Stage::try_open(&disk, format, Mode::Fast) {
        let _ = stage.bench.write(stage.node, 8192, &[1; 4096]);
        if stage.add("a", State::Recording) {
            base = Some(stage.bench.read(stage.node, 0, SIZE as usize));
        }
        let _ = stage.bench.write(stage.node, 0, &[2; 512]);
        let _ = stage.bench.write(stage.node, 1 << 20, &[3; 8192]);
        stage.look();
        let _ = stage.bench.write(stage.node, 2 << 20, &[4; 512]);
        if base.is_some() {
            base = Some(stage.bench.read(stage.node, 0, SIZE as usize));
            stage.admin().clear("disk", "a").expect("cleared");
            let _ = stage.admin().store("disk");
        }
        let _ = stage.bench.write(stage.node, 3 << 20, &[5; 4096]);
        stage.look();
        let _ = stage.bench.write(stage.node, 64 << 10, &[6; 512]);
        let _ = stage.try_close();
    }
    (
        disk.crash(seed * 1000 + count),
        base,
        refused.load(Ordering::Relaxed),
    )
}

#[test]
fn a_disk_that_ends_anywhere_on_the_way_leaves_a_journal_that_misses_nothing() {
    for format in [Format::Raw, Format::Qcow2] {
        for seed in 0..4 {
            for count in 0.. {
                let what = format!("{format:?} seed {seed} count {count}");
                let (files, base, refused) = cut_short(format, count, seed);
                let state = State::Recording;
                let truths = base.map(|base| ("a".to_owned(), Truth { base, state }));
                check(files, format, &truths.into_iter().collect(), &what);
                if !refused {
                    println!("{format:?} seed {seed}: {count} operations");
                    assert!(count > 20, "{count}");
                    break;
                }
            }
        }
    }
}

#[test]
fn what_was_written_long_ago_is_as_dirty_as_it_was_and_no_more() {
    for format in [Format::Raw, Format::Qcow2] {
        for mode in modes(7) {
            let disk = sim::disk(empty(format), ROOM, 1, Weather::CALM);
            let mut stage = Stage::open(&disk, format, mode);
            assert!(stage.add("a", State::Recording));
            assert_eq!(stage.bench.write(stage.node, 4096, &[1; 512]), Ok(()));
            let found = |disk: &Disk| {
                let again = sim::disk(disk.crash(9), ROOM, 2, Weather::CALM);
                Stage::open(&again, format, Mode::Fast).dirty_bytes("a")
            };
            assert_eq!(stage.dirty_bytes("a"), 512);
            assert_eq!(found(&disk), REGION, "{format:?} {mode:?}");
            // The epoch is over before its time after this.
            stage.admin().store("disk").expect("stored");
            stage.look();
            assert_eq!(found(&disk), 512, "{format:?} {mode:?}");
            assert_eq!(stage.bench.write(stage.node, 1 << 20, &[1; 512]), Ok(()));
            assert_eq!(found(&disk), 512 + REGION, "{format:?} {mode:?}");
            stage.close();
            assert_eq!(found(&disk), 1024, "{format:?} {mode:?}");
        }
    }
}

#[test]
fn a_guest_goes_on_without_a_journal_that_cannot_be_written_and_nobody_believes_it_then() {
    for format in [Format::Raw, Format::Qcow2] {
        let disk = sim::disk(empty(format), ROOM, 1, Weather::CALM);
        let mut stage = Stage::open(&disk, format, Mode::Fast);
        assert!(stage.add("a", State::Recording));
        // The maps, and not the headers.
        let maps = |at: u64| (8192..16384).contains(&at);
        disk.rule(Rule::every(Act::Refuse(libc::EIO)).when(move |seen| {
            seen.file == sim::JOURNAL && seen.kind == ring::sim::Kind::WriteThrough && maps(seen.at)
        }));
        assert_eq!(stage.bench.write(stage.node, 4096, &[1; 512]), Ok(()));
        assert_eq!(stage.bench.write(stage.node, 1 << 20, &[1; 512]), Ok(()));
        assert_eq!(stage.dirty_bytes("a"), 1024);
        let again = sim::disk(disk.crash(9), ROOM, 2, Weather::CALM);
        let found = Stage::open(&again, format, Mode::Fast);
        assert_eq!(found.bitmaps()["a"].state(), State::Inconsistent);
        // What it says at the end is right all the same.
        stage.close();
        let again = sim::disk(disk.crash(10), ROOM, 3, Weather::CALM);
        let found = Stage::open(&again, format, Mode::Fast);
        assert_eq!(found.dirty_bytes("a"), 1024);
    }
}

#[test]
fn a_write_fails_if_the_journal_can_neither_be_written_nor_say_so() {
    let disk = sim::disk(empty(Format::Raw), ROOM, 1, Weather::CALM);
    let mut stage = Stage::open(&disk, Format::Raw, Mode::Fast);
    assert!(stage.add("a", State::Recording));
    disk.rule(Rule::every(Act::Refuse(libc::EIO)).when(|seen| seen.file == sim::JOURNAL));
    let before = stage.bench.read(stage.node, 4096, 512);
    let written = stage.bench.write(stage.node, 4096, &[1; 512]);
    assert_eq!(written, Err(ring::Errno::IO));
    assert_eq!(stage.bench.read(stage.node, 4096, 512), before);
    disk.clear_rules();
    assert_eq!(stage.bench.write(stage.node, 4096, &[1; 512]), Ok(()));
    let again = sim::disk(disk.crash(9), ROOM, 2, Weather::CALM);
    let found = Stage::open(&again, Format::Raw, Mode::Fast);
    assert_eq!(found.dirty_bytes("a"), REGION);
}

/// A journal after a crash, with two bitmaps and regions.
fn used(format: Format) -> Images {
    let disk = sim::disk(empty(format), ROOM, 1, Weather::CALM);
    let mut stage = Stage::open(&disk, format, Mode::Fast);
    assert!(stage.add("a", State::Recording) && stage.add("b", State::Disabled));
    assert_eq!(stage.bench.write(stage.node, 4096, &[1; 512]), Ok(()));
    stage.admin().store("disk").expect("stored");
    assert_eq!(stage.bench.write(stage.node, 1 << 20, &[1; 512]), Ok(()));
    disk.crash(3)
}

#[test]
fn a_damaged_journal_is_refused_or_says_more_and_never_less() {
    let whole = used(Format::Raw);
    let mut chance = Chance(5);
    let (mut refused, mut taken) = (0, 0);
    for round in 0..600 {
        let mut files = whole.clone();
        let journal = files.get_mut(&sim::JOURNAL).expect("there");
        let what = format!("round {round}");
        match round % 4 {
            // Anywhere, in a header, in a map, and cut off.
            0 => flip(journal, &mut chance, 0..usize::MAX),
            1 => flip(journal, &mut chance, 0..8192),
            2 => flip(journal, &mut chance, 8192..16384),
            _ => {
                let len = chance.below(journal.len() as u64 / SECTOR) * SECTOR;
                journal.truncate(len as usize);
            }
        }
        let disk = sim::disk(files, ROOM, 1, Weather::CALM);
        match Stage::try_open(&disk, Format::Raw, Mode::Fast) {
            Ok(stage) => {
                taken += 1;
                let Some(a) = stage.bitmaps().get("a").cloned() else {
                    // As if it had never been written: nobody takes that for a bitmap that is clean.
                    continue;
                };
                for at in [4096, 1 << 20] {
                    let dirty = a.next_dirty(span(at, 512)).is_some();
                    assert!(dirty || a.state() == State::Inconsistent, "{what}");
                }
            }
            Err(error) => {
                refused += 1;
                let said = error.to_string();
                assert!(
                    said.contains("damaged") || said.contains("not a bitmap journal"),
                    "{said}"
                );
            }
        }
    }
    println!("{refused} refused, {taken} taken");
    assert!(refused > 50 && taken > 50);
}

fn flip(bytes: &mut [u8], chance: &mut Chance, within: std::ops::Range<usize>) {
    let end = within.end.min(bytes.len());
    let at = within.start + chance.below((end - within.start) as u64) as usize;
    bytes[at] ^= 1 << chance.below(8);
}

/// The write is under way while its epoch ends, and power is lost after it: its bitmaps were marked after they were stored.
#[test]
fn an_epoch_counts_until_the_writes_that_began_in_it_have_ended() {
    for format in [Format::Raw, Format::Qcow2] {
        for mode in modes(3) {
            let what = format!("{format:?} {mode:?}");
            let disk = sim::disk(empty(format), ROOM, 1, Weather::CALM);
            let mut stage = Stage::open(&disk, format, mode);
            assert_eq!(stage.bench.write(stage.node, 4096, &[1; 512]), Ok(()));
            assert!(stage.add("a", State::Recording));
            let base = stage.bench.read(stage.node, 0, SIZE as usize);
            let state = State::Recording;
            let truths = BTreeMap::from([("a".to_owned(), Truth { base, state })]);
            disk.rule(
                Rule::every(Act::Hold)
                    .when(|seen| seen.file == sim::FILE && seen.kind == ring::sim::Kind::Write),
            );
            let mem = Mem::zeroed(512).expect("memory");
            mem.store(0, &[2; 512]);
            let write = Kind::Write(Durability::Cached);
            let started = stage
                .bench
                .start(stage.node, write, span(4096, 512), &mem, 1);
            assert_eq!(started, Started::Pending, "{what}");
            let mut ends = Vec::new();
            stage.bench.pump(&mut ends);
            assert!(ends.is_empty() && !disk.held().is_empty(), "{what}");
            stage.look();
            disk.clear_rules();
            disk.release_all();
            assert_eq!(stage.bench.wait(), (1, Ok(())), "{what}");
            let flushed = stage.bench.plain(stage.node, Kind::Flush, span(0, 0));
            assert_eq!(flushed, Ok(()), "{what}");
            check(disk.crash(1), format, &truths, &what);
            stage.look();
            let spare = check(disk.crash(2), format, &truths, &what);
            assert_eq!(spare, 0, "{what}: the epoch has ended");
        }
    }
}
