//! What a mirror job puts above its source when guests are to wait for the target too (`copy-mode=write-blocking`).
//!
//! The rule: a write is over when source and target have it, and nobody copies there meanwhile (`job/mirror.rs`).

use crate::graph::Role;
use crate::graph::name::{Described, Short};
use crate::io::Io;
use crate::job::Mirrored;
use crate::node::{Driver, Info, Local, Map, NodeId, Outcome};
use crate::request::{Dir, Kind, Prealloc, Request};
use crate::status::Status;
use crate::units::Span;
use ring::Errno;
use std::sync::Arc;

/// Writes to both.
#[derive(Debug)]
pub struct WriteBlocking {
    below: Info,
    mirrored: Arc<Mirrored>,
}

impl WriteBlocking {
    /// Above a node of which `below` is known.
    pub fn new(below: Info, mirrored: Arc<Mirrored>) -> WriteBlocking {
        WriteBlocking { below, mirrored }
    }
}

impl Driver for WriteBlocking {
    #[inline]
    fn map(&self, dir: Dir, span: Span) -> Map {
        match dir {
            Dir::Write => Map::Slow,
            Dir::Read => Map::Below {
                to: Role::Filtered,
                at: span.at,
                len: span.len,
            },
        }
    }

    fn serve<'a>(&'a self, io: &'a Io, request: Request) -> Local<'a, Outcome> {
        match request.kind {
            Kind::Read | Kind::Flush => io.below(Role::Filtered, request),
            _ => Box::pin(self.mirrored.write(io, request)),
        }
    }

    fn status<'a>(&'a self, io: &'a Io, span: Span) -> Local<'a, Result<Status, Errno>> {
        Box::pin(async move { io.status(io.child(Role::Filtered)?, span).await })
    }

    fn info(&self) -> Info {
        self.below
    }

    fn truncate<'a>(&'a self, io: &'a Io, size_bytes: u64, how: Prealloc) -> Local<'a, Outcome> {
        Box::pin(async move {
            io.truncate(io.child(Role::Filtered)?, size_bytes, how)
                .await
        })
    }

    /// It is called as what it stands above.
    fn described(&self, _kind: &str) -> Described {
        Described::plainly(Short::Before(String::new()))
    }

    fn uses_besides(&self) -> Option<NodeId> {
        Some(self.mirrored.target())
    }
}
