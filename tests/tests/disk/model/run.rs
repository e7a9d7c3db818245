//! Runs a stream of requests through a world, holding every answer against the model.

use super::world::{FILE, Plan, SECTORS, World, surroundings_are_whole, window};
use blockgraph::driver::file::Cache;
use blockgraph::{Event, Kind, Mode, Outcome, Span, Started, Unmap};
use ring::sim::{self, Rng};
use ring::{Durability, Errno, Mem, Seg, Wait};
use std::collections::BTreeMap;
use std::ops::Range;
use tests::cells::{Cells, End, Overlap, SECTOR, Stamp, bytes_of, stamp};

/// One request of a stream.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub kind: Kind,
    pub at: u64,
    pub sectors: u64,
    pub lane: usize,
    /// A write of nothing but zeroes.
    pub zeroes: bool,
    /// Look what a crash would leave before it goes out.
    pub crash: bool,
}

impl Step {
    /// What it makes of a sector.
    fn content(&self, token: u64, sector: u64) -> Stamp {
        match self.kind {
            Kind::Write(_) if !self.zeroes => stamp(token, sector),
            _ => 0,
        }
    }
}

/// A stream by seed.
pub fn stream(plan: &Plan, count: usize) -> Vec<Step> {
    let mut rng = Rng::new(plan.seed ^ 0x57ea_0000);
    let mut one = || {
        let durability = match rng.below(4) {
            0 => Durability::Through,
            _ => Durability::Cached,
        };
        let unmap = if rng.coin() {
            Unmap::Allow
        } else {
            Unmap::Keep
        };
        let kind = match rng.below(16) {
            0..6 => Kind::Read,
            6..12 => Kind::Write(durability),
            12 => Kind::WriteZeroes(unmap, durability),
            13 => Kind::Discard,
            _ => Kind::Flush,
        };
        let longest = [1, 2, 8, 40][rng.below(4) as usize];
        let sectors = 1 + rng.below(longest);
        let hot = plan.overlap == Overlap::Writes && rng.coin();
        let end = if hot { 64 } else { SECTORS };
        let mut at = rng.below(end - sectors + 1);
        let mut sectors = sectors;
        // Whole blocks often enough that mapped writes meet writes to parts of blocks.
        if rng.below(3) == 0 {
            (at, sectors) = (at - at % 8, sectors.next_multiple_of(8));
        }
        if kind == Kind::Flush {
            (at, sectors) = (0, 0);
        }
        Step {
            kind,
            at,
            sectors,
            lane: rng.below(plan.lanes as u64) as usize,
            zeroes: rng.below(5) == 0,
            crash: rng.below(20) == 0,
        }
    };
    (0..count).map(|_| one()).collect()
}

/// A request that is under way.
struct Flying {
    step: Step,
    mem: Mem,
    began: u64,
    /// How many events the disk had seen.
    events: usize,
}

/// An operation that the disk failed.
struct Failure {
    kind: sim::Kind,
    /// Bytes of the file.
    range: Range<u64>,
    /// Of the disk's events.
    number: usize,
    /// Some request ended with an error for it.
    told: bool,
}

/// A stream under way.
pub struct Run<'a> {
    plan: &'a Plan,
    pub world: World,
    pub cells: Cells,
    flying: BTreeMap<u64, Flying>,
    /// Operations that the disk failed.
    failed: Vec<Failure>,
    seen_events: usize,
    pub failed_requests: usize,
    pub crashes: usize,
}

/// What went wrong, with all that is needed to see it again.
pub type Verdict = Result<(), String>;

