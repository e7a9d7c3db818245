//! An image on a simulated disk, written by several lanes while its snapshots and its size are changed, and what it should
//! be at every moment of that.

use super::admin::{ADMIN, Admin, Kept};
use super::support::history::{Change, Moment, NEVER, Sector, Sure};
use super::support::sectors::{SECTOR, Version, stamp, versions};
use super::support::{Bench, Chance, sim, span};
use blockgraph::driver::qcow2::Options;
use blockgraph::{Kind, Mode, NodeId, Outcome, Started, Unmap};
use ring::sim::{Disk, Images, Weather};
use ring::{Durability, Errno, Mem};
use std::collections::BTreeMap;

/// Room for everything.
pub const ROOM: u64 = 64 << 20;
/// What is in the backing file, which no request writes.
pub const BELOW: Version = 1 << 59;
/// More turns than any request takes.
const TURNS_MAX: usize = 200_000;

/// What is asked of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Write(Durability),
    Zeroes(Unmap, Durability),
    Discard,
    Read,
    /// What a discard has made of its sectors.
    Look,
    Flush,
}

/// A request under way.
#[derive(Debug)]
struct Request {
    what: What,
    at: usize,
    len: usize,
    begun: Moment,
    mem: Mem,
}

pub struct World {
    pub name: String,
    pub disk: Disk,
    pub lanes: Vec<Bench>,
    pub node: NodeId,
    /// As long as the disk.
    pub sectors: Vec<Sector>,
    /// So many sectors lie below.
    pub below: usize,
    pub kept: Vec<Kept>,
    pub admin: Option<(Admin, Moment)>,
    pub now: Moment,
    /// All that had ended before it is durable.
    pub flushed: Moment,
    pub chance: Chance,
    /// Changes of the size that were made.
    pub resized: u64,
    /// Requests and changes that failed.
    pub failed: usize,
    /// May any?
    pub errors: bool,
    /// Refcounts may be behind.
    pub lazy: bool,
    requests: BTreeMap<u64, Request>,
    token: u64,
}

/// How a world begins.
#[derive(Clone, Copy, Debug)]
pub struct Start<'a> {
    pub options: &'a str,
    pub sectors: usize,
    /// How long the backing file is; 0: there is none.
    pub below: usize,
    pub lanes: usize,
    pub mode: Mode,
    pub seed: u64,
    pub weather: Weather,
}

impl World {
    pub fn new(start: Start<'_>) -> World {
        let size = (start.sectors * SECTOR) as u64;
        let below: Vec<u8> = (0..start.below).flat_map(|n| stamp(n, BELOW)).collect();
        let below = (start.below > 0).then_some(below.as_slice());
        World::on(sim::image_on(start.options, size, below), start)
    }

    /// On an image that was made already, as `start` says.
    pub fn on(files: Images, start: Start<'_>) -> World {
        let Start {
            options,
            mode,
            seed,
            ..
        } = start;
        let disk = sim::disk(files, ROOM, seed, start.weather);
        let (mut first, file) = sim::bench(&disk, mode);
        let node = sim::open(&mut first, file, Options::default());
        let mut lanes = vec![first];
        for _ in 1..start.lanes {
            let (current, epochs) = (lanes[0].current.clone(), lanes[0].epochs.clone());
            let choice = ring::Choice::Sim(disk.clone());
            lanes.push(Bench::on(current, epochs, choice, mode));
        }
        let mut world = World {
            name: format!(
                "{options} on {} {mode:?} {} lanes seed {seed}",
                start.below, start.lanes
            ),
            disk,
            lanes,
            node,
            sectors: Vec::new(),
            below: start.below,
            kept: Vec::new(),
            admin: None,
            now: 1,
            flushed: 0,
            chance: Chance(seed),
            failed: 0,
            resized: 0,
            errors: false,
            lazy: options.contains("lazy"),
            requests: BTreeMap::new(),
            token: 0,
        };
        let first = (0..start.sectors).map(|n| Sector::of(world.shown_from_below(n)));
        world.sectors = first.collect();
        world
    }

    /// What a sector that nobody wrote reads as if the disk was that long from the beginning.
    pub fn shown_from_below(&self, sector: usize) -> Version {
        match sector < self.below {
            true => BELOW,
            false => 0,
        }
    }

    pub fn tick(&mut self) -> Moment {
        self.now += 1;
        self.now
    }

    pub fn under_way(&self) -> usize {
        self.requests.len()
    }

    /// Starts a request on a lane, unless something else is changing those sectors.
    pub fn start(&mut self, lane: usize, what: What, at: usize, len: usize) {
        let overlaps = |r: &Request| at < r.at + r.len && r.at < at + len;
        let taken = self.requests.values().any(overlaps);
        if taken && !matches!(what, What::Flush | What::Read) {
            return;
        }
        self.token += 1;
        let (token, begun) = (self.token, self.tick());
        let (version, sure, through) = match what {
            What::Write(durability) => (token, Sure::Yes, durability == Durability::Through),
            What::Zeroes(_, durability) => (0, Sure::Yes, durability == Durability::Through),
            _ => (0, Sure::Perhaps, false),
        };
        if matches!(what, What::Write(_) | What::Zeroes(..) | What::Discard) {
            let ended = NEVER;
            let change = Change {
                token,
                version,
                sure,
                begun,
                ended,
                through,
            };
            self.sectors[at..at + len]
                .iter_mut()
                .for_each(|sector| sector.0.push(change));
        }
        let (kind, mem) = asked(what, at, len, token);
        let whole = match what {
            What::Flush => span(0, 0),
            _ => span((at * SECTOR) as u64, (len * SECTOR) as u64),
        };
        let request = Request {
            what,
            at,
            len,
            begun,
            mem: mem.clone(),
        };
        self.requests.insert(token, request);
        let started = self.lanes[lane].start(self.node, kind, whole, &mem, token);
        if let Started::Done(outcome) = started {
            self.ended(token, outcome);
        }
    }

