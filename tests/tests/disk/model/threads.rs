//! Several threads on one disk, each with sectors of its own that share blocks with the others'.

use super::world::{Plan, lane};
use blockgraph::pin::Epochs;
use blockgraph::{Current, Event, Kind, Lane, Mode, NodeId, Span, Started};
use ring::sim::{Disk, Rng};
use ring::{Durability, Mem, Op, Seg, Wait};
use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use tests::cells::{SECTOR, Stamp, bytes_of, stamp};

pub const THREADS: u64 = 3;
/// Sectors below are shared out one by one, the rest in whole blocks.
const SINGLES: u64 = 64;
const BLOCK: u64 = 8;
const BELL: u64 = 1 << 40;

/// What the threads share.
#[derive(Clone)]
pub struct Shared {
    pub disk: Disk,
    pub top: NodeId,
    pub current: Arc<Current>,
    pub epochs: Arc<Epochs>,
}

struct Flying {
    at: u64,
    sectors: u64,
    writes: bool,
    mem: Mem,
}

/// One thread's requests.
struct Worker<'a> {
    shared: &'a Shared,
    number: u64,
    rng: Rng,
    lane: Lane,
    /// What its sectors hold.
    mine: BTreeMap<u64, Stamp>,
    flying: BTreeMap<u64, Flying>,
}

/// Runs one thread; answers what its sectors must hold.
pub fn work(plan: &Plan, shared: &Shared, number: u64, mode: Mode) -> BTreeMap<u64, Stamp> {
    let lane = lane(&shared.disk, &shared.current, &shared.epochs, mode);
    let bell = lane.ring().borrow_mut().bell();
    let fd = bell.as_raw_fd();
    // Wake-ups of other threads come through the bell.
    lane.ring()
        .borrow_mut()
        .start(Op::Poll { fd }, &[], 0, 0, BELL)
        .expect("room");
    let mut worker = Worker {
        shared,
        number,
        rng: Rng::new(plan.seed << 8 | number),
        lane,
        mine: BTreeMap::new(),
        flying: BTreeMap::new(),
    };
    for token in 1..150 {
        worker.start(token);
        while worker.flying.len() > 6 {
            worker.turn();
        }
    }
    while !worker.flying.is_empty() {
        worker.turn();
    }
    worker.mine
}

impl Worker<'_> {
    fn choose(&mut self) -> (u64, u64) {
        if self.rng.coin() {
            let at = self.rng.below(SINGLES / THREADS) * THREADS + self.number;
            return (at, 1);
        }
        let first = SINGLES / BLOCK;
        let block = first + self.rng.below(8) * THREADS + self.number;
        (block * BLOCK, BLOCK)
    }

    fn start(&mut self, token: u64) {
        let (at, sectors) = self.choose();
        let overlaps = |f: &Flying| f.at < at + sectors && at < f.at + f.sectors;
        if self.flying.values().any(overlaps) {
            return;
        }
        let writes = self.rng.below(3) > 0;
        let mem = Mem::zeroed((sectors * SECTOR) as usize).expect("memory");
        let mut kind = Kind::Read;
        if writes {
            kind = Kind::Write(Durability::Cached);
            for sector in at..at + sectors {
                let stamp = stamp(token << 4 | self.number, sector);
                mem.store(((sector - at) * SECTOR) as usize, &bytes_of(stamp));
                self.mine.insert(sector, stamp);
            }
        }
        let segs: Vec<Seg> = mem.segs().collect();
        let span = Span::new(at * SECTOR, sectors * SECTOR).expect("a span");
        self.lane.begin_batch();
        let started = self.lane.start(self.shared.top, kind, span, &segs, token);
        self.lane.end_batch();
        assert_eq!(started, Started::Pending);
        let flying = Flying {
            at,
            sectors,
            writes,
            mem,
        };
        self.flying.insert(token, flying);
    }

    fn turn(&mut self) {
        self.lane.turn(Wait::One).expect("turned");
        while let Some(event) = self.lane.take() {
            let Event::Finished { token, outcome } = event else {
                continue;
            };
            assert_eq!(outcome, Ok(()));
            let flying = self.flying.remove(&token).expect("in flight");
            if !flying.writes {
                self.check(&flying);
            }
        }
        self.lane.end_batch();
    }

    fn check(&self, flying: &Flying) {
        for n in 0..flying.sectors {
            let sector = flying.at + n;
            let stamp = self.mine.get(&sector).copied();
            let stamp = stamp.unwrap_or_else(|| stamp_at_first(sector));
            let mut found = [0; SECTOR as usize];
            flying.mem.load((n * SECTOR) as usize, &mut found);
            assert!(
                found == bytes_of(stamp),
                "sector {sector} of {}",
                self.number
            );
        }
    }
}

fn stamp_at_first(sector: u64) -> Stamp {
    stamp(0, sector)
}
