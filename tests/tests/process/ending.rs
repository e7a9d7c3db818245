//! How it ends: drained, flushed, nothing left behind; or, with a disk that is stuck, after a bound and with a word.

use std::fs;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tests::client::blk::{OK, Request, UNTOUCHED};
use tests::client::guest::{Guest, Pending, Setup};
use tests::client::pattern::pattern;

use super::support::{Start, completions, export, file, until, wait_taken, words};

const WRITES: u64 = 32;
const WRITE_BYTES: usize = 16 << 10;

fn offer_writes(guest: &mut Guest) -> Vec<Pending> {
    let write = |i: u64| {
        let payload = pattern(i, WRITE_BYTES);
        Request::write(i * WRITE_BYTES as u64 / 512, payload)
    };
    let pending = (0..WRITES).map(|i| guest.add(0, &write(i))).collect();
    guest.submit(0);
    pending
}

/// Every write that was taken is answered, told and in the file.
fn assert_all_done(guest: &mut Guest, pending: &[Pending], disk: &std::path::Path) {
    guest.rings[0].take_calls();
    assert!(guest.rings[0].calls.get() > 0, "the guest was told");
    let bytes = fs::read(disk).unwrap();
    for (i, done) in completions(guest, 0, pending).into_iter().enumerate() {
        assert_eq!(done.map(|done| done.status), Some(OK), "write {i}");
        let at = i * WRITE_BYTES;
        assert_eq!(bytes[at..at + WRITE_BYTES], pattern(i as u64, WRITE_BYTES));
    }
}

#[test]
fn each_signal_drains_what_is_in_flight_and_leaves_no_files() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let place = super::support::Place::new();
        let (disk, socket, pid) = (place.disk("d", 8 << 20), place.path("s"), place.path("p"));
        let mut arguments = file("f", &disk, "");
        arguments.extend(words(
            "--blockdev x-delay,node-name=n,file=f,latency-ns=300000000",
        ));
        arguments.extend(export("e", "n", &socket, ""));
        arguments.extend(["--pidfile".into(), pid.display().to_string()]);
        let mut process = Start::new(arguments).ready();
        assert!(pid.exists());
        let mut guest = Guest::start(&socket, Setup::default()).unwrap();
        let pending = offer_writes(&mut guest);
        wait_taken(&guest, 0, WRITES as u16);
        let begun = Instant::now();
        process.signal(signal);
        let status = process.wait();
        println!("{signal:?}: ended after {:?}", begun.elapsed());
        assert_eq!(status.code(), Some(0), "{}", process.stderr());
        assert_all_done(&mut guest, &pending, &disk);
        assert!(!socket.exists() && !pid.exists());
    }
}

#[test]
fn the_very_last_answer_is_told_before_the_ring_is_gone() {
    let place = super::support::Place::new();
    let socket = place.path("s");
    let mut arguments = words("--blockdev null-co,node-name=n,size=1048576,latency-ns=200000000");
    arguments.extend(export("e", "n", &socket, ""));
    let process = Start::new(arguments).ready();
    let mut guest = Guest::start(&socket, Setup::default()).unwrap();
    let pending = guest.add(0, &Request::read(0, 4096));
    guest.rings[0].want_call(Some(1));
    guest.submit(0);
    wait_taken(&guest, 0, 1);
    guest.rings[0].take_calls();
    let before = guest.rings[0].calls.get();
    process.stop();
    let done = completions(&mut guest, 0, &[pending]);
    assert_eq!(done[0].as_ref().map(|done| done.status), Some(OK));
    guest.rings[0].take_calls();
    assert!(guest.rings[0].calls.get() > before, "the guest was told");
}

#[test]
fn the_last_write_is_followed_by_a_flush() {
    let place = super::support::Place::new();
    let (disk, socket) = (place.disk("d", 8 << 20), place.path("s"));
    let mut arguments = file("f", &disk, ",aio=threads");
    arguments.extend(export("e", "f", &socket, ""));
    let start = Start::new(arguments);
    let start = start.under("strace -f -D -o DIR/log -e trace=pwritev2,pwritev,fdatasync");
    let mut process = start.ready();
    let mut guest = Guest::start(&socket, Setup::default()).unwrap();
    let pending = offer_writes(&mut guest);
    wait_taken(&guest, 0, WRITES as u16);
    process.signal(Signal::TERM);
    assert!(process.wait().success());
    assert_all_done(&mut guest, &pending, &disk);
    let log = || fs::read_to_string(process.place.path("log")).unwrap();
    let pid = process.pid().to_string();
    until("strace has written all of its log", || {
        log()
            .lines()
            .any(|l| l.starts_with(&pid) && l.contains("exited with 0"))
    });
    let log = log();
    let last = |call: &str| log.rfind(call);
    assert!(last("pwritev") < last("fdatasync"), "{log}");
    assert!(last("pwritev").is_some());
}

