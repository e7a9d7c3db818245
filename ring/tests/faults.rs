//! What the ring finishes so that nobody above sees it, and what it must tell.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use ring::sim::{Act, Config, Event, Kind, Rule, Times, Weather};
use ring::{Align, Choice, Errno, File, FileId, Mem, Op, Ring, SyncLevel};
use std::os::fd::OwnedFd;
use std::sync::Arc;

fn calm(bytes: &[u8], cache: Cache) -> (Rig, ring::sim::Disk) {
    let rig = simulated(1, bytes, cache, Weather::CALM);
    let disk = rig.disk.clone().unwrap();
    (rig, disk)
}

#[test]
fn transfers_of_one_byte_at_a_time_are_finished() {
    let (mut rig, disk) = calm(&pattern(1, 1000), Cache::Page);
    disk.rule(Rule::every(Act::Short(1)));
    assert_eq!(rig.read(100, 300).unwrap(), pattern(1, 1000)[100..400]);
    assert_eq!(disk.count(), 300);
    rig.write(50, &pattern(2, 300)).unwrap();
    assert_eq!(rig.host_bytes()[50..350], pattern(2, 300));
    assert_eq!(rig.host_bytes()[350..], pattern(1, 1000)[350..]);
}

#[test]
fn short_transfers_through_a_bounce_buffer_are_finished() {
    let (mut rig, disk) = calm(&pattern(1, 64 << 10), Cache::None);
    disk.rule(Rule::every(Act::Short(1024)));
    let mem = Mem::zeroed(33 << 10).unwrap().slice(3, 32 << 10);
    rig.run(read(512), &mem).unwrap();
    assert!(bytes_of(&mem) == pattern(1, 64 << 10)[512..512 + (32 << 10)]);
    mem.store(0, &pattern(3, 32 << 10));
    rig.run(write(1024), &mem).unwrap();
    assert!(rig.host_bytes()[1024..1024 + (32 << 10)] == pattern(3, 32 << 10));
    assert_eq!(disk.count(), 64);
}

/// Retried for ever, such a transfer kept its thread busy and its ring from ever stopping.
#[test]
fn a_transfer_the_kernel_never_has_the_means_for_ends_with_an_error() {
    let (mut rig, disk) = calm(&[1; 4096], Cache::Page);
    disk.rule(Rule::every(Act::Refuse(libc::EAGAIN)));
    assert_eq!(rig.write(0, &[2; 512]), Err(Errno(libc::EAGAIN)));
    disk.clear_rules();
    assert_eq!(rig.write(0, &[2; 512]), Ok(()));
}

#[test]
fn interruptions_are_nobodys_business() {
    for errno in [libc::EINTR, libc::EAGAIN] {
        let (mut rig, disk) = calm(&[1; 4096], Cache::Page);
        disk.rule(Rule::every(Act::Refuse(errno)).times(Times::Next(20)));
        rig.write(0, &[2; 512]).unwrap();
        assert_eq!(disk.count(), 21);
        disk.clear_rules();
        disk.rule(Rule::every(Act::Refuse(errno)).times(Times::Chance(500)));
        let file = FILE;
        for op in [
            sync(),
            Op::Sync {
                file,
                level: SyncLevel::All,
            },
            Op::Punch {
                file,
                at: 512,
                len_bytes: 512,
            },
            Op::Zero {
                file,
                at: 1024,
                len_bytes: 512,
            },
        ] {
            rig.run(op, &Mem::none()).unwrap();
        }
        let bytes = rig.host_bytes();
        assert_eq!(
            (bytes[0], bytes[512], bytes[1024], bytes[1536]),
            (2, 0, 0, 1)
        );
    }
}

