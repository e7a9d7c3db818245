//! What it costs when nothing happens.

use std::thread;
use std::time::Duration;

use tests::bench::process::wake_ups;
use tests::client::blk::{OK, Request};
use tests::client::guest::{Guest, Setup};

use super::support::{Place, Start, export, file, words};

/// Watched for so long; long enough for any timer that a daemon has a use for.
const WATCH: Duration = Duration::from_secs(2);

fn rss_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let line = line.unwrap().trim().trim_end_matches(" kB").to_owned();
    line.parse().unwrap()
}

/// Wake-ups over a while, after the last work has died away.
fn idle_wake_ups(pid: u32) -> u64 {
    // The queue's thread may still poll; it has gone to sleep once a while has passed without a wake-up.
    let mut before = wake_ups(pid);
    for _ in 0..100 {
        thread::sleep(Duration::from_millis(20));
        let now = wake_ups(pid);
        if now == before {
            break;
        }
        before = now;
    }
    let begin = wake_ups(pid);
    thread::sleep(WATCH);
    wake_ups(pid) - begin
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
            "{engine:?}: {} KiB before the first guest",
            rss_kib(process.pid())
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
        let rss = rss_kib(process.pid());
        println!("{engine:?}: {rss} KiB with a guest and four queues");
        assert!(rss < 10 << 10, "{rss} KiB");
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
