//! Every operation of the ring, on every engine.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use ring::{Durability, Errno, Mem, Op, SyncLevel, Wait};

#[test]
fn what_is_written_is_read_back_and_is_in_the_file() {
    on_each(&[1; 10_000], Cache::Page, |mut rig| {
        let bytes = pattern(1, 5000);
        rig.write(123, &bytes).expect("written");
        assert_eq!(rig.read(123, 5000).expect("read"), bytes, "{}", rig.name);
        assert_eq!(rig.host_bytes()[123..5123], bytes, "{}", rig.name);
        assert_eq!(rig.host_bytes()[..123], [1; 123], "{}", rig.name);
    });
}

#[test]
fn syncs_and_durable_writes_end_well() {
    on_each(&[0; 8192], Cache::Page, |mut rig| {
        let through = Op::Write {
            file: FILE,
            at: 512,
            durability: Durability::Through,
        };
        rig.run(through, &mem_of(&[7; 512])).expect("written");
        for level in [SyncLevel::Data, SyncLevel::All] {
            rig.run(Op::Sync { file: FILE, level }, &Mem::none())
                .expect("synced");
        }
        assert_eq!(rig.host_bytes()[512..1024], [7; 512], "{}", rig.name);
    });
}

#[test]
fn holes_and_zeroes_read_as_zeroes_and_keep_the_size() {
    on_each(&pattern(2, 256 << 10), Cache::Page, |mut rig| {
        let (file, len_bytes) = (FILE, 64 << 10);
        let before = rig.host_blocks();
        let punch = Op::Punch {
            file,
            at: 0,
            len_bytes,
        };
        rig.run(punch, &Mem::none()).expect("punched");
        assert!(
            rig.host_blocks() < before || before.is_none(),
            "{}",
            rig.name
        );
        let zero = Op::Zero {
            file,
            at: 192 << 10,
            len_bytes: 2 * len_bytes,
        };
        rig.run(zero, &Mem::none()).expect("zeroed");
        let bytes = rig.host_bytes();
        assert_eq!(bytes.len(), 256 << 10, "{}", rig.name);
        assert!(bytes[..64 << 10].iter().all(|&b| b == 0), "{}", rig.name);
        assert!(bytes[192 << 10..].iter().all(|&b| b == 0), "{}", rig.name);
        assert_eq!(
            bytes[64 << 10..192 << 10],
            pattern(2, 256 << 10)[64 << 10..192 << 10]
        );
    });
}

#[test]
fn a_truncated_file_is_that_long_and_what_it_gained_is_zeroes() {
    on_each(&pattern(6, 10_000), Cache::Page, |mut rig| {
        for len_bytes in [3000u64, 9000, 0, 70_000] {
            let op = Op::Truncate {
                file: FILE,
                len_bytes,
            };
            rig.run(op, &Mem::none()).expect("truncated");
            assert_eq!(rig.host_bytes().len() as u64, len_bytes, "{}", rig.name);
            if len_bytes == 9000 {
                assert_eq!(rig.host_bytes()[..3000], pattern(6, 10_000)[..3000]);
                assert_eq!(rig.read(3000, 6000).expect("read"), [0; 6000]);
            }
        }
        assert!(rig.host_bytes().iter().all(|&b| b == 0), "{}", rig.name);
    });
}

#[test]
fn what_has_no_size_of_its_own_cannot_be_truncated() {
    on_each(&[1; 512], Cache::Page, |mut rig| {
        if rig.disk.is_some() {
            return;
        }
        let null = std::fs::OpenOptions::new().write(true).open("/dev/null");
        let file = ring::FileId(9);
        let fd = std::os::fd::OwnedFd::from(null.expect("opened"));
        let null = ring::File::new(file, fd, ring::Align::NONE);
        rig.ring.adopt(&std::sync::Arc::new(null));
        let len_bytes = 4096;
        let op = Op::Truncate { file, len_bytes };
        assert_eq!(rig.run(op, &Mem::none()), Err(Errno::INVAL), "{}", rig.name);
    });
}

#[test]
fn an_unknown_file_is_an_error_and_leaves_the_ring_in_order() {
    on_each(&[5; 512], Cache::Page, |mut rig| {
        let op = Op::Read {
            file: ring::FileId(99),
            at: 0,
        };
        let mem = Mem::zeroed(512).expect("memory");
        assert_eq!(rig.run(op, &mem), Err(Errno(libc::EBADF)), "{}", rig.name);
        assert_eq!(rig.read(0, 512).expect("read"), [5; 512]);
    });
}

#[test]
fn reads_past_the_end_are_zeroes() {
    on_each(&[9; 1000], Cache::Page, |mut rig| {
        let bytes = rig.read(900, 5000).expect("read");
        assert_eq!(bytes[..100], [9; 100], "{}", rig.name);
        assert!(bytes[100..].iter().all(|&b| b == 0), "{}", rig.name);
        let bytes = rig.read(70_000, 700).expect("read");
        assert!(bytes.iter().all(|&b| b == 0), "{}", rig.name);
    });
}

