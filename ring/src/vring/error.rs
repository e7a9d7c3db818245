//! Structural damage of a ring: what is wrong and where.
//!
//! The rule: a ring that gave one of these is stopped and its err eventfd signalled; it is never popped again.

/// Why a ring cannot be started, or cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each message names its fields")]
pub enum RingError {
    /// The size is no power of two, or out of bounds.
    #[error("ring size {size} is not a power of two from 1 to 32768")]
    Size { size: u16 },
    /// One of the three areas is not aligned as the specification wants, in the guest or in this process.
    #[error("{part} at guest address {gpa:#x} is not aligned to {align} bytes")]
    Align { part: Part, gpa: u64, align: u16 },
    /// One of the three areas is not wholly inside one piece of guest memory.
    #[error(
        "{part} of {len_bytes} bytes at guest address {gpa:#x} is not in one piece of guest memory"
    )]
    Extent {
        part: Part,
        gpa: u64,
        len_bytes: u32,
    },
    /// The available index ran further ahead than the ring has entries.
    #[error("available index {idx} is more than {size} entries ahead of {next}")]
    AvailIndex { idx: u16, next: u16, size: u16 },
    /// The available ring names a descriptor that does not exist.
    #[error("head {head} is beyond the {size} descriptors of the ring")]
    Head { head: u16, size: u16 },
    /// The available ring names a chain that has not been given back yet.
    #[error("head {head} is already in flight")]
    HeadInFlight { head: u16 },
    /// A descriptor goes on at one that does not exist.
    #[error("chain {head} goes on at descriptor {next} of a table of {entries}")]
    Next { head: u16, next: u16, entries: u32 },
    /// The chain is longer than allowed, or a loop.
    #[error("chain {head} has more than {max} descriptors")]
    TooLong { head: u16, max: u16 },
    /// The chain crosses too many memory regions.
    #[error("chain {head} becomes more than {max} memory segments")]
    TooScattered { head: u16, max: u16 },
    /// A descriptor points outside guest memory.
    #[error(
        "chain {head} refers to {len_bytes} bytes at guest address {gpa:#x}, outside guest memory"
    )]
    Address { head: u16, gpa: u64, len_bytes: u32 },
    /// An indirect table although the feature was not negotiated.
    #[error("chain {head} has an indirect table, which was not negotiated")]
    IndirectUnexpected { head: u16 },
    /// An indirect table inside an indirect table.
    #[error("chain {head} has an indirect table inside another")]
    IndirectNested { head: u16 },
    /// A descriptor is both indirect and continued.
    #[error("chain {head} goes on after its indirect table")]
    IndirectContinued { head: u16 },
    /// The length of an indirect table is zero or not a multiple of 16.
    #[error("chain {head} has an indirect table of {len_bytes} bytes")]
    IndirectLength { head: u16, len_bytes: u32 },
    /// Guest memory vanished while in use (its file was truncated).
    #[error("guest memory vanished while in use")]
    Poisoned,
    /// What is in flight of the ring cannot be kept where the front end says.
    #[error("a ring of {size} entries does not fit the inflight region")]
    Untracked { size: u16 },
    /// The memory map cannot be changed under chains in flight.
    #[error("{count} chains are in flight")]
    InFlight { count: u16 },
}

/// One of the three areas of a split ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The descriptor table.
    Desc,
    /// The available ring.
    Avail,
    /// The used ring.
    Used,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Part::Desc => "descriptor table",
            Part::Avail => "available ring",
            Part::Used => "used ring",
        })
    }
}
