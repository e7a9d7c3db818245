//! A file driver on a disk that delays, reorders, fails and crashes.

use crate::support;
use blockgraph::driver::file::{Cache, FileDriver, FileKind, FileParts, Flushes};
use blockgraph::{Kind, Limits, Mode, NodeId, Unmap};
use ring::sim::{Act, Config, Disk, FileConfig, Kind as Op, Rule, Times, Weather};
use ring::{Align, Choice, Durability, Errno, FileId, Mem};
use support::{Bench, Chance, insert, model, modes, span};

const FILE: FileId = FileId(0);
const SIZE: usize = 256 << 10;

fn disk(seed: u64, block_bytes: u32, weather: Weather) -> Disk {
    let align = Align {
        memory_bytes: 1,
        offset_bytes: block_bytes,
    };
    let file = FileConfig {
        id: FILE,
        bytes: vec![0; SIZE],
        align,
        size_bytes_max: SIZE as u64,
    };
    Config::new(seed).file_with(file).weather(weather).disk()
}

fn bench(disk: &Disk, cache: Cache, mode: Mode) -> (Bench, NodeId) {
    let bench = Bench::new(Choice::Sim(disk.clone()), mode);
    let mut graph = (*bench.current.get()).clone();
    assert_eq!(graph.new_file_id(), FILE);
    let file = disk.open(FILE).expect("a file of the disk");
    let parts = FileParts {
        file: file.clone(),
        kind: FileKind::Regular,
        size_bytes: SIZE as u64,
        limits: Limits::PLAIN,
        cache,
        flushes: Flushes::Sync,
    };
    let node = insert(
        &mut graph,
        "file",
        FileDriver::from_parts(parts),
        vec![file],
    );
    bench.current.publish(graph);
    (bench, node)
}

#[test]
fn the_model_holds_in_rough_weather() {
    for seed in 0..6 {
        for mode in modes(seed) {
            for block_bytes in [1, 512, 4096] {
                println!("{mode:?} blocks of {block_bytes} seed {seed}");
                let disk = disk(seed, block_bytes, Weather::ROUGH);
                let (mut bench, node) = bench(&disk, Cache::Direct, mode);
                model::check(&mut bench, node, seed, SIZE as u64, 60);
            }
        }
    }
}

#[test]
fn a_disk_that_can_neither_punch_nor_zero_is_written_and_asked_once() {
    for unknown in [&[Op::Punch][..], &[Op::Zero], &[Op::Punch, Op::Zero]] {
        for mode in modes(7) {
            let disk = disk(7, 4096, Weather::CALM);
            for kind in unknown {
                disk.rule(Rule::every(Act::Refuse(libc::EOPNOTSUPP)).kind(*kind));
            }
            let (mut bench, node) = bench(&disk, Cache::Direct, mode);
            model::check(&mut bench, node, 7, SIZE as u64, 150);
            for kind in unknown {
                let asked = disk.log().into_iter().filter(
                    |event| matches!(event, ring::sim::Event::Submitted(seen) if seen.kind == *kind),
                );
                assert_eq!(asked.count(), 1, "{kind:?} {mode:?}");
            }
        }
    }
}

#[test]
fn once_a_sync_failed_in_the_page_cache_every_flush_fails_and_direct_io_recovers() {
    for (cache, after) in [(Cache::Page, Err(Errno::NOSPC)), (Cache::Direct, Ok(()))] {
        for mode in modes(8) {
            let disk = disk(8, 1, Weather::CALM);
            let fail = Rule::every(Act::Fail(libc::ENOSPC)).kind(Op::Sync);
            disk.rule(fail.times(Times::Next(1)));
            let (mut bench, node) = bench(&disk, cache, mode);
            bench.write(node, 0, &[1; 512]).expect("written");
            let flush = |bench: &mut Bench| bench.plain(node, Kind::Flush, span(0, 0));
            assert_eq!(flush(&mut bench), Err(Errno::NOSPC));
            assert_eq!(flush(&mut bench), after, "{cache:?}");
            assert_eq!(bench.write(node, 0, &[2; 512]), Ok(()));
            assert_eq!(bench.read(node, 0, 512), vec![2; 512]);
        }
    }
}

