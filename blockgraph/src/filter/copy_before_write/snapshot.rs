//! What the snapshot's readers ask, through `driver/snapshot_access`.
//!
//! The rule: a reader never waits for a guest. What is still in the source stays there until it has read it; that is all a
//! guest write may have to wait for.

use super::CopyBeforeWrite;
use super::clusters::Source;
use crate::graph::Role;
use crate::graph::status::{Until, status_above};
use crate::io::Io;
use crate::node::Outcome;
use crate::request::{Kind, Request};
use crate::status::{Content, Status};
use crate::units::Span;
use ring::{Errno, Mem};

/// A longer read lets guest writes in between its parts.
const STEP_BYTES: u64 = 1 << 20;

impl CopyBeforeWrite {
    /// Reads `span` of the snapshot; `io` is at this node. Errors: EACCES where it may not be read, or not any more.
    pub async fn read_snapshot(&self, io: &Io, span: Span, mem: &Mem) -> Outcome {
        let mut rest = span;
        while !rest.is_empty() {
            let step = rest.first(STEP_BYTES);
            let from = (step.at - span.at) as usize;
            let len = match self.clusters.source(step)? {
                Source::Target(len) => {
                    let into = mem.slice(from, len as usize);
                    io.read(io.child(Role::Target)?, step.at, &into).await?;
                    len
                }
                Source::File(len, _reading) => {
                    let into = mem.slice(from, len as usize);
                    io.read(io.child(Role::Filtered)?, step.at, &into).await?;
                    len
                }
            };
            rest = rest.after(len);
        }
        Ok(())
    }

    /// What is known of the beginning of `span` of the snapshot: what the node says that it would be read from. Errors: as
    /// [`CopyBeforeWrite::read_snapshot`].
    pub async fn snapshot_status(&self, io: &Io, span: Span) -> Result<Status, Errno> {
        let (role, len, _reading) = match self.clusters.source(span)? {
            Source::Target(len) => (Role::Target, len, None),
            Source::File(len, reading) => (Role::Filtered, len, Some(reading)),
        };
        let span = span.first(len);
        let found = status_above(io, io.child(role)?, Until::Bottom, span).await?;
        let content = match found.is_zero() {
            true => Content::Zero,
            false => Content::Data,
        };
        Ok(Status {
            content,
            ..found.status
        })
    }

    /// The snapshot's reader needs the clusters within `span` no more: they are not copied, and read by nobody.
    pub async fn discard_snapshot(&self, io: &Io, span: Span) -> Outcome {
        let Some(span) = self.clusters.forget(span) else {
            return Ok(());
        };
        let target = io.child(Role::Target)?;
        let request = Request::plain(Kind::Discard, span);
        io.request(target, request).await
    }
}
