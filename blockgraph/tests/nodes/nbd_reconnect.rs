//! The NBD client when its server comes and goes: requests wait and are made again, or fail in time; nothing is lost.

use crate::support;
use blockgraph::driver::nbd::client::{NbdOptions, Server};
use blockgraph::graph::open::open;
use blockgraph::{Kind, Mode, NodeId};
use ring::{Choice, Durability, Errno, Mem};
use std::path::Path;
use std::time::{Duration, Instant};
use support::{Bench, Chance, image, nbd, span};

const SIZE: u64 = 1 << 20;
const BLOCK: u64 = 4096;
/// As many requests at once.
const DEPTH: usize = 24;

fn bench() -> Bench {
    Bench::new(Choice::Threads, Mode::Fast)
}

fn patient(server: &Server, seconds: u64) -> NbdOptions {
    let mut options = nbd::options(server);
    options.reconnect_delay = Duration::from_secs(seconds);
    options
}

fn serve(server: &Server, disk: &Path) -> nbd::Running {
    nbd::qemu_nbd(server, disk, "raw", &[])
}

fn block_of(chance: &mut Chance) -> (Mem, Vec<u8>) {
    let mem = Mem::zeroed(BLOCK as usize).expect("memory");
    let bytes: Vec<u8> = (0..BLOCK).map(|_| chance.next() as u8).collect();
    mem.store(0, &bytes);
    (mem, bytes)
}

/// Writes to different blocks, many at once, with `between` after each batch; then the disk is as if nothing happened.
fn load(bench: &mut Bench, node: NodeId, seed: u64, batches: u64, mut between: impl FnMut(u64)) {
    println!("seed {seed}");
    let mut chance = Chance(seed);
    let mut model = vec![0u8; SIZE as usize];
    let blocks = SIZE / BLOCK;
    for batch in 0..batches {
        let first = chance.below(blocks);
        let mut alive = Vec::new();
        for n in 0..DEPTH as u64 {
            let at = (first + n) % blocks * BLOCK;
            let (mem, bytes) = block_of(&mut chance);
            model[at as usize..][..BLOCK as usize].copy_from_slice(&bytes);
            let kind = Kind::Write(Durability::Cached);
            bench.start(node, kind, span(at, BLOCK), &mem, n);
            alive.push(mem);
        }
        between(batch);
        for _ in 0..DEPTH {
            let (token, outcome) = bench.wait();
            assert_eq!(outcome, Ok(()), "write {token} of batch {batch}");
        }
    }
    assert_eq!(bench.read(node, 0, SIZE as usize), model);
}

#[test]
fn a_server_killed_under_load_and_started_again_loses_nothing() {
    for (seed, server) in [(31, nbd::tcp()), (32, Server::Unix("/tmp/replaced".into()))] {
        let dir = tempfile::tempdir().expect("a directory");
        let disk = image(dir.path(), SIZE);
        let server = match server {
            Server::Unix(_) => nbd::unix(dir.path()),
            other => other,
        };
        let mut running = Some(serve(&server, &disk));
        let mut bench = bench();
        let node = bench.open(nbd::node(patient(&server, 60)));
        load(&mut bench, node, seed, 12, |batch| {
            if batch % 3 == 1 {
                running.take().expect("running").kill();
                running = Some(serve(&server, &disk));
            }
        });
    }
}

#[test]
fn without_patience_requests_fail_at_once_until_the_server_is_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = image(dir.path(), SIZE);
    let server = nbd::unix(dir.path());
    let running = serve(&server, &disk);
    let mut bench = bench();
    let node = bench.open(nbd::node(patient(&server, 0)));
    bench.write(node, 0, &[7; 512]).expect("written");
    running.kill();
    assert_eq!(bench.write(node, 0, &[8; 512]), Err(Errno::IO));
    assert_eq!(bench.write(node, 0, &[8; 512]), Err(Errno::IO));
    let _running = serve(&server, &disk);
    until(|| bench.write(node, 512, &[9; 512]).is_ok());
    let mut expected = vec![7; 512];
    expected.extend([9; 512]);
    assert_eq!(bench.read(node, 0, 1024), expected);
}

