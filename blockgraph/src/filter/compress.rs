//! compress: what is written is compressed, where the format below can do that.
//!
//! The rule: it changes the kind of a write and nothing else; reads are mapped past it.

use crate::graph::Role;
use crate::io::Io;
use crate::node::{Driver, Info, Local, Map, Outcome};
use crate::request::{Dir, Kind, Prealloc, Request};
use crate::status::Status;
use crate::units::Span;
use ring::{Durability, Errno};

/// Has what is written compressed.
#[derive(Debug)]
pub struct Compress {
    below: Info,
}

impl Compress {
    /// Above a node of which `below` is known; whoever opens it has asked whether that node compresses.
    pub fn new(below: Info) -> Compress {
        Compress { below }
    }

    async fn write(&self, io: &Io, request: Request, durability: Durability) -> Outcome {
        let kind = Kind::WriteCompressed;
        let compressed = Request { kind, ..request };
        io.below(Role::Filtered, compressed).await?;
        if durability == Durability::Through {
            let flush = Request::plain(Kind::Flush, Span { at: 0, len: 0 });
            io.below(Role::Filtered, flush).await?;
        }
        Ok(())
    }
}

impl Driver for Compress {
    #[inline]
    fn map(&self, dir: Dir, span: Span) -> Map {
        let Span { at, len } = span;
        let to = Role::Filtered;
        match dir {
            Dir::Read => Map::Below { to, at, len },
            Dir::Write => Map::Slow,
        }
    }

    fn serve<'a>(&'a self, io: &'a Io, request: Request) -> Local<'a, Outcome> {
        match request.kind {
            Kind::Write(durability) => Box::pin(self.write(io, request, durability)),
            _ => io.below(Role::Filtered, request),
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
            let child = io.child(Role::Filtered)?;
            io.truncate(child, size_bytes, how).await
        })
    }
}