/// The kernel tells of a lost write-back once for each open file: whoever syncs next hears of it, be it a write that is
/// to be durable by itself. The flush after it succeeded, and said of other writes what was not so.
#[test]
fn a_write_through_that_heard_of_lost_data_fails_the_flushes_after_it() {
    for (cache, after) in [(Cache::Page, Err(Errno::IO)), (Cache::Direct, Ok(()))] {
        for mode in modes(8) {
            let disk = disk(8, 1, Weather::CALM);
            let fail = Rule::every(Act::Fail(libc::EIO)).kind(Op::WriteThrough);
            disk.rule(fail.times(Times::Next(1)));
            let (mut bench, node) = bench(&disk, cache, mode);
            bench.write(node, 0, &[1; 512]).expect("written");
            let mem = Mem::zeroed(512).expect("memory");
            let through = Kind::Write(Durability::Through);
            let told = bench.ask(node, through, span(4096, 512), &mem);
            assert_eq!(told, Err(Errno::IO));
            let flushed = bench.plain(node, Kind::Flush, span(0, 0));
            assert_eq!(flushed, after, "{cache:?} {mode:?}");
        }
    }
}

#[test]
fn a_range_that_cannot_be_zeroed_just_now_is_written_and_the_next_one_asked_again() {
    for errno in [libc::EBUSY, libc::EINVAL] {
        for mode in modes(7) {
            let disk = disk(7, 4096, Weather::CALM);
            for kind in [Op::Punch, Op::Zero] {
                let refuse = Rule::every(Act::Refuse(errno)).kind(kind);
                disk.rule(refuse.times(Times::Next(1)));
            }
            let (mut bench, node) = bench(&disk, Cache::Direct, mode);
            for at in [0, 8192] {
                bench.write(node, at, &[7; 4096]).expect("written");
                let zero = Kind::WriteZeroes(Unmap::Allow, Durability::Cached);
                assert_eq!(bench.plain(node, zero, span(at, 4096)), Ok(()));
                assert_eq!(bench.read(node, at, 4096), vec![0; 4096]);
            }
            let asked = disk.log().into_iter().filter(
                |event| matches!(event, ring::sim::Event::Submitted(seen) if seen.kind == Op::Punch),
            );
            assert_eq!(asked.count(), 2, "{mode:?}");
        }
    }
}

#[test]
fn a_failed_transfer_is_told_to_its_own_request_only() {
    for mode in modes(9) {
        for kind in [Op::Read, Op::Write] {
            let disk = disk(9, 4096, Weather::CALM);
            let fail = Rule::every(Act::Refuse(libc::EIO)).kind(kind);
            disk.rule(fail.touching(4096..8192));
            let (mut bench, node) = bench(&disk, Cache::Direct, mode);
            // Not a whole block: it is read, changed and written back, and either half may fail.
            assert_eq!(bench.write(node, 4608, &[1; 512]), Err(Errno::IO));
            assert_eq!(bench.write(node, 512, &[1; 512]), Ok(()));
            assert_eq!(bench.write(node, 8192, &[1; 8192]), Ok(()));
            disk.clear_rules();
            assert_eq!(bench.write(node, 4608, &[2; 512]), Ok(()));
            assert_eq!(bench.read(node, 4608, 512), vec![2; 512]);
            assert_eq!(bench.read(node, 4096, 512), vec![0; 512]);
        }
    }
}