#[test]
fn direct_reads_across_an_end_inside_a_block_are_zero_filled() {
    for size in [1000, 4096 + 700, 8192] {
        on_each(&vec![9; size], Cache::None, |mut rig| {
            let bytes = rig.read(0, 16 << 10).expect("read");
            assert_eq!(bytes[..size], vec![9; size], "{}", rig.name);
            assert!(bytes[size..].iter().all(|&b| b == 0), "{}", rig.name);
            let bytes = rig.read(32 << 10, 512).expect("read");
            assert!(bytes.iter().all(|&b| b == 0), "{}", rig.name);
        });
    }
}

#[test]
fn misaligned_memory_on_a_direct_file_is_bounced_whatever_its_length() {
    for len in [512, 4096, 1 << 20, (3 << 20) + 512] {
        let bytes = pattern(3, len);
        on_each(&vec![0; 4 << 20], Cache::None, |mut rig| {
            let mem = Mem::zeroed(len + 64).expect("memory").slice(7, len);
            mem.store(0, &bytes);
            rig.run(write(512), &mem).expect("written");
            assert!(rig.host_bytes()[512..512 + len] == bytes, "{}", rig.name);
            mem.zero();
            rig.run(read(512), &mem).expect("read");
            assert!(bytes_of(&mem) == bytes, "{}", rig.name);
        });
    }
}

#[test]
fn more_segments_than_the_kernel_takes_are_one_operation() {
    for (cache, piece) in [(Cache::Page, 3), (Cache::None, 512), (Cache::None, 100)] {
        on_each(&vec![1; 4 << 20], cache, |mut rig| {
            let count = 5000 / 512 * 512;
            let len = count * piece;
            let whole = Mem::zeroed(2 * len).expect("memory");
            let bytes = pattern(4, len);
            // Every other piece, so that no two touch.
            let pieces = (0..count).map(|n| whole.slice(2 * n * piece, piece));
            let segs: Vec<_> = pieces
                .flat_map(|mem| mem.segs().collect::<Vec<_>>())
                .collect();
            ring::seg::store(&segs, 0, &bytes);
            rig.ring.start(write(512), &segs, 0, len, 1).expect("room");
            rig.ends(1)[0].result.expect("written");
            assert!(rig.host_bytes()[512..512 + len] == bytes, "{}", rig.name);
            ring::seg::zero(&segs, 0, len);
            rig.ring.start(read(512), &segs, 0, len, 1).expect("room");
            rig.ends(1)[0].result.expect("read");
            let mut back = vec![0; len];
            ring::seg::load(&segs, 0, &mut back);
            assert!(back == bytes, "{}", rig.name);
        });
    }
}

#[test]
fn a_window_of_segments_is_transferred_and_no_more() {
    on_each(&[1; 4096], Cache::Page, |mut rig| {
        let mem = mem_of(&[2; 1000]);
        let segs: Vec<_> = mem.segs().collect();
        let segs = [segs[0].part(0, 300), segs[0].part(300, 700)];
        rig.ring.start(write(10), &segs, 200, 300, 1).expect("room");
        rig.ends(1)[0].result.expect("written");
        let bytes = rig.host_bytes();
        assert_eq!(bytes[..10], [1; 10]);
        assert_eq!(bytes[10..310], [2; 300]);
        assert!(bytes[310..].iter().all(|&b| b == 1), "{}", rig.name);
        rig.ring.start(read(0), &segs, 1, 5, 1).expect("room");
        rig.ends(1)[0].result.expect("read");
        assert_eq!(
            bytes_of(&mem)[..8],
            [2, 1, 1, 1, 1, 1, 2, 2],
            "{}",
            rig.name
        );
    });
}

#[test]
fn as_many_operations_as_there_are_slots_start_in_one_go_and_then_there_is_no_room() {
    let bytes = pattern(5, ring::SLOTS as usize * 512);
    on_each(&bytes, Cache::Page, |mut rig| {
        let full = rig.ring.room();
        let mems: Vec<Mem> = (0..ring::SLOTS)
            .map(|_| Mem::zeroed(512).unwrap())
            .collect();
        for (n, mem) in mems.iter().enumerate() {
            rig.start(read(n as u64 * 512), mem, n as u64)
                .expect("room");
        }
        assert_eq!(rig.ring.room(), 0, "{}", rig.name);
        assert_eq!(rig.start(read(0), &mems[0], 0), None, "{}", rig.name);
        let mut done = rig.ends(ring::SLOTS as usize);
        done.sort_by_key(|done| done.token);
        for (n, done) in done.iter().enumerate() {
            assert_eq!(
                (done.token, done.result),
                (n as u64, Ok(())),
                "{}",
                rig.name
            );
            assert!(
                bytes_of(&mems[n]) == bytes[n * 512..][..512],
                "{}",
                rig.name
            );
        }
        assert_eq!(rig.ring.room(), full, "{}", rig.name);
    });
}

#[test]
fn a_ring_with_nothing_to_tell_does_not_wait_if_asked_not_to() {
    on_each(&[0; 512], Cache::Page, |mut rig| {
        let mut done = Vec::new();
        rig.ring.turn(Wait::Not, &mut done).expect("turned");
        assert!(done.is_empty() && !rig.ring.has_news(), "{}", rig.name);
    });
}
