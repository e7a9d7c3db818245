//! copy-on-read: what is read from further down the backing chain is written into the top layer, so that it is read from
//! there the next time.
//!
//! The rule: a range is held while it is copied, and so is one that a guest writes on the serve path, as every write that
//! allocates is: what is unallocated stays so until the copy is written, and no copy replaces what a guest wrote. The filter
//! must see all writes for that, and shares writing of the layer with nobody. A read whose copy cannot be written is still a
//! read.

use crate::graph::perm::{Perm, Perms, Wants};
use crate::graph::status::{Until, status, status_above};
use crate::graph::{Edge, Graph, Role};
use crate::hold::Holds;
use crate::io::Io;
use crate::map::DEPTH_MAX;
use crate::node::{Driver, Info, Local, Map, NodeId, Outcome};
use crate::request::{Dir, Kind, Prealloc, Request, Unmap};
use crate::status::Status;
use crate::units::Span;
use ring::{Durability, Errno, Mem};

/// A read is copied in steps of at most this much, widened to the layer's own units.
const STEP_BYTES: u64 = 1 << 20;
/// Units beyond this are not waited for: no format has such clusters.
const UNIT_BYTES_MAX: u64 = 2 << 20;

/// Copies what is read into the layer it filters.
#[derive(Debug)]
pub struct CopyOnRead {
    below: Info,
    /// Only what the layer of that name or one above it has is copied. By name: nodes change places.
    bottom: Option<String>,
    /// Ranges being copied, or written on the serve path.
    holds: Holds,
}

/// What is to be done with the beginning of a range.
#[derive(Clone, Copy, Debug)]
struct Part {
    copy: bool,
    len: u64,
}

impl CopyOnRead {
    /// Copies into a node of which `below` is known, as far down as `bottom`.
    pub fn new(below: Info, bottom: Option<String>) -> CopyOnRead {
        CopyOnRead {
            below,
            bottom,
            holds: Holds::default(),
        }
    }

    async fn read(&self, io: &Io, span: Span, mem: Mem) -> Outcome {
        let child = io.child(Role::Filtered)?;
        let unit = unit_bytes(io.graph(), child);
        let size_bytes = io.graph().info(child).ok_or(Errno::IO)?.size_bytes;
        let mut rest = span;
        while !rest.is_empty() {
            let part = self.part_or_none(io, child, rest).await;
            let step = rest.first(part.len.min(STEP_BYTES));
            let into = mem.slice((step.at - span.at) as usize, step.len as usize);
            if part.copy {
                let end = step.widened(unit).end().min(size_bytes.max(step.end()));
                let at = step.widened(unit).at;
                let len = end - at;
                self.copy(io, child, Span { at, len }, step, &into).await?;
            } else {
                io.read(child, step.at, &into).await?;
            }
            rest = rest.after(step.len);
        }
        Ok(())
    }

    /// Copies what of `whole` is to be copied, and reads `wanted`, which lies within it.
    async fn copy(&self, io: &Io, child: NodeId, whole: Span, wanted: Span, mem: &Mem) -> Outcome {
        // Mapped writes under way need not end first: only what is allocated is mapped for writing, and that is not copied.
        let _hold = self.holds.hold(whole).await;
        let mut rest = whole;
        while !rest.is_empty() {
            // Asked again: it may have been written while we waited.
            let part = self.part_or_none(io, child, rest).await;
            let span = rest.first(part.len);
            rest = rest.after(span.len);
            let common = common(span, wanted);
            let into = mem.slice(
                common.at.saturating_sub(wanted.at) as usize,
                common.len as usize,
            );
            if part.copy {
                let bytes = Mem::zeroed(span.len as usize).ok_or(Errno::NOMEM)?;
                match io.read(child, span.at, &bytes).await {
                    Ok(()) => {}
                    // What nobody asked for may be unreadable; the rest is not worse for it.
                    Err(_) if common.is_empty() => continue,
                    Err(_) => {
                        io.read(child, common.at, &into).await?;
                        continue;
                    }
                }
                let from = common.at.saturating_sub(span.at) as usize;
                into.copy_from(&bytes.slice(from, common.len as usize));
                // Not worth failing the read: there is no room, or the image must not be changed.
                let _ = fill(io, child, span, bytes).await;
            } else if !common.is_empty() {
                io.read(child, common.at, &into).await?;
            }
        }
        Ok(())
    }

    /// Copies all of `span` that is to be copied, and that nobody reads just now. Errors: unlike for a guest's read, that the
    /// copy cannot be written is one.
    pub async fn populate(&self, io: &Io, span: Span) -> Outcome {
        let child = io.child(Role::Filtered)?;
        let size_bytes = io.graph().info(child).ok_or(Errno::IO)?.size_bytes;
        let whole = span.widened(unit_bytes(io.graph(), child));
        let mut rest = whole.first(size_bytes.saturating_sub(whole.at));
        let _hold = self.holds.hold(rest).await;
        while !rest.is_empty() {
            let part = self.part(io, child, rest).await?;
            let most = if part.copy { STEP_BYTES } else { u64::MAX };
            let span = rest.first(part.len.min(most));
            if part.copy {
                let bytes = Mem::zeroed(span.len as usize).ok_or(Errno::NOMEM)?;
                io.read(child, span.at, &bytes).await?;
                fill(io, child, span, bytes).await?;
            }
            rest = rest.after(span.len);
        }
        Ok(())
    }

