//! Options every node has, as closed types. The rule: what QEMU spells with a flag is here an enum that says both.

use crate::driver::file::{Cache, Flushes};

/// May guests and jobs change the node?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads only.
    ReadOnly,
    /// Reads and writes.
    ReadWrite,
}

/// What becomes of a discard (QEMU's `discard=`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiscardPolicy {
    /// Dropped: the default.
    Ignore,
    /// Passed down.
    Unmap,
}

/// What becomes of a write whose bytes are all zero (QEMU's `detect-zeroes=`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DetectZeroes {
    /// Written like any other.
    Off,
    /// A write-zeroes that keeps the space.
    On,
    /// A write-zeroes that may give the space back.
    Unmap,
}

/// Do a node's users have to let other processes do as they like (QEMU's `force-share=`)?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// As each of them says.
    Asked,
    /// Always; only for nodes that are read.
    Forced,
}

/// May a node be used, or has another process its image (QEMU's `active=`)?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// It may.
    Active,
    /// Nothing is written to it, nor anything relied on.
    Inactive,
}

/// How a node was asked to treat caches (QEMU's `cache.direct=` and `cache.no-flush=`): what its files do, and what is said of
/// it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caching {
    /// Where writes go first.
    pub cache: Cache,
    /// What a flush does.
    pub flushes: Flushes,
}

impl Default for Caching {
    fn default() -> Caching {
        Caching {
            cache: Cache::Page,
            flushes: Flushes::Sync,
        }
    }
}

/// Options every node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Common {
    /// `read-only=`
    pub access: Access,
    /// `discard=`
    pub discard: DiscardPolicy,
    /// `detect-zeroes=`
    pub detect_zeroes: DetectZeroes,
    /// `force-share=`
    pub sharing: Sharing,
    /// `active=`
    pub activity: Activity,
    /// `cache.direct=`, `cache.no-flush=`: said here of any node, done by those that are files.
    pub caching: Caching,
}

impl Common {
    /// May it be written to?
    pub fn takes_writes(&self) -> bool {
        self.access == Access::ReadWrite && self.activity == Activity::Active
    }
}

impl Default for Common {
    fn default() -> Common {
        Common {
            access: Access::ReadWrite,
            discard: DiscardPolicy::Ignore,
            detect_zeroes: DetectZeroes::Off,
            sharing: Sharing::Asked,
            activity: Activity::Active,
            caching: Caching::default(),
        }
    }
}
