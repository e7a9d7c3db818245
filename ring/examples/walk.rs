//! Nanoseconds per three-descriptor chain: pop, push, one publish per batch of 32.
//!
//! `cargo run --release -p ring --example walk`. Memory is hot; the driver's part is one store per batch.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Instant;

use ring::vring::{Chain, EventIdx, GuestMap, Indirect, Layout, Region, RingFeatures, Vring};

const BATCH: u16 = 32;
const SIZE: u16 = 256;
const ROUNDS: u32 = 200_000;
const MEMORY_BYTES: usize = 1 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for regions in [1, 2, 8] {
        let mut runs: Vec<f64> = (0..7).map(|_| run(regions)).collect::<Result<_, _>>()?;
        runs.sort_by(f64::total_cmp);
        println!(
            "{regions} regions: {:.1} ns per chain (best {:.1}, worst {:.1})",
            runs[3], runs[0], runs[6]
        );
    }
    Ok(())
}

/// Rings and headers in the first region, data in the last.
fn run(regions: u64) -> Result<f64, Box<dyn std::error::Error>> {
    let mut memory = vec![0u64; MEMORY_BYTES / 8 * regions as usize];
    let host: *mut u8 = memory.as_mut_ptr().cast();
    let spread = |at: u64| Region {
        gpa: at * (1 << 32),
        len_bytes: MEMORY_BYTES as u64,
        host: host.wrapping_add(at as usize * MEMORY_BYTES),
    };
    let regions: Vec<Region> = (0..regions).map(spread).collect();
    let data = regions.last().map_or(0, |region| region.gpa) + 0x40000;
    // SAFETY: `memory` moves into the map and is only reached through it from here on.
    let map = Arc::new(unsafe { GuestMap::new(regions, Box::new(memory)) }?);
    let layout = Layout {
        size: SIZE,
        desc: 0,
        avail: 0x2000,
        used: 0x3000,
    };
    let features = RingFeatures {
        event_idx: EventIdx::On,
        indirect: Indirect::On,
    };
    fill(&map, data)?;
    let mut ring = Vring::new(Arc::clone(&map), &layout, features, 0)?;
    let slot = map.contiguous(0x2002, 2).ok_or("no index")?.host();
    // SAFETY: mapped, even, and alive with the map.
    let idx = unsafe { AtomicU16::from_ptr(slot.cast()) };
    let mut chains: Vec<Chain> = (0..BATCH).map(|_| Chain::new()).collect();
    let start = Instant::now();
    for round in 1..=ROUNDS {
        idx.store((round as u16).wrapping_mul(BATCH), Ordering::Release);
        for chain in &mut chains {
            ring.pop(chain)?;
        }
        for chain in &chains {
            ring.push(chain.head, 4097);
        }
        let _ = std::hint::black_box(ring.publish());
    }
    Ok(start.elapsed().as_nanos() as f64 / f64::from(ROUNDS) / f64::from(BATCH))
}

/// Descriptors of header, data and status, and an available ring that names each chain in turn.
fn fill(map: &GuestMap, data: u64) -> Result<(), Box<dyn std::error::Error>> {
    let put = |gpa: u64, bytes: &[u8]| {
        let seg = map.contiguous(gpa, bytes.len() as u32);
        seg.map(|seg| seg.store(bytes)).ok_or("outside")
    };
    let desc = |gpa: u64, len: u32, flags: u16, next: u16| {
        u128::from(gpa) | u128::from(len) << 64 | u128::from(flags) << 96 | u128::from(next) << 112
    };
    for at in 0..u64::from(SIZE / 4) {
        let first = 4 * at as u16;
        let chain = [
            desc(0x10000 + 64 * at, 16, 1, first + 1),
            desc(data + 4096 * at % 0x40000, 4096, 3, first + 2),
            desc(0x20000 + 64 * at, 1, 2, 0),
        ];
        for (entry, desc) in (4 * at..).zip(chain) {
            put(16 * entry, &desc.to_le_bytes())?;
        }
    }
    for slot in 0..u64::from(SIZE) {
        let head = 4 * (slot as u16 % (SIZE / 4));
        put(0x2004 + 2 * slot, &head.to_le_bytes())?;
    }
    Ok(())
}
