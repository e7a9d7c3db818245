//! Operations on their way through the disk: submitted, carried out, ended.

use super::rules::{Act, Cancels, Kind, Order, Seen};
use super::store::{Change, Store};
use super::{Event, Rng, SimFile, State};
use crate::engine::Report;
use crate::file::FileId;
use crate::seg::{self, Seg};

/// How far an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Held,
    /// May be carried out from this turn of its ring on.
    Ready {
        turn: u64,
    },
    /// Carried out (or refused), not yet reported.
    Over {
        result: i32,
    },
}

/// What was decided when it was submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Whole,
    Short(u64),
    Fail(i32),
    Refuse(i32),
}

/// An operation in flight.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(super) seen: Seen,
    pub(super) user_data: u64,
    segs: Vec<Seg>,
    stage: Stage,
    fate: Fate,
    /// The disk's count of events when it was submitted; what a sync covers.
    began: u64,
    /// The change it made, if it made one.
    change: Option<u64>,
}

impl Flight {
    pub(super) fn is_held(&self) -> bool {
        self.stage == Stage::Held
    }

    pub(super) fn release(&mut self) {
        self.stage = Stage::Ready { turn: 0 };
    }

    fn is_ready(&self, turn: u64) -> bool {
        matches!(self.stage, Stage::Ready { turn: from } if from <= turn)
    }

    /// What it would write: its memory as it is at this moment.
    fn change(&self, len_bytes: u64) -> Option<Change> {
        match self.seen.kind {
            Kind::Write | Kind::WriteThrough => {
                let mut bytes = vec![0; len_bytes as usize];
                seg::load(&self.segs, 0, &mut bytes);
                Some(Change::Bytes(bytes))
            }
            Kind::Punch | Kind::Zero => Some(Change::Zeroes(len_bytes)),
            Kind::Truncate => Some(Change::Size),
            Kind::Read | Kind::Sync => None,
        }
    }
}

/// How the operations of one ring stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Some can go on, now or after some turns.
    Moving,
    /// All that are left are held.
    Held,
    /// There are none.
    Idle,
}

impl State {
    pub(super) fn submit(&mut self, mut seen: Seen, user_data: u64, segs: Vec<Seg>, turn: u64) {
        seen.number = self.submitted;
        self.submitted += 1;
        self.now += 1;
        let (stage, fate) = self.decide(&seen, turn);
        self.log.push(Event::Submitted(seen));
        self.flights.push(Flight {
            seen,
            user_data,
            segs,
            stage,
            fate,
            began: self.now,
            change: None,
        });
    }

    fn decide(&mut self, seen: &Seen, turn: u64) -> (Stage, Fate) {
        let ready = Stage::Ready { turn };
        let roll = self.rng.below(1000) as u32;
        let mut rules = self.rules.iter_mut().filter(|rule| rule.matches(seen));
        match rules.find_map(|rule| rule.applies(roll).then_some(rule.act)) {
            Some(Act::Hold) => (Stage::Held, Fate::Whole),
            Some(Act::Delay(turns)) => {
                let turn = turn + u64::from(turns);
                (Stage::Ready { turn }, Fate::Whole)
            }
            Some(Act::Fail(errno)) => (ready, Fate::Fail(errno)),
            Some(Act::Refuse(errno)) => (ready, Fate::Refuse(errno)),
            Some(Act::Short(bytes)) => (ready, Fate::Short(bytes)),
            None => (ready, self.weather_fate(seen)),
        }
    }

    fn weather_fate(&mut self, seen: &Seen) -> Fate {
        let (weather, rng) = (self.weather, &mut self.rng);
        if rng.chance(weather.failed) {
            return Fate::Fail(libc::EIO);
        }
        if rng.chance(weather.interrupted) {
            let errno = if rng.coin() {
                libc::EINTR
            } else {
                libc::EAGAIN
            };
            return Fate::Refuse(errno);
        }
        if rng.chance(weather.short) {
            return Fate::Short(1 + rng.below(seen.len_bytes.saturating_sub(1)));
        }
        Fate::Whole
    }

