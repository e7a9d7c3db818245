//! Guests on threads of their own: verified reads and writes, without end, while somebody else changes the graph.

use super::Chance;
use blockgraph::pin::Epochs;
use blockgraph::{Current, Event, Kind, Lane, Mode, NodeId, Span, Started};
use ring::{Choice, Durability, Mem, Op, Ring, Wait};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const BELL: u64 = 1 << 62;
const BLOCK: u64 = 4096;
/// Requests under way at once, each of other blocks than all others.
const DEPTH: usize = 8;

/// What one thread does.
pub struct Guest {
    node: NodeId,
    at: u64,
    model: Vec<u8>,
    chance: Chance,
}

impl Guest {
    /// On `len` bytes of zeroes from `at` on.
    pub fn new(node: NodeId, at: u64, len: u64, seed: u64) -> Guest {
        Guest::with(node, at, vec![0; len as usize], seed)
    }

    /// On a disk that holds `model` there.
    pub fn with(node: NodeId, at: u64, model: Vec<u8>, seed: u64) -> Guest {
        let chance = Chance(seed);
        Guest {
            node,
            at,
            model,
            chance,
        }
    }
}

struct Request {
    first: u64,
    blocks: u64,
    mem: Mem,
    kind: Kind,
    held: bool,
}

/// Guests, each on its thread.
pub struct Guests {
    stop: Arc<AtomicBool>,
    done: Vec<Arc<AtomicU64>>,
    busy: Vec<Arc<AtomicBool>>,
    threads: Vec<JoinHandle<Vec<u8>>>,
}

impl Guests {
    pub fn start(
        current: &Arc<Current>,
        epochs: &Arc<Epochs>,
        choice: Choice,
        mode: Mode,
        guests: Vec<Guest>,
    ) -> Guests {
        let stop = Arc::new(AtomicBool::new(false));
        let mut all = Guests {
            stop: stop.clone(),
            done: Vec::new(),
            busy: Vec::new(),
            threads: Vec::new(),
        };
        for guest in guests {
            let (done, busy) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
            let (current, epochs, choice) = (current.clone(), epochs.clone(), choice.clone());
            all.done.push(done.clone());
            all.busy.push(busy.clone());
            let stop = stop.clone();
            all.threads.push(std::thread::spawn(move || {
                let ring = Ring::new(choice).expect("a ring");
                let lane = Lane::new(ring, current, epochs, mode);
                Running {
                    guest,
                    lane,
                    slots: Vec::new(),
                    stop,
                    done,
                    busy,
                }
                .run()
            }));
        }
        all
    }

    /// Until each has done so many more requests.
    pub fn run_for(&self, requests: u64) {
        let deadline = Instant::now() + Duration::from_secs(60);
        let counts: Vec<u64> = self
            .done
            .iter()
            .map(|done| done.load(Ordering::Acquire))
            .collect();
        for (done, before) in self.done.iter().zip(counts) {
            while done.load(Ordering::Acquire) < before + requests {
                assert!(
                    self.threads.iter().all(|thread| !thread.is_finished()),
                    "a guest failed"
                );
                assert!(Instant::now() < deadline, "a guest hangs");
                std::thread::yield_now();
            }
        }
    }

    /// Until each has something under way.
    pub fn run_until_busy(&self) {
        while !self.busy.iter().all(|busy| busy.load(Ordering::Acquire)) {
            std::thread::yield_now();
        }
    }

    /// What each disk holds now.
    pub fn stop(self) -> Vec<Vec<u8>> {
        self.stop.store(true, Ordering::Release);
        let ends = self.threads.into_iter().map(|thread| thread.join());
        ends.map(|end| end.expect("a guest failed")).collect()
    }
}

struct Running {
    guest: Guest,
    lane: Lane,
    slots: Vec<Option<Request>>,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    busy: Arc<AtomicBool>,
}

