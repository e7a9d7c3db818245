//! Runs a stream of requests on a stack, holding every answer, and what every crash would leave, against the model.

use super::crash::{self, Patience};
use super::edits;
use super::plan::Plan;
use super::start::{SECTORS, Start};
use super::stream::{Step, TOKEN_MIN, stream};
use super::world::{Nature, World};
use blockgraph::graph::edit::Leaving;
use blockgraph::{Event, Kind, Outcome, Span, Started};
use ring::sim::{Act, Images, Rng, Rule, Times, Weather};
use ring::{Errno, Mem, Seg, Wait};
use std::collections::BTreeMap;
use tests::cells::{Cells, End, SECTOR, bytes_of};

/// Crash images that are looked at, at each moment that is.
const CRASHES: u64 = 2;
/// QEMU is asked about one in so many.
const SHOWN_TO_QEMU: u64 = 40;

/// A request that is under way.
struct Flying {
    step: Step,
    mem: Mem,
    began: u64,
}

/// A stream under way.
pub struct Run<'a> {
    pub plan: &'a Plan,
    pub world: World,
    pub cells: Cells,
    /// The files that nobody may change, as they were.
    pub bases: Images,
    /// Nodes that an edit took out, while requests are still on them.
    pub leaving: Vec<Leaving>,
    flying: BTreeMap<u64, Flying>,
    pub rng: Rng,
    /// Renewed when a request ends.
    patience: Patience,
    pub counts: Counts,
    /// Does it say what it does?
    pub tells: bool,
}

/// What happened in a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub runs: usize,
    pub failed_requests: usize,
    /// Crash images that were looked at.
    pub crashes: usize,
    /// Those of them that QEMU looked at too.
    pub shown_to_qemu: usize,
    /// Clusters that leaked, when all was closed.
    pub leaks: u64,
    /// Operations of the host.
    pub operations: u64,
    /// Changes of the graph.
    pub edits: usize,
}

impl Counts {
    pub fn add(&mut self, other: Counts) {
        self.failed_requests += other.failed_requests;
        self.crashes += other.crashes;
        self.shown_to_qemu += other.shown_to_qemu;
        self.leaks += other.leaks;
        self.operations += other.operations;
        self.edits += other.edits;
    }
}

/// What went wrong.
pub type Verdict = Result<(), String>;

