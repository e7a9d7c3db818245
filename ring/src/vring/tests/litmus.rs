//! Both sides store, then look: at least one must see the other, whatever the processor keeps back.

use std::sync::atomic::{AtomicU32, Ordering, fence};

use super::guest::{D, Driver, EVENTS, PLAIN, memory};
use crate::vring::{Chain, Notify, Pending, Popped, RingFeatures, Vring, need_event};

const ROUNDS: u32 = 30_000;

/// Lets two threads go at the same moment, again and again.
#[derive(Default)]
struct Gate(AtomicU32);

impl Gate {
    fn meet(&self) {
        let all = (self.0.fetch_add(1, Ordering::AcqRel) | 1) + 1;
        let mut spins = 0;
        while self.0.load(Ordering::Acquire) < all {
            std::hint::spin_loop();
            spins += 1;
            // Not a measure: the other thread has failed.
            assert!(spins < 2_000_000_000_u32, "left alone");
            if spins % 2000 == 0 {
                std::thread::yield_now();
            }
        }
    }
}

fn pause(round: u32, side: u32) {
    for _ in 0..round.wrapping_mul(side) % 37 {
        std::hint::spin_loop();
    }
}

/// Each round one chain: the device listens while the driver offers it, then publishes while the driver goes to sleep.
fn device(mut ring: Vring, gate: &Gate) -> Vec<(Pending, Notify)> {
    let mut chain = Chain::new();
    let round = |round| {
        ring.hush();
        gate.meet();
        pause(round, 7);
        let pending = ring.listen();
        gate.meet();
        assert_eq!(ring.pop(&mut chain), Ok(Popped::Chain));
        ring.push(chain.head, 0);
        gate.meet();
        pause(round, 11);
        let notify = ring.publish();
        gate.meet();
        (pending, notify)
    };
    (0..ROUNDS).map(round).collect()
}

/// The driver's side: whether it kicked, whether it found the used entry before it slept.
fn drive(driver: &mut Driver, features: RingFeatures, gate: &Gate) -> Vec<(bool, bool)> {
    let round = |round| {
        let old = driver.idx;
        driver.offer(0);
        gate.meet();
        pause(round, 5);
        driver.show();
        let kick = match features == EVENTS {
            true => need_event(
                driver.avail_event().load(Ordering::Relaxed),
                driver.idx,
                old,
            ),
            false => driver.used(0).load(Ordering::Relaxed) == 0,
        };
        driver.avail(0).store(1, Ordering::Relaxed);
        gate.meet();
        let seen = driver.used_seen;
        gate.meet();
        pause(round, 3);
        driver.avail(0).store(0, Ordering::Relaxed);
        driver.used_event().store(seen, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let found = driver.used(2).load(Ordering::Acquire) != seen;
        gate.meet();
        assert_eq!(driver.take_used(), Some((0, 0)));
        (kick, found)
    };
    (0..ROUNDS).map(round).collect()
}

#[test]
fn of_two_that_store_and_look_one_sees_the_other() {
    for features in [EVENTS, PLAIN] {
        let map = memory(&[(0, 0x10000)]);
        let mut driver = Driver::new(&map, 4, 0);
        driver.desc(0, D(0x9000, 8, 0, 0));
        let ring = driver.device(features);
        let gate = Gate::default();
        let (ours, theirs) = std::thread::scope(|scope| {
            let device = scope.spawn(|| device(ring, &gate));
            (drive(&mut driver, features, &gate), device.join().unwrap())
        });
        for (round, ((kick, found), (pending, notify))) in ours.into_iter().zip(theirs).enumerate()
        {
            assert!(kick || pending == Pending::More, "no kick in round {round}");
            assert!(
                found || notify == Notify::Signal,
                "no call in round {round}"
            );
        }
    }
}
