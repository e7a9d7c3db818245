//! A copy-on-write layer for tests: its map is in memory, its data in a file, and whatever it does not have is in its
//! backing child.

use blockgraph::graph::{Body, Edge, NewNode, Role, Shape};
use blockgraph::hold::Holds;
use blockgraph::request::{Dir, Request};
use blockgraph::status::{Content, Mapping, Status};
use blockgraph::{Driver, Graph, Info, Io, Kind, Limits, Local, Map, NodeId, Outcome, Span};
use ring::{Durability, Errno, Mem};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

#[derive(Debug)]
pub struct Cow {
    unit: u64,
    size_bytes: u64,
    backing_bytes: u64,
    have: Vec<AtomicBool>,
    holds: Holds,
    /// Requests that were compressed.
    pub compressed: AtomicU64,
}

impl Cow {
    pub fn new(size_bytes: u64, unit: u64, backing_bytes: u64) -> Cow {
        let count = size_bytes.div_ceil(unit);
        Cow {
            unit,
            size_bytes,
            backing_bytes,
            have: (0..count).map(|_| AtomicBool::new(false)).collect(),
            holds: Holds::default(),
            compressed: AtomicU64::new(0),
        }
    }

    pub fn insert(self: &Arc<Cow>, graph: &mut Graph, file: NodeId, backing: NodeId) -> NodeId {
        let name = format!("cow{}", graph.next_id().0);
        graph.insert(NewNode {
            name,
            kind: "cow",
            common: super::common(),
            body: Body::Driver(self.clone()),
            shape: Shape::Format {
                file: Edge::file(Role::Image, file),
                data: None,
                backing: Some(Edge {
                    role: Role::Cow,
                    option: "backing",
                    child: backing,
                }),
            },
            files: Vec::new(),
        })
    }

    pub fn has(&self, at: u64) -> bool {
        self.have[(at / self.unit) as usize].load(Ordering::SeqCst)
    }

    pub fn set(&self, at: u64) {
        self.have[(at / self.unit) as usize].store(true, Ordering::SeqCst);
    }

    /// How much of the beginning of `span` is alike, and whether it is here.
    fn run(&self, span: Span) -> (bool, u64) {
        let here = self.has(span.at);
        let mut end = span.at;
        while end < span.end() && self.has(end) == here {
            end = (end / self.unit + 1) * self.unit;
        }
        (here, end.min(span.end()) - span.at)
    }

    async fn read(&self, io: &Io, span: Span, mem: Mem) -> Outcome {
        let mut rest = span;
        while !rest.is_empty() {
            let (here, len) = self.run(rest);
            let into = mem.slice((rest.at - span.at) as usize, len as usize);
            let left = self.backing_bytes.saturating_sub(rest.at);
            match here {
                true => io.read(io.child(Role::Image)?, rest.at, &into).await?,
                false => {
                    into.zero();
                    let into = into.slice(0, len.min(left) as usize);
                    if !into.is_empty() {
                        io.read(io.child(Role::Cow)?, rest.at, &into).await?;
                    }
                }
            }
            rest = rest.after(len);
        }
        Ok(())
    }

    async fn write(&self, io: &Io, span: Span, mem: Mem) -> Outcome {
        let _hold = self.holds.hold(span.widened(self.unit)).await;
        let mut rest = span;
        while !rest.is_empty() {
            let within = self.unit - rest.at % self.unit;
            let part = rest.first(within);
            let from = mem.slice((part.at - span.at) as usize, part.len as usize);
            let file = io.child(Role::Image)?;
            if self.has(part.at) {
                io.write(file, part.at, &from).await?;
            } else {
                let whole = part.widened(self.unit);
                let whole = whole.first(self.size_bytes - whole.at);
                let bytes = Mem::zeroed(whole.len as usize).ok_or(Errno::NOMEM)?;
                self.read(io, whole, bytes.clone()).await?;
                let to = (part.at - whole.at) as usize;
                bytes.slice(to, part.len as usize).copy_from(&from);
                io.write(file, whole.at, &bytes).await?;
                self.set(part.at);
            }
            rest = rest.after(part.len);
        }
        Ok(())
    }
}

impl Driver for Cow {
    fn map(&self, dir: Dir, span: Span) -> Map {
        let (here, len) = self.run(span);
        let at = span.at;
        match (dir, here) {
            (Dir::Write, true) if !self.holds.free(span) => Map::Slow,
            (_, true) => Map::Below {
                to: Role::Image,
                at,
                len,
            },
            (Dir::Read, false) if at >= self.backing_bytes => Map::Zero { len },
            (Dir::Read, false) => Map::Below {
                to: Role::Cow,
                at,
                len: len.min(self.backing_bytes - at),
            },
            (Dir::Write, false) => Map::Slow,
        }
    }

    fn serve<'a>(&'a self, io: &'a Io, request: Request) -> Local<'a, Outcome> {
        Box::pin(async move {
            let Request { kind, span, mem } = request;
            match kind {
                Kind::Read => self.read(io, span, mem).await,
                Kind::Write(_) => self.write(io, span, mem).await,
                Kind::WriteCompressed => {
                    self.compressed.fetch_add(1, Ordering::SeqCst);
                    self.write(io, span, mem).await
                }
                Kind::WriteZeroes(..) => {
                    let zeroes = Mem::zeroed(span.len as usize).ok_or(Errno::NOMEM)?;
                    self.write(io, span, zeroes).await
                }
                Kind::Discard => Ok(()),
                Kind::Flush => io.below(Role::Image, Request::plain(kind, span)).await,
            }
        })
    }

    fn status<'a>(&'a self, _io: &'a Io, span: Span) -> Local<'a, Result<Status, Errno>> {
        let (here, len) = self.run(span);
        let (content, mapping) = match here {
            true => (Content::Data, Mapping::Opaque),
            false => (Content::Below, Mapping::None),
        };
        Box::pin(async move {
            Ok(Status {
                len,
                content,
                mapping,
            })
        })
    }

    fn info(&self) -> Info {
        Info {
            size_bytes: self.size_bytes,
            limits: Limits::PLAIN,
        }
    }

    fn unit_bytes(&self) -> u64 {
        self.unit
    }

    fn compresses(&self) -> bool {
        true
    }
}

/// A write that goes to the disk's cache.
pub const WRITE: Kind = Kind::Write(Durability::Cached);