#[test]
fn each_operation_that_fails_is_told_once_and_the_others_go_on() {
    const COUNT: u64 = 24;
    let start_all = |rig: &mut Rig, mems: &[Mem]| {
        for (n, mem) in (0..).zip(mems) {
            let at = n * 512;
            let op = match n % 4 {
                0 => read(at),
                1 => write(at),
                2 => sync(),
                _ => Op::Punch {
                    file: FILE,
                    at,
                    len_bytes: 512,
                },
            };
            let none = Mem::none();
            rig.start(op, if n % 4 < 2 { mem } else { &none }, n)
                .unwrap();
        }
    };
    for nth in 0..COUNT {
        let mut rig = simulated(nth, &[1; 16384], Cache::Page, Weather::CALM);
        let disk = rig.disk.clone().unwrap();
        disk.rule(Rule::every(Act::Fail(libc::ENODATA)).times(Times::After(nth)));
        let mems: Vec<Mem> = (0..COUNT).map(|_| mem_of(&[2; 512])).collect();
        start_all(&mut rig, &mems);
        for done in rig.ends(COUNT as usize) {
            let wanted = match done.token == nth {
                true => Err(Errno(libc::ENODATA)),
                false => Ok(()),
            };
            assert_eq!(done.result, wanted, "token {} of run {nth}", done.token);
        }
        assert_eq!(disk.count(), COUNT);
    }
}

#[test]
fn an_error_half_way_is_the_end_of_a_transfer() {
    let (mut rig, disk) = calm(&[1; 4096], Cache::Page);
    disk.rule(Rule::every(Act::Short(1000)).times(Times::Next(2)));
    disk.rule(Rule::every(Act::Refuse(libc::EIO)));
    assert_eq!(rig.write(0, &[2; 4096]), Err(Errno::IO));
    assert_eq!(disk.count(), 3);
    let bytes = rig.host_bytes();
    assert!(bytes[..2000].iter().all(|&b| b == 2) && bytes[2000..].iter().all(|&b| b == 1));
}

#[test]
fn a_write_that_does_not_fit_is_an_error() {
    let config = Config::new(1).image(FILE, vec![1; 1000]);
    let mut rig = on_disk(config.disk(), "full disk".to_owned());
    assert_eq!(rig.write(900, &[2; 200]), Err(Errno::NOSPC));
    assert_eq!(rig.write(1000, &[2; 1]), Err(Errno::NOSPC));
    assert_eq!(rig.write(900, &[3; 100]), Ok(()));
    assert_eq!(rig.host_bytes().len(), 1000);
}

#[test]
fn a_write_to_a_full_device_is_an_error() {
    on_each(&[1; 512], Cache::Page, |mut rig| {
        if rig.disk.is_some() {
            return;
        }
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full");
        let id = FileId(9);
        let file = File::new(id, OwnedFd::from(full.unwrap()), Align::NONE);
        rig.ring.adopt(&Arc::new(file));
        let op = Op::Write {
            file: id,
            at: 0,
            durability: ring::Durability::Cached,
        };
        assert_eq!(
            rig.run(op, &mem_of(&[1; 512])),
            Err(Errno::NOSPC),
            "{}",
            rig.name
        );
    });
}

#[test]
fn a_queue_of_four_takes_hundreds_of_operations() {
    for seed in 0..20 {
        let mut config = Config::new(seed)
            .image(FILE, pattern(1, 512 * 300))
            .weather(Weather::ROUGH);
        config.entries = 4;
        let mut rig = on_disk(config.disk(), format!("seed {seed}"));
        let mems: Vec<Mem> = (0..300).map(|_| Mem::zeroed(512).unwrap()).collect();
        for (n, mem) in (0..).zip(&mems) {
            rig.start(read(n * 512), mem, n).unwrap();
        }
        let mut done = rig.ends(300);
        done.sort_by_key(|done| done.token);
        for (n, done) in done.iter().enumerate() {
            assert_eq!((done.token, done.result), (n as u64, Ok(())), "seed {seed}");
            assert!(bytes_of(&mems[n]) == pattern(1, 512 * 300)[n * 512..][..512]);
        }
    }
}

/// More bounced at once than a ring keeps memory for: the rest waits its turn.
#[test]
fn bounced_transfers_beyond_the_memory_kept_for_them_wait_and_end() {
    let test = |mut rig: Rig| {
        let mems: Vec<Mem> = (0..100)
            .map(|_| Mem::zeroed(4096 + 8).unwrap().slice(3, 4096))
            .collect();
        for (n, mem) in (0..).zip(&mems) {
            rig.start(read(n * 4096), mem, n).unwrap();
        }
        rig.ends(100);
        let bytes = rig.host_bytes();
        for (n, mem) in mems.iter().enumerate() {
            assert!(bytes_of(mem) == bytes[n * 4096..][..4096], "{}", rig.name);
        }
        assert_eq!(rig.ring.room(), rig.full, "{}", rig.name);
    };
    on_each(&pattern(1, 100 * 4096), Cache::None, test);
}

