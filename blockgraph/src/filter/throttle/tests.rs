//! Groups against a clock of the test's own: rates, bursts and fairness.
//!
//! Clients keep a number of requests outstanding that take no time once they have passed, which is as much as any client
//! can ask for. What passes in ten seconds is compared with QEMU's model: what the bucket holds, and what leaks out of it.

use super::bucket::ticks;
use super::group::{Group, Place, token};
use super::line::{Step, Token};
use super::{Limits, Rate};
use crate::clock;
use crate::request::Dir;
use crate::units::Span;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};
use std::thread::ThreadId;

const S: u64 = 1_000_000_000;

#[derive(Debug, Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Somebody who asks without end.
#[derive(Clone, Copy)]
struct Client {
    member: u64,
    thread: ThreadId,
    dir: Dir,
    len_bytes: u64,
    depth: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Passed {
    requests: u64,
    bytes: u64,
}

/// A request of a client that waits.
struct Waiting<'a> {
    client: usize,
    place: Place<'a>,
    flag: Arc<Flag>,
    waker: Waker,
}

struct World<'a> {
    group: &'a Group,
    clients: Vec<Client>,
    passed: Vec<Passed>,
    waiting: Vec<Waiting<'a>>,
    now_ns: u64,
}

impl<'a> World<'a> {
    fn new(group: &'a Group, clients: &[Client], now_ns: u64) -> World<'a> {
        World {
            group,
            clients: clients.to_vec(),
            passed: vec![Passed::default(); clients.len()],
            waiting: Vec::new(),
            now_ns,
        }
    }

    fn token(&self, client: usize) -> Token {
        let Client {
            thread,
            dir,
            len_bytes: len,
            ..
        } = self.clients[client];
        let span = Span { at: 0, len };
        Token { thread, dir, span }
    }

    /// Asks until it has to wait.
    fn ask(&mut self, client: usize) {
        let token = self.token(client);
        for _ in 0..10_000_000 {
            if !self.group.ready(token.dir, token.span) {
                return self.wait(client, token);
            }
            self.group.begin(token.dir, token.span);
            self.count(client);
        }
        panic!("nothing limits it");
    }

    fn wait(&mut self, client: usize, token: Token) {
        let flag = Arc::new(Flag::default());
        flag.0.store(true, Ordering::SeqCst);
        let waker = Waker::from(flag.clone());
        let place = self.group.enter(self.clients[client].member, token, &waker);
        self.waiting.push(Waiting {
            client,
            place,
            flag,
            waker,
        });
    }

    fn count(&mut self, client: usize) {
        self.passed[client].requests += 1;
        self.passed[client].bytes += self.clients[client].len_bytes;
    }

    /// Polls whoever was woken; answers when the keeper wants to be polled again.
    fn poll(&mut self) -> Option<u64> {
        let mut until = None;
        while let Some(at) = self.woken() {
            let waiting = &mut self.waiting[at];
            waiting.flag.0.store(false, Ordering::SeqCst);
            match waiting.place.step(ticks(self.now_ns), &waiting.waker) {
                Step::Wait => {}
                Step::Keep(tick) => until = Some((at, tick.div_ceil(16))),
                Step::Go => {
                    let client = waiting.client;
                    drop(self.waiting.remove(at));
                    self.begin(client);
                    self.ask(client);
                }
            }
        }
        let (_, ns) = until?;
        Some(ns)
    }

    /// As the thread that waited.
    fn begin(&mut self, client: usize) {
        let token = self.token(client);
        self.group.begin_as(token);
        self.count(client);
    }

    fn woken(&self) -> Option<usize> {
        let mut all = self.waiting.iter();
        all.position(|waiting| waiting.flag.0.load(Ordering::SeqCst))
    }

    /// Lets all ask for `ns`. Timers are late by up to a tenth of a millisecond.
    fn run(&mut self, ns: u64) {
        let end = self.now_ns + ns;
        clock::goes_on(Some(self.now_ns));
        for client in 0..self.clients.len() {
            let depth = self.clients[client].depth;
            let has = self.waiting.iter().filter(|w| w.client == client).count();
            (has..depth).for_each(|_| self.ask(client));
        }
        let mut late = 0;
        loop {
            let keeper = self.poll().expect("somebody keeps the time");
            late = (late * 7919 + 31) % 100_000;
            self.now_ns = keeper.max(self.now_ns) + late;
            if self.now_ns >= end {
                self.now_ns = end;
                return;
            }
            clock::goes_on(Some(self.now_ns));
            self.waiting.iter().for_each(|w| w.waker.wake_by_ref());
        }
    }
}

fn rate(avg: u64, max: u64, max_length_s: u64) -> Rate {
    Rate {
        avg,
        max,
        max_length_s,
    }
}

fn threads<const N: usize>() -> [ThreadId; N] {
    std::array::from_fn(|_| {
        let thread = std::thread::spawn(|| std::thread::current().id());
        thread.join().expect("no panic")
    })
}

fn client(dir: Dir, len_bytes: u64) -> Client {
    Client {
        member: 0,
        thread: std::thread::current().id(),
        dir,
        len_bytes,
        depth: 8,
    }
}

fn ten_seconds(limits: Limits, clients: &[Client]) -> Vec<Passed> {
    let group = Group::new("g", limits).expect("limits");
    let mut world = World::new(&group, clients, 5 * S);
    world.run(10 * S);
    world.passed.clone()
}

fn assert_near(what: &str, got: u64, wanted: u64, per_cent: u64) {
    let off = got.abs_diff(wanted);
    assert!(
        off * 100 <= wanted * per_cent,
        "{what}: {got} instead of {wanted}"
    );
}

/// What ten seconds of a rate let through: what the bucket holds, and what leaks.
fn model(rate: Rate) -> u64 {
    let held = match rate.max {
        0 => rate.avg / 10,
        max => max * rate.max_length_s,
    };
    let average = held + rate.avg * 10;
    let burst = rate.max / 10 + rate.max * 10;
    if rate.max_length_s > 1 {
        average.min(burst)
    } else {
        average
    }
}

const SHAPES: [(u64, u64, u64); 7] = [
    (1000, 0, 1),
    (1000, 1000, 1),
    (1000, 5000, 1),
    (1000, 4000, 3),
    (1000, 2000, 20),
    (200, 3000, 2),
    (50_000, 100_000, 1),
];

#[test]
fn each_limit_and_burst_lets_through_what_it_says() {
    for (avg, max, length) in SHAPES {
        for (read, write) in [(true, true), (true, false), (false, true)] {
            let iops = rate(avg, max, length);
            let bps = rate(avg * 4096, max * 4096, length);
            let mut by_ops = Limits::default();
            let mut by_bytes = Limits::default();
            match (read, write) {
                (true, true) => (by_ops.iops_total, by_bytes.bps_total) = (iops, bps),
                (true, _) => (by_ops.iops_read, by_bytes.bps_read) = (iops, bps),
                _ => (by_ops.iops_write, by_bytes.bps_write) = (iops, bps),
            }
            let mut clients = Vec::new();
            clients.extend(read.then(|| client(Dir::Read, 4096)));
            clients.extend(write.then(|| client(Dir::Write, 4096)));
            let what = format!("{avg} {max} {length} {read} {write}");
            let passed = ten_seconds(by_ops, &clients);
            let requests = passed.iter().map(|p| p.requests).sum();
            assert_near(&what, requests, model(iops), 5);
            let passed = ten_seconds(by_bytes, &clients);
            let bytes = passed.iter().map(|p| p.bytes).sum();
            assert_near(&what, bytes, model(bps), 5);
        }
    }
}

#[test]
fn reads_and_writes_have_limits_of_their_own() {
    let limits = Limits {
        bps_read: rate(1 << 20, 0, 1),
        iops_write: rate(100, 0, 1),
        ..Limits::default()
    };
    let clients = [client(Dir::Read, 65536), client(Dir::Write, 4096)];
    let passed = ten_seconds(limits, &clients);
    assert_near("read", passed[0].bytes, 10 << 20, 5);
    assert_near("write", passed[1].requests, 1000, 5);
}

#[test]
fn one_direction_without_a_limit_is_not_held_up_by_the_other() {
    let limits = Limits {
        bps_write: rate(1000, 0, 1),
        ..Limits::default()
    };
    let group = Group::new("g", limits).expect("limits");
    let mut world = World::new(&group, &[client(Dir::Write, 4096)], 0);
    world.run(S);
    let span = Span {
        at: 0,
        len: 1 << 30,
    };
    assert!(group.ready(Dir::Read, span) && !group.ready(Dir::Write, span));
}

#[test]
fn reads_and_writes_share_a_total_evenly() {
    let limits = Limits {
        iops_total: rate(1000, 0, 1),
        ..Limits::default()
    };
    let mut writes = client(Dir::Write, 4096);
    writes.depth = 64;
    let passed = ten_seconds(limits, &[client(Dir::Read, 4096), writes]);
    assert_near("reads", passed[0].requests, passed[1].requests, 10);
}

#[test]
fn a_large_operation_counts_as_several() {
    for (len, size, wanted) in [
        (65536, 16384, 250),
        (4096, 16384, 1000),
        (24576, 16384, 667),
        (65536, 0, 1000),
        (65536, u64::MAX, 1000),
    ] {
        let limits = Limits {
            iops_total: rate(100, 0, 1),
            iops_size: size,
            ..Limits::default()
        };
        let passed = ten_seconds(limits, &[client(Dir::Read, len)]);
        assert_near("requests", passed[0].requests, wanted, 5);
    }
}

#[test]
fn members_and_threads_share_evenly_however_much_they_ask_for() {
    let [a, b, c] = threads();
    for limits in [
        Limits {
            iops_total: rate(500, 0, 1),
            ..Limits::default()
        },
        Limits {
            bps_total: rate(500 * 4096, 1000 * 4096, 2),
            ..Limits::default()
        },
    ] {
        let one = |member, thread, depth| Client {
            member,
            thread,
            depth,
            ..client(Dir::Read, 4096)
        };
        // Two queues of one member.
        let passed = ten_seconds(limits, &[one(0, a, 1), one(0, b, 64)]);
        assert_near("queues", passed[0].requests, passed[1].requests, 10);
        // Two members, one with two queues.
        let passed = ten_seconds(limits, &[one(0, a, 4), one(1, b, 64), one(1, c, 16)]);
        let other = passed[1].requests + passed[2].requests;
        assert_near("members", passed[0].requests, other, 10);
        assert_near("queues", passed[1].requests, passed[2].requests, 10);
    }
}

#[test]
fn a_change_of_limits_takes_effect_at_once_and_frees_those_who_wait() {
    let limits = |avg| Limits {
        iops_total: rate(avg, 0, 1),
        ..Limits::default()
    };
    let group = Group::new("g", limits(100)).expect("limits");
    let mut world = World::new(&group, &[client(Dir::Read, 4096)], 7 * S);
    world.run(5 * S);
    let before = world.passed[0].requests;
    assert_near("before", before, 510, 5);
    group.set_limits(limits(2000)).expect("limits");
    world.run(5 * S);
    assert_near("after", world.passed[0].requests - before, 10_200, 5);
    assert!(group.set_limits(limits(u64::MAX)).is_err());
    assert_eq!(group.limits(), limits(2000), "the old ones stay");
    group.set_limits(Limits::default()).expect("limits");
    // Whoever waits is let go by the first who looks.
    let waiting = std::mem::take(&mut world.waiting);
    let now = ticks(world.now_ns);
    for mut waiting in waiting {
        assert_eq!(waiting.place.step(now, &waiting.waker), Step::Go);
        drop(waiting.place);
        group.begin_as(world.token(0));
    }
    assert!(group.ready(Dir::Read, Span { at: 0, len: 1 }));
}

/// A request that was let pass and then given up must not be missing from the others' share, nor stop them.
#[test]
fn who_gives_up_holds_up_nobody() {
    let limits = Limits {
        iops_total: rate(10, 0, 1),
        ..Limits::default()
    };
    let group = Group::new("g", limits).expect("limits");
    clock::goes_on(Some(S));
    let span = Span { at: 0, len: 512 };
    for _ in 0..2 {
        assert!(group.ready(Dir::Read, span));
        group.begin(Dir::Read, span);
    }
    let flags: [Arc<Flag>; 3] = std::array::from_fn(|_| Arc::default());
    let wakers = flags.clone().map(Waker::from);
    let [mut first, mut second, mut third] =
        std::array::from_fn(|n| group.enter(0, token(Dir::Read, span), &wakers[n]));
    let until = ticks(S + S / 10);
    assert_eq!(first.step(ticks(S), &wakers[0]), Step::Keep(until));
    assert_eq!(second.step(ticks(S), &wakers[1]), Step::Wait);
    assert_eq!(third.step(ticks(S), &wakers[2]), Step::Wait);
    drop(first);
    assert!(flags[1].0.swap(false, Ordering::SeqCst), "a new keeper");
    assert_eq!(second.step(until, &wakers[1]), Step::Go);
    assert!(flags[2].0.swap(false, Ordering::SeqCst));
    clock::goes_on(Some(S + S / 10));
    assert!(group.ready(Dir::Read, span), "the thread has its token");
    group.begin(Dir::Read, span);
    assert!(!group.ready(Dir::Read, span), "the third is in front");
    drop(second);
    drop(third);
    assert!(!group.ready(Dir::Read, span), "the bucket is full");
    clock::goes_on(Some(2 * S));
    assert!(group.ready(Dir::Read, span));
}

#[test]
fn no_limits_let_everything_pass_and_remember_nothing() {
    let group = Group::new("g", Limits::default()).expect("limits");
    let span = Span {
        at: 0,
        len: u64::MAX >> 1,
    };
    for _ in 0..100 {
        assert!(group.ready(Dir::Write, span));
        group.begin(Dir::Write, span);
    }
    let limits = Limits {
        bps_total: rate(1, 0, 1),
        ..Limits::default()
    };
    group.set_limits(limits).expect("limits");
    assert!(group.ready(Dir::Write, span));
}
