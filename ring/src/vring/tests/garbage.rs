//! Random bytes as a ring: never a panic, never a byte outside memory, and the same answer as a plain model.

use proptest::prelude::*;

use super::guest::{D, Driver, INDIRECT, NEXT, PLAIN, WRITE, memory, write};
use crate::Seg;
use crate::vring::{Chain, GuestMap, Notify, Popped, RingError};

const SIZE: u16 = 8;
const TABLE: u64 = 0x8000;
const TABLE_ENTRIES: u16 = 12;
const PLACES: [(u64, u64); 3] = [(0, 0x9000), (0x9000, 0x123), (0x20000, 0x1001)];

/// A piece of a chain: writable or not, where, how long.
type Piece = (bool, u64, u32);

fn address() -> impl Strategy<Value = u64> {
    let edges = PLACES.map(|(gpa, len)| [gpa, gpa + len]).concat();
    prop_oneof![
        3 => TABLE..TABLE + 64,
        3 => (prop::sample::select(edges), -20i64..20).prop_map(|(edge, off)| edge.wrapping_add_signed(off)),
        2 => 0u64..0x22000,
        1 => any::<u64>(),
    ]
}

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 0u32..40, 2 => (0u32..14).prop_map(|n| 16 * n), 1 => 0u32..0x9000, 1 => any::<u32>()]
}

fn desc() -> impl Strategy<Value = D> {
    let flags = prop_oneof![
        4 => Just(NEXT), 3 => Just(0), 3 => Just(WRITE), 3 => Just(NEXT | WRITE), 2 => Just(INDIRECT), 1 => any::<u16>()
    ];
    (address(), length(), flags, 0..SIZE + 1)
        .prop_map(|(gpa, len, flags, next)| D(gpa, len, flags, next))
}

fn in_memory(gpa: u64, len: u32) -> bool {
    let last = gpa.checked_add(u64::from(len) - 1);
    // The first two regions follow one another.
    last.is_some_and(|last| last < 0x9123 || (gpa >= 0x20000 && last < 0x21001))
}

/// The chain at `head` as the specification reads, slowly.
fn model(ring: &[D], head: u16, bytes: &dyn Fn(u64) -> Option<D>) -> Option<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut table: Option<(u64, u32)> = None;
    let mut at = head;
    let mut direct = 0;
    for _ in 0..1024 {
        let desc = match table {
            None => *ring.get(usize::from(at))?,
            Some((gpa, entries)) if u32::from(at) < entries => {
                bytes(gpa.checked_add(16 * u64::from(at))?)?
            }
            Some(_) => return None,
        };
        direct += u32::from(table.is_none());
        if direct > ring.len() as u32 {
            return None;
        }
        let D(gpa, len, flags, next) = desc;
        if flags & INDIRECT != 0 {
            if table.is_some() || flags & NEXT != 0 || len == 0 || len % 16 != 0 {
                return None;
            }
            (table, at) = (Some((gpa, len / 16)), 0);
            continue;
        }
        if len > 0 {
            in_memory(gpa, len).then_some(())?;
            pieces.push((flags & WRITE != 0, gpa, len));
        }
        if flags & NEXT == 0 {
            return Some(pieces);
        }
        at = next;
    }
    None
}

fn same(map: &GuestMap, segs: &[Seg], pieces: &[Piece], writable: bool) -> bool {
    let mut want = Vec::new();
    for &(_, gpa, len) in pieces.iter().filter(|piece| piece.0 == writable) {
        map.translate(gpa, len, &mut want).unwrap();
    }
    let flat = |segs: &[Seg]| {
        segs.iter()
            .map(|seg| (seg.host(), seg.len()))
            .collect::<Vec<_>>()
    };
    flat(segs) == flat(&want)
}

/// Reads every byte: outside its region the process would die.
fn touch(segs: &[Seg]) {
    let mut bytes = [0; 4096];
    for seg in segs {
        for from in (0..seg.len()).step_by(bytes.len()) {
            seg.part(from, bytes.len()).load(&mut bytes);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]
    #[test]
    fn garbage_is_walked_as_the_model_says(
        ring_descs in prop::collection::vec(desc(), usize::from(SIZE)),
        table in prop::collection::vec(desc(), usize::from(TABLE_ENTRIES)),
        table_at in prop_oneof![Just(TABLE), TABLE..TABLE + 16, (0x9000u64 - 200)..0x9000],
        heads in prop::collection::vec(0..SIZE + 1, 1..10),
        ahead in prop_oneof![8 => 0u16..=SIZE, 1 => any::<u16>()],
    ) {
        let map = memory(&PLACES);
        let mut driver = Driver::new(&map, SIZE, 0);
        let bytes: Vec<u8> = table.iter().flat_map(|desc| desc.bytes()).collect();
        write(&map, table_at, &bytes);
        (0..).zip(&ring_descs).for_each(|(at, &desc)| driver.desc(at, desc));
        let mut ring = driver.device(PLAIN);
        heads.iter().for_each(|&head| driver.offer(head));
        driver.idx = ahead;
        driver.show();

        let read = |gpa: u64| {
            let mut segs = Vec::new();
            map.translate(gpa, 16, &mut segs).ok()?;
            let mut all = [0; 16];
            crate::seg::load(&segs, 0, &mut all);
            let (low, high) = (u128::from_le_bytes(all) as u64, (u128::from_le_bytes(all) >> 64) as u64);
            Some(D(low, high as u32, (high >> 32) as u16, (high >> 48) as u16))
        };
        let mut taken = Vec::new();
        let mut chain = Chain::new();
        let end = loop {
            let at = taken.len();
            match ring.pop(&mut chain) {
                Ok(Popped::Chain) => {}
                end => break end,
            }
            prop_assert!(at < usize::from(ahead) && !taken.contains(&chain.head));
            let pieces = model(&ring_descs, chain.head, &read);
            prop_assert!(pieces.is_some(), "walked {:?}", chain);
            let pieces = pieces.unwrap();
            prop_assert!(same(&map, &chain.readable, &pieces, false));
            prop_assert!(same(&map, &chain.writable, &pieces, true));
            touch(&chain.readable);
            touch(&chain.writable);
            taken.push(chain.head);
        };
        match end {
            Ok(_) => prop_assert_eq!(taken.len(), usize::from(ahead)),
            Err(RingError::AvailIndex { .. }) => prop_assert!(ahead > SIZE),
            Err(RingError::Head { head, .. }) => prop_assert!(head >= SIZE),
            Err(RingError::HeadInFlight { head }) => prop_assert!(taken.contains(&head)),
            Err(_) => {
                let slot = 4 + 2 * (taken.len() as u64 % u64::from(SIZE));
                let head = driver.avail(slot).load(std::sync::atomic::Ordering::Relaxed);
                prop_assert_eq!(model(&ring_descs, head, &read), None);
            }
        }
        prop_assert_eq!(usize::from(ring.in_flight()), taken.len());
        taken.iter().for_each(|&head| ring.push(head, 1));
        prop_assert_eq!(ring.publish() == Notify::Signal, !taken.is_empty());
        let used: Vec<u16> = std::iter::from_fn(|| driver.take_used()).map(|(head, _)| head as u16).collect();
        prop_assert_eq!(used, taken);
    }
}
