//! What goes wrong, when, and how often: rules for chosen operations and weather for all of them.
//!
//! The rule: the first rule that matches an operation decides about it, once, when it is submitted; weather decides the
//! rest. Both may be changed while operations are in flight.

use crate::file::FileId;
use std::ops::Range;
use std::sync::Arc;

/// An operation as rules and logs see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its number on this disk, from 0 in order of submission; steps of one operation count each.
    pub number: u64,
    /// Which of the disk's rings it came through, from 0.
    pub queue: u32,
    /// What it is.
    pub kind: Kind,
    /// On which file.
    pub file: FileId,
    /// Where, in bytes; 0 for a sync, the new size for a truncation.
    pub at: u64,
    /// How much, in bytes; 0 for a sync and a truncation.
    pub len_bytes: u64,
}

/// A kind of operation that reaches the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A read.
    Read,
    /// A write, cached.
    Write,
    /// A write that is durable when it completes.
    WriteThrough,
    /// fsync or fdatasync.
    Sync,
    /// A hole.
    Punch,
    /// A range of zeroes.
    Zero,
    /// A change of the file's size.
    Truncate,
}

/// What becomes of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Nothing is done until [`super::Disk::release`], whoever asks that it be cancelled.
    Hold,
    /// Nothing is done for this many turns of its ring.
    Delay(u32),
    /// Ends with this errno. A failed write or zeroing may have changed some of its sectors, and a failed truncation the size.
    Fail(i32),
    /// Ends with this errno and has changed nothing.
    Refuse(i32),
    /// Transfers at most this many bytes. Not less than a block of the file.
    Short(u64),
}

/// How often a rule applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Times {
    /// To every operation that matches.
    Always,
    /// To the next so many that match.
    Next(u32),
    /// To the one that matches after so many others did.
    After(u64),
    /// To each that matches, so many times in a thousand.
    Chance(u32),
}

/// Chooses operations.
type Choose = Arc<dyn Fn(&Seen) -> bool + Send + Sync>;

/// Which operations, how often, and what becomes of them.
#[derive(Clone)]
pub struct Rule {
    choose: Choose,
    pub(super) times: Times,
    pub(super) act: Act,
    pub(super) matched: u64,
}

impl std::fmt::Debug for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rule({:?} {:?})", self.act, self.times)
    }
}

impl Rule {
    /// A rule for every operation.
    pub fn every(act: Act) -> Rule {
        Rule {
            choose: Arc::new(|_| true),
            times: Times::Always,
            act,
            matched: 0,
        }
    }

    /// Only those `choose` says, and earlier restrictions too.
    pub fn when(self, choose: impl Fn(&Seen) -> bool + Send + Sync + 'static) -> Rule {
        let earlier = self.choose;
        Rule {
            choose: Arc::new(move |seen| earlier(seen) && choose(seen)),
            ..self
        }
    }

    /// Only operations of that kind.
    pub fn kind(self, kind: Kind) -> Rule {
        self.when(move |seen| seen.kind == kind)
    }

    /// Only operations that touch one of these bytes.
    pub fn touching(self, bytes: Range<u64>) -> Rule {
        self.when(move |seen| seen.at < bytes.end && bytes.start < seen.at + seen.len_bytes)
    }

    /// Only so often.
    pub fn times(self, times: Times) -> Rule {
        Rule { times, ..self }
    }

    pub(super) fn matches(&self, seen: &Seen) -> bool {
        (self.choose)(seen)
    }

    /// Counts a match; true if the rule applies to it. `roll` is a number below 1000.
    pub(super) fn applies(&mut self, roll: u32) -> bool {
        let nth = self.matched;
        self.matched += 1;
        match self.times {
            Times::Always => true,
            Times::Next(count) => nth < u64::from(count),
            Times::After(count) => nth == count,
            Times::Chance(per_mille) => roll < per_mille,
        }
    }
}

/// In which order operations end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As they were submitted, all that can in one turn.
    Fifo,
    /// As chance will have it, some per turn.
    Shuffled,
}

/// What a cancellation does to an operation that has not been carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancels {
    /// It ends with ECANCELED.
    Obeyed,
    /// It comes too late.
    Ignored,
    /// One or the other, by chance.
    ByChance,
}

/// Chances that hold for every operation no rule applies to; in a thousand each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weather {
    /// In which order operations end.
    pub order: Order,
    /// What cancellations do.
    pub cancels: Cancels,
    /// A transfer is short.
    pub short: u32,
    /// An operation ends with EINTR or EAGAIN and has done nothing.
    pub interrupted: u32,
    /// An operation fails with EIO.
    pub failed: u32,
}

impl Weather {
    /// Nothing happens but what was asked, in order.
    pub const CALM: Weather = Weather {
        order: Order::Fifo,
        cancels: Cancels::Obeyed,
        short: 0,
        interrupted: 0,
        failed: 0,
    };

    /// Everything a correct disk may do.
    pub const ROUGH: Weather = Weather {
        order: Order::Shuffled,
        cancels: Cancels::ByChance,
        short: 200,
        interrupted: 100,
        failed: 0,
    };
}
