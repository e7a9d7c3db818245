//! Every way a ring can be broken, one row each; and what looks broken but is legal.

use super::guest::{D, Driver, INDIRECT, NEXT, PLAIN, WRITE, memory, write};
use crate::vring::{
    Chain, EventIdx, Indirect, Layout, Notify, Part, Popped, RingError, RingFeatures, Shape, Vring,
};

const TABLE: u64 = 0x8000;

/// A ring of four entries, its first chain at head 0 made of `descs`, with `table` in memory.
fn popped(features: RingFeatures, descs: &[D], table: &[D]) -> (Result<Popped, RingError>, Chain) {
    let map = memory(&[(0, 0x10000)]);
    let mut driver = Driver::new(&map, 4, 0);
    for (at, &desc) in (0..).zip(descs) {
        driver.desc(at, desc);
    }
    let bytes: Vec<u8> = table.iter().flat_map(|desc| desc.bytes()).collect();
    write(&map, TABLE, &bytes);
    let mut ring = driver.device(features);
    driver.offer(0);
    driver.show();
    let mut chain = Chain::new();
    let result = ring.pop(&mut chain);
    if result == Ok(Popped::Chain) {
        ring.push(chain.head, 0);
    } else {
        assert_eq!((ring.next_avail(), ring.in_flight()), (0, 0));
        assert!(chain.readable.is_empty() && chain.writable.is_empty());
    }
    (result, chain)
}

fn broken(descs: &[D], table: &[D]) -> RingError {
    popped(PLAIN, descs, table).0.unwrap_err()
}

#[test]
fn a_broken_chain_says_what_is_wrong() {
    let head = 0;
    let data = D(0x9000, 8, 0, 0);
    let more = D(0x9000, 8, NEXT, 1);
    let at = |len| D(TABLE, len, INDIRECT, 0);
    let rows: &[(&[D], &[D], RingError)] = &[
        (
            &[D(0x9000, 8, NEXT, 4)],
            &[],
            RingError::Next {
                head,
                next: 4,
                entries: 4,
            },
        ),
        (
            &[D(0x9000, 8, NEXT, 0)],
            &[],
            RingError::TooLong { head, max: 4 },
        ),
        (
            &[more, D(0, 0, NEXT, 0)],
            &[],
            RingError::TooLong { head, max: 4 },
        ),
        (
            &[D(0xfff9, 8, 0, 0)],
            &[],
            RingError::Address {
                head,
                gpa: 0xfff9,
                len_bytes: 8,
            },
        ),
        (
            &[D(u64::MAX - 3, 8, 0, 0)],
            &[],
            RingError::Address {
                head,
                gpa: u64::MAX - 3,
                len_bytes: 8,
            },
        ),
        (
            &[D(0, u32::MAX, WRITE, 0)],
            &[],
            RingError::Address {
                head,
                gpa: 0,
                len_bytes: u32::MAX,
            },
        ),
        (
            &[D(TABLE, 16, INDIRECT | NEXT, 1), data],
            &[data],
            RingError::IndirectContinued { head },
        ),
        (
            &[at(0)],
            &[],
            RingError::IndirectLength { head, len_bytes: 0 },
        ),
        (
            &[at(24)],
            &[data],
            RingError::IndirectLength {
                head,
                len_bytes: 24,
            },
        ),
        (&[at(16)], &[at(16)], RingError::IndirectNested { head }),
        (
            &[more, at(32)],
            &[more, at(16)],
            RingError::IndirectNested { head },
        ),
        (
            &[at(32)],
            &[D(0x9000, 8, NEXT, 2)],
            RingError::Next {
                head,
                next: 2,
                entries: 2,
            },
        ),
        (
            &[at(32)],
            &[more, D(0x9000, 8, NEXT, 0)],
            RingError::TooLong { head, max: 1024 },
        ),
        (
            &[D(0x20000, 32, INDIRECT, 0)],
            &[],
            RingError::Address {
                head,
                gpa: 0x20000,
                len_bytes: 16,
            },
        ),
    ];
    for (descs, table, error) in rows {
        assert_eq!(broken(descs, table), *error, "{descs:?} {table:?}");
        assert!(!error.to_string().is_empty());
    }
}

