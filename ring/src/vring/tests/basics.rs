//! Legal chains, one behaviour at a time.

use std::sync::Arc;

use super::guest::{D, Driver, INDIRECT, NEXT, PLAIN, WRITE, memory, write};
use crate::vring::{Chain, Notify, Popped, RingError, Shape};

#[test]
fn a_chain_arrives_with_its_parts_in_order() {
    let map = memory(&[(0, 0x10000), (0x100000, 0x4000)]);
    let mut driver = Driver::new(&map, 8, 0);
    let mut ring = driver.device(PLAIN);
    driver.desc(3, D(0x8000, 16, NEXT, 1));
    driver.desc(1, D(0x100000, 4096, NEXT | WRITE, 7));
    driver.desc(7, D(0x9000, 1, WRITE, 0));
    driver.offer(3);
    let mut chain = Chain::new();
    assert_eq!(ring.pop(&mut chain), Ok(Popped::Empty));
    driver.show();
    assert!(ring.has_work());
    assert_eq!(ring.pop(&mut chain), Ok(Popped::Chain));
    assert_eq!((chain.head, chain.shape), (3, Shape::Proper));
    assert_eq!((chain.readable_bytes, chain.writable_bytes), (16, 4097));
    assert_eq!(
        chain.readable[0].host(),
        map.contiguous(0x8000, 16).unwrap().host()
    );
    assert_eq!(
        chain.writable[0].host(),
        map.contiguous(0x100000, 1).unwrap().host()
    );
    assert_eq!(chain.writable[1].len(), 1);
    assert_eq!((ring.in_flight(), ring.next_avail()), (1, 1));
    assert_eq!(ring.pop(&mut Chain::new()), Ok(Popped::Empty));
    ring.push(3, 4097);
    assert_eq!(driver.take_used(), None);
    assert_eq!(ring.publish(), Notify::Signal);
    assert_eq!(driver.take_used(), Some((3, 4097)));
    assert_eq!((ring.in_flight(), ring.next_used()), (0, 1));
    assert_eq!(ring.publish(), Notify::Quiet);
}

#[test]
fn an_indirect_table_follows_direct_descriptors_and_may_cross_regions_at_any_byte() {
    for border in 0x8000 - 40..=0x8000 {
        let map = memory(&[(0, 0x8000), (0x8000, 0x8000)]);
        let mut driver = Driver::new(&map, 4, 0);
        let mut ring = driver.device(PLAIN);
        let table = [
            // Data that crosses the border, under the table: it is not looked at.
            D(0x7ff0, 0x20, NEXT, 2),
            D(0, 0, 0, 0),
            D(0xa000, 512, WRITE, 9),
        ];
        let bytes: Vec<u8> = table.iter().flat_map(|d| d.bytes()).collect();
        write(&map, border, &bytes);
        driver.desc(0, D(0x9000, 8, NEXT, 1));
        driver.desc(1, D(border, 48, INDIRECT | WRITE, 0));
        driver.offer(0);
        driver.show();
        let mut chain = Chain::new();
        assert_eq!(ring.pop(&mut chain), Ok(Popped::Chain));
        assert_eq!((chain.readable_bytes, chain.writable_bytes), (40, 512));
        let lens: Vec<usize> = chain.readable.iter().map(|seg| seg.len()).collect();
        assert_eq!(lens, [8, 16, 16]);
        ring.push(0, 0);
    }
}

#[test]
fn an_abandoned_chain_is_out_of_flight_and_the_driver_hears_nothing() {
    let map = memory(&[(0, 0x10000)]);
    let mut driver = Driver::new(&map, 4, 0);
    driver.desc(0, D(0x9000, 8, 0, 0));
    let mut ring = driver.device(PLAIN);
    driver.offer(0);
    driver.show();
    let mut chain = Chain::new();
    assert_eq!(ring.pop(&mut chain), Ok(Popped::Chain));
    ring.abandon(0);
    assert_eq!((ring.in_flight(), ring.publish()), (0, Notify::Quiet));
    assert_eq!(driver.take_used(), None);
}

#[test]
fn a_ring_moves_to_another_map_only_when_drained() {
    let map = memory(&[(0, 0x10000)]);
    let mut driver = Driver::new(&map, 4, 0);
    driver.desc(0, D(0x9000, 8, 0, 0));
    let mut ring = driver.device(PLAIN);
    driver.offer(0);
    driver.show();
    assert_eq!(ring.pop(&mut Chain::new()), Ok(Popped::Chain));
    let (good, small) = (memory(&[(0, 0x20000)]), memory(&[(0, 0x1000)]));
    let busy = ring.remap(Arc::clone(&good));
    assert_eq!(busy, Err(RingError::InFlight { count: 1 }));
    ring.push(0, 0);
    assert!(matches!(ring.remap(small), Err(RingError::Extent { .. })));
    assert!(Arc::ptr_eq(ring.map(), &map));
    assert_eq!(ring.remap(Arc::clone(&good)), Ok(()));
    assert!(Arc::ptr_eq(ring.map(), &good));
    drop(ring);
    assert_eq!(Arc::strong_count(&good), 1);
}

#[test]
fn a_ring_dropped_with_chains_in_flight_keeps_their_memory() {
    let map = memory(&[(0, 0x10000)]);
    let mut driver = Driver::new(&map, 4, 0);
    driver.desc(0, D(0x9000, 8, 0, 0));
    let mut ring = driver.device(PLAIN);
    driver.offer(0);
    driver.show();
    let mut chain = Chain::new();
    assert_eq!(ring.pop(&mut chain), Ok(Popped::Chain));
    drop((ring, driver));
    assert_eq!(Arc::strong_count(&map), 2);
    drop(map);
    assert_eq!(chain.readable[0].load(&mut [0; 8]), 8);
}
