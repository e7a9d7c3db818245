//! snapshot-access: the disk as it was when the copy-before-write filter below came, for whoever takes it away.
//!
//! The rule: nothing is here; all is asked of that filter, which knows where each part of the snapshot is at the moment. What
//! is not such a filter has no snapshot: it may stand there, as in QEMU, and every read is refused.

use crate::filter::copy_before_write::here;
use crate::graph::name::{Described, Short};
use crate::graph::perm::Wants;
use crate::graph::{Edge, Role};
use crate::io::Io;
use crate::node::{Driver, Info, Local, Map, Outcome};
use crate::request::{Dir, Kind, Request};
use crate::status::Status;
use crate::units::Span;
use ring::Errno;

/// A view of a snapshot.
#[derive(Debug)]
pub struct SnapshotAccess {
    below: Info,
}

impl SnapshotAccess {
    /// On a filter of which `below` is known.
    pub fn new(below: Info) -> SnapshotAccess {
        SnapshotAccess { below }
    }
}

async fn serve(io: &Io, request: Request) -> Outcome {
    let Request { kind, span, mem } = request;
    let io = io.at(io.child(Role::Image)?);
    let filter = here(&io)?;
    let filter = filter.as_copy_before_write();
    match (kind, filter) {
        (Kind::Flush, _) => Ok(()),
        (Kind::Read, Some(filter)) => filter.read_snapshot(&io, span, &mem).await,
        (Kind::Discard, Some(filter)) => filter.discard_snapshot(&io, span).await,
        // Advice that nobody can take.
        (Kind::Discard, None) => Ok(()),
        _ => Err(Errno::NOTSUP),
    }
}

impl Driver for SnapshotAccess {
    /// Where the data is may change until it is read.
    fn map(&self, _dir: Dir, _span: Span) -> Map {
        Map::Slow
    }

    fn serve<'a>(&'a self, io: &'a Io, request: Request) -> Local<'a, Outcome> {
        Box::pin(serve(io, request))
    }

    fn status<'a>(&'a self, io: &'a Io, span: Span) -> Local<'a, Result<Status, Errno>> {
        Box::pin(async move {
            let io = io.at(io.child(Role::Image)?);
            let filter = here(&io)?;
            match filter.as_copy_before_write() {
                Some(filter) => filter.snapshot_status(&io, span).await,
                None => Err(Errno::NOTSUP),
            }
        })
    }

    /// What its filter's disk takes up, as QEMU says.
    fn allocated<'a>(&'a self, io: &'a Io) -> Local<'a, Result<u64, Errno>> {
        Box::pin(async move { io.allocated(io.child(Role::Image)?).await })
    }

    fn info(&self) -> Info {
        self.below
    }

    fn described(&self, _kind: &str) -> Described {
        Described::plainly(Short::Child)
    }

    /// It is the filter that reads and discards, with rights of its own.
    fn wants(&self, _edge: &Edge, _above: Wants) -> Wants {
        Wants::NOTHING
    }
}
