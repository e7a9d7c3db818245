//! What an export has been asked for and how long it took: operations, bytes and time by kind, and histograms of latency.
//!
//! The rule: a request is counted in plain numbers of the one thread that serves it ([`Tally`]); they are published once
//! per batch, by relaxed stores that nobody else makes, and whoever asks adds them up ([`ExportStats::figures`]). A request
//! began when the batch it was taken in did, and ended when the batch that brought its end did: no clock is read for it.

mod export;
mod histogram;
mod tally;

pub use export::ExportStats;
pub use histogram::{Boundaries, Histogram, HistogramOptions, HistogramRefused};
pub use tally::Tally;

/// What is counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Counted {
    /// Data to the client.
    Read = 0,
    /// Data, or zeroes, from the client.
    Write = 1,
    /// All is to be durable.
    Flush = 2,
    /// Data that is of no use any more.
    Unmap = 3,
}

/// How many there are.
pub const OPS: usize = 4;

impl Counted {
    /// Every one, in the order of their numbers.
    pub const EACH: [Counted; OPS] = [
        Counted::Read,
        Counted::Write,
        Counted::Flush,
        Counted::Unmap,
    ];
}

/// What became of the requests of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// Those that were done.
    pub operations: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How long those took that were done or failed, all together, in nanoseconds.
    pub time_ns: u64,
    /// Those that the disk failed.
    pub failed: u64,
    /// Those that were refused for what they asked.
    pub invalid: u64,
}

impl Sum {
    /// Adds another's.
    pub fn add(&mut self, other: &Sum) {
        self.operations += other.operations;
        self.bytes += other.bytes;
        self.time_ns = self.time_ns.saturating_add(other.time_ns);
        self.failed += other.failed;
        self.invalid += other.invalid;
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was done.
    Done,
    /// The disk failed it.
    Failed,
}

/// All figures of an export at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// By kind, in the order of [`Counted::EACH`].
    pub sums: [Sum; OPS],
    /// Requests that are under way.
    pub in_flight: u64,
    /// Where the highest write so far ended, in bytes; 0 if there was none.
    pub written_end_bytes: u64,
    /// How long ago the last request ended, in nanoseconds; `None` if none has.
    pub idle_ns: Option<u64>,
    /// By kind; those that were asked for.
    pub histograms: [Option<Histogram>; OPS],
    /// Of zone appends, if it was asked for: always empty.
    pub zone_append: Option<Histogram>,
}

impl Figures {
    /// Those of one kind.
    pub fn of(&self, op: Counted) -> &Sum {
        &self.sums[op as usize]
    }
}