    /// Moves the operations of `queue` on by one turn, and tells what has ended.
    pub(super) fn step(&mut self, queue: u32, turn: u64, out: &mut Vec<Report>) {
        let order = self.weather.order;
        for at in self.chosen(queue, order, |flight| flight.is_ready(turn)) {
            self.carry_out(at);
        }
        let over = |flight: &Flight| matches!(flight.stage, Stage::Over { .. });
        let mut ends = self.chosen(queue, order, over);
        for &at in &ends {
            self.end(at, out);
        }
        ends.sort_unstable();
        for at in ends.into_iter().rev() {
            self.flights.remove(at);
        }
    }

    /// Which operations of `queue` go on in this turn, in which order.
    fn chosen(&mut self, queue: u32, order: Order, can: impl Fn(&Flight) -> bool) -> Vec<usize> {
        let flights = self.flights.iter().enumerate();
        let can = flights.filter(|(_, flight)| flight.seen.queue == queue && can(flight));
        let mut chosen: Vec<usize> = can.map(|(at, _)| at).collect();
        if order == Order::Shuffled {
            let rng = &mut self.rng;
            chosen.retain(|_| rng.coin());
            for at in (1..chosen.len()).rev() {
                chosen.swap(at, rng.below(at as u64 + 1) as usize);
            }
        }
        chosen
    }

    pub(super) fn standing(&self, queue: u32) -> Standing {
        let mut own = self.flights.iter().filter(|f| f.seen.queue == queue);
        let mut standing = Standing::Idle;
        if own.any(|flight| {
            standing = Standing::Held;
            !flight.is_held()
        }) {
            standing = Standing::Moving;
        }
        standing
    }

    fn carry_out(&mut self, at: usize) {
        self.now += 1;
        let Flight { seen, .. } = self.flights[at];
        let flight = &mut self.flights[at];
        let Some(file) = self.files.get_mut(&seen.file) else {
            flight.stage = Stage::Over {
                result: -libc::EBADF,
            };
            return;
        };
        let result = carry_out(file, flight, self.now, &mut self.rng);
        flight.stage = Stage::Over { result };
        self.log.push(Event::CarriedOut(seen));
    }

    fn end(&mut self, at: usize, out: &mut Vec<Report>) {
        self.now += 1;
        let flight = &self.flights[at];
        let Stage::Over { result } = flight.stage else {
            return;
        };
        let seen = flight.seen;
        if let Some(file) = self.files.get_mut(&seen.file) {
            if let Some(change) = flight.change {
                let through = seen.kind == Kind::WriteThrough && result >= 0;
                file.store.told(change, self.now, through);
            }
            if seen.kind == Kind::Sync && result >= 0 {
                file.store.synced(flight.began);
            }
        }
        out.push(Report {
            user_data: flight.user_data,
            result,
            more: false,
        });
        self.log.push(Event::Ended(seen, result));
    }

    /// Cancels an operation of `queue` that was not carried out, if the weather allows.
    pub(super) fn cancel(&mut self, queue: u32, user_data: u64) {
        let own = |f: &&mut Flight| f.seen.queue == queue && f.user_data == user_data;
        let Some(flight) = self.flights.iter_mut().find(own) else {
            return;
        };
        let obeyed = match self.weather.cancels {
            Cancels::Obeyed => true,
            Cancels::Ignored => false,
            Cancels::ByChance => self.rng.coin(),
        };
        if obeyed && matches!(flight.stage, Stage::Ready { .. }) {
            let result = -libc::ECANCELED;
            flight.stage = Stage::Over { result };
        }
    }

    /// What a crash finds half-way: some of the changes that were submitted and not carried out, in any order.
    pub(super) fn carry_out_some(&self, id: FileId, store: &mut Store, rng: &mut Rng) {
        let mut waiting: Vec<&Flight> = self
            .flights
            .iter()
            .filter(|f| f.seen.file == id && !matches!(f.stage, Stage::Over { .. }))
            .collect();
        let mut name = self.now + 1;
        while !waiting.is_empty() {
            let flight = waiting.swap_remove(rng.below(waiting.len() as u64) as usize);
            let refused = matches!(flight.fate, Fate::Refuse(_));
            let len_bytes = clamp(store, &flight.seen);
            let empty = len_bytes == 0 && flight.seen.kind != Kind::Truncate;
            if refused || empty || rng.coin() {
                continue;
            }
            if let Some(change) = flight.change(len_bytes) {
                store.apply(name, flight.seen.at, &change);
                name += 1;
            }
        }
    }
}

