//! Which parts of a disk go into a backup.
//!
//! The rule: whatever is not known to be zero, or unchanged, goes in.

use super::disks::PART_BYTES_MAX;
use blockgraph::graph::status::{Until, status_above};
use blockgraph::{Io, NodeId, Span};
use ring::Errno;

/// Where parts come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Source {
    /// Where the data is read.
    pub data: NodeId,
    /// Whose block status says what goes in.
    pub what: NodeId,
    /// What it says.
    pub rule: Rule,
    /// The disk's size.
    pub size_bytes: u64,
}

/// What block status means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// What does not read as zeroes.
    NotZero,
    /// What a bitmap's context says: a range is dirty where it would be a hole if it were `base:allocation`.
    Dirty,
}

/// The parts of a source, from the beginning on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts {
    pub source: Source,
    at: u64,
    /// The end of what is known to go in, from `at` on.
    until: u64,
}

impl Parts {
    pub(super) fn of(source: Source) -> Parts {
        Parts {
            source,
            at: 0,
            until: 0,
        }
    }

    /// The next parts, at most `count`; none at the end.
    pub(super) async fn next(&mut self, io: &Io, count: usize) -> Result<Vec<Span>, Errno> {
        let mut parts = Vec::new();
        while parts.len() < count && self.at < self.source.size_bytes {
            if self.at == self.until {
                self.look(io).await?;
                continue;
            }
            // At places that are the same for every disk, so that no cluster is in two parts.
            let end = (self.at / PART_BYTES_MAX + 1) * PART_BYTES_MAX;
            let end = end.min(self.until);
            parts.push(Span {
                at: self.at,
                len: end - self.at,
            });
            self.at = end;
        }
        Ok(parts)
    }

    /// Passes over what does not go in, or finds out how far goes what does.
    async fn look(&mut self, io: &Io) -> Result<(), Errno> {
        let Source {
            what,
            rule,
            size_bytes,
            ..
        } = self.source;
        let rest = Span {
            at: self.at,
            len: size_bytes - self.at,
        };
        let found = status_above(io, what, Until::Bottom, rest).await?;
        let end = self.at + found.status.len.clamp(1, rest.len);
        let goes_in = match rule {
            Rule::NotZero => !found.is_zero(),
            Rule::Dirty => !found.status.is_mapped(),
        };
        self.until = end;
        if !goes_in {
            self.at = end;
        }
        Ok(())
    }
}
