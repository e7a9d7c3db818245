//! Options of writing, as whoever opens the image may give them.
//!
//! The rule: the defaults are QEMU's.

use crate::driver::qcow2::meta::Why;
use crate::driver::qcow2::overlap::OverlapChecks;

/// Which freed clusters the host is told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassDiscard {
    /// `pass-discard-request`
    pub request: bool,
    /// `pass-discard-snapshot`
    pub snapshot: bool,
    /// `pass-discard-other`
    pub other: bool,
}

impl PassDiscard {
    pub(crate) fn passes(self, why: Why) -> bool {
        match why {
            Why::Request => self.request,
            Why::Snapshot => self.snapshot,
            Why::Other => self.other,
            Why::Cut => true,
            Why::Unused => false,
        }
    }
}

/// What becomes of the host cluster of a discarded guest cluster (`discard-no-unref`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unref {
    /// It is freed.
    #[default]
    Free,
    /// It stays where it is, for the guest cluster to be written again.
    Keep,
}

impl Default for PassDiscard {
    /// QEMU's. (Its default for requests is whether the node takes discards; if it does not, none come.)
    fn default() -> PassDiscard {
        PassDiscard {
            request: true,
            snapshot: true,
            other: false,
        }
    }
}

/// Options of writing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// Which freed clusters the host is told of.
    pub pass_discard: PassDiscard,
    /// What becomes of the host clusters of discarded ones.
    pub unref: Unref,
    /// What writes are checked against.
    pub overlap_checks: OverlapChecks,
    /// Refcounts may be written late (`lazy-refcounts`); unsaid, as the image says.
    pub lazy_refcounts: Option<bool>,
}
