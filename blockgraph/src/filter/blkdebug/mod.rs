//! blkdebug: errors made to order, and limits narrower than the child's, for those who test what is above.
//!
//! The rule: without rules and limits it maps everything past itself. With any, every request is served: looked up in the
//! rules, cut to the limits, and passed on.

mod called;
mod config;
mod event;
mod pieces;
mod rules;

pub use called::described;
pub use config::{Config, ConfigError, read as read_config};
pub use event::BlkdebugEvent;
pub use rules::{InjectError, IoType, SetState};

use crate::graph::name::Described;
use crate::graph::perm::{Perms, Wants};
use crate::graph::{Edge, Role};
use crate::hold::Holds;
use crate::io::Io;
use crate::node::{Driver, Info, Limits, Local, Map, Outcome, Shown};
use crate::request::{Dir, Kind, Prealloc, Request};
use crate::status::Status;
use crate::units::Span;
use ring::Errno;
use rules::Rules;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a node pretends it can do; `None`: what its child can. In bytes; they fit each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pretended {
    /// What all requests are multiples of (a power of two).
    pub align: Option<u32>,
    /// No transfer is longer.
    pub max_transfer: Option<u32>,
    /// What writes of zeroes are multiples of.
    pub opt_write_zero: Option<u32>,
    /// None of them is longer.
    pub max_write_zero: Option<u32>,
    /// What discards are multiples of.
    pub opt_discard: Option<u32>,
    /// None of them is longer.
    pub max_discard: Option<u32>,
}

/// What a node is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Errors to be made.
    pub inject_error: Vec<InjectError>,
    /// How the state changes.
    pub set_state: Vec<SetState>,
    /// What it pretends.
    pub pretended: Pretended,
    /// What it needs of its child beyond what its users need.
    pub takes: Perms,
    /// What it does not let others do.
    pub unshares: Perms,
}

/// Makes errors to order.
#[derive(Debug)]
pub struct Blkdebug {
    below: Info,
    pretended: Pretended,
    takes: Perms,
    unshares: Perms,
    /// Nothing to do: no rule, no limit.
    idle: bool,
    /// Blocks being read, changed and written back for the alignment that is pretended.
    holds: Holds,
    /// Never held across an await or an I/O.
    rules: Mutex<Rules>,
    described: Described,
}

impl Blkdebug {
    /// Above a node of which `below` is known.
    pub fn new(below: Info, options: Options) -> Blkdebug {
        let described = described(&options, None);
        let Options {
            inject_error,
            set_state,
            pretended,
            takes,
            unshares,
        } = options;
        let idle = inject_error.is_empty() && pretended == Pretended::default();
        Blkdebug {
            below,
            pretended,
            takes,
            unshares,
            idle,
            holds: Holds::default(),
            rules: Mutex::new(Rules::new(inject_error, set_state)),
            described,
        }
    }

    /// The same, called otherwise.
    pub fn called(self, described: Described) -> Blkdebug {
        Blkdebug { described, ..self }
    }

    fn rules(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a request by the rule it meets, if it meets one.
    async fn check(&self, io: &Io, io_type: IoType, span: Span) -> Outcome {
        let Some(hit) = self.rules().check(io_type, span) else {
            return Ok(());
        };
        if !hit.immediately {
            io.sleep(1).await;
        }
        Err(hit.errno)
    }

    async fn perform(&self, io: &Io, request: Request) -> Outcome {
        let span = request.span;
        match request.kind {
            Kind::Read => self.read(io, request).await,
            Kind::Write(_) | Kind::WriteCompressed => {
                self.rules().fire(BlkdebugEvent::Pwritev);
                let outcome = self.write(io, request).await;
                self.rules().fire(BlkdebugEvent::PwritevDone);
                outcome
            }
            Kind::WriteZeroes(..) => {
                self.rules().fire(BlkdebugEvent::PwritevZero);
                let outcome = self.write_zeroes(io, request).await;
                self.rules().fire(BlkdebugEvent::PwritevDone);
                outcome
            }
            Kind::Discard => self.discard(io, span).await,
            Kind::Flush => {
                let nothing = Span { at: 0, len: 0 };
                self.check(io, IoType::Flush, nothing).await?;
                io.below(Role::Filtered, request).await
            }
        }
    }
}

impl Driver for Blkdebug {
    #[inline]
    fn described(&self, _kind: &str) -> Described {
        self.described.clone()
    }

    fn map(&self, _dir: Dir, span: Span) -> Map {
        if !self.idle {
            return Map::Slow;
        }
        let Span { at, len } = span;
        let to = Role::Filtered;
        Map::Below { to, at, len }
    }

    fn serve<'a>(&'a self, io: &'a Io, request: Request) -> Local<'a, Outcome> {
        Box::pin(self.perform(io, request))
    }

    fn status<'a>(&'a self, io: &'a Io, span: Span) -> Local<'a, Result<Status, Errno>> {
        Box::pin(async move {
            self.check(io, IoType::BlockStatus, span).await?;
            io.status(io.child(Role::Filtered)?, span).await
        })
    }

    fn info(&self) -> Info {
        self.below
    }

    fn shown(&self) -> Shown {
        let limits = self.pretended.align.map(|align| Limits {
            logical_block_bytes: align.max(self.below.limits.logical_block_bytes),
            physical_block_bytes: align.max(self.below.limits.physical_block_bytes),
            ..self.below.limits
        });
        let size_bytes = None;
        Shown { size_bytes, limits }
    }

    fn event(&self, event: BlkdebugEvent) {
        if !self.idle {
            self.rules().fire(event);
        }
    }

    fn truncate<'a>(&'a self, io: &'a Io, size_bytes: u64, how: Prealloc) -> Local<'a, Outcome> {
        Box::pin(async move {
            let child = io.child(Role::Filtered)?;
            io.truncate(child, size_bytes, how).await
        })
    }

    fn wants(&self, _edge: &Edge, above: Wants) -> Wants {
        Wants {
            needs: above.needs.or(self.takes),
            shares: above.shares.without(self.unshares),
        }
    }
}
