//! Devices that are killed and followed by others: every request is answered once, whenever that was.
//!
//! A kill is a region as it was a store earlier, or a ring dropped as it is; what another process sees is memory alone.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::guest::{D, Driver, EVENTS, PLAIN, WRITE, memory, write};
use crate::vring::{Chain, GuestMap, Inflight, Popped, RingError, SharedWords, Vring};

const SIZE: u16 = 8;
const BYTES: u64 = 16 + 16 * 8;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

fn region() -> Arc<GuestMap> {
    memory(&[(0, BYTES)])
}

fn bytes(region: &GuestMap) -> Vec<u8> {
    let seg = region.contiguous(0, BYTES as u32).unwrap();
    let mut bytes = vec![0; BYTES as usize];
    assert_eq!(seg.load(&mut bytes), bytes.len());
    bytes
}

/// The next process's device.
fn device(driver: &Driver, region: &Arc<GuestMap>) -> Vring {
    // The front end knows no better than the used index.
    let base = driver.used(2).load(std::sync::atomic::Ordering::Relaxed);
    let map = Arc::clone(&driver.map);
    let mut ring = Vring::new(map, &driver.layout, PLAIN, base).unwrap();
    let inflight = Inflight::new(Arc::clone(region), 0, SIZE).unwrap();
    ring.track(inflight).unwrap();
    ring
}

fn pop(ring: &mut Vring) -> Option<u16> {
    let mut chain = Chain::new();
    match ring.pop(&mut chain).unwrap() {
        Popped::Chain => Some(chain.head),
        Popped::Empty => None,
    }
}

fn pop_all(ring: &mut Vring) -> Vec<u16> {
    std::iter::from_fn(|| pop(ring)).collect()
}

fn offering(heads: &[u16]) -> Driver {
    let map = memory(&[(0, 0x10000)]);
    let mut driver = Driver::new(&map, SIZE, 0);
    (0..SIZE).for_each(|at| driver.desc(at, D(0x8000, 16, WRITE, 0)));
    heads.iter().for_each(|head| driver.offer(*head));
    driver.show();
    driver
}

#[test]
fn what_was_in_flight_is_popped_again_in_its_order_and_first() {
    let (mut driver, region) = (offering(&[5, 2, 7]), region());
    let mut first = device(&driver, &region);
    assert_eq!(pop_all(&mut first), [5, 2, 7]);
    first.push(2, 16);
    let _ = first.publish();
    driver.offer(0);
    driver.show();
    let mut second = device(&driver, &region);
    assert!(second.has_work());
    assert_eq!(pop_all(&mut second), [5, 7, 0]);
    assert_eq!((second.next_avail(), second.in_flight()), (4, 3));
    for head in [7, 0, 5] {
        second.push(head, 0);
    }
    let _ = second.publish();
    let used: Vec<u32> = std::iter::from_fn(|| driver.take_used())
        .map(|used| used.0)
        .collect();
    assert_eq!(used, [2, 7, 0, 5]);
    assert_eq!(pop_all(&mut device(&driver, &region)), [0; 0]);
}

#[test]
fn answers_that_the_guest_has_not_seen_are_given_again() {
    let (mut driver, region) = (offering(&[1, 3]), region());
    let mut first = device(&driver, &region);
    pop_all(&mut first);
    first.push(3, 16);
    first.push(1, 16);
    // Killed before it published.
    let mut second = device(&driver, &region);
    assert_eq!(driver.take_used(), None);
    assert_eq!(pop_all(&mut second), [1, 3]);
}

#[test]
fn answers_that_the_guest_sees_are_not_given_again_wherever_the_device_was_killed() {
    // How many of the stores after the index were made: flags, then the index in the region.
    for made in 0..=3 {
        let (mut driver, region) = (offering(&[1, 3, 6]), region());
        let mut first = device(&driver, &region);
        pop_all(&mut first);
        first.push(3, 16);
        first.push(6, 16);
        let before = bytes(&region);
        let _ = first.publish();
        let after = bytes(&region);
        let mut killed = before.clone();
        let changed: Vec<usize> = (0..killed.len())
            .filter(|at| before[*at] != after[*at])
            .collect();
        assert_eq!(changed.len(), 3, "two flags and the index");
        // The newest answer's flag goes first; the index is in the header.
        let order = [changed[2], changed[1], changed[0]];
        order[..made].iter().for_each(|at| killed[*at] = after[*at]);
        write(&region, 0, &killed);
        // The guest uses a head again at once.
        while driver.take_used().is_some() {}
        driver.offer(6);
        driver.show();
        let mut second = device(&driver, &region);
        assert_eq!(pop_all(&mut second), [1, 6], "{made} stores");
        assert_eq!(bytes(&region)[16 + 3 * 16], 0, "no longer in flight");
    }
}

#[test]
fn a_ring_that_began_anew_has_nothing_in_flight() {
    let (driver, region) = (offering(&[1, 3]), region());
    pop_all(&mut device(&driver, &region));
    // Another driver, further on than one batch.
    let mut other = offering(&[]);
    other.start_at(1000);
    let mut ring = device(&other, &region);
    assert_eq!((pop(&mut ring), ring.next_avail()), (None, 1000));
    other.offer(4);
    other.show();
    assert_eq!(pop_all(&mut ring), [4]);
    assert_eq!(pop_all(&mut device(&other, &region)), [4]);
}