impl<'a> Run<'a> {
    pub fn new(plan: &'a Plan, mode: Mode) -> Run<'a> {
        let cells = Cells::new(SECTORS);
        Run {
            plan,
            world: World::new(plan, &cells, mode),
            cells,
            flying: BTreeMap::new(),
            failed: Vec::new(),
            seen_events: 0,
            failed_requests: 0,
            crashes: 0,
        }
    }

    /// Runs the whole stream, waits for its end and compares the disk.
    pub fn all(&mut self, steps: &[Step]) -> Verdict {
        let mut rng = Rng::new(self.plan.seed ^ 0xba7c);
        for (n, step) in steps.iter().enumerate() {
            while self.flying.len() > 40 || self.conflicts(step) {
                self.turn()?;
            }
            if step.crash {
                self.crash(n as u64)?;
            }
            self.issue(n as u64 + 1, *step)?;
            // Batches of one to some.
            if rng.below(4) == 0 {
                self.turn()?;
            }
        }
        while !self.flying.is_empty() {
            self.turn()?;
        }
        self.crash(u64::MAX)?;
        self.finish()
    }

    fn conflicts(&mut self, step: &Step) -> bool {
        let overlap = self.plan.overlap;
        let Step {
            kind, at, sectors, ..
        } = *step;
        self.cells.conflicts(kind, at, sectors, overlap)
    }

    fn finish(&mut self) -> Verdict {
        if let Some(Failure { kind, range, .. }) = self.failed.iter().find(|f| !f.told) {
            return Err(format!("{kind:?} of {range:x?} failed and nobody was told"));
        }
        let images = self.world.disk.images();
        let image = &images[&FILE];
        if !surroundings_are_whole(self.plan, image) {
            return Err("bytes around the window changed".to_owned());
        }
        self.cells.issued(Kind::Read, 0, SECTORS, |_| 0);
        self.cells.read(0, SECTORS, Some(window(self.plan, image)))
    }

    fn crash(&mut self, salt: u64) -> Verdict {
        // A short transfer of single bytes may leave the second half of a sector not even submitted.
        if self.plan.block_bytes == 1 && self.plan.weather.short > 0 {
            return Ok(());
        }
        for seed in 0..3 {
            let images = self.world.disk.crash(salt << 8 | seed);
            let image = window(self.plan, &images[&FILE]);
            self.cells
                .crashed(image)
                .map_err(|e| format!("crash: {e}"))?;
            self.crashes += 1;
        }
        Ok(())
    }

    fn issue(&mut self, token: u64, step: Step) -> Verdict {
        let Step {
            kind, at, sectors, ..
        } = step;
        let content = |sector| step.content(token, sector);
        let mem = memory(step, content);
        let segs: Vec<Seg> = mem.segs().collect();
        let span = Span::new(at * SECTOR, sectors * SECTOR).expect("a span");
        let ignored =
            kind == Kind::Discard && self.plan.discard == blockgraph::graph::DiscardPolicy::Ignore;
        let modelled = if ignored { Kind::Read } else { kind };
        let began = self.cells.issued(modelled, at, sectors, content);
        loop {
            let lane = &mut self.world.lanes[step.lane];
            lane.begin_batch();
            let started = lane.start(self.world.top, kind, span, &segs, token);
            lane.end_batch();
            match started {
                Started::Full | Started::Held => self.turn()?,
                Started::Pending => {
                    let step = Step {
                        kind: modelled,
                        ..step
                    };
                    let mem = if ignored { Mem::none() } else { mem };
                    let events = self.seen_events;
                    self.flying.insert(
                        token,
                        Flying {
                            step,
                            mem,
                            began,
                            events,
                        },
                    );
                    return Ok(());
                }
                Started::Done(_) => return Err("nothing here is done at once".to_owned()),
            }
        }
    }

    /// One turn of every lane.
    fn turn(&mut self) -> Verdict {
        for n in 0..self.world.lanes.len() {
            let lane = &mut self.world.lanes[n];
            lane.turn(Wait::Not).map_err(|e| e.to_string())?;
            let mut ends = Vec::new();
            while let Some(Event::Finished { token, outcome }) = lane.take() {
                ends.push((token, outcome));
            }
            lane.end_batch();
            self.note_failures();
            for (token, outcome) in ends {
                self.ended(token, outcome)
                    .map_err(|e| format!("request {token}: {e}"))?;
            }
        }
        Ok(())
    }

    fn note_failures(&mut self) {
        for event in self.world.disk.log_from(self.seen_events) {
            if let sim::Event::Ended(seen, result) = event
                && result == -libc::EIO
            {
                self.failed.push(Failure {
                    kind: seen.kind,
                    range: seen.at..seen.at + seen.len_bytes,
                    number: self.seen_events,
                    told: false,
                });
            }
            self.seen_events += 1;
        }
    }

    fn ended(&mut self, token: u64, outcome: Outcome) -> Verdict {
        let flying = self.flying.remove(&token).ok_or("ended twice")?;
        let Step {
            kind, at, sectors, ..
        } = flying.step;
        let end = match outcome {
            Ok(()) => End::Done,
            Err(Errno::IO) => End::Failed,
            Err(errno) => return Err(format!("{kind:?} failed with {errno}")),
        };
        if end == End::Failed {
            self.failed_requests += 1;
            self.blame(&flying)?;
        }
        match (kind, end) {
            (Kind::Read, End::Done) if !flying.mem.is_empty() => {
                let mut found = vec![0; flying.mem.len()];
                flying.mem.load(0, &mut found);
                self.cells.read(at, sectors, Some(&found))
            }
            (Kind::Read, _) => self.cells.read(at, sectors, None),
            (Kind::Flush, End::Done) => {
                self.cells.flushed(flying.began);
                Ok(())
            }
            (Kind::Flush, End::Failed) => Ok(()),
            _ => {
                let content = |sector| flying.step.content(token, sector);
                self.cells.written(kind, at, sectors, end, content);
                Ok(())
            }
        }
    }

    /// A request may only fail if an operation on its blocks did; a flush, or a change that is to be durable, if a sync did.
    fn blame(&mut self, flying: &Flying) -> Verdict {
        let (step, block) = (flying.step, u64::from(self.plan.block_bytes));
        let start = step.at * SECTOR + self.plan.offset_bytes;
        let end = start + step.sectors * SECTOR;
        let bytes = start - start % block..end.next_multiple_of(block);
        let syncs = matches!(
            step.kind,
            Kind::Flush
                | Kind::WriteZeroes(_, Durability::Through)
                | Kind::Write(Durability::Through)
        );
        // Once a sync of cached data has failed, every later one fails (the kernel has forgotten).
        let sticky = self.plan.cache == Cache::Page;
        let mut found = false;
        for failure in &mut self.failed {
            let since = failure.number >= flying.events;
            let range = &failure.range;
            if match failure.kind {
                sim::Kind::Sync => syncs && (sticky || since),
                _ => since && range.start < bytes.end && bytes.start < range.end,
            } {
                (found, failure.told) = (true, true);
            }
            // A write through is a sync as well, and may have heard of others' loss. It is told to its own request besides.
            found |= syncs && sticky && failure.kind == sim::Kind::WriteThrough;
        }
        match found {
            true => Ok(()),
            false => Err(format!("{step:?} failed, and nothing it needs had")),
        }
    }
}

fn memory(step: Step, content: impl Fn(u64) -> u64) -> Mem {
    if !matches!(step.kind, Kind::Read | Kind::Write(_)) {
        return Mem::none();
    }
    // Memory off any alignment now and then, so that it is bounced.
    let skew = (step.at % 5 * 3) as usize;
    let len = (step.sectors * SECTOR) as usize;
    let mem = Mem::zeroed(len + skew).expect("memory").slice(skew, len);
    for n in 0..step.sectors {
        let bytes = match step.kind {
            Kind::Read => [0x77; 512],
            _ => bytes_of(content(step.at + n)),
        };
        mem.store((n * SECTOR) as usize, &bytes);
    }
    mem
}