#[test]
fn an_indirect_table_must_have_been_negotiated() {
    let off = RingFeatures {
        event_idx: EventIdx::Off,
        indirect: Indirect::Off,
    };
    let chain = [D(TABLE, 16, INDIRECT, 0)];
    let (result, _) = popped(off, &chain, &[D(0x9000, 8, 0, 0)]);
    assert_eq!(result, Err(RingError::IndirectUnexpected { head: 0 }));
}

#[test]
fn a_table_that_leaves_memory_after_its_last_used_entry_is_walked() {
    let map = memory(&[(0, 0x10000)]);
    let mut driver = Driver::new(&map, 4, 0);
    write(&map, 0xfff0, &D(0x9000, 8, 0, 0).bytes());
    driver.desc(0, D(0xfff0, 64, INDIRECT, 0));
    let mut ring = driver.device(PLAIN);
    driver.offer(0);
    driver.show();
    let mut chain = Chain::new();
    assert_eq!(ring.pop(&mut chain), Ok(Popped::Chain));
    assert_eq!(chain.readable_bytes, 8);
    ring.push(0, 0);
}

#[test]
fn chains_may_be_as_long_as_the_limit_and_no_longer() {
    let table = |len: u16| -> Vec<D> {
        let flags = |at| if at + 1 == len { 0 } else { NEXT };
        (0..len).map(|at| D(0x9000, 1, flags(at), at + 1)).collect()
    };
    let (result, chain) = popped(PLAIN, &[D(TABLE, 1024 * 16, INDIRECT, 0)], &table(1024));
    assert_eq!(result, Ok(Popped::Chain));
    assert_eq!(chain.readable.len(), 1024);
    let too_long = broken(&[D(TABLE, 1025 * 16, INDIRECT, 0)], &table(1025));
    assert_eq!(too_long, RingError::TooLong { head: 0, max: 1024 });
    // The direct part counts.
    let direct = [D(0x9000, 1, NEXT, 1), D(TABLE, 1024 * 16, INDIRECT, 0)];
    let too_long = broken(&direct, &table(1024));
    assert_eq!(too_long, RingError::TooLong { head: 0, max: 1024 });
}

#[test]
fn a_chain_in_the_wrong_order_is_one_bad_request_and_not_a_broken_ring() {
    let (result, chain) = popped(
        PLAIN,
        &[D(0x9000, 1, WRITE | NEXT, 1), D(0x9000, 16, 0, 0)],
        &[],
    );
    assert_eq!(result, Ok(Popped::Chain));
    assert_eq!(chain.shape, Shape::ReadableAfterWritable);
    assert_eq!((chain.readable_bytes, chain.writable_bytes), (16, 1));
}

#[test]
fn empty_descriptors_are_skipped_wherever_they_point() {
    let (result, chain) = popped(
        PLAIN,
        &[
            D(u64::MAX, 0, WRITE | NEXT, 1),
            D(0x9000, 16, NEXT, 2),
            D(0, 0, WRITE, 0),
        ],
        &[],
    );
    assert_eq!(result, Ok(Popped::Chain));
    assert_eq!(chain.shape, Shape::Proper);
    assert_eq!((chain.readable.len(), chain.writable.len()), (1, 0));
}

#[test]
fn a_chain_scattered_over_too_many_regions_is_refused() {
    // Eight regions of two bytes: each descriptor of 16 bytes becomes eight segments.
    let places: Vec<(u64, u64)> = (0..8).map(|at| (0x10000 + at * 2, 2)).collect();
    let map = memory(&[&[(0, 0x10000)], &places[..]].concat());
    let mut driver = Driver::new(&map, 4, 0);
    let table: Vec<u8> = (0..1024)
        .flat_map(|at| D(0x10000, 16, if at == 1023 { 0 } else { NEXT }, at + 1).bytes())
        .collect();
    write(&map, TABLE, &table);
    driver.desc(0, D(TABLE, 1024 * 16, INDIRECT, 0));
    let mut ring = driver.device(PLAIN);
    driver.offer(0);
    driver.show();
    let result = ring.pop(&mut Chain::new());
    assert_eq!(result, Err(RingError::TooScattered { head: 0, max: 4096 }));
}

