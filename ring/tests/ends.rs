//! How operations end before their time, and how long a turn waits.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use ring::sim::{Act, Cancels, Kind, Rule, Weather};
use ring::{Bell, Done, Errno, Mem, Op, Wait};
use std::os::fd::AsRawFd;

/// The disk carries out what it has begun, whatever is asked.
const DEAF: Weather = Weather {
    cancels: Cancels::Ignored,
    ..Weather::CALM
};

const HOUR: u64 = 3_600_000_000_000;

#[test]
fn a_shorter_timeout_ends_first() {
    on_each(&[], Cache::Page, |mut rig| {
        // A minute against a millisecond: no machine is slow enough to mistake them.
        let long = rig
            .start(Op::Timeout { ns: HOUR }, &Mem::none(), 1)
            .unwrap();
        rig.start(Op::Timeout { ns: 1_000_000 }, &Mem::none(), 2);
        let done = rig.ends(1);
        assert_eq!((done[0].token, done[0].result), (2, Ok(())), "{}", rig.name);
        rig.ring.tell(Op::Cancel { target: long });
        let done = rig.ends(1);
        assert_eq!(done[0].result, Err(Errno::CANCELED), "{}", rig.name);
    });
}

#[test]
fn a_cancellation_that_was_started_ends_too() {
    on_each(&[], Cache::Page, |mut rig| {
        let target = rig
            .start(Op::Timeout { ns: HOUR }, &Mem::none(), 1)
            .unwrap();
        rig.start(Op::Cancel { target }, &Mem::none(), 2);
        let mut done = rig.ends(2);
        done.sort_by_key(|done| done.token);
        assert_eq!(done[0].result, Err(Errno::CANCELED), "{}", rig.name);
        assert_eq!(done[1].result, Ok(()), "{}", rig.name);
        rig.start(Op::Cancel { target }, &Mem::none(), 3);
        assert_eq!(rig.ends(1)[0].result, Ok(()), "of nothing: {}", rig.name);
    });
}

#[test]
fn a_stale_name_cancels_nothing() {
    on_each(&[7; 512], Cache::Page, |mut rig| {
        let mem = Mem::zeroed(512).unwrap();
        let stale = rig.start(read(0), &mem, 1).unwrap();
        rig.ends(1);
        let fresh = rig
            .start(Op::Timeout { ns: HOUR }, &Mem::none(), 2)
            .unwrap();
        assert_ne!(stale, fresh, "the slot is the same, the name is not");
        rig.ring.tell(Op::Cancel { target: stale });
        rig.start(read(0), &mem, 3);
        assert_eq!(rig.ends(1)[0].token, 3, "{}", rig.name);
        rig.ring.tell(Op::Cancel { target: fresh });
        let done = rig.ends(1);
        assert_eq!((done[0].token, done[0].result), (2, Err(Errno::CANCELED)));
    });
}

#[test]
fn a_cancelled_transfer_ends_once_either_way() {
    on_each(&pattern(1, 1 << 20), Cache::None, |mut rig| {
        let mem = Mem::zeroed(1 << 20).unwrap();
        let target = rig.start(read(0), &mem, 1).unwrap();
        rig.ring.tell(Op::Cancel { target });
        match rig.ends(1)[0].result {
            Ok(()) => assert!(bytes_of(&mem) == pattern(1, 1 << 20), "{}", rig.name),
            Err(errno) => assert_eq!(errno, Errno::CANCELED, "{}", rig.name),
        }
        rig.read(0, 512).expect("nothing else is disturbed");
    });
}

#[test]
fn a_cancelled_operation_begins_no_further_step() {
    let mut rig = simulated(1, &[3; 4096], Cache::Page, DEAF);
    let disk = rig.disk.clone().unwrap();
    disk.rule(Rule::every(Act::Short(16)));
    let mem = Mem::zeroed(4096).unwrap();
    let target = rig.start(read(0), &mem, 1).unwrap();
    let mut done = Vec::new();
    rig.ring.turn(Wait::Not, &mut done).unwrap();
    rig.ring.turn(Wait::Not, &mut done).unwrap();
    let steps = disk.count();
    rig.ring.tell(Op::Cancel { target });
    assert_eq!(rig.ends(1)[0].result, Err(Errno::CANCELED));
    assert!(disk.count() <= steps + 1 && steps < 10, "{steps} steps");
}

#[test]
fn a_turn_waits_at_most_as_long_as_it_is_told() {
    on_each(&[1; 512], Cache::Page, |mut rig| {
        let mut done = Vec::new();
        rig.ring.turn(Wait::AtMost(1_000_000), &mut done).unwrap();
        assert!(done.is_empty(), "{}", rig.name);
        let mem = Mem::zeroed(512).unwrap();
        rig.start(read(0), &mem, 1);
        while done.is_empty() {
            // The end comes long before the limit.
            rig.ring
                .turn(Wait::AtMost(60_000_000_000), &mut done)
                .unwrap();
        }
        assert_eq!(done[0].token, 1, "{}", rig.name);
    });
}

