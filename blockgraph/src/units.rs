//! Numbers with names: a span of a node, in bytes.

/// `len` bytes from byte `at` of a node. Never wraps: [`Span::new`] checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub at: u64,
    /// Length in bytes.
    pub len: u64,
}

impl Span {
    /// `None` if the end does not fit in 63 bits (file offsets are signed).
    pub fn new(at: u64, len: u64) -> Option<Span> {
        let end = at.checked_add(len)?;
        (end <= i64::MAX as u64).then_some(Span { at, len })
    }

    /// One past the last byte.
    pub fn end(&self) -> u64 {
        self.at + self.len
    }

    /// True if it covers no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// True if the two share a byte.
    pub fn overlaps(&self, other: Span) -> bool {
        self.at < other.end() && other.at < self.end()
    }

    /// The part from `skip` bytes on; empty past the end.
    pub fn after(&self, skip: u64) -> Span {
        let skip = skip.min(self.len);
        Span {
            at: self.at + skip,
            len: self.len - skip,
        }
    }

    /// At most the first `len` bytes.
    pub fn first(&self, len: u64) -> Span {
        Span {
            at: self.at,
            len: self.len.min(len),
        }
    }

    /// The smallest span of multiples of `align` (a power of two) that covers it.
    pub fn widened(&self, align: u64) -> Span {
        let at = self.at & !(align - 1);
        Span {
            at,
            len: self.end().next_multiple_of(align) - at,
        }
    }
}

impl std::fmt::Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}+{:#x}", self.at, self.len)
    }
}
