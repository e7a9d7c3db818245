//! Permissions as closed types. The rule: the four kinds are QEMU's, and their order is that of the lock bytes.

use std::fmt;

/// One thing to be permitted. The numbers are those of the lock bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Perm {
    /// Reads see what was written last.
    ConsistentRead = 0,
    /// Writes that change what is read.
    Write = 1,
    /// Writes that do not (filling a hole with what was read there).
    WriteUnchanged = 2,
    /// A new size.
    Resize = 3,
}

impl Perm {
    /// Every one, in the order of their numbers.
    pub const EACH: [Perm; 4] = [
        Perm::ConsistentRead,
        Perm::Write,
        Perm::WriteUnchanged,
        Perm::Resize,
    ];
}

impl fmt::Display for Perm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Perm::ConsistentRead => "consistent read",
            Perm::Write => "write",
            Perm::WriteUnchanged => "write unchanged",
            Perm::Resize => "resize",
        })
    }
}

/// A set of permissions; shown as QEMU lists them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Perms([bool; 4]);

impl Perms {
    /// None.
    pub const NONE: Perms = Perms([false; 4]);
    /// All.
    pub const ALL: Perms = Perms([true; 4]);
    /// Reading.
    pub const READ: Perms = Perms([true, false, false, false]);
    /// Reading and writing.
    pub const READ_WRITE: Perms = Perms([true, true, false, false]);
    /// Writing.
    pub const WRITE: Perms = Perms([false, true, false, false]);
    /// Writing what reads the same.
    pub const WRITE_UNCHANGED: Perms = Perms([false, false, true, false]);
    /// Changing the size.
    pub const RESIZE: Perms = Perms([false, false, false, true]);

    /// All but changing the size.
    pub const ALL_BUT_RESIZE: Perms = Perms([true, true, true, false]);

    /// Is that one in it?
    pub fn has(self, perm: Perm) -> bool {
        self.0[perm as usize]
    }

    /// Is none in it?
    pub fn is_empty(self) -> bool {
        self == Perms::NONE
    }

    /// What is in either.
    pub fn or(self, other: Perms) -> Perms {
        self.with(other, |a, b| a || b)
    }

    /// What is in both.
    pub fn and(self, other: Perms) -> Perms {
        self.with(other, |a, b| a && b)
    }

    /// What is in this one alone.
    pub fn without(self, other: Perms) -> Perms {
        self.with(other, |a, b| a && !b)
    }

    fn with(self, other: Perms, how: impl Fn(bool, bool) -> bool) -> Perms {
        Perms(std::array::from_fn(|at| how(self.0[at], other.0[at])))
    }
}

impl fmt::Display for Perms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Perm::EACH.iter().filter(|perm| self.has(**perm));
        let names: Vec<String> = names.map(Perm::to_string).collect();
        f.write_str(&names.join(", "))
    }
}

/// What a user needs of a node, and what it lets others do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wants {
    /// What it does itself.
    pub needs: Perms,
    /// What others may do.
    pub shares: Perms,
}

impl Wants {
    /// Nothing needed, all shared.
    pub const NOTHING: Wants = Wants {
        needs: Perms::NONE,
        shares: Perms::ALL,
    };

    /// An export that reads.
    pub const READ: Wants = Wants {
        needs: Perms::READ,
        shares: Perms::ALL,
    };

    /// An export that reads and writes.
    pub const READ_WRITE: Wants = Wants {
        needs: Perms::READ_WRITE,
        shares: Perms::ALL,
    };

    pub(super) fn both(self, other: Wants) -> Wants {
        Wants {
            needs: self.needs.or(other.needs),
            shares: self.shares.and(other.shares),
        }
    }
}
