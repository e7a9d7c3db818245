//! What a burst of requests costs: counted by strace, never timed.
//!
//! Needs strace and the right to trace. A notification is a write to the call eventfd, however the daemon makes it, so
//! those are counted at our end: the eventfd adds them up.
#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

use tests::client::blk::{OK, Request};
use tests::client::deadline;
use tests::client::guest::{Guest, Setup};
use tests::client::pattern::Model;
use tests::client::starter::{Disk, Kind, Running};
use tests::client::trace::Trace;

const BURST: usize = 32;
const BURSTS: u64 = 16;

/// Puts 32 reads into the ring, kicks once, and waits for the last by looking at the ring, so that nothing is suppressed
/// or asked for in between. Returns the notifications.
fn burst(guest: &mut Guest) -> u64 {
    let _ = guest.rings[0].call_fd.read();
    guest.rings[0].want_call(Some(1));
    let pending: Vec<_> = (0..BURST as u64)
        .map(|i| guest.add(0, &Request::read(i * 64, 4096)))
        .collect();
    guest.submit(0);
    let until = deadline();
    let first = guest.rings[0].last_used();
    while usize::from(guest.rings[0].used_idx().wrapping_sub(first)) < BURST {
        assert!(std::time::Instant::now() < until, "the burst does not end");
        std::thread::yield_now();
    }
    while let Some(used) = guest.rings[0].pop() {
        let which = pending
            .iter()
            .find(|p| u32::from(p.head) == used.id)
            .unwrap();
        assert_eq!(guest.done(*which, used.len).status, OK);
    }
    guest.rings[0].call_fd.read().unwrap_or(0)
}

/// Whether a call hands anything to the kernel. `io_uring_enter(ring, 0, 1, ...)` is how a queue thread sleeps until the
/// next kick, where qemu-storage-daemon sleeps in ppoll: it is no cost of the burst, and counted for neither.
fn submits(call: &str) -> bool {
    let count = call
        .split_once("io_uring_enter(")
        .and_then(|(_, rest)| rest.split(", ").nth(1));
    count != Some("0")
}

/// What so many bursts cost: enters that submit, enters in all, notifications.
struct Cost {
    submitting: u64,
    all: u64,
    notifications: u64,
}

fn cost(file_options: &'static str) -> Cost {
    let model = Model::new(8 << 20).unwrap();
    // Polling before sleeping depends on the clock: it is off where one counts.
    let disk = Disk {
        file_options,
        export_options: "iothread=t0",
        arguments: vec!["--object".into(), "iothread,id=t0,poll-max-ns=0".into()],
        ..Disk::file(&model.path)
    };
    let daemon = Running::start(Kind::from_env(), &disk).unwrap();
    let mut guest = Guest::start(&daemon.socket, Setup::default()).unwrap();
    burst(&mut guest);
    let trace = Trace::attach(daemon.pid(), &["io_uring_enter", "io_submit"]).unwrap();
    let notifications: u64 = (0..BURSTS).map(|_| burst(&mut guest)).sum();
    let calls = trace.finish().unwrap();
    let cost = Cost {
        submitting: calls.iter().filter(|call| submits(call)).count() as u64,
        all: calls.len() as u64,
        notifications,
    };
    eprintln!(
        "{file_options}: {BURSTS} bursts of {BURST} reads: {} enters, {} of them submit, {} notifications",
        cost.all, cost.submitting, cost.notifications
    );
    cost
}

#[test]
fn thirty_two_reads_in_one_kick_cost_at_most_two_enters_and_one_notification() {
    let cost = cost("cache.direct=off,aio=io_uring");
    if Kind::from_env() == Kind::QemuStorageDaemon {
        return;
    }
    // One may be under way when strace comes.
    assert!(cost.all <= 2 * BURSTS + 1, "{} enters", cost.all);
    assert!(cost.notifications <= BURSTS);
}

#[test]
fn thirty_two_direct_reads_in_one_kick_are_submitted_at_once_and_told_once() {
    let cost = cost("cache.direct=on,aio=io_uring");
    if Kind::from_env() == Kind::QemuStorageDaemon {
        return;
    }
    // A disk that takes longer than the loop's patience wakes it once more; that enter submits nothing.
    assert!(
        cost.submitting <= 2 * BURSTS + 1,
        "{} submitting enters",
        cost.submitting
    );
    assert!(cost.all <= 3 * BURSTS + 1, "{} enters", cost.all);
    assert!(cost.notifications <= BURSTS);
}
