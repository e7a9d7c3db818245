//! throttle: requests wait until the limits of the node's group let them pass.
//!
//! The rule: looking changes nothing, a request is accounted once, in `begin`, and those who wait take turns. Flushes are
//! not limited.

mod bucket;
mod group;
mod limits;
mod line;
mod registry;
#[cfg(test)]
mod tests;

pub use group::Group;
pub use limits::{Limits, LimitsError, RATE_MAX, Rate};
pub use registry::{GroupError, ThrottleGroups};

use crate::graph::name::{Described, Setting, Short};
use crate::io::Io;
use crate::node::{Filter, Local, Outcome};
use crate::request::Dir;
use crate::units::Span;
use std::sync::Arc;

/// A member of a throttle group.
#[derive(Debug)]
pub struct Throttle {
    group: Arc<Group>,
    member: u64,
}

impl Throttle {
    /// A new member of `group`.
    pub fn new(group: Arc<Group>) -> Throttle {
        let member = group.join();
        Throttle { group, member }
    }

    /// Its group.
    pub fn group(&self) -> &Arc<Group> {
        &self.group
    }
}

impl Filter for Throttle {
    fn described(&self) -> Described {
        let group = Setting::Text(self.group.name().to_owned());
        Described {
            settings: vec![("throttle-group".to_owned(), group)],
            short: Short::None,
        }
    }

    #[inline]
    fn ready(&self, dir: Dir, span: Span) -> bool {
        self.group.ready(dir, span)
    }

    fn before<'a>(&'a self, io: &'a Io, dir: Dir, span: Span) -> Local<'a, Outcome> {
        Box::pin(async move {
            self.group.wait(io, self.member, dir, span).await;
            Ok(())
        })
    }

    #[inline]
    fn begin(&self, dir: Dir, span: Span) {
        self.group.begin(dir, span);
    }

    fn end(&self, _dir: Dir, _span: Span, _outcome: Outcome) {}

    fn throttle_group(&self) -> Option<&Arc<Group>> {
        Some(&self.group)
    }
}