#[test]
fn a_ring_that_was_stopped_begins_where_it_is_told_to() {
    let (mut driver, region) = (offering(&[1, 3]), region());
    let mut ring = device(&driver, &region);
    pop_all(&mut ring);
    ring.push(3, 0);
    ring.push(1, 0);
    let _ = ring.publish();
    ring.untrack();
    // The driver begins anew, not far from where it was.
    driver.start_at(0);
    let mut ring = device(&driver, &region);
    assert_eq!((pop(&mut ring), ring.next_avail()), (None, 0));
    driver.offer(5);
    driver.show();
    assert_eq!(pop_all(&mut ring), [5]);
    // Not if something is in flight.
    ring.untrack();
    assert_eq!(pop_all(&mut device(&driver, &region)), [5]);
}

#[test]
fn a_ring_larger_than_its_region_is_refused() {
    let driver = offering(&[]);
    let mut ring = driver.device(PLAIN);
    let small = Inflight::new(region(), 0, SIZE / 2).unwrap();
    let refused = ring.track(small).unwrap_err();
    assert_eq!(refused, RingError::Untracked { size: SIZE });
    assert!(Inflight::new(region(), 8, SIZE).is_err());
    assert!(Inflight::new(region(), 0, u16::MAX).is_err());
    assert!(Inflight::new(region(), u64::MAX, 1).is_err());
}

/// Requests come and go, devices are killed anywhere between their calls.
#[test]
fn every_request_is_answered_once_by_some_device() {
    for seed in 1..200 {
        let mut random = Random(seed);
        let (mut driver, region) = (offering(&[]), region());
        driver.start_at(u16::MAX - 20);
        let mut ring = device(&driver, &region);
        let mut free: Vec<u16> = (0..SIZE).collect();
        let mut asked = BTreeSet::new();
        let mut held: Vec<u16> = Vec::new();
        let mut answers = 0;
        for _ in 0..400 {
            match random.below(8) {
                0 | 1 if !free.is_empty() => {
                    let head = free.swap_remove(random.below(free.len() as u64) as usize);
                    driver.offer(head);
                    driver.show();
                    asked.insert(head);
                }
                2 | 3 => held.extend(pop(&mut ring)),
                4 | 5 if !held.is_empty() => {
                    let head = held.swap_remove(random.below(held.len() as u64) as usize);
                    ring.push(head, 0);
                }
                6 => drop(ring.publish()),
                7 if random.below(3) == 0 => {
                    ring = device(&driver, &region);
                    held.clear();
                }
                _ => {}
            }
            while let Some((head, _)) = driver.take_used() {
                assert!(
                    asked.remove(&(head as u16)),
                    "seed {seed}: {head} answered twice"
                );
                free.push(head as u16);
                answers += 1;
            }
        }
        held.extend(pop_all(&mut ring));
        held.drain(..).for_each(|head| ring.push(head, 0));
        let _ = ring.publish();
        while let Some((head, _)) = driver.take_used() {
            assert!(
                asked.remove(&(head as u16)),
                "seed {seed}: {head} answered twice"
            );
        }
        assert!(asked.is_empty(), "seed {seed}: {asked:?} were lost");
        assert!(answers > 10);
    }
}

#[test]
fn a_region_full_of_garbage_costs_nothing_but_its_ring() {
    for seed in 1..2000 {
        let mut random = Random(seed);
        let (driver, region) = (offering(&[1, 3]), region());
        let mut garbage: Vec<u8> = (0..BYTES).map(|_| random.below(256) as u8).collect();
        // One that is believed.
        garbage[8..10].copy_from_slice(&1u16.to_ne_bytes());
        garbage[10..12].copy_from_slice(&SIZE.to_ne_bytes());
        garbage[14..16].copy_from_slice(&(random.below(9) as u16).wrapping_neg().to_ne_bytes());
        write(&region, 0, &garbage);
        let map = Arc::clone(&driver.map);
        let mut ring = Vring::new(map, &driver.layout, EVENTS, 0).unwrap();
        ring.track(Inflight::new(region, 0, SIZE).unwrap()).unwrap();
        for _ in 0..20 {
            let mut chain = Chain::new();
            match ring.pop(&mut chain) {
                Ok(Popped::Chain) => ring.push(chain.head, 0),
                Ok(Popped::Empty) | Err(_) => break,
            }
            let _ = ring.publish();
        }
    }
}

#[test]
fn words_are_kept_inside_and_nothing_is_outside() {
    let map = memory(&[(0, 64)]);
    let words = SharedWords::new(map.clone(), 8, 3).expect("there");
    (0..5).for_each(|at| words.set(at, 100 + at as u64));
    let read: Vec<u64> = (0..5).map(|at| words.get(at)).collect();
    assert_eq!(read, [100, 101, 102, 0, 0]);
    let all = SharedWords::new(map.clone(), 0, 8).expect("there");
    assert_eq!((all.get(0), all.get(1), all.get(4)), (0, 100, 0));
    for (at, count) in [(0, 9), (8, 8), (4, 1), (1 << 40, 1), (0, u32::MAX)] {
        assert!(SharedWords::new(map.clone(), at, count).is_none());
    }
}
