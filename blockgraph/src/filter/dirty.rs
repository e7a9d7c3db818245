//! What a job that copies a disk in use puts above it: it notes what is written.
//!
//! The rule: a range is noted when its write is over, well or not, and before anybody is told. So a copy that began before may be
//! old, but whoever finds nothing noted while nothing is under way has copied everything.

use crate::graph::name::{Described, Short};
use crate::graph::perm::{Perm, Perms, Wants};
use crate::io::Io;
use crate::job::copy::WorkSet;
use crate::node::{Filter, Local, Outcome};
use crate::request::Dir;
use crate::units::Span;
use std::sync::Arc;

/// Notes writes in a work set.
#[derive(Debug)]
pub struct Dirty {
    work: Arc<WorkSet>,
    to: CopiedTo,
}

/// Where the disk is copied to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopiedTo {
    /// To a layer of its own chain, by name: down to there it stays as it is.
    Below(String),
    /// To another disk.
    Elsewhere,
}

impl Dirty {
    /// Notes them in `work`.
    pub fn new(work: Arc<WorkSet>, to: CopiedTo) -> Dirty {
        Dirty { work, to }
    }
}

impl Filter for Dirty {
    fn ready(&self, _dir: Dir, _span: Span) -> bool {
        true
    }

    fn before<'a>(&'a self, _io: &'a Io, _dir: Dir, _span: Span) -> Local<'a, Outcome> {
        Box::pin(async { Ok(()) })
    }

    fn begin(&self, _dir: Dir, _span: Span) {}

    fn end(&self, dir: Dir, span: Span, _outcome: Outcome) {
        if dir == Dir::Write {
            self.work.add(span);
        }
    }

    /// It is called as what it stands above.
    fn described(&self) -> Described {
        Described::plainly(Short::Before(String::new()))
    }

    fn frozen_until(&self) -> Option<&str> {
        match &self.to {
            CopiedTo::Below(base) => Some(base),
            CopiedTo::Elsewhere => None,
        }
    }

    /// What is read stays the same whatever is copied, so the layers below may be written to.
    fn wants(&self, above: Wants) -> Wants {
        if self.to == CopiedTo::Elsewhere {
            return above;
        }
        let writes = match above.needs.has(Perm::Write) {
            true => Perms::WRITE,
            false => Perms::NONE,
        };
        Wants {
            needs: writes,
            shares: Perms::ALL,
        }
    }
}
