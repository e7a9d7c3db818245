//! Who is told when: EVENT_IDX and the flags.

use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::guest::{D, Driver, EVENTS, PLAIN, memory};
use crate::vring::{Chain, Notify, Pending, Popped, need_event};

/// The words of the specification, step by step: an index told at `event` wants to know when entry `event` is passed.
fn passes(event: u16, new: u16, old: u16) -> bool {
    let mut at = old;
    while at != new {
        if at == event {
            return true;
        }
        at = at.wrapping_add(1);
    }
    false
}

proptest! {
    #[test]
    fn an_event_is_needed_exactly_when_the_index_passes_it(old: u16, step in 0u16..600, off in -700i32..700) {
        let new = old.wrapping_add(step);
        let event = old.wrapping_add_signed(off as i16);
        prop_assert_eq!(need_event(event, new, old), passes(event, new, old));
    }

    #[test]
    fn a_publish_signals_exactly_when_the_driver_asked(
        start: u16,
        batches in prop::collection::vec((1u16..8, -10i16..10, 0u16..2), 1..20),
    ) {
        for features in [PLAIN, EVENTS] {
            let map = memory(&[(0, 0x10000)]);
            let mut driver = Driver::new(&map, 8, 0);
            driver.start_at(start);
            (0..8).for_each(|at| driver.desc(at, D(0x9000, 8, 0, 0)));
            let mut ring = driver.device(features);
            let mut first = true;
            for &(count, event, flags) in &batches {
                let old = ring.next_used();
                let event = old.wrapping_add_signed(event);
                driver.used_event().store(event, Ordering::Relaxed);
                driver.avail(0).store(flags, Ordering::Relaxed);
                serve(&mut driver, &mut ring, count);
                let asked = match features == EVENTS {
                    true => passes(event, old.wrapping_add(count), old),
                    false => flags == 0,
                };
                prop_assert_eq!(ring.publish() == Notify::Signal, asked || first);
                prop_assert_eq!(driver.used(2).load(Ordering::Relaxed), ring.next_used());
                prop_assert_eq!(ring.publish(), Notify::Quiet);
                first = false;
            }
        }
    }
}

fn serve(driver: &mut Driver, ring: &mut crate::vring::Vring, count: u16) {
    (0..count).for_each(|head| driver.offer(head));
    driver.show();
    let mut chain = Chain::new();
    for _ in 0..count {
        assert_eq!(ring.pop(&mut chain), Ok(Popped::Chain));
        ring.push(chain.head, 0);
    }
}

#[test]
fn listening_sees_what_came_before_and_asks_for_what_comes_next() {
    let map = memory(&[(0, 0x10000)]);
    for start in [0, 65535] {
        let mut driver = Driver::new(&map, 8, 0);
        driver.start_at(start);
        let mut ring = driver.device(EVENTS);
        assert_eq!(ring.listen(), Pending::Nothing);
        assert_eq!(driver.avail_event().load(Ordering::Relaxed), start);
        ring.hush();
        serve(&mut driver, &mut ring, 3);
        // The event index stays behind while hushed, so this driver would not kick again.
        let (old, new) = (start.wrapping_add(1), start.wrapping_add(3));
        let event = driver.avail_event().load(Ordering::Relaxed);
        assert!(!need_event(event, new, old));
        driver.offer(4);
        driver.show();
        assert_eq!(ring.listen(), Pending::More);
        assert_eq!(driver.avail_event().load(Ordering::Relaxed), new);
        assert_eq!(driver.used(0).load(Ordering::Relaxed), 0);
    }
}

#[test]
fn without_event_idx_a_flag_hushes_the_driver() {
    let map = memory(&[(0, 0x10000)]);
    let mut driver = Driver::new(&map, 8, 0);
    let mut ring = driver.device(PLAIN);
    ring.hush();
    assert_eq!(driver.used(0).load(Ordering::Relaxed), 1);
    assert_eq!(ring.listen(), Pending::Nothing);
    assert_eq!(driver.used(0).load(Ordering::Relaxed), 0);
    driver.offer(0);
    driver.show();
    assert_eq!(ring.listen(), Pending::More);
    assert_eq!(driver.avail_event().load(Ordering::Relaxed), 0);
}
