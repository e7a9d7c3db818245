//! The load generator: one thread per queue, requests laid out once, nothing allocated while it runs.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::blk::{HEADER_BYTES, OK, kind};
use crate::client::guest::Guest;
use crate::client::memory::{Area, HIGH, Memory};
use crate::client::patience;
use crate::client::ring::{Buffer, DESC_BYTES, Ring, table_of};

/// Reads or writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// VIRTIO_BLK_T_IN
    Read,
    /// VIRTIO_BLK_T_OUT
    Write,
}

/// Which blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Anywhere on the disk.
    Random,
    /// One after the other.
    Sequential,
    /// Each once, scattered; then the load is over. Of a power of two of blocks, on one queue.
    Once,
}

/// How a queue's thread waits for completions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// On the call eventfd, as a guest's interrupt would.
    Block,
    /// By looking at the used ring.
    Poll,
}

/// A load.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Bytes of a request.
    pub block_bytes: u32,
    /// Requests in flight per queue.
    pub depth: u16,
    /// Reads or writes.
    pub direction: Direction,
    /// Which blocks.
    pub order: Order,
    /// How to wait.
    pub waiting: Waiting,
    /// Bytes of the disk that are used.
    pub disk_bytes: u64,
    /// From the start of one block to the next: the block's own length, or more to leave gaps.
    pub stride_bytes: u64,
}

impl Load {
    /// Guest memory that `queues` such loads need.
    pub fn memory_bytes(&self, queues: u16) -> u64 {
        let slot = u64::from(self.block_bytes).next_multiple_of(4096) + 4096;
        (slot * u64::from(self.depth) * u64::from(queues)).next_multiple_of(1 << 20)
    }
}

/// What a run brought.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Requests completed.
    pub requests: u64,
    /// How long it took.
    pub seconds: f64,
    /// Latencies in nanoseconds, sorted.
    pub latencies: Vec<u32>,
    /// Notifications that arrived.
    pub notifications: u64,
    /// Kicks that were asked for.
    pub kicks: u64,
}

impl Outcome {
    /// Requests per second.
    pub fn iops(&self) -> f64 {
        self.requests as f64 / self.seconds
    }

    /// A percentile of the latencies, in microseconds.
    pub fn percentile_us(&self, percent: usize) -> f64 {
        let at = (self.latencies.len() * percent / 100).min(self.latencies.len().saturating_sub(1));
        f64::from(self.latencies.get(at).copied().unwrap_or(0)) / 1000.0
    }

    fn add(&mut self, other: Outcome) {
        self.requests += other.requests;
        self.seconds = self.seconds.max(other.seconds);
        self.latencies.extend(other.latencies);
        self.notifications += other.notifications;
        self.kicks += other.kicks;
    }
}

/// Runs a load on every ring of a guest for `duration`.
pub fn run(guest: &mut Guest, load: Load, duration: Duration) -> io::Result<Outcome> {
    let memory = Arc::clone(&guest.memory);
    let stop = AtomicBool::new(false);
    let mut total = Outcome::default();
    thread::scope(|scope| -> io::Result<()> {
        let stop = &stop;
        let start = |ring| Worker::new(&memory, load, ring);
        let workers: Vec<_> = guest.rings.iter_mut().map(start).collect();
        let running: Vec<_> = workers
            .into_iter()
            .map(|w| scope.spawn(move || w.run(stop)))
            .collect();
        thread::sleep(duration);
        stop.store(true, Ordering::Relaxed);
        for worker in running {
            total.add(
                worker
                    .join()
                    .map_err(|_| io::Error::other("a worker panicked"))??,
            );
        }
        Ok(())
    })?;
    total.latencies.sort_unstable();
    Ok(total)
}

/// Runs exactly `requests` requests on the first ring, in bursts of the load's depth that are waited for as a whole.
pub fn run_bursts(guest: &mut Guest, load: Load, bursts: u32) -> io::Result<()> {
    let memory = Arc::clone(&guest.memory);
    let mut worker = Worker::new(&memory, load, &mut guest.rings[0]);
    (0..bursts).try_for_each(|_| worker.burst())
}

/// One queue's share.
struct Worker<'a> {
    ring: &'a mut Ring,
    load: Load,
    slots: Vec<Slot>,
    of_head: Vec<u16>,
    free: Vec<u16>,
    random: u64,
    next_block: u64,
    issued: u64,
    outcome: Outcome,
}

/// A request that lies ready: only its sector changes.
#[derive(Debug, Clone, Copy)]
struct Slot {
    header: Area,
    status: Area,
    table_gpa: u64,
    issued: Instant,
}

/// What lies in the page before a slot's data: header, status, indirect table.
const STATUS_AT: u64 = 64;
const TABLE_AT: u64 = 128;
const TABLE_ENTRIES: usize = 3;

