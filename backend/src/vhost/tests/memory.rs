//! Memory tables, and the rings on them.

use super::*;
use std::os::unix::fs::FileExt;

const SECOND: Slot = Slot {
    gpa: 0x1_0000_0000,
    len_bytes: 0x4000,
    user: 0x7100_0000_0000,
    offset: 0x2000,
};

/// Reads guest memory as ring 0 would.
fn read_guest(visit: &Visit, gpa: u64, len_bytes: u32) -> Option<Vec<u8>> {
    visit.rings.with(0, |start| {
        let seg = start.map.contiguous(gpa, len_bytes)?;
        let mut bytes = vec![0; len_bytes as usize];
        seg.load(&mut bytes);
        Some(bytes)
    })
}

#[test]
fn an_unsorted_table_is_mapped_as_it_was_meant() {
    let mut visit = Visit::new();
    visit.client.negotiate();
    let (first, second) = (memory_file(SLOT.len_bytes), memory_file(0x10000));
    first.write_all_at(b"first", 0).unwrap();
    second.write_all_at(b"second", SECOND.offset).unwrap();
    visit.client.table(&[(SECOND, &second), (SLOT, &first)]);
    visit.client.start_ring(0);
    assert_eq!(read_guest(&visit, SLOT.gpa, 5).unwrap(), b"first");
    assert_eq!(read_guest(&visit, SECOND.gpa, 6).unwrap(), b"second");
    assert_eq!(read_guest(&visit, SECOND.gpa + 0x4000, 1), None);
}

#[test]
fn slots_that_are_not_aligned_to_pages_are_mapped_with_their_surroundings() {
    let mut visit = Visit::new();
    visit.client.negotiate();
    let file = memory_file(0x20_0000);
    file.write_all_at(b"here", 0x1010).unwrap();
    file.write_all_at(b"last", 0x1010 + 0x8000 - 4).unwrap();
    // Two slots of one page of the file, at the very beginning of guest memory.
    let odd = Slot {
        gpa: 0,
        len_bytes: 0x8000,
        user: 0x7200_0000_0010,
        offset: 0x1010,
    };
    let next = Slot {
        gpa: 0x9000,
        len_bytes: 0x10,
        user: 0x7300_0000_0000,
        offset: 0x1020,
    };
    visit
        .client
        .table(&[(odd, &file), (next, &file), (SLOT, &file)]);
    visit.client.start_ring(0);
    assert_eq!(read_guest(&visit, 0, 4).unwrap(), b"here");
    assert_eq!(read_guest(&visit, 0x7ffc, 4).unwrap(), b"last");
    assert_eq!(read_guest(&visit, 0x7ffc, 5), None, "the slot ends there");
    assert!(read_guest(&visit, 0x9000, 0x10).is_some());
    // They are found again when they go.
    visit.client.ok(FrontendReq::REM_MEM_REG, &single(odd), &[]);
    assert_eq!(read_guest(&visit, 0, 4), None);
    assert!(read_guest(&visit, 0x9000, 0x10).is_some());
}

#[test]
fn a_new_table_stops_the_rings_and_starts_them_on_it() {
    let mut visit = Visit::running();
    let old = visit.rings.with(0, |start| Arc::downgrade(&start.map));
    let file = memory_file(SLOT.len_bytes);
    // The same user addresses are other guest addresses now.
    let moved = Slot {
        gpa: 0x20_0000,
        ..SLOT
    };
    *visit.rings.progress.lock().unwrap() = 7;
    visit.client.table(&[(moved, &file)]);
    assert_eq!(visit.rings.take_log(), ["stop 0", "start 0 at 7"]);
    visit
        .rings
        .with(0, |start| assert_eq!(start.layout.desc, moved.gpa));
    assert!(old.upgrade().is_none(), "the old memory is unmapped");
}

#[test]
fn a_refused_table_leaves_the_rings_running_on_the_old_one() {
    let mut visit = Visit::running();
    let short = memory_file(SLOT.len_bytes - 1);
    let (body, fds) = table(&[(SLOT, &short)]);
    assert_eq!(
        visit.client.ack(FrontendReq::SET_MEM_TABLE, &body, &fds),
        Some(1)
    );
    assert!(visit.rings.take_log().is_empty());
    visit.client.fence();
}

#[test]
fn a_table_without_a_running_ring_ends_the_session() {
    let mut visit = Visit::running();
    let file = memory_file(SECOND.offset + SECOND.len_bytes);
    let (body, fds) = table(&[(SECOND, &file)]);
    assert_eq!(
        visit.client.ack(FrontendReq::SET_MEM_TABLE, &body, &fds),
        None
    );
    assert!(matches!(visit.end(), End::Refused(_)));
}

