//! Eventfds: polls that go on, signals that never block.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use ring::{Bell, Errno, Mem, Op, Wait};
use std::os::fd::AsRawFd;

/// Non-blocking as ours, blocking as a front end may send them, and semaphores.
const KINDS: [i32; 4] = [
    libc::EFD_NONBLOCK,
    0,
    libc::EFD_SEMAPHORE,
    libc::EFD_SEMAPHORE | libc::EFD_NONBLOCK,
];

fn nothing(rig: &mut Rig) {
    let mut done = Vec::new();
    rig.ring.turn(Wait::Not, &mut done).unwrap();
    assert!(done.is_empty(), "{}: {done:?}", rig.name);
}

#[test]
fn a_poll_tells_of_every_ring_and_leaves_the_counter_alone() {
    for kind in KINDS {
        on_each(&[], Cache::Page, |mut rig| {
            let bell = eventfd(kind);
            let fd = bell.as_raw_fd();
            let id = rig.start(Op::Poll { fd }, &Mem::none(), 5).unwrap();
            nothing(&mut rig);
            for _ in 0..3 {
                add(&bell, 2);
                assert_eq!(rig.ends(1)[0].token, 5, "{}", rig.name);
                nothing(&mut rig);
            }
            let semaphore = kind & libc::EFD_SEMAPHORE != 0;
            assert_eq!(take(&bell), if semaphore { 1 } else { 6 }, "{}", rig.name);
            rig.ring.tell(Op::Cancel { target: id });
            assert_eq!(rig.ends(1)[0].result, Err(Errno::CANCELED), "{}", rig.name);
            add(&bell, 1);
            nothing(&mut rig);
        });
    }
}

#[test]
fn a_poll_of_what_rings_already_tells_at_once() {
    for kind in KINDS {
        on_each(&[], Cache::Page, |mut rig| {
            let bell = eventfd(kind);
            add(&bell, 3);
            let fd = bell.as_raw_fd();
            rig.start(Op::Poll { fd }, &Mem::none(), 5);
            assert_eq!(rig.ends(1)[0].result, Ok(()), "{}", rig.name);
            nothing(&mut rig);
        });
    }
}

#[test]
fn polls_of_several_descriptors_are_told_apart() {
    on_each(&[], Cache::Page, |mut rig| {
        let bells: Vec<Bell> = (0..100).map(|_| Bell::new().unwrap()).collect();
        for (n, bell) in bells.iter().enumerate() {
            let fd = bell.as_raw_fd();
            rig.start(Op::Poll { fd }, &Mem::none(), n as u64);
        }
        nothing(&mut rig);
        for n in [99, 0, 42] {
            bells[n].ring();
            assert_eq!(rig.ends(1)[0].token, n as u64, "{}", rig.name);
        }
        bells.iter().for_each(Bell::ring);
        let mut told: Vec<u64> = rig.ends(100).iter().map(|done| done.token).collect();
        told.sort_unstable();
        assert!(told.iter().copied().eq(0..100), "{}: {told:?}", rig.name);
    });
}

#[test]
fn a_poll_of_a_closed_descriptor_is_an_error() {
    on_each(&[], Cache::Page, |mut rig| {
        let end = rig.run(Op::Poll { fd: 1_000_000 }, &Mem::none());
        assert_eq!(end, Err(Errno(libc::EBADF)), "{}", rig.name);
    });
}

#[test]
fn a_poll_reads_nothing_from_a_pipe() {
    on_each(&[], Cache::Page, |mut rig| {
        use std::io::{Read, Write};
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        let fd = reader.as_raw_fd();
        rig.start(Op::Poll { fd }, &Mem::none(), 5);
        writer.write_all(b"sixteen bytes...").unwrap();
        rig.ends(1);
        let mut bytes = [0; 16];
        reader.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"sixteen bytes...", "{}", rig.name);
    });
}

#[test]
fn a_signal_adds_one() {
    on_each(&[], Cache::Page, |mut rig| {
        let bell = eventfd(libc::EFD_NONBLOCK);
        let fd = bell.as_raw_fd();
        rig.ring.tell(Op::Signal { fd });
        rig.ring.tell(Op::Signal { fd });
        nothing(&mut rig);
        rig.run(Op::Signal { fd }, &Mem::none()).unwrap();
        assert_eq!(take(&bell), 3, "{}", rig.name);
    });
}

/// A started signal that ended cannot have stayed behind in the kernel, waiting for the counter to be read.
#[test]
fn a_signal_to_a_full_counter_neither_blocks_nor_fails_nor_stays_behind() {
    on_each(&[4; 512], Cache::Page, |mut rig| {
        let bell = eventfd(libc::EFD_NONBLOCK);
        add(&bell, u64::MAX - 1);
        let fd = bell.as_raw_fd();
        for _ in 0..10 {
            rig.ring.tell(Op::Signal { fd });
        }
        nothing(&mut rig);
        assert_eq!(rig.read(0, 512).unwrap(), [4; 512], "{}", rig.name);
        rig.run(Op::Signal { fd }, &Mem::none()).unwrap();
        assert_eq!(take(&bell), u64::MAX - 1, "{}", rig.name);
        rig.ring.tell(Op::Signal { fd });
        nothing(&mut rig);
        assert_eq!(take(&bell), 1, "{}", rig.name);
    });
}

#[test]
fn more_signals_than_the_queue_holds_all_arrive() {
    on_each(&[], Cache::Page, |mut rig| {
        let bell = eventfd(libc::EFD_NONBLOCK);
        let fd = bell.as_raw_fd();
        for _ in 0..5000 {
            rig.ring.tell(Op::Signal { fd });
        }
        nothing(&mut rig);
        assert_eq!(take(&bell), 5000, "{}", rig.name);
        assert_eq!(rig.ring.room(), rig.full, "{}", rig.name);
    });
}