#[test]
fn a_batch_short_of_its_count_is_told_after_a_while() {
    on_each(&pattern(2, 64 << 10), Cache::Page, |mut rig| {
        let batch = |count| Wait::Batch {
            count,
            patience_ns: 1_000_000,
        };
        let mems: Vec<Mem> = (0..16).map(|_| Mem::zeroed(4096).unwrap()).collect();
        for (n, mem) in mems.iter().enumerate() {
            rig.start(read(n as u64 * 4096), mem, n as u64);
        }
        let mut done = Vec::new();
        while done.len() < 16 {
            rig.ring.turn(batch(64), &mut done).unwrap();
        }
        assert_eq!(done.len(), 16, "{}", rig.name);
        rig.start(read(0), &mems[0], 99);
        while done.len() < 17 {
            rig.ring.turn(batch(1), &mut done).unwrap();
        }
        assert_eq!(done[16].token, 99, "{}", rig.name);
    });
}

#[test]
fn a_patient_batch_on_the_simulated_disk_is_whole() {
    for seed in 0..50 {
        let mut rig = simulated(seed, &[1; 8192], Cache::Page, Weather::ROUGH);
        let mems: Vec<Mem> = (0..16).map(|_| Mem::zeroed(512).unwrap()).collect();
        for (n, mem) in mems.iter().enumerate() {
            rig.start(read(n as u64 * 512), mem, n as u64);
        }
        let mut done = Vec::new();
        let patience_ns = HOUR;
        let batch = Wait::Batch {
            count: 8,
            patience_ns,
        };
        rig.ring.turn(batch, &mut done).unwrap();
        // Steps that go again count as ends of the engine's, so the ring may tell fewer; it tells the rest later.
        while done.len() < 16 {
            rig.ring.turn(batch, &mut done).unwrap();
        }
        assert_eq!(done.len(), 16, "seed {seed}");
    }
}

#[test]
fn a_wait_with_only_a_bell_to_end_it_is_ended_by_the_bell() {
    on_each(&[], Cache::Page, |mut rig| {
        let bell = Bell::new().unwrap();
        let fd = bell.as_raw_fd();
        rig.start(Op::Poll { fd }, &Mem::none(), 5);
        let other = bell.clone();
        let ringer = std::thread::spawn(move || other.ring());
        let mut done = Vec::new();
        while done.is_empty() {
            rig.ring.turn(Wait::One, &mut done).unwrap();
        }
        ringer.join().unwrap();
        assert_eq!((done[0].token, done[0].result), (5, Ok(())), "{}", rig.name);
    });
}

#[test]
fn a_dropped_ring_leaves_no_operation_behind() {
    on_each(&[1; 64 << 10], Cache::None, |mut rig| {
        let bell = Bell::new().unwrap();
        let fd = bell.as_raw_fd();
        rig.start(Op::Poll { fd }, &Mem::none(), 1);
        rig.start(Op::Timeout { ns: HOUR }, &Mem::none(), 2);
        let mems: Vec<Mem> = (0..128).map(|_| mem_of(&[2; 512])).collect();
        for (n, mem) in mems.iter().enumerate() {
            rig.start(write(n as u64 * 512), mem, 3);
        }
        let Rig {
            ring, disk, name, ..
        } = rig;
        drop(ring);
        drop(mems);
        if let Some(disk) = disk {
            let ends = |event: &&ring::sim::Event| matches!(event, ring::sim::Event::Ended(..));
            let ended = disk.log().iter().filter(ends).count() as u64;
            assert_eq!(ended, disk.count(), "{name}");
        }
    });
}

#[test]
fn dropping_a_ring_waits_for_what_the_disk_still_holds() {
    let mut rig = simulated(4, &[1; 4096], Cache::Page, DEAF);
    let disk = rig.disk.clone().unwrap();
    disk.rule(Rule::every(Act::Hold).kind(Kind::Write));
    let mem = mem_of(&[2; 4096]);
    rig.start(write(0), &mem, 1);
    rig.ring.turn(Wait::Not, &mut Vec::<Done>::new()).unwrap();
    let other = disk.clone();
    let releaser = std::thread::spawn(move || {
        let held = other.held().len();
        other.release_all();
        held
    });
    drop(rig);
    assert_eq!(releaser.join().unwrap(), 1);
    assert_eq!(
        disk.images()[&FILE],
        [2; 4096],
        "it was carried out, not dropped"
    );
}
