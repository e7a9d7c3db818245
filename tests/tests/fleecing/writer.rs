//! A guest that writes on four queues, reads back what it wrote, and keeps a record of it.

use super::history::{BLOCK, History, bytes_of, stamp_of};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tests::client::blk::{IOERR, OK, Request};
use tests::client::deadline;
use tests::client::guest::{Guest, Pending, Setup};

pub(super) const QUEUES: usize = 4;
/// Requests under way on each queue.
const DEPTH: usize = 4;
/// So many requests begin at most while one is under way: the memory of more is used in turn.
const AHEAD_MAX: u64 = 1000;
/// Blocks of a queue; those of all queues lie side by side, so that every cluster is written by all of them.
const BLOCKS_EACH: u64 = 96;
pub(super) const BLOCKS: u64 = BLOCKS_EACH * QUEUES as u64;
pub(super) const SIZE: u64 = BLOCKS * BLOCK;

/// Marsaglia's xorshift.
pub(super) struct Chance(pub(super) u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(super) fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }
}

/// Has a writer stop, whatever comes of the test: its thread would be waited for.
pub(super) struct Stops<'a>(pub(super) &'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[derive(Clone, Copy, Debug)]
enum Doing {
    Write,
    /// Of a block that nobody writes meanwhile, and whose bytes are these.
    Read(u64),
}

struct UnderWay {
    nth: u64,
    pending: Pending,
    block: usize,
    doing: Doing,
}

/// A guest that writes until it is told to stop.
pub(super) struct Writer<'a> {
    guest: Guest,
    /// Of which block the next request is.
    chance: Chance,
    history: History,
    stamps: u64,
    issued: u64,
    /// Under way on each queue.
    pending: [Vec<UnderWay>; QUEUES],
    /// Requests that have ended.
    ended: &'a AtomicU64,
}

impl<'a> Writer<'a> {
    pub(super) fn start(socket: &Path, seed: u64, ended: &'a AtomicU64) -> Writer<'a> {
        let setup = Setup {
            queues: QUEUES as u16,
            ..Setup::default()
        };
        Writer {
            guest: Guest::start(socket, setup).unwrap(),
            // Never 0.
            chance: Chance(seed.wrapping_mul(2) + 1),
            history: History::new(BLOCKS),
            stamps: 0,
            issued: 0,
            pending: Default::default(),
            ended,
        }
    }

    pub(super) fn run(mut self, stop: &AtomicBool) -> History {
        for queue in (0..QUEUES).cycle() {
            if !stop.load(Ordering::SeqCst) {
                self.fill(queue);
            }
            if self.pending.iter().all(Vec::is_empty) {
                break;
            }
            self.end_some(queue);
        }
        self.history
    }

    fn fill(&mut self, queue: usize) {
        let under_way = self.pending.iter().flatten().map(|one| one.nth);
        let first = under_way.min().unwrap_or(self.issued);
        while self.pending[queue].len() < DEPTH && self.issued - first < AHEAD_MAX {
            let block = self.chance.below(BLOCKS_EACH) as usize * QUEUES + queue;
            if self.pending[queue].iter().any(|other| other.block == block) {
                continue;
            }
            let sector = block as u64 * BLOCK / 512;
            let (request, doing) = match self.chance.below(4) {
                0 => {
                    let read = Request::read(sector, BLOCK as u32);
                    (read, Doing::Read(self.history.last(block)))
                }
                _ => {
                    self.stamps += 1;
                    self.history.begin(block, self.stamps);
                    (Request::write(sector, bytes_of(self.stamps)), Doing::Write)
                }
            };
            let pending = self.guest.add(queue, &request);
            self.issued += 1;
            self.pending[queue].push(UnderWay {
                nth: self.issued,
                pending,
                block,
                doing,
            });
        }
        self.guest.submit(queue);
    }

    /// Ends what has ended on the queue; waits for something there where every queue is full.
    fn end_some(&mut self, queue: usize) {
        if self.pending[queue].is_empty() {
            return;
        }
        self.guest.rings[queue].wait(deadline()).unwrap();
        while let Some(used) = self.guest.rings[queue].pop() {
            let all = &mut self.pending[queue];
            let which = all
                .iter()
                .position(|one| u32::from(one.pending.head) == used.id);
            let one = all.swap_remove(which.unwrap());
            let done = self.guest.done(one.pending, used.len);
            match (one.doing, done.status) {
                (Doing::Write, OK) => self.history.end(one.block),
                (Doing::Write, IOERR) => self.history.fail(one.block),
                (Doing::Read(stamp), OK) => {
                    let there = stamp_of(&done.data);
                    assert_eq!(there, stamp, "block {}", one.block);
                }
                (doing, status) => panic!("{doing:?} of block {}: {status}", one.block),
            }
            self.ended.fetch_add(1, Ordering::SeqCst);
        }
    }
}
