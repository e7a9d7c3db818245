//! null: a disk of any size that stores nothing, to measure and test everything above it. THE FILE TO COPY for a driver.
//!
//! The rule: `map` answers by arithmetic alone. What needs more than that (here: waiting) answers `Slow` and is done in
//! `serve`, which must do every kind of request, since any request may come that way.

use crate::graph::name::{Described, Setting, Short};
use crate::io::Io;
use crate::node::{Driver, Info, Limits, Local, Map, Outcome};
use crate::request::{Dir, Kind, Request};
use crate::status::{Content, Mapping, Status};
use crate::units::Span;
use ring::Errno;

/// Its size where none is asked for.
const SIZE_BYTES_DEFAULT: u64 = 1 << 30;

/// What a read does to the memory it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// It becomes zeroes (`read-zeroes=on`).
    Zeroes,
    /// It stays as it is.
    Untouched,
}

/// A disk that stores nothing (`null-co` and `null-aio`).
#[derive(Debug)]
pub struct Null {
    size_bytes: u64,
    reads: Reads,
    latency_ns: u64,
}

impl Null {
    /// A disk of `size_bytes` (rounded up to a whole sector) that takes `latency_ns` for each request.
    pub fn new(size_bytes: u64, reads: Reads, latency_ns: u64) -> Null {
        Null {
            size_bytes: super::whole_sectors(size_bytes),
            reads,
            latency_ns,
        }
    }
}

impl Driver for Null {
    fn map(&self, dir: Dir, span: Span) -> Map {
        if self.latency_ns > 0 {
            return Map::Slow;
        }
        match (dir, self.reads) {
            (Dir::Read, Reads::Zeroes) => Map::Zero { len: span.len },
            _ => Map::Void { len: span.len },
        }
    }

    /// Nothing is stored, so nothing is taken up.
    fn allocated<'a>(&'a self, _io: &'a Io) -> Local<'a, Result<u64, Errno>> {
        Box::pin(async { Ok(0) })
    }

    fn described(&self, kind: &str) -> Described {
        let mut settings = Vec::new();
        if self.size_bytes != SIZE_BYTES_DEFAULT {
            settings.push(("size".to_owned(), Setting::Number(self.size_bytes)));
        }
        if self.reads == Reads::Zeroes {
            settings.push(("read-zeroes".to_owned(), Setting::Switch(true)));
        }
        let short = match settings.is_empty() {
            true => Short::Own(format!("{kind}://")),
            false => Short::None,
        };
        Described { settings, short }
    }

    fn serve<'a>(&'a self, io: &'a Io, request: Request) -> Local<'a, Outcome> {
        Box::pin(async move {
            if self.latency_ns > 0 {
                io.sleep(self.latency_ns).await;
            }
            if request.kind == Kind::WriteCompressed {
                return Err(Errno::NOTSUP);
            }
            if request.kind == Kind::Read && self.reads == Reads::Zeroes {
                request.mem.zero();
            }
            Ok(())
        })
    }

    fn status<'a>(&'a self, _io: &'a Io, span: Span) -> Local<'a, Result<Status, Errno>> {
        let content = match self.reads {
            Reads::Zeroes => Content::Zero,
            Reads::Untouched => Content::Data,
        };
        let status = Status {
            len: span.len,
            content,
            mapping: Mapping::None,
        };
        Box::pin(async move { Ok(status) })
    }

    fn info(&self) -> Info {
        Info {
            size_bytes: self.size_bytes,
            limits: Limits::PLAIN,
        }
    }
}