#[test]
fn a_bounced_transfer_that_waits_for_memory_can_be_cancelled() {
    let (mut rig, disk) = calm(&pattern(1, 100 * 4096), Cache::None);
    disk.rule(Rule::every(Act::Hold));
    let mem = Mem::zeroed(4096 + 8).unwrap().slice(3, 4096);
    let ids: Vec<_> = (0..100)
        .map(|n| rig.start(read(0), &mem, n).unwrap())
        .collect();
    rig.ring.tell(Op::Cancel { target: ids[99] });
    let done = rig.ends(1);
    assert_eq!((done[0].token, done[0].result), (99, Err(Errno::CANCELED)));
    disk.clear_rules();
    disk.release_all();
    assert!(rig.ends(99).iter().all(|done| done.result == Ok(())));
}

#[test]
fn the_same_seed_is_the_same_story_and_another_is_another() {
    let story = |seed| {
        let mut rig = simulated(seed, &[1; 65536], Cache::Page, Weather::ROUGH);
        let mems: Vec<Mem> = (0..50).map(|_| mem_of(&[2; 999])).collect();
        for (n, mem) in (0..).zip(&mems) {
            rig.start(
                if n % 2 == 0 {
                    read(n * 999)
                } else {
                    write(n * 999)
                },
                mem,
                n,
            );
        }
        rig.ends(50);
        rig.disk.unwrap().log()
    };
    assert!(story(1) == story(1));
    assert!(story(1) != story(2));
}

#[test]
fn operations_end_out_of_order_and_touch_memory_at_no_set_moment() {
    let mut rig = simulated(3, &[1; 65536], Cache::Page, Weather::ROUGH);
    let mems: Vec<Mem> = (0..64).map(|_| Mem::zeroed(512).unwrap()).collect();
    for (n, mem) in (0..).zip(&mems) {
        rig.start(read(n * 512), mem, n);
    }
    let mut done = Vec::new();
    rig.ring.turn(ring::Wait::One, &mut done).unwrap();
    let touched = mems.iter().filter(|mem| !mem.is_zero()).count();
    assert!(
        done.len() < touched && touched < 64,
        "{} of {touched}",
        done.len()
    );
    done.extend(rig.ends(64 - done.len()));
    let tokens = done.iter().map(|done| done.token);
    assert!(!tokens.is_sorted());
}

#[test]
fn a_file_that_wants_alignment_refuses_what_has_none() {
    let (mut rig, disk) = calm(&[1; 4096], Cache::None);
    assert_eq!(rig.read(1, 512), Err(Errno::INVAL));
    assert_eq!(rig.read(0, 100), Err(Errno::INVAL));
    assert!(
        disk.log()
            .iter()
            .all(|e| !matches!(e, Event::Ended(_, 0..)))
    );
    assert_eq!(rig.read(512, 512).unwrap(), [1; 512]);
}

#[test]
fn a_rule_meets_its_kind_and_its_bytes_and_no_others() {
    let (mut rig, disk) = calm(&[1; 4096], Cache::Page);
    disk.rule(
        Rule::every(Act::Fail(libc::EIO))
            .kind(Kind::Read)
            .touching(512..1024),
    );
    rig.read(0, 512).unwrap();
    rig.read(1024, 512).unwrap();
    rig.write(512, &[2; 512]).unwrap();
    assert_eq!(rig.read(1023, 10), Err(Errno::IO));
    assert_eq!(rig.read(0, 513), Err(Errno::IO));
}

#[test]
fn delayed_operations_are_overtaken() {
    let (mut rig, disk) = calm(&[1; 4096], Cache::Page);
    disk.rule(Rule::every(Act::Delay(10)).touching(0..512));
    let mems: Vec<Mem> = (0..4).map(|_| Mem::zeroed(512).unwrap()).collect();
    for (n, mem) in (0..).zip(&mems) {
        rig.start(read(n * 512), mem, n);
    }
    let tokens: Vec<u64> = rig.ends(4).iter().map(|done| done.token).collect();
    assert_eq!(tokens, [1, 2, 3, 0]);
}