#[test]
fn slots_come_and_go_one_by_one() {
    let mut visit = Visit::running();
    let file = memory_file(SECOND.offset + SECOND.len_bytes);
    visit.client.ok(
        FrontendReq::ADD_MEM_REG,
        &single(SECOND),
        &[file.as_raw_fd()],
    );
    assert_eq!(visit.rings.take_log(), ["stop 0", "start 0 at 0"]);
    assert!(read_guest(&visit, SECOND.gpa, 16).is_some());
    // The offset does not count, and a descriptor may come along.
    let same = Slot {
        offset: 99,
        ..SECOND
    };
    visit
        .client
        .ok(FrontendReq::REM_MEM_REG, &single(same), &[file.as_raw_fd()]);
    assert_eq!(visit.rings.take_log(), ["stop 0", "start 0 at 0"]);
    assert!(read_guest(&visit, SECOND.gpa, 16).is_none());
}

#[test]
fn a_ring_whose_slot_is_gone_waits_until_it_is_back() {
    let mut visit = Visit::running();
    *visit.rings.progress.lock().unwrap() = 3;
    visit
        .client
        .ok(FrontendReq::REM_MEM_REG, &single(SLOT), &[]);
    assert_eq!(visit.rings.take_log(), ["stop 0"]);
    let file = memory_file(2 * SLOT.len_bytes);
    let larger = Slot {
        len_bytes: 2 * SLOT.len_bytes,
        ..SLOT
    };
    visit.client.ok(
        FrontendReq::ADD_MEM_REG,
        &single(larger),
        &[file.as_raw_fd()],
    );
    assert_eq!(visit.rings.take_log(), ["start 0 at 3"]);
}

#[test]
fn memory_may_be_set_up_slot_by_slot_from_nothing_to_the_last() {
    let mut visit = Visit::new();
    visit.client.negotiate();
    let file = memory_file(0x1000);
    let slot = |at: u64| Slot {
        gpa: at * 0x1000,
        len_bytes: 0x1000,
        user: (at + 1) << 32,
        offset: 0,
    };
    let fds = [file.as_raw_fd()];
    for at in 0..509 {
        visit
            .client
            .ok(FrontendReq::ADD_MEM_REG, &single(slot(at)), &fds);
    }
    let one_more = visit
        .client
        .ack(FrontendReq::ADD_MEM_REG, &single(slot(509)), &fds);
    assert_eq!(one_more, Some(1));
    for at in 0..509 {
        visit
            .client
            .ok(FrontendReq::REM_MEM_REG, &single(slot(at)), &[]);
    }
    visit
        .client
        .ok(FrontendReq::ADD_MEM_REG, &single(slot(509)), &fds);
}

#[test]
fn memory_that_must_not_be_used_is_refused_each_time_for_its_reason() {
    let pipe = std::io::pipe().unwrap().0;
    let zero = File::open("/dev/zero").unwrap();
    let file = memory_file(0x10_0000);
    let slot = |gpa, len_bytes, user, offset| Slot {
        gpa,
        len_bytes,
        user,
        offset,
    };
    let good = slot(0, 0x1000, 0x10_0000, 0);
    let cases: Vec<(&str, Vec<Slot>)> = vec![
        ("empty", vec![slot(0, 0, 0x1000, 0)]),
        (
            "guest address wraps",
            vec![slot(u64::MAX - 0xfff, 0x1000, 0, 0)],
        ),
        (
            "user address wraps",
            vec![slot(0, 0x2000, u64::MAX - 0xfff, 0)],
        ),
        ("offset wraps", vec![slot(0, 0x2000, 0, u64::MAX - 0xfff)]),
        (
            "size near the end of all addresses",
            vec![slot(0, u64::MAX, 0, 0)],
        ),
        ("one byte beyond its file", vec![slot(0, 0x10_0001, 0, 0)]),
        ("offset beyond its file", vec![slot(0, 1, 0, 0x10_0000)]),
        ("the same twice", vec![good, good]),
        (
            "guest addresses overlap",
            vec![good, slot(0xfff, 1, 0x20_0000, 0)],
        ),
        (
            "user addresses overlap",
            vec![good, slot(0x2000, 1, 0x10_0fff, 0)],
        ),
        ("no room for alignment", vec![slot(0, 0x1000, 0x10, 0x20)]),
    ];
    let mut visit = Visit::prepared();
    for (name, slots) in cases {
        let slots: Vec<(Slot, &File)> = slots.into_iter().map(|slot| (slot, &file)).collect();
        let (body, fds) = table(&slots);
        let answer = visit.client.ack(FrontendReq::SET_MEM_TABLE, &body, &fds);
        assert_eq!(answer, Some(1), "{name}");
    }
    for fd in [pipe.as_raw_fd(), zero.as_raw_fd(), eventfd().as_raw_fd()] {
        let (body, _) = table(&[(good, &file)]);
        assert_eq!(
            visit.client.ack(FrontendReq::SET_MEM_TABLE, &body, &[fd]),
            Some(1)
        );
    }
    visit.client.fence();
}
