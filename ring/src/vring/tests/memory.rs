//! The guest memory map against a byte-by-byte model.

use proptest::prelude::*;

use super::guest::{Pages, memory};
use crate::Seg;
use crate::vring::{BadAddress, GuestMap, MapError, Region};

const PLACES: [(u64, u64); 5] = [
    (0x1000, 0x1000),
    (0x2000, 0x800),
    (0x2800, 0x10),
    (0x4000, 0x2000),
    (u64::MAX - 0x1000, 0x1000),
];

fn inside(gpa: u64) -> bool {
    PLACES.iter().any(|&(at, len)| gpa >= at && gpa - at < len)
}

proptest! {
    #[test]
    fn a_translation_covers_the_range_byte_by_byte_or_fails_whole(
        place in 0..PLACES.len(), off in -40i64..0x2100, len in 0u32..0x2100,
    ) {
        let map = memory(&PLACES);
        let gpa = PLACES[place].0.wrapping_add_signed(off);
        let mut out = vec![map.contiguous(0x1000, 1).unwrap()];
        let found = map.translate(gpa, len, &mut out);
        let bytes = (0..u64::from(len)).map(|at| gpa.checked_add(at));
        if bytes.clone().all(|gpa| gpa.is_some_and(inside)) {
            prop_assert_eq!(found, Ok(()));
            let hosts = out[1..].iter().flat_map(|seg| (0..seg.len()).map(|at| seg.host().wrapping_add(at)));
            let want = bytes.map(|gpa| map.contiguous(gpa.unwrap(), 1).unwrap().host());
            prop_assert!(hosts.eq(want));
            prop_assert!(out.iter().all(|seg| !seg.is_empty()));
        } else {
            prop_assert_eq!(found, Err(BadAddress { gpa, len_bytes: len }));
            prop_assert_eq!(out.len(), 1);
        }
    }
}

fn new(regions: &[(u64, u64, *mut u8)]) -> Result<GuestMap, MapError> {
    let region = |&(gpa, len_bytes, host)| Region {
        gpa,
        len_bytes,
        host,
    };
    // SAFETY: nothing is accessed through these maps but what the test mapped itself.
    unsafe { GuestMap::new(regions.iter().map(region).collect(), Box::new(())) }
}

#[test]
fn impossible_tables_are_refused() {
    let pages = Pages::new(0x4000);
    let host = pages.host();
    assert!(matches!(new(&[]), Err(MapError::NoRegion)));
    let empty = new(&[(8, 0, host)]);
    assert!(matches!(empty, Err(MapError::Empty { gpa: 8 })));
    let wraps = new(&[(u64::MAX - 7, 9, host)]);
    assert!(matches!(wraps, Err(MapError::Wraps { .. })));
    let wraps_here = new(&[(0, u64::MAX - 1, host)]);
    assert!(matches!(wraps_here, Err(MapError::Wraps { .. })));
    let overlap = new(&[(0x1000, 0x1000, host), (0, 0x1001, host)]);
    assert!(matches!(overlap, Err(MapError::Overlap { gpa: 0x1000 })));
    let same = new(&[(0x1000, 1, host), (0x1000, 1, host)]);
    assert!(matches!(same, Err(MapError::Overlap { .. })));
}

#[test]
fn neighbours_in_the_guest_and_here_become_one_piece() {
    let pages = Pages::new(0x4000);
    let host = pages.host();
    let next = host.wrapping_add(0x1000);
    let map = new(&[(0x2000, 0x1000, next), (0x1000, 0x1000, host)]).unwrap();
    assert_eq!(
        map.contiguous(0x1ff0, 32).map(|seg: Seg| seg.len()),
        Some(32)
    );
    let apart = new(&[(0x1000, 0x1000, next), (0x2000, 0x1000, host)]).unwrap();
    assert!(apart.contiguous(0x1ff0, 32).is_none());
}