#[test]
fn requests_that_never_end_are_given_up_with_a_word() {
    let place = super::support::Place::new();
    let (socket, pid) = (place.path("s"), place.path("p"));
    let mut arguments =
        words("--blockdev null-co,node-name=n,size=1048576,latency-ns=600000000000");
    arguments.extend(export("e0", "n", &socket, ""));
    arguments.extend(["--pidfile".into(), pid.display().to_string()]);
    let mut process = Start::new(arguments).ready();
    let mut guest = Guest::start(&socket, Setup::default()).unwrap();
    let pending = guest.add(0, &Request::read(0, 4096));
    guest.submit(0);
    wait_taken(&guest, 0, 1);
    process.signal(Signal::TERM);
    let status = process.wait();
    assert_eq!(status.code(), Some(1));
    let said = process.stderr();
    assert!(
        said.contains("virtioblkd: requests of export e0 did not end in time\n"),
        "{said}"
    );
    assert!(!socket.exists() && !pid.exists());
    let status = guest.memory.read(pending.status(), 1);
    assert_eq!(status, [UNTOUCHED], "nobody answered it");
}

#[test]
fn a_flush_that_never_ends_is_given_up_with_a_word() {
    let place = super::support::Place::new();
    let socket = place.path("s");
    let mut arguments =
        words("--blockdev null-co,node-name=n,size=1048576,latency-ns=600000000000");
    arguments.extend(export("e0", "n", &socket, ""));
    let mut process = Start::new(arguments).ready();
    process.signal(Signal::TERM);
    assert_eq!(process.wait().code(), Some(1));
    let said = process.stderr();
    assert!(said.contains("flushing did not end in time"), "{said}");
    assert!(!socket.exists());
}

#[test]
fn a_socket_that_somebody_else_has_bound_since_stays() {
    let place = super::support::Place::new();
    let socket = place.path("s");
    let mut arguments = words("--blockdev null-co,node-name=n,size=1048576");
    arguments.extend(export("e0", "n", &socket, ""));
    let process = Start::new(arguments).ready();
    fs::remove_file(&socket).unwrap();
    let theirs = UnixListener::bind(&socket).unwrap();
    process.stop();
    assert!(socket.exists());
    drop(theirs);
}

#[test]
fn a_second_signal_changes_nothing() {
    let place = super::support::Place::new();
    let (disk, socket) = (place.disk("d", 8 << 20), place.path("s"));
    let mut arguments = file("f", &disk, "");
    arguments.extend(words(
        "--blockdev x-delay,node-name=n,file=f,latency-ns=500000000",
    ));
    arguments.extend(export("e", "n", &socket, ""));
    let mut process = Start::new(arguments).ready();
    let mut guest = Guest::start(&socket, Setup::default()).unwrap();
    let pending = offer_writes(&mut guest);
    wait_taken(&guest, 0, WRITES as u16);
    process.signal(Signal::TERM);
    // The session ends once its end has begun, so the second comes in the middle.
    until("the socket is gone", || !socket.exists());
    process.signal(Signal::INT);
    assert!(process.wait().success(), "{}", process.stderr());
    assert_all_done(&mut guest, &pending, &disk);
}

#[test]
fn guests_that_never_stop_asking_do_not_hold_up_the_end() {
    let place = super::support::Place::new();
    let (disk, socket) = (place.disk("d", 8 << 20), place.path("s"));
    let mut arguments = file("f", &disk, "");
    arguments.extend(export("e", "f", &socket, ""));
    let mut process = Start::new(arguments).ready();
    let setup = Setup {
        queues: 4,
        ..Setup::default()
    };
    let mut guest = Guest::start(&socket, setup).unwrap();
    let asked = Arc::new(AtomicU64::new(0));
    let counter = asked.clone();
    let asking = thread::spawn(move || {
        loop {
            for queue in 0..4 {
                let pending = guest.add(queue, &Request::read(0, 4096));
                guest.submit(queue);
                let until = Instant::now() + Duration::from_millis(500);
                // Once the daemon is gone, nobody answers.
                if guest.finish_until(queue, pending, until).is_err() {
                    return;
                }
                counter.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    until("many requests have been served", || {
        asked.load(Ordering::Relaxed) > 1000
    });
    process.signal(Signal::TERM);
    assert!(process.wait().success(), "{}", process.stderr());
    asking.join().unwrap();
}
