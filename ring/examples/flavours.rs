//! Measures the set-up flags of io_uring side by side on this kernel and disk, so that the choice in `engine/uring.rs` rests
//! on numbers: `cargo run --release -p ring --example flavours -- FILE [SECONDS]`. The file is read only.
//!
//! Flavours take turns within one run; each line is the median of its turns, CPU as the thread's own clock tells it.

use ring::{Align, Choice, Done, File, FileId, Flavour, Mem, Op, Ring, Wait};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

const DEPTH: usize = 64;
const BLOCK_BYTES: usize = 4096;
const ROUNDS: usize = 5;

fn main() -> std::io::Result<()> {
    let mut args = std::env::args().skip(1);
    let path = args.next().expect("a file to read");
    let seconds: f64 = args.next().map_or(1.0, |s| s.parse().expect("a number"));
    let flavours = [Flavour::DeferTaskrun, Flavour::CoopTaskrun, Flavour::Plain];
    let mut results: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
    for _ in 0..ROUNDS {
        for flavour in flavours {
            for (waits, wait) in [
                ("one", Wait::One),
                (
                    "batch",
                    Wait::Batch {
                        count: 16,
                        patience_ns: 50_000,
                    },
                ),
            ] {
                let name = format!("{flavour:?}, {waits}");
                let result = read_for(&path, flavour, wait, seconds)?;
                match results.iter_mut().find(|(n, _)| *n == name) {
                    Some((_, list)) => list.push(result),
                    None => results.push((name, vec![result])),
                }
            }
        }
    }
    for (name, mut list) in results {
        list.sort_by(|a, b| a.1.total_cmp(&b.1));
        let (iops, cpu_ns) = list[list.len() / 2];
        println!("{name:24} {iops:9.0} IOPS {cpu_ns:7.0} ns CPU per read");
    }
    Ok(())
}

fn thread_cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("schedstat");
    let ns = stat.split(' ').next().and_then(|n| n.parse().ok());
    Duration::from_nanos(ns.expect("nanoseconds"))
}

fn read_for(path: &str, flavour: Flavour, wait: Wait, seconds: f64) -> std::io::Result<(f64, f64)> {
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)?;
    let blocks = file.metadata()?.len() / BLOCK_BYTES as u64;
    let align = Align {
        memory_bytes: 512,
        offset_bytes: 512,
    };
    let file = Arc::new(File::new(FileId(0), file.into(), align));
    let mut ring = Ring::new(Choice::Uring(Some(flavour)))?;
    ring.adopt(&file);
    let mem = Mem::zeroed(DEPTH * BLOCK_BYTES).expect("memory");
    let segs: Vec<_> = mem.segs().collect();
    let mut seed = 1u64;
    let mut begin = |ring: &mut Ring, slot: usize| {
        seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        let at = (seed >> 33) % blocks * BLOCK_BYTES as u64;
        let op = Op::Read {
            file: FileId(0),
            at,
        };
        ring.start(op, &segs, slot * BLOCK_BYTES, BLOCK_BYTES, slot as u64);
    };
    for slot in 0..DEPTH {
        begin(&mut ring, slot);
    }
    let (start, cpu) = (Instant::now(), thread_cpu());
    let mut done: Vec<Done> = Vec::new();
    let mut reads = 0u64;
    while start.elapsed().as_secs_f64() < seconds {
        ring.turn(wait, &mut done)?;
        reads += done.len() as u64;
        for end in done.drain(..) {
            end.result.map_err(std::io::Error::from)?;
            begin(&mut ring, end.token as usize);
        }
    }
    let cpu_ns = (thread_cpu() - cpu).as_nanos() as f64 / reads as f64;
    Ok((reads as f64 / start.elapsed().as_secs_f64(), cpu_ns))
}