    /// Is any of the beginning of `span` to be copied, and how much of it is alike?
    pub async fn look(&self, io: &Io, span: Span) -> Result<(bool, u64), Errno> {
        let part = self.part(io, io.child(Role::Filtered)?, span).await?;
        Ok((part.copy, part.len))
    }

    /// What cannot be told is not to be copied for a guest.
    async fn part_or_none(&self, io: &Io, child: NodeId, span: Span) -> Part {
        let (copy, len) = (false, span.len);
        let part = self.part(io, child, span).await;
        part.unwrap_or(Part { copy, len })
    }

    /// Is the beginning of `span` to be copied, and how much of it is alike?
    async fn part(&self, io: &Io, child: NodeId, span: Span) -> Result<Part, Errno> {
        let plain = |len: u64| Part { copy: false, len };
        if io.graph().next_layer(child).is_none() {
            return Ok(plain(span.len));
        }
        let own = status(io, child, span).await?;
        let (len, Some(bottom)) = (own.len, &self.bottom) else {
            let (copy, len) = (!own.is_local(), own.len);
            return Ok(Part { copy, len });
        };
        let bottom = io.graph().find(bottom);
        let Some(bottom) = bottom.filter(|_| !own.is_local()) else {
            return Ok(plain(len));
        };
        let until = Until::Including(bottom);
        let found = status_above(io, child, until, span.first(len)).await?;
        Ok(Part {
            copy: found.is_allocated(),
            len: found.status.len,
        })
    }
}

/// Writes what was read to where it is to be read from now on.
async fn fill(io: &Io, child: NodeId, span: Span, bytes: Mem) -> Outcome {
    let request = match bytes.is_zero() {
        true => Request::plain(Kind::WriteZeroes(Unmap::Keep, Durability::Cached), span),
        false => Request {
            kind: Kind::Write(Durability::Cached),
            span,
            mem: bytes,
        },
    };
    io.request(child, request).await
}

/// The part of `span` within `other`; empty if there is none.
fn common(span: Span, other: Span) -> Span {
    let at = span.at.max(other.at);
    let end = span.end().min(other.end());
    Span {
        at,
        len: end.saturating_sub(at),
    }
}

/// What the layer that `child` is or filters allocates at once.
fn unit_bytes(graph: &Graph, child: NodeId) -> u64 {
    let mut unit = 1;
    if let Some(crate::graph::Body::Driver(driver)) =
        graph.node(graph.skip_filters(child)).map(|n| n.body())
    {
        unit = driver.unit_bytes();
    }
    if unit.is_power_of_two() && unit <= UNIT_BYTES_MAX {
        unit
    } else {
        1
    }
}

impl Driver for CopyOnRead {
    /// What the layer has by itself is read like any other; the rest has to be copied.
    #[inline]
    fn map(&self, dir: Dir, span: Span) -> Map {
        let Span { at, len } = span;
        let to = Role::Filtered;
        match dir {
            Dir::Read => Map::Local { to, at, len },
            Dir::Write if self.holds.free(span) => Map::Below { to, at, len },
            Dir::Write => Map::Slow,
        }
    }

    fn serve<'a>(&'a self, io: &'a Io, request: Request) -> Local<'a, Outcome> {
        match request.kind {
            Kind::Read => Box::pin(self.read(io, request.span, request.mem)),
            Kind::Flush => io.below(Role::Filtered, request),
            _ => Box::pin(async move {
                let _hold = self.holds.hold(request.span).await;
                io.below(Role::Filtered, request).await
            }),
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

    fn as_copy_on_read(&self) -> Option<&CopyOnRead> {
        Some(self)
    }

    fn frozen_until(&self) -> Option<&str> {
        self.bottom.as_deref()
    }

    /// Reading writes, but nothing that could be read differently. Where nobody reads others may write: so it can be put under
    /// a disk that is written to, which then writes through it.
    fn wants(&self, _edge: &Edge, above: Wants) -> Wants {
        let copies = above.needs.has(Perm::ConsistentRead);
        Wants {
            needs: above.needs.or(Perms::WRITE_UNCHANGED),
            shares: match copies {
                true => above.shares.without(Perms::WRITE),
                false => above.shares,
            },
        }
    }
}

/// Why nothing can be copied down to there; the texts are QEMU's but for the last, where it hangs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BottomError {
    /// There is no such node.
    #[error("Bottom node '{0}' not found")]
    NotFound(String),
    /// It has no data of its own.
    #[error("Bottom node '{0}' is a filter")]
    Filter(String),
    /// It is somewhere else.
    #[error("Bottom node '{0}' is not in the backing chain")]
    Elsewhere(String),
}

/// Checks that there is a layer of that name in the chain below `child`.
pub(crate) fn check_bottom(graph: &Graph, child: NodeId, name: &str) -> Result<(), BottomError> {
    let Some(id) = graph.find(name) else {
        return Err(BottomError::NotFound(name.to_owned()));
    };
    if graph.skip_filters(id) != id {
        return Err(BottomError::Filter(name.to_owned()));
    }
    match graph.chain(child).take(DEPTH_MAX).any(|layer| layer == id) {
        true => Ok(()),
        false => Err(BottomError::Elsewhere(name.to_owned())),
    }
}
