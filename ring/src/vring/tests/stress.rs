//! A driver thread and a device thread that suppress each other's notifications: no wake-up is lost.

use std::sync::{Condvar, Mutex};
use std::time::Duration;

use std::sync::atomic::{Ordering, fence};

use super::guest::{D, Driver, EVENTS, PLAIN, memory};
use crate::vring::{Chain, Notify, Pending, Popped, RingFeatures, Vring, need_event};

const CHAINS: u32 = 4000;
/// Not a measure: a wait this long means the wake-up was lost.
const LOST: Duration = Duration::from_secs(30);

/// An eventfd without the file.
#[derive(Default)]
struct Event {
    count: Mutex<u32>,
    changed: Condvar,
}

impl Event {
    fn signal(&self) {
        *self.count.lock().unwrap() += 1;
        self.changed.notify_one();
    }

    fn wait(&self, who: &str) {
        let count = self.count.lock().unwrap();
        let (mut count, timeout) = self
            .changed
            .wait_timeout_while(count, LOST, |count| *count == 0)
            .unwrap();
        assert!(!timeout.timed_out(), "{who} was never woken");
        *count = 0;
    }
}

/// Numbers from a seed, and how long a pause may be: short ones make the two threads meet within a store's delay.
struct Random(u64, u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    /// Shifts the two threads against each other.
    fn dawdle(&mut self) {
        for _ in 0..self.below(self.1) {
            std::hint::spin_loop();
        }
        if self.below(64) == 0 {
            std::thread::yield_now();
        }
    }
}

fn device(mut ring: Vring, kick: &Event, call: &Event, mut random: Random) {
    let mut chain = Chain::new();
    let mut done = 0;
    while done < CHAINS {
        let mut batch = random.below(5);
        while batch > 0 && ring.pop(&mut chain).unwrap() == Popped::Chain {
            ring.push(chain.head, done);
            done += 1;
            batch -= 1;
        }
        random.dawdle();
        if ring.publish() == Notify::Signal {
            call.signal();
        }
        if batch > 0 && done < CHAINS && ring.listen() == Pending::Nothing {
            kick.wait("the device");
            ring.hush();
        }
    }
}

fn wants_kick(driver: &Driver, features: RingFeatures, old: u16) -> bool {
    match features == EVENTS {
        true => need_event(
            driver.avail_event().load(Ordering::Relaxed),
            driver.idx,
            old,
        ),
        false => driver.used(0).load(Ordering::Relaxed) == 0,
    }
}

/// Takes what is used and, if nothing is, sleeps until it is.
fn reap(driver: &mut Driver, free: &mut Vec<u16>, expected: &mut u32, call: &Event) {
    loop {
        while let Some((head, len)) = driver.take_used() {
            assert_eq!(len, *expected, "used entries come in order");
            *expected += 1;
            free.push(head as u16);
        }
        if !free.is_empty() {
            driver.avail(0).store(1, Ordering::Relaxed);
            return;
        }
        driver.avail(0).store(0, Ordering::Relaxed);
        driver
            .used_event()
            .store(driver.used_seen, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if driver.used(2).load(Ordering::Acquire) == driver.used_seen {
            call.wait("the driver");
        }
    }
}

fn drive(
    driver: &mut Driver,
    features: RingFeatures,
    (kick, call): (&Event, &Event),
    mut random: Random,
) {
    let mut free: Vec<u16> = (0..driver.layout.size).collect();
    let (mut offered, mut used) = (0, 0);
    while offered < CHAINS {
        if free.is_empty() {
            reap(driver, &mut free, &mut used, call);
        }
        let old = driver.idx;
        let batch = 1 + random.below(3).min(u64::from(CHAINS - offered - 1));
        for _ in 0..batch {
            let Some(head) = free.pop() else { break };
            driver.offer(head);
            offered += 1;
        }
        driver.show();
        if wants_kick(driver, features, old) {
            kick.signal();
        }
        random.dawdle();
    }
    while used < CHAINS {
        free.clear();
        reap(driver, &mut free, &mut used, call);
    }
}

fn run(seed: u64, features: RingFeatures) {
    println!("seed {seed}, {features:?}");
    let map = memory(&[(0, 0x10000)]);
    let pause = [1, 4, 20, 200][seed as usize % 4];
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, pause);
    let mut driver = Driver::new(&map, 1 << random.below(5), 0);
    driver.start_at(random.below(65536) as u16);
    (0..driver.layout.size).for_each(|at| driver.desc(at, D(0x9000, 8, 0, 0)));
    let ring = driver.device(features);
    let (kick, call) = (Event::default(), Event::default());
    let others = Random(random.below(u64::MAX) | 1, pause);
    std::thread::scope(|scope| {
        scope.spawn(|| device(ring, &kick, &call, others));
        drive(&mut driver, features, (&kick, &call), random);
    });
}

#[test]
fn no_wake_up_is_lost_between_two_threads() {
    for seed in 1..=40 {
        run(seed, EVENTS);
        run(seed, PLAIN);
    }
}
