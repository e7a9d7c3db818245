//! What it costs when nothing happens.

use std::thread;
use std::time::Duration;

use tests::bench::process::wake_ups;
use tests::client::blk::{OK, Request};
use tests::client::guest::{Guest, Setup};

use super::support::{Place, Start, export, file, words};

/// Watched for so long; long enough for any timer that a daemon has a use for.
const WATCH: Duration = Duration::from_secs(2);
const WHILES_MAX: u32 = 8;
const OWN_KIB_MAX: u64 = 4 << 10;
const ALL_KIB_MAX: u64 = 12 << 10;

/// Memory in use, of one kind (proc_pid_status(5)).
fn memory_kib(pid: u32, kind: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix(kind));
    let line = line.unwrap().trim_start_matches(':').trim();
    line.trim_end_matches(" kB").parse().unwrap()
}

/// What the daemon has for itself, and all that is mapped: also the program, of which all daemons of a host share the pages.
fn own_and_all_kib(pid: u32) -> (u64, u64) {
    (memory_kib(pid, "RssAnon"), memory_kib(pid, "VmRSS"))
}

/// Wake-ups over a while, after the last work has died away: the queue's thread polls on, and the kernel's workers for it
/// go away, each after some seconds. What wakes up all the time does so in every while.
fn idle_wake_ups(pid: u32) -> u64 {
    let mut least = u64::MAX;
    for _ in 0..WHILES_MAX {
        let begin = wake_ups(pid);
        thread::sleep(WATCH);
        // Fewer: a thread that ended took its own along.
        let new = wake_ups(pid).abs_diff(begin);
        if new == 0 {
            return 0;
        }
        println!("{new} wake-ups in {WATCH:?}");
        least = least.min(new);
    }
    least
}

#[test]
fn an_idle_guest_wakes_nobody() {
    for engine in ["", ",aio=threads"] {
        let place = Place::new();
        let (disk, socket) = (place.disk("d", 1 << 20), place.path("s"));
        let mut arguments = words("--object iothread,id=i");
        arguments.extend(file("f", &disk, engine));
        arguments.extend(export("e", "f", &socket, ""));
        arguments.extend(export("g", "f", &place.path("t"), ",iothread=i"));
        let process = Start::new(arguments).ready();
        println!(
            "{engine:?}: {:?} KiB before the first guest",
            own_and_all_kib(process.pid())
        );
        let setup = Setup {
            queues: 4,
            ..Setup::default()
        };
        let mut guest = Guest::start(&socket, setup).unwrap();
        for queue in 0..4 {
            for _ in 0..50 {
                let done = guest.run(queue, &Request::read(0, 4096)).unwrap();
                assert_eq!(done.status, OK);
            }
        }
        assert_eq!(idle_wake_ups(process.pid()), 0, "{engine:?}");
        let (own, all) = own_and_all_kib(process.pid());
        println!("{engine:?}: {own} KiB, {all} with a guest and four queues");
        assert!(own < OWN_KIB_MAX && all < ALL_KIB_MAX, "{own}, {all} KiB");
        drop(guest);
        process.stop();
    }
}

#[test]
fn without_a_guest_nobody_wakes_either() {
    let place = Place::new();
    let socket = place.path("s");
    let mut arguments = words("--blockdev null-co,node-name=n,size=1048576");
    arguments.extend(export("e", "n", &socket, ""));
    let process = Start::new(arguments).ready();
    assert_eq!(idle_wake_ups(process.pid()), 0);
    drop(Guest::start(&socket, Setup::default()).unwrap());
    assert_eq!(idle_wake_ups(process.pid()), 0, "after a guest has left");
    process.stop();
}