impl<'a> Worker<'a> {
    fn new(memory: &Memory, load: Load, ring: &'a mut Ring) -> Worker<'a> {
        let stride = u64::from(load.block_bytes).next_multiple_of(4096) + 4096;
        let base = HIGH + u64::from(ring.index) * stride * u64::from(load.depth);
        let slots = (0..u64::from(load.depth))
            .map(|i| lay_out(memory, load, base + i * stride))
            .collect();
        Worker {
            load,
            slots,
            of_head: vec![0; usize::from(ring.size)],
            free: (0..load.depth).collect(),
            random: 0x2545_f491_4f6c_dd1d ^ (u64::from(ring.index) << 32),
            next_block: 0,
            issued: 0,
            outcome: Outcome::default(),
            ring,
        }
    }

    fn run(mut self, stop: &AtomicBool) -> io::Result<Outcome> {
        self.outcome.latencies.reserve(1 << 20);
        self.ring.take_calls();
        let calls = self.ring.calls.get();
        let begun = Instant::now();
        while !stop.load(Ordering::Relaxed) && !self.is_over() {
            self.issue(Instant::now());
            self.wait()?;
            self.reap();
        }
        if self.load.order != Order::Once {
            self.outcome.seconds = begun.elapsed().as_secs_f64();
        }
        while self.free.len() < self.slots.len() {
            self.wait()?;
            self.reap();
        }
        if self.load.order == Order::Once {
            self.outcome.seconds = begun.elapsed().as_secs_f64();
        }
        self.ring.take_calls();
        self.outcome.notifications = self.ring.calls.get() - calls;
        Ok(self.outcome)
    }

    fn burst(&mut self) -> io::Result<()> {
        self.issue(Instant::now());
        while self.free.len() < self.slots.len() {
            self.ring.want_call(Some(self.load.depth));
            self.wait()?;
            self.reap();
        }
        Ok(())
    }

    fn issue(&mut self, now: Instant) {
        if self.free.is_empty() {
            return;
        }
        while !self.is_over()
            && let Some(slot) = self.free.pop()
        {
            let sector = self.sector();
            let ready = &mut self.slots[usize::from(slot)];
            ready.header.u64(8).store(sector, Ordering::Relaxed);
            ready.issued = now;
            let head = self
                .ring
                .add_then_indirect(&[], ready.table_gpa, TABLE_ENTRIES);
            self.of_head[usize::from(head.expect("a ring of at least the depth"))] = slot;
        }
        if self.ring.publish() {
            self.ring.kick();
            self.outcome.kicks += 1;
        }
    }

    fn blocks(&self) -> u64 {
        self.load.disk_bytes / self.load.stride_bytes
    }

    /// Has every block had its turn?
    fn is_over(&self) -> bool {
        self.load.order == Order::Once && self.issued == self.blocks()
    }

    fn sector(&mut self) -> u64 {
        let blocks = self.blocks();
        self.issued += 1;
        let block = match self.load.order {
            Order::Random => {
                // xorshift64
                self.random ^= self.random << 13;
                self.random ^= self.random >> 7;
                self.random ^= self.random << 17;
                self.random % blocks
            }
            Order::Sequential => {
                self.next_block = (self.next_block + 1) % blocks;
                self.next_block
            }
            Order::Once => {
                // Full period modulo a power of two (Hull and Dobell 1962): an odd increment, a multiplier of the form 8k + 5.
                let next = self.next_block.wrapping_mul(0x5851_f42d_4c95_7f2d);
                self.next_block = next.wrapping_add(0x1405_7b7e_f767_814f) & (blocks - 1);
                self.next_block
            }
        };
        block * self.load.stride_bytes / 512
    }

    fn wait(&mut self) -> io::Result<()> {
        let until = Instant::now() + patience();
        match self.load.waiting {
            Waiting::Block => {
                self.ring.wait(until)?;
            }
            Waiting::Poll => {
                self.ring.want_call(None);
                while self.ring.used_idx() == self.ring.last_used() {
                    std::hint::spin_loop();
                    if self.random & 0xfff == 0 && Instant::now() > until {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
            }
        }
        Ok(())
    }

    fn reap(&mut self) {
        let now = Instant::now();
        while let Some(used) = self.ring.pop() {
            let slot = self.of_head[used.id as usize];
            let done = &self.slots[usize::from(slot)];
            assert_eq!(
                done.status.u32(0).load(Ordering::Relaxed) as u8,
                OK,
                "a request failed"
            );
            let latency = now.duration_since(done.issued).as_nanos();
            self.outcome
                .latencies
                .push(u32::try_from(latency).unwrap_or(u32::MAX));
            self.outcome.requests += 1;
            self.free.push(slot);
        }
    }
}

/// Header, status and indirect table in one page, data behind it.
fn lay_out(memory: &Memory, load: Load, at: u64) -> Slot {
    let kind = if load.direction == Direction::Read {
        kind::IN
    } else {
        kind::OUT
    };
    memory.write(at, &kind.to_le_bytes());
    let data = Buffer {
        gpa: at + 4096,
        len: load.block_bytes,
        writable: load.direction == Direction::Read,
    };
    let parts = [
        Buffer {
            gpa: at,
            len: HEADER_BYTES,
            writable: false,
        },
        data,
        Buffer {
            gpa: at + STATUS_AT,
            len: 1,
            writable: true,
        },
    ];
    let table: Vec<u8> = table_of(&parts).iter().flat_map(|d| d.bytes()).collect();
    assert_eq!(table.len(), TABLE_ENTRIES * DESC_BYTES);
    memory.write(at + TABLE_AT, &table);
    Slot {
        header: memory.area(at, 16),
        status: memory.area(at + STATUS_AT, 4),
        table_gpa: at + TABLE_AT,
        issued: Instant::now(),
    }
}