/// Asks again and again, since nobody says when a server is back.
fn until(mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < deadline, "it never came");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn patience_ends_and_then_requests_fail_at_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = image(dir.path(), SIZE);
    let server = nbd::unix(dir.path());
    let running = serve(&server, &disk);
    let mut bench = bench();
    let node = bench.open(nbd::node(patient(&server, 1)));
    bench.write(node, 0, &[7; 512]).expect("written");
    running.kill();
    let begun = Instant::now();
    assert_eq!(bench.write(node, 0, &[8; 512]), Err(Errno::IO));
    // It did wait: the server was gone from the beginning.
    assert!(begun.elapsed() >= Duration::from_millis(900));
    for _ in 0..100 {
        assert_eq!(bench.write(node, 0, &[8; 512]), Err(Errno::IO));
    }
    let _running = serve(&server, &disk);
    until(|| bench.write(node, 0, &[9; 512]).is_ok());
}

#[test]
fn another_export_at_the_same_place_is_not_taken_for_the_first() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = image(dir.path(), SIZE);
    let server = nbd::unix(dir.path());
    let running = serve(&server, &disk);
    let mut bench = bench();
    let node = bench.open(nbd::node(patient(&server, 1)));
    running.kill();
    let other = dir.path().join("other.raw");
    std::fs::write(&other, vec![1; 4096]).expect("written");
    let running = serve(&server, &other);
    assert_eq!(bench.write(node, 0, &[8; 512]), Err(Errno::IO));
    running.kill();
    assert_eq!(std::fs::read(&other).expect("read"), vec![1; 4096]);
    let _running = serve(&server, &disk);
    until(|| bench.write(node, 0, &[9; 512]).is_ok());
}

#[test]
fn a_server_that_comes_late_is_waited_for() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = image(dir.path(), SIZE);
    let server = nbd::unix(dir.path());
    let mut options = nbd::options(&server);
    options.open_timeout = Duration::from_secs(60);
    let late = {
        let server = server.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            serve(&server, &disk)
        })
    };
    let mut bench = bench();
    let node = bench.open(nbd::node(options));
    let _running = late.join().expect("started");
    bench.write(node, 0, &[1; 512]).expect("written");
}

#[test]
fn a_server_that_never_comes_is_waited_for_no_longer_than_asked() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = nbd::unix(dir.path());
    let mut options = nbd::options(&server);
    options.open_timeout = Duration::from_secs(1);
    let mut bench = bench();
    let begun = Instant::now();
    let error = open(&bench.current, nbd::node(options), &mut bench.control);
    let error = error.expect_err("nobody there").to_string();
    assert_eq!(
        error,
        format!("Failed to connect to '{server}': No such file or directory")
    );
    // It did try for a while.
    assert!(begun.elapsed() >= Duration::from_millis(500));
}

#[test]
fn cancel_ends_what_waits_for_a_server() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = image(dir.path(), SIZE);
    let server = nbd::unix(dir.path());
    let running = serve(&server, &disk);
    let mut bench = bench();
    let node = bench.open(nbd::node(patient(&server, 3600)));
    running.kill();
    let mem = Mem::zeroed(4096).expect("memory");
    for token in 0..100 {
        bench.start(node, Kind::Read, span(0, 4096), &mem, token);
    }
    bench.pump(&mut Vec::new());
    nbd::driver(&bench, node).cancel();
    for _ in 0..100 {
        let (_, outcome) = bench.wait();
        assert_eq!(outcome, Err(Errno::IO));
    }
    let _running = serve(&server, &disk);
    until(|| bench.write(node, 0, &[9; 512]).is_ok());
}

#[test]
fn closing_takes_leave_and_does_not_wait_for_a_server_that_is_gone() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = image(dir.path(), SIZE);
    let server = nbd::unix(dir.path());
    for gone in [false, true] {
        let running = serve(&server, &disk);
        let mut bench = bench();
        let node = bench.open(nbd::node(patient(&server, 3600)));
        bench.write(node, 0, &[7; 512]).expect("written");
        if gone {
            running.kill();
        }
        let (graph, driver) = (bench.current.get(), nbd::driver(&bench, node));
        let close = |io| async move { driver.close(&io).await };
        let closed = bench.control.run(&graph, node, close);
        closed.expect("a ring").expect("closed");
        assert_eq!(bench.write(node, 0, &[8; 512]), Err(Errno::IO));
    }
}