/// How much of an operation lies within the file.
fn clamp(store: &Store, seen: &Seen) -> u64 {
    let size = store.live().len() as u64;
    seen.len_bytes.min(size.saturating_sub(seen.at))
}

/// Carries an operation out and answers what a system call would.
fn carry_out(file: &mut SimFile, flight: &mut Flight, now: u64, rng: &mut Rng) -> i32 {
    let seen = flight.seen;
    if let Fate::Refuse(errno) = flight.fate {
        return -errno;
    }
    if seen.kind == Kind::Truncate {
        return resize(file, flight, now, rng);
    }
    if misaligned(file, flight) {
        return -libc::EINVAL;
    }
    let room = match seen.kind {
        Kind::Sync => 0,
        Kind::Write | Kind::WriteThrough => file.size_bytes_max.saturating_sub(seen.at),
        // Beyond the end there is nothing to read, and holes do not make a file longer.
        _ => (file.store.live().len() as u64).saturating_sub(seen.at),
    };
    let mut len_bytes = seen.len_bytes.min(room);
    if let (Fate::Short(most), Kind::Read | Kind::Write | Kind::WriteThrough) =
        (flight.fate, seen.kind)
    {
        let block = u64::from(file.align.offset_bytes);
        len_bytes = len_bytes.min((most / block).max(1) * block);
    }
    let failed = match flight.fate {
        Fate::Fail(errno) => Some(-errno),
        _ => None,
    };
    if seen.kind == Kind::Read && failed.is_none() {
        let at = (seen.at as usize).min(file.store.live().len());
        let bytes = &file.store.live()[at..at + len_bytes as usize];
        seg::store(&flight.segs, 0, bytes);
    }
    let writes = matches!(seen.kind, Kind::Write | Kind::WriteThrough);
    if writes && len_bytes == 0 && seen.len_bytes > 0 {
        return failed.unwrap_or(-libc::ENOSPC);
    }
    if len_bytes > 0
        && let Some(change) = flight.change(len_bytes)
    {
        flight.change = Some(now);
        match failed {
            Some(_) => file.store.apply_some(now, seen.at, &change, rng),
            None => file.store.apply(now, seen.at, &change),
        }
    }
    match (failed, seen.kind) {
        (Some(errno), _) => errno,
        (None, Kind::Read | Kind::Write | Kind::WriteThrough) => len_bytes as i32,
        (None, Kind::Sync | Kind::Punch | Kind::Zero | Kind::Truncate) => 0,
    }
}

/// Carries a truncation out: whole or not at all.
fn resize(file: &mut SimFile, flight: &mut Flight, now: u64, rng: &mut Rng) -> i32 {
    let size_bytes = flight.seen.at;
    if size_bytes > file.size_bytes_max.max(file.store.live().len() as u64) {
        return -libc::ENOSPC;
    }
    let failed = match flight.fate {
        Fate::Fail(errno) => Some(-errno),
        _ => None,
    };
    if failed.is_none() || rng.coin() {
        flight.change = Some(now);
        file.store.apply(now, size_bytes, &Change::Size);
    }
    failed.unwrap_or(0)
}

/// True if O_DIRECT would refuse it.
fn misaligned(file: &SimFile, flight: &Flight) -> bool {
    let transfer = matches!(
        flight.seen.kind,
        Kind::Read | Kind::Write | Kind::WriteThrough
    );
    let mask = file.align.memory_bytes as usize - 1;
    let misfits = |seg: &Seg| (seg.host() as usize | seg.len()) & mask != 0;
    transfer
        && (!file.align.takes(flight.seen.at, flight.seen.len_bytes)
            || flight.segs.iter().any(misfits))
}