    /// Lets every lane go on for a few turns.
    pub fn turns(&mut self, count: usize) {
        let mut ends = Vec::new();
        for _ in 0..count {
            let first = self.chance.below(self.lanes.len() as u64) as usize;
            for n in 0..self.lanes.len() {
                let lane = (first + n) % self.lanes.len();
                self.lanes[lane].turns(1, &mut ends);
            }
        }
        for (token, outcome) in ends {
            self.ended(token, outcome);
        }
    }

    /// Goes on until nothing is under way.
    pub fn settle(&mut self) {
        for _ in 0..TURNS_MAX {
            if self.requests.is_empty() && self.admin.is_none() {
                return;
            }
            self.turns(1);
        }
        panic!(
            "{}: never ends: {:?} {:?}",
            self.name, self.requests, self.admin
        );
    }

    fn ended(&mut self, token: u64, outcome: Outcome) {
        if Some(token) == self.admin_token() {
            return self.admin_ended(outcome);
        }
        let now = self.tick();
        let request = self.requests.remove(&token).expect("under way");
        let Request {
            what,
            at,
            len,
            begun,
            ..
        } = request;
        if outcome.is_err() {
            return self.request_failed(token, &request, outcome);
        }
        let here = self.here(at, len);
        for sector in &mut self.sectors[here.clone()] {
            sector
                .0
                .iter_mut()
                .filter(|c| c.token == token)
                .for_each(|c| c.ended = now);
        }
        match what {
            What::Flush => self.flushed = self.flushed.max(begun),
            What::Read | What::Look => self.read(&request),
            _ => {}
        }
        if what == What::Discard && !here.is_empty() {
            // On any lane: it is a look and no change.
            let lane = self.chance.below(self.lanes.len() as u64) as usize;
            self.start(lane, What::Look, here.start, here.len());
        }
    }

    /// The part of a range that is still within the disk.
    fn here(&self, at: usize, len: usize) -> std::ops::Range<usize> {
        let end = (at + len).min(self.sectors.len());
        at.min(end)..end
    }

    fn request_failed(&mut self, token: u64, request: &Request, outcome: Outcome) {
        let Request { at, len, .. } = *request;
        let to = match &self.admin {
            Some((Admin::Resize(to, _), _)) => (*to).min(self.sectors.len()),
            _ => self.sectors.len(),
        };
        // What lies past the end of a disk that was made smaller is refused.
        let past_end = at + len > to && matches!(outcome, Err(Errno::INVAL | Errno::IO));
        assert!(
            self.errors || past_end,
            "{}: {request:?}: {outcome:?}",
            self.name
        );
        self.failed += usize::from(!past_end);
        let (here, now) = (self.here(at, len), self.now);
        for change in self.sectors[here]
            .iter_mut()
            .flat_map(|sector| &mut sector.0)
        {
            if change.token == token {
                (change.sure, change.ended) = (Sure::Perhaps, now);
            }
        }
    }

    /// What was read is what may be read; of a discard it is what there is from now on.
    fn read(&mut self, request: &Request) {
        let mut bytes = vec![0; request.len * SECTOR];
        request.mem.load(0, &mut bytes);
        let found = versions(request.at, &bytes, &self.name);
        let now = self.now;
        for n in self.here(request.at, request.len) {
            let version = found[n - request.at];
            let sector = &mut self.sectors[n];
            let may_be = sector.may_be(request.begun, now);
            assert!(
                may_be.contains(&version),
                "{}: sector {n} reads as {version}, not {may_be:?}: {:?}",
                self.name,
                sector.0
            );
            // While a part of the disk is being cut off, what is found there may be of that and not of the discard.
            let is_cut = sector.0.iter().any(|change| change.token == ADMIN);
            if request.what == What::Look && !is_cut {
                let last = sector.0.last_mut().expect("the discard");
                match version {
                    0 => last.sure = Sure::Yes,
                    _ => drop(sector.0.pop()),
                }
            }
        }
    }
}

fn asked(what: What, at: usize, len: usize, version: Version) -> (Kind, Mem) {
    match what {
        What::Write(durability) => {
            let mem = Mem::zeroed(len * SECTOR).expect("memory");
            for n in 0..len {
                mem.store(n * SECTOR, &stamp(at + n, version));
            }
            (Kind::Write(durability), mem)
        }
        What::Read | What::Look => {
            let mem = Mem::zeroed(len * SECTOR).expect("memory");
            mem.store(0, &vec![0xee; len * SECTOR]);
            (Kind::Read, mem)
        }
        What::Zeroes(unmap, durability) => (Kind::WriteZeroes(unmap, durability), Mem::none()),
        What::Discard => (Kind::Discard, Mem::none()),
        What::Flush => (Kind::Flush, Mem::none()),
    }
}