#[test]
fn a_head_beyond_the_ring_or_already_in_flight_breaks_the_ring() {
    let map = memory(&[(0, 0x10000)]);
    let mut driver = Driver::new(&map, 4, 0);
    driver.desc(2, D(0x9000, 8, 0, 0));
    let mut ring = driver.device(PLAIN);
    let mut chain = Chain::new();
    driver.offer(2);
    driver.offer(2);
    driver.show();
    assert_eq!(ring.pop(&mut chain), Ok(Popped::Chain));
    let again = ring.pop(&mut chain);
    assert_eq!(again, Err(RingError::HeadInFlight { head: 2 }));
    ring.push(2, 0);
    assert_eq!(ring.publish(), Notify::Signal);
    assert_eq!(ring.pop(&mut chain), Ok(Popped::Chain));
    ring.push(2, 0);
    driver.offer(4);
    driver.show();
    let beyond = ring.pop(&mut chain);
    assert_eq!(beyond, Err(RingError::Head { head: 4, size: 4 }));
}

#[test]
fn an_available_index_may_run_ahead_by_the_ring_size_and_no_more() {
    let map = memory(&[(0, 0x10000)]);
    for start in [0, 65533] {
        let mut driver = Driver::new(&map, 4, 0);
        driver.start_at(start);
        driver.desc(0, D(0x9000, 8, 0, 0));
        let mut ring = driver.device(PLAIN);
        (0..4).for_each(|_| driver.offer(0));
        driver.show();
        assert_eq!(ring.pop(&mut Chain::new()), Ok(Popped::Chain));
        ring.push(0, 0);
        let mut ring = driver.device(PLAIN);
        driver.offer(0);
        (0..4).for_each(|_| driver.offer(0));
        driver.show();
        let (next, idx) = (ring.next_avail(), driver.idx);
        let error = RingError::AvailIndex { idx, next, size: 4 };
        assert_eq!(ring.pop(&mut Chain::new()), Err(error));
    }
}

#[test]
fn a_ring_must_lie_aligned_in_one_piece_of_memory() {
    let map = memory(&[(0, 0x4000), (0x4000, 0x4000), (0x100001, 0x3fff)]);
    let good = Layout {
        size: 256,
        desc: 0x1000,
        avail: 0x2000,
        used: 0x3000,
    };
    let layout = |edit: fn(&mut Layout)| {
        let mut layout = good;
        edit(&mut layout);
        Vring::new(map.clone(), &layout, PLAIN, 0).map(|ring| ring.size())
    };
    let align = |part, gpa, align| Err(RingError::Align { part, gpa, align });
    let extent = |part, gpa, len_bytes| {
        Err(RingError::Extent {
            part,
            gpa,
            len_bytes,
        })
    };
    assert_eq!(layout(|_| ()), Ok(256));
    assert_eq!(layout(|l| l.size = 0), Err(RingError::Size { size: 0 }));
    assert_eq!(layout(|l| l.size = 100), Err(RingError::Size { size: 100 }));
    let part = Part::Desc;
    assert_eq!(layout(|l| l.desc = 0x1008), align(part, 0x1008, 16));
    assert_eq!(layout(|l| l.desc = 0x3010), extent(part, 0x3010, 4096));
    assert_eq!(layout(|l| l.desc = 0x8000), extent(part, 0x8000, 4096));
    assert_eq!(layout(|l| l.desc = !0xf), extent(part, !0xf, 4096));
    // Aligned for the guest, not here: the region itself begins at an odd place.
    assert_eq!(layout(|l| l.desc = 0x100010), Ok(256));
    let part = Part::Avail;
    assert_eq!(layout(|l| l.avail = 0x2001), align(part, 0x2001, 2));
    assert_eq!(layout(|l| l.avail = 0x3e00), extent(part, 0x3e00, 518));
    assert_eq!(layout(|l| l.avail = 0x4000 - 518), Ok(256));
    let part = Part::Used;
    assert_eq!(layout(|l| l.used = 0x3002), align(part, 0x3002, 4));
    assert_eq!(layout(|l| l.used = 0x3800), extent(part, 0x3800, 2054));
    assert_eq!(layout(|l| l.used = 0x4000 - 2056), Ok(256));
}
