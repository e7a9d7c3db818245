//! Legal rings, walked by ours and by the `virtio-queue` crate: both must see the same bytes.

use std::sync::Arc;

use proptest::prelude::*;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::guest::{D, Driver, INDIRECT, NEXT, PLAIN, WRITE, write};
use crate::Seg;
use crate::vring::{Chain, GuestMap, Popped, Region, Shape};

const SIZE: u16 = 64;
const TABLES: u64 = 0x1_0000;
const DATA: u64 = 0x10_0000;
/// Data lies in three regions of this length that follow one another in the guest.
const DATA_REGION: u64 = 0x8000;

/// A request: its descriptors, how many of them are direct, how many the device may only read.
#[derive(Debug, Clone)]
struct Plan {
    data: Vec<(u64, u32)>,
    direct: usize,
    readable: usize,
}

fn plan() -> impl Strategy<Value = Plan> {
    let data = (0..2 * DATA_REGION, 1..DATA_REGION as u32);
    let data = prop::collection::vec(data, 1..10);
    (data, 0usize..10, 0usize..10).prop_map(|(data, direct, readable)| Plan {
        direct: direct.min(data.len()),
        readable: readable.min(data.len()),
        data,
    })
}

type Memory = GuestMemoryMmap<()>;

fn shared(memory: &Memory) -> Arc<GuestMap> {
    let region = |region: &<Memory as GuestMemoryBackend>::R| Region {
        gpa: region.start_addr().raw_value(),
        len_bytes: region.len(),
        host: memory.get_host_address(region.start_addr()).unwrap(),
    };
    let regions = memory.iter().map(region).collect();
    // SAFETY: the map keeps the memory mapped.
    Arc::new(unsafe { GuestMap::new(regions, Box::new(memory.clone())) }.unwrap())
}

/// Puts the request into the ring, its descriptors at places taken from `free`; the rest into a table.
fn lay_out(driver: &mut Driver, plan: &Plan, free: &mut Vec<u16>, table: u64) {
    let descs: Vec<(u64, u32, u16)> = plan.data.iter().enumerate().map(entry(plan)).collect();
    let (direct, rest) = descs.split_at(plan.direct);
    let links = direct.len() + usize::from(!rest.is_empty());
    let places: Vec<u16> = free.drain(free.len() - links..).collect();
    for (at, &(gpa, len, flags)) in direct.iter().enumerate() {
        let (more, next) = link(places.get(at + 1));
        driver.desc(places[at], D(gpa, len, flags | more, next));
    }
    if !rest.is_empty() {
        let len = 16 * rest.len() as u32;
        driver.desc(places[direct.len()], D(table, len, INDIRECT, 0));
    }
    for (at, &(gpa, len, flags)) in (0..).zip(rest) {
        let (more, next) = link((usize::from(at) + 1 < rest.len()).then_some(&(at + 1)));
        let desc = D(gpa, len, flags | more, next);
        write(&driver.map, table + 16 * u64::from(at), &desc.bytes());
    }
    driver.offer(places[0]);
}

fn entry(plan: &Plan) -> impl Fn((usize, &(u64, u32))) -> (u64, u32, u16) {
    let readable = plan.readable;
    move |(at, &(gpa, len))| (DATA + gpa, len, if at < readable { 0 } else { WRITE })
}

fn link(next: Option<&u16>) -> (u16, u16) {
    next.map_or((0, 0), |&next| (NEXT, next))
}

/// Host addresses and lengths, with pieces that touch joined.
fn joined(pieces: impl Iterator<Item = (usize, usize)>) -> Vec<(usize, usize)> {
    let mut all: Vec<(usize, usize)> = Vec::new();
    for (at, len) in pieces {
        match all.last_mut() {
            Some(last) if last.0 + last.1 == at => last.1 += len,
            _ => all.push((at, len)),
        }
    }
    all
}

fn ours(segs: &[Seg]) -> Vec<(usize, usize)> {
    joined(segs.iter().map(|seg| (seg.host().addr(), seg.len())))
}

fn theirs(memory: &Memory, descs: &[(GuestAddress, u32)]) -> Vec<(usize, usize)> {
    let slices = descs
        .iter()
        .flat_map(|&(gpa, len)| memory.get_slices(gpa, len as usize));
    joined(slices.map(|slice| {
        let slice = slice.unwrap();
        (slice.ptr_guard().as_ptr().addr(), slice.len())
    }))
}

fn queue(driver: &Driver, start: u16) -> Queue {
    let mut queue = Queue::new(SIZE).unwrap();
    queue.set_size(SIZE);
    queue
        .try_set_desc_table_address(GuestAddress(driver.layout.desc))
        .unwrap();
    queue
        .try_set_avail_ring_address(GuestAddress(driver.layout.avail))
        .unwrap();
    queue
        .try_set_used_ring_address(GuestAddress(driver.layout.used))
        .unwrap();
    queue.set_next_avail(start);
    queue.set_next_used(start);
    queue.set_ready(true);
    queue
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn both_walks_see_the_same_bytes(
        plans in prop::collection::vec(plan(), 1..6),
        places in Just((0..SIZE).collect::<Vec<_>>()).prop_shuffle(),
        start: u16,
    ) {
        let memory: Memory = GuestMemoryMmap::from_ranges(&[
            (GuestAddress(0), 0x2_0000),
            (GuestAddress(DATA), DATA_REGION as usize),
            (GuestAddress(DATA + DATA_REGION), DATA_REGION as usize),
            (GuestAddress(DATA + 2 * DATA_REGION), DATA_REGION as usize),
        ]).unwrap();
        let map = shared(&memory);
        let mut driver = Driver::new(&map, SIZE, 0);
        driver.start_at(start);
        let (mut ring, mut queue) = (driver.device(PLAIN), queue(&driver, start));
        let mut free = places;
        for (plan, at) in plans.iter().zip(0..) {
            // Tables at odd places too: the specification does not ask for alignment.
            lay_out(&mut driver, plan, &mut free, TABLES + 0x201 * at);
        }
        driver.show();

        let mut chain = Chain::new();
        for reference in queue.iter(&memory).unwrap() {
            prop_assert_eq!(ring.pop(&mut chain), Ok(Popped::Chain));
            prop_assert_eq!(chain.head, reference.head_index());
            prop_assert_eq!(chain.shape, Shape::Proper);
            let descs: Vec<_> = reference.collect();
            for (write_only, segs, bytes) in [
                (false, &chain.readable, chain.readable_bytes),
                (true, &chain.writable, chain.writable_bytes),
            ] {
                let same = descs.iter().filter(|desc| desc.is_write_only() == write_only);
                let same: Vec<_> = same.map(|desc| (desc.addr(), desc.len())).collect();
                prop_assert_eq!(ours(segs), theirs(&memory, &same));
                prop_assert_eq!(bytes, same.iter().map(|desc| u64::from(desc.1)).sum::<u64>());
            }
            ring.push(chain.head, 7);
        }
        prop_assert_eq!(ring.pop(&mut chain), Ok(Popped::Empty));
        prop_assert_eq!(ring.next_avail(), start.wrapping_add(plans.len() as u16));
        let _ = ring.publish();
        let used: Vec<_> = std::iter::from_fn(|| driver.take_used()).collect();
        prop_assert_eq!(used.len(), plans.len());
        prop_assert!(used.iter().all(|&(_, len)| len == 7));
    }
}
