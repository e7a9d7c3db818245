//! commit_top: what a commit job puts above the layers that it copies from.
//!
//! The rule: it does nothing but stand there. Those who read through it let what is below be written to, as what they read stays
//! the same; and the chain down to where is copied to stays as it is.

use crate::graph::name::{Described, Short};
use crate::graph::perm::{Perms, Wants};
use crate::graph::{Edge, Role};
use crate::io::Io;
use crate::node::{Driver, Info, Local, Map, Outcome};
use crate::request::{Dir, Request};
use crate::status::Status;
use crate::units::Span;

/// Stands above what is committed.
#[derive(Debug)]
pub struct CommitTop {
    below: Info,
    base: String,
}

impl CommitTop {
    /// Above a node of which `below` is known, and whose chain is to stay as it is down to `base`.
    pub fn new(below: Info, base: String) -> CommitTop {
        CommitTop { below, base }
    }
}

impl Driver for CommitTop {
    #[inline]
    fn map(&self, _dir: Dir, span: Span) -> Map {
        Map::Below {
            to: Role::Filtered,
            at: span.at,
            len: span.len,
        }
    }

    fn serve<'a>(&'a self, io: &'a Io, request: Request) -> Local<'a, Outcome> {
        io.below(Role::Filtered, request)
    }

    fn status<'a>(&'a self, io: &'a Io, span: Span) -> Local<'a, Result<Status, ring::Errno>> {
        Box::pin(async move { io.status(io.child(Role::Filtered)?, span).await })
    }

    fn info(&self) -> Info {
        self.below
    }

    /// It is called as what it stands above.
    fn described(&self, _kind: &str) -> Described {
        Described::plainly(Short::Before(String::new()))
    }

    fn frozen_until(&self) -> Option<&str> {
        Some(&self.base)
    }

    fn wants(&self, _edge: &Edge, _above: Wants) -> Wants {
        Wants {
            needs: Perms::NONE,
            shares: Perms::ALL,
        }
    }
}