impl<'a> Run<'a> {
    pub fn new(plan: &'a Plan, start: &Start) -> Result<Run<'a>, String> {
        // Whoever cannot open an image is told so; that is for other tests.
        let nature = Nature {
            weather: Weather::CALM,
            ..Nature::of(plan)
        };
        let world = World::open(&start.stack, &start.images, nature)?;
        world.disk.set_weather(plan.weather);
        let images = world.disk.images();
        let bases = start
            .stack
            .base_files()
            .map(|file| (file, images[&file].clone()));
        let mut cells = Cells::of(&start.content);
        for below in &start.below {
            cells.lies_below(below);
        }
        Ok(Run {
            plan,
            bases: bases.collect(),
            world,
            cells,
            leaving: Vec::new(),
            flying: BTreeMap::new(),
            rng: Rng::new(plan.seed ^ 0xba7c),
            patience: Patience::default(),
            counts: Counts::default(),
            tells: std::env::var_os("GRAPH_MODEL_SEED").is_some(),
        })
    }

    /// Runs the whole stream, waits for its end and looks at everything.
    pub fn all(&mut self) -> Verdict {
        let first = self.world.disk.count();
        self.hold_some();
        if let Some(nth) = self.plan.fails {
            let fail = Rule::every(Act::Fail(libc::EIO));
            self.world
                .disk
                .rule(fail.when(move |seen| seen.number == first + nth));
        }
        for (n, step) in stream(self.plan).iter().enumerate() {
            while self.flying.len() > 20 || self.conflicts(step) {
                self.turn()?;
            }
            if self.plan.edits && self.rng.below(10) == 0 {
                edits::one(self).map_err(|e| format!("edit before {n}: {e}"))?;
            }
            if step.crash && self.plan.crashes() {
                self.crash(n as u64)?;
            }
            if self.tells {
                println!("{n}: {step:?}");
            }
            self.issue(TOKEN_MIN + n as u64, *step)?;
            // Batches of one to some.
            if self.rng.below(4) == 0 {
                self.turn()?;
            }
        }
        self.settle()?;
        self.counts.operations = self.world.disk.count() - first;
        self.crash(u64::MAX >> 8)?;
        self.finish()
    }

    /// Some operations of the disk wait until others are over, if the plan says so.
    pub fn hold_some(&mut self) {
        if self.plan.holds {
            let hold = Rule::every(Act::Hold).times(Times::Chance(40));
            self.world.disk.rule(hold);
        }
    }

    /// None does.
    pub fn let_go_of_all(&mut self) {
        self.world.disk.clear_rules();
        self.world.disk.release_all();
    }

    /// Waits for everything under way.
    pub fn settle(&mut self) -> Verdict {
        while !self.flying.is_empty() {
            self.turn()?;
        }
        for leaving in std::mem::take(&mut self.leaving) {
            self.world.let_go(leaving)?;
        }
        Ok(())
    }

    fn conflicts(&mut self, step: &Step) -> bool {
        let (kind, at, sectors) = (step.kind, step.at, step.sectors);
        let overlap = self.plan.overlap;
        self.cells.conflicts(kind, at, sectors, overlap)
    }

    /// The whole disk reads as the model says, and so it does after everything was closed.
    fn finish(&mut self) -> Verdict {
        self.let_go_of_all();
        self.world.disk.set_weather(Weather::CALM);
        let found = crash::read_all(&mut self.world)?;
        self.cells.issued(Kind::Read, 0, SECTORS, |_| 0);
        self.cells.read(0, SECTORS, Some(&found))?;
        let closed = self.world.close();
        let images = self.world.disk.images();
        crash::bases_are_untouched(&self.bases, &images)?;
        let left = self.left(&images, self.plan.seed);
        match closed {
            Ok(()) => {
                let (again, leaks) = left.read()?;
                self.counts.leaks = leaks;
                self.cells.issued(Kind::Read, 0, SECTORS, |_| 0);
                let same = self.cells.read(0, SECTORS, Some(&again));
                same.map_err(|error| format!("reopened: {error}"))
            }
            // A flush that failed may have lost anything that was not flushed before.
            Err(_) if self.plan.may_fail() => left.holds_against(&self.cells, false),
            Err(error) => Err(error),
        }
    }

    fn left<'b>(&'b self, images: &'b Images, seed: u64) -> crash::Left<'b> {
        crash::Left {
            plan: self.plan,
            stack: &self.world.stack,
            images,
            seed,
        }
    }

    fn crash(&mut self, salt: u64) -> Verdict {
        if !self.plan.crashes() {
            return Ok(());
        }
        for n in 0..CRASHES {
            let seed = salt << 8 | n;
            let images = self.world.disk.crash(seed);
            let to_qemu = (self.plan.seed * 7 + salt).is_multiple_of(SHOWN_TO_QEMU);
            let left = self.left(&images, seed);
            let verdict = crash::bases_are_untouched(&self.bases, &images)
                .and_then(|()| left.holds_against(&self.cells, to_qemu));
            verdict.map_err(|e| format!("crash {seed:#x}: {e}"))?;
            self.counts.crashes += 1;
            self.counts.shown_to_qemu += usize::from(to_qemu);
        }
        Ok(())
    }

    fn issue(&mut self, token: u64, step: Step) -> Verdict {
        let Step {
            kind, at, sectors, ..
        } = step;
        let mem = memory(token, step);
        let segs: Vec<Seg> = mem.segs().collect();
        let span = Span::new(at * SECTOR, sectors * SECTOR).ok_or("a span")?;
        let content = |sector| step.content(token, sector);
        let began = self.cells.issued(kind, at, sectors, content);
        self.flying.insert(token, Flying { step, mem, began });
        loop {
            let top = self.world.top;
            let lane = &mut self.world.lanes[step.lane];
            lane.begin_batch();
            let started = lane.start(top, kind, span, &segs, token);
            lane.end_batch();
            match started {
                Started::Full | Started::Held => self.turn()?,
                Started::Pending => return Ok(()),
                Started::Done(outcome) => return self.ended(token, outcome),
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
            for (token, outcome) in ends {
                let ended = self.ended(token, outcome);
                ended.map_err(|e| format!("request {token}: {e}"))?;
            }
        }
        if self.rng.below(16) == 0 || self.patience.turns() > 200 {
            self.world.disk.release_all();
        }
        if self.patience.is_over() {
            let steps: Vec<_> = self.flying.values().map(|flying| flying.step).collect();
            return Err(format!("these never end: {steps:?}"));
        }
        Ok(())
    }

    fn ended(&mut self, token: u64, outcome: Outcome) -> Verdict {
        self.patience = Patience::default();
        let flying = self.flying.remove(&token).ok_or("ended twice")?;
        let step = flying.step;
        if self.tells {
            println!("{}: {outcome:?}", token - TOKEN_MIN);
        }
        let end = match outcome {
            Ok(()) => End::Done,
            Err(Errno::IO | Errno::NOSPC) if self.plan.may_fail() => End::Failed,
            Err(errno) => return Err(format!("{step:?} failed with {errno}")),
        };
        self.counts.failed_requests += usize::from(end == End::Failed);
        self.note(token, &flying, end)
    }

    fn note(&mut self, token: u64, flying: &Flying, end: End) -> Verdict {
        let Step {
            kind, at, sectors, ..
        } = flying.step;
        match (kind, end) {
            (Kind::Read, End::Done) => {
                let mut found = vec![0; flying.mem.len()];
                flying.mem.load(0, &mut found);
                self.cells.read(at, sectors, Some(&found))
            }
            (Kind::Read, End::Failed) => self.cells.read(at, sectors, None),
            (Kind::Flush, End::Done) => {
                self.cells.flushed(flying.began);
                Ok(())
            }
            (Kind::Flush, End::Failed) => Ok(()),
            _ => {
                let content = |sector| flying.step.content(token, sector);
                self.cells.written(kind, at, sectors, end, content);
                if kind == Kind::Discard {
                    self.cells.uncovered(at, sectors);
                }
                Ok(())
            }
        }
    }
}

fn memory(token: u64, step: Step) -> Mem {
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
            _ => bytes_of(step.content(token, step.at + n)),
        };
        mem.store((n * SECTOR) as usize, &bytes);
    }
    mem
}