impl Running {
    fn run(mut self) -> Vec<u8> {
        let bell = self.lane.ring().borrow_mut().bell();
        let fd = bell.as_raw_fd();
        self.lane
            .ring()
            .borrow_mut()
            .start(Op::Poll { fd }, &[], 0, 0, BELL);
        self.slots.resize_with(DEPTH, || None);
        loop {
            let stop = self.stop.load(Ordering::Acquire);
            self.lane.begin_batch();
            while let Some(event) = self.lane.take() {
                match event {
                    Event::Finished { token, outcome } => self.end(token as usize, outcome),
                    Event::Signal { .. } => bell.hush(),
                }
            }
            for slot in 0..DEPTH {
                self.begin(slot, stop);
            }
            self.lane.end_batch();
            if stop && self.slots.iter().all(Option::is_none) {
                return self.guest.model;
            }
            self.lane.turn(Wait::One).expect("a turn");
        }
    }

    fn begin(&mut self, slot: usize, stop: bool) {
        match &self.slots[slot] {
            Some(request) if !request.held => return,
            Some(_) => {}
            None if stop => return,
            None => {
                let Some(request) = self.new_request() else {
                    return;
                };
                self.slots[slot] = Some(request);
            }
        }
        let Some(request) = &mut self.slots[slot] else {
            return;
        };
        let span = Span {
            at: self.guest.at + request.first * BLOCK,
            len: request.blocks * BLOCK,
        };
        let segs: Vec<_> = request.mem.segs().collect();
        let started = self
            .lane
            .start(self.guest.node, request.kind, span, &segs, slot as u64);
        request.held = matches!(started, Started::Held | Started::Full);
        match started {
            Started::Done(outcome) => self.end(slot, outcome),
            Started::Pending => self.busy.store(true, Ordering::Release),
            Started::Held | Started::Full => {}
        }
    }

    fn new_request(&mut self) -> Option<Request> {
        let Guest { chance, model, .. } = &mut self.guest;
        let all = model.len() as u64 / BLOCK;
        let first = chance.below(all);
        let blocks = 1 + chance.below((all - first).min(20));
        let taken =
            |other: &Request| other.first < first + blocks && first < other.first + other.blocks;
        if self.slots.iter().flatten().any(taken) {
            return None;
        }
        let len = (blocks * BLOCK) as usize;
        let mem = Mem::zeroed(len).expect("memory");
        let kind = match chance.below(8) {
            0..4 => {
                let byte = chance.next() as u8;
                let bytes: Vec<u8> = (0..len).map(|at| byte ^ (at / 512) as u8).collect();
                mem.store(0, &bytes);
                Kind::Write(Durability::Cached)
            }
            4 => Kind::WriteZeroes(blockgraph::Unmap::Allow, Durability::Cached),
            5 => Kind::Flush,
            _ => Kind::Read,
        };
        Some(Request {
            first,
            blocks,
            mem,
            kind,
            held: false,
        })
    }

    fn end(&mut self, slot: usize, outcome: blockgraph::Outcome) {
        let request = self.slots[slot].take().expect("under way");
        assert_eq!(
            outcome,
            Ok(()),
            "{:?} of {} blocks at {}",
            request.kind,
            request.blocks,
            request.first
        );
        let (from, to) = (
            request.first * BLOCK,
            (request.first + request.blocks) * BLOCK,
        );
        let model = &mut self.guest.model[from as usize..to as usize];
        match request.kind {
            Kind::Read => {
                let mut found = vec![0; model.len()];
                request.mem.load(0, &mut found);
                assert!(
                    found == *model,
                    "{} blocks at {} read wrong",
                    request.blocks,
                    request.first
                );
            }
            Kind::Write(_) => {
                request.mem.load(0, model);
            }
            Kind::WriteZeroes(..) => model.fill(0),
            _ => {}
        }
        self.done.fetch_add(1, Ordering::AcqRel);
    }
}
