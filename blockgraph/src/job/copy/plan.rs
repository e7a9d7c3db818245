//! A copy to be made, and how it may end. The rule: bounds and policies are the user's; the engine adds none of its own.

use super::parts::SharedParts;
use super::work_set::WorkSet;
use crate::job::errors::{OnError, Operation};
use crate::job::steer::Cancel;
use crate::node::NodeId;
use ring::{Errno, Wait};
use std::io;
use std::sync::Arc;

/// What may be under way at once, as in QEMU's block-copy: so many copies, of so many bytes together.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// The most that is copied as one.
    pub chunk_bytes: u64,
    /// How many copies.
    pub copies_max: usize,
    /// Of how many bytes together; one copy is always allowed.
    pub bytes_max: u64,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds {
            chunk_bytes: 1 << 20,
            copies_max: 64,
            bytes_max: 16 << 20,
        }
    }
}

/// What becomes of a failure that is ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ignored {
    /// The range is left out, and the job fails at its end.
    LeftOut,
    /// It is tried again.
    Retried,
}

/// How a job's progress is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counts {
    /// Its total is known at the beginning.
    Steps,
    /// What is left is what is in the work set, which guests add to.
    Left,
}

/// What is done about failures.
#[derive(Clone, Copy, Debug)]
pub struct ErrorPolicy {
    /// About those of reading.
    pub read: OnError,
    /// About those of writing.
    pub write: OnError,
    /// About those that are ignored.
    pub ignored: Ignored,
}

impl ErrorPolicy {
    /// The same for both.
    pub fn both(on_error: OnError, ignored: Ignored) -> ErrorPolicy {
        ErrorPolicy {
            read: on_error,
            write: on_error,
            ignored,
        }
    }

    pub(super) fn of(&self, operation: Operation) -> OnError {
        match operation {
            Operation::Read => self.read,
            Operation::Write => self.write,
        }
    }
}

/// A copy to be made.
#[derive(Debug)]
pub struct CopyPlan {
    /// What is copied, and how.
    pub parts: SharedParts,
    /// The nodes it uses: while one of them is held, nothing begins.
    pub nodes: Vec<NodeId>,
    /// What is to be copied; others may add to it and remove from it.
    pub work: Arc<WorkSet>,
    /// What may be under way.
    pub bounds: Bounds,
    /// What is done about failures.
    pub errors: ErrorPolicy,
    /// How its progress is counted.
    pub counts: Counts,
}

/// Does a step wait for what is under way?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waits {
    /// Until something has happened.
    Yes,
    /// Not at all.
    No,
}

impl Waits {
    pub(super) fn or(self, wait: Wait) -> Wait {
        match self {
            Waits::Yes => wait,
            Waits::No => Wait::Not,
        }
    }
}

/// How a walk over the work ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walked {
    /// There is nothing left to copy.
    All,
    /// The job is to end.
    Cancelled(Cancel),
}

/// Why it could not go on.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A transfer failed, and that is reported.
    #[error("{}", crate::graph::errno_text(&(*.0).into()))]
    Transfer(Errno),
    /// The ring is gone.
    #[error("cannot go on: {0}")]
    Ring(#[from] io::Error),
}