#[test]
fn what_was_flushed_or_written_through_survives_a_crash() {
    for seed in 0..10 {
        for mode in modes(seed) {
            println!("{mode:?} seed {seed}");
            let disk = disk(seed, 4096, Weather::ROUGH);
            let (mut bench, node) = bench(&disk, Cache::Direct, mode);
            let mut durable = vec![0u8; SIZE];
            for _ in 0..20 {
                change(&mut bench, node, &mut durable, &mut Chance(disk.count()));
                let left = disk.crash(seed ^ disk.count()).remove(&FILE);
                assert!(left.expect("the file") == durable);
            }
        }
    }
}

/// Changes a few sectors in one of the ways that promise to last.
fn change(bench: &mut Bench, node: NodeId, durable: &mut [u8], chance: &mut Chance) {
    let (at, len) = (
        chance.below(500) * 512,
        512 * (1 + chance.below(12)) as usize,
    );
    let byte = chance.next() as u8;
    let mem = Mem::zeroed(len).expect("memory");
    mem.store(0, &vec![byte; len]);
    let where_ = span(at, len as u64);
    let through = Durability::Through;
    let outcome = match chance.below(3) {
        0 => bench.ask(node, Kind::Write(through), where_, &mem),
        1 => {
            let written = bench.ask(node, Kind::Write(Durability::Cached), where_, &mem);
            written.and(bench.plain(node, Kind::Flush, span(0, 0)))
        }
        _ => {
            mem.zero();
            bench.plain(node, Kind::WriteZeroes(Unmap::Allow, through), where_)
        }
    };
    assert_eq!(outcome, Ok(()));
    mem.load(0, &mut durable[at as usize..at as usize + len]);
}

const SECTOR: u64 = 1;
const BLOCK: u64 = 2;

/// Starts a write of one sector inside the first block, or of the whole block.
fn start(bench: &mut Bench, node: NodeId, token: u64) -> Mem {
    let (at, len) = match token {
        SECTOR => (1536, 512),
        _ => (0, 4096),
    };
    let mem = Mem::zeroed(len).expect("memory");
    mem.store(0, &vec![token as u8; len]);
    let kind = Kind::Write(Durability::Cached);
    let started = bench.start(node, kind, span(at, len as u64), &mem, token);
    assert_eq!(started, blockgraph::Started::Pending);
    mem
}

/// Two writes of one block, the first held at the disk: whatever comes first, neither loses what the other did not write.
fn overlap(mode: Mode, first: u64, second: u64) {
    let disk = disk(1, 4096, Weather::CALM);
    let (mut bench, node) = bench(&disk, Cache::Direct, mode);
    let hold = Rule::every(Act::Hold).kind(Op::Write);
    disk.rule(hold.times(Times::Next(2)));
    let mut ends = Vec::new();
    let _first = start(&mut bench, node, first);
    bench.pump(&mut ends);
    let held = disk.held();
    let _second = start(&mut bench, node, second);
    bench.pump(&mut ends);
    let early = ends.len();
    // The second is let go first, if it is there: then the first brings back what it read before.
    let overtook = disk.release(|seen| first == SECTOR && seen.number != held[0].number);
    disk.release(|seen| first == BLOCK && seen.number == held[0].number);
    for _ in 0..3 {
        bench.pump(&mut ends);
        disk.release_all();
    }
    // Only now, with nothing held any more: a ring that is dropped waits for what is under way.
    assert_eq!((held.len(), early, overtook), (1, 0, 0), "{mode:?}");
    ends.sort_unstable_by_key(|(token, _)| *token);
    assert_eq!(ends, [(SECTOR, Ok(())), (BLOCK, Ok(()))], "{mode:?}");
    let block = bench.read(node, 0, 1536);
    assert_eq!(block, vec![BLOCK as u8; 1536], "{mode:?} {first} first");
}

#[test]
fn a_whole_block_written_while_a_part_of_it_is_written_is_not_lost() {
    for mode in modes(3) {
        overlap(mode, SECTOR, BLOCK);
    }
}

#[test]
fn a_part_of_a_block_waits_for_a_write_of_the_whole_that_is_under_way() {
    for mode in modes(3) {
        overlap(mode, BLOCK, SECTOR);
    }
}