#[test]
fn a_wait_that_nothing_can_end_is_an_error_on_the_simulated_disk() {
    let (mut rig, _) = calm(&[], Cache::Page);
    assert!(rig.ring.turn(ring::Wait::One, &mut Vec::new()).is_err());
}

#[test]
fn two_rings_share_a_disk() {
    let disk = Config::new(5)
        .file(FILE, 8192)
        .weather(Weather::ROUGH)
        .disk();
    let threads = [1u8, 2].map(|byte| {
        let disk = disk.clone();
        std::thread::spawn(move || {
            let mut rig = on_disk(disk, format!("ring {byte}"));
            let at = u64::from(byte - 1) * 4096;
            for _ in 0..50 {
                rig.write(at, &[byte; 4096]).unwrap();
                assert_eq!(rig.read(at, 4096).unwrap(), [byte; 4096]);
            }
        })
    });
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    let bytes = disk.images()[&FILE].clone();
    assert!(bytes[..4096] == [1; 4096] && bytes[4096..] == [2; 4096]);
    assert!(Ring::new(Choice::Sim(disk)).is_ok());
}

#[test]
fn a_crash_keeps_what_was_synced_through_a_ring() {
    for seed in 0..200 {
        let mut rig = simulated(seed, &[0; 4096], Cache::None, Weather::ROUGH);
        rig.write(0, &[1; 2048]).unwrap();
        rig.run(sync(), &Mem::none()).unwrap();
        rig.write(1024, &[2; 2048]).unwrap();
        let image = rig.disk.unwrap().crash(seed).remove(&FILE).unwrap();
        assert!(image[..1024].iter().all(|&b| b == 1), "seed {seed}");
        for sector in image[1024..].chunks(512) {
            assert!(sector.iter().all(|&b| b == sector[0]), "seed {seed}");
        }
        assert!(image[1024..2048].iter().all(|&b| b == 1 || b == 2));
        assert!(image[2048..3072].iter().all(|&b| b == 0 || b == 2));
        assert!(image[3072..].iter().all(|&b| b == 0));
    }
}

#[test]
fn a_truncation_is_durable_after_the_next_sync_and_beyond_the_limit_refused() {
    let truncate = |len_bytes| Op::Truncate {
        file: FILE,
        len_bytes,
    };
    for seed in 0..200 {
        let mut rig = simulated(seed, &[1; 4096], Cache::None, Weather::ROUGH);
        rig.run(truncate(1024), &Mem::none()).unwrap();
        rig.run(sync(), &Mem::none()).unwrap();
        rig.run(truncate(8192), &Mem::none()).unwrap();
        rig.write(4096, &[2; 512]).unwrap();
        let beyond = rig.run(truncate(1 << 31), &Mem::none());
        assert_eq!(beyond, Err(Errno::NOSPC));
        let image = rig.disk.unwrap().crash(seed).remove(&FILE).unwrap();
        assert!(matches!(image.len(), 1024 | 8192), "seed {seed}");
        assert_eq!(image[..1024], [1; 1024], "seed {seed}");
        let gained = image[1024..].iter().enumerate();
        let mut written = gained.filter(|(_, byte)| **byte != 0);
        assert!(written.all(|(at, &byte)| byte == 2 && (3072..3584).contains(&at)));
    }
}

#[test]
fn a_failed_truncation_happened_or_did_not() {
    let mut sizes = std::collections::BTreeSet::new();
    for seed in 0..20 {
        let mut rig = simulated(seed, &[1; 4096], Cache::Page, Weather::CALM);
        let disk = rig.disk.clone().unwrap();
        disk.rule(Rule::every(Act::Fail(libc::EIO)).kind(Kind::Truncate));
        let op = Op::Truncate {
            file: FILE,
            len_bytes: 512,
        };
        assert_eq!(rig.run(op, &Mem::none()), Err(Errno::IO));
        sizes.insert(rig.host_bytes().len());
    }
    assert_eq!(sizes, [512, 4096].into());
}
