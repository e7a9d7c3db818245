//! Block status through a backing chain: which layer decides, and what stands behind it.
//!
//! The rule: only layers are asked, each about itself and in turn; filters are passed over wherever they are. A layer
//! that ends before the range decides it as well: what is above reads zeroes there *because of* that layer, so the range
//! counts as allocated in it, and nothing further below is asked.

use crate::io::Io;
use crate::node::NodeId;
use crate::status::{Content, Mapping, Status};
use crate::units::Span;
use ring::Errno;

/// How far down a walk goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// To the last layer.
    Bottom,
    /// That layer is not asked any more. A filter stands for what it filters.
    Above(NodeId),
    /// That layer is the last to be asked.
    Including(NodeId),
}

/// How a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The layer decides.
    Decided,
    /// The layer ends before the range, which reads as zeroes because of it.
    Short,
    /// No layer that was asked decides; those further below do.
    Deferred,
    /// No layer decides, and there is none further below: it reads as zeroes.
    Nowhere,
}

/// What a walk found out about the beginning of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// What the last layer that was asked says, or zeroes for one that is too short. Its `len` is how many bytes all of
    /// this is about, 1 to the span's length.
    pub status: Status,
    /// How it ended.
    pub end: End,
    /// The last layer that was asked; `None` if there was none to ask.
    pub layer: Option<NodeId>,
    /// How many layers were asked: 1 is the top alone.
    pub depth: u32,
}

impl Found {
    /// A layer that was asked decides the content (QEMU's ALLOCATED).
    pub fn is_allocated(&self) -> bool {
        matches!(self.end, End::Decided | End::Short)
    }

    /// It is known to read as zeroes (QEMU's ZERO).
    pub fn is_zero(&self) -> bool {
        match self.end {
            End::Decided => self.status.is_zero(),
            End::Short | End::Nowhere => true,
            End::Deferred => false,
        }
    }

    /// It reads as what is stored, and that may be anything: QEMU's DATA, whose absence is NBD's HOLE. Space that stands
    /// behind zeroes, or behind what is read from below, does not count.
    pub fn is_data(&self) -> bool {
        self.end == End::Decided && self.status.content == Content::Data && self.status.is_mapped()
    }

    /// The layer that decides, counted from 1 at the top; 0 if none does. What NBD calls `qemu:allocation-depth`.
    pub fn allocation_depth(&self) -> u32 {
        match self.is_allocated() {
            true => self.depth,
            false => 0,
        }
    }
}

/// What `top` alone says of the beginning of `span`; for a filter, what it filters says. Errors: EINVAL past its end, and
/// whatever the driver answers.
pub async fn status(io: &Io, top: NodeId, span: Span) -> Result<Status, Errno> {
    let layer = io.graph().skip_filters(top);
    match ask(io, layer, span).await? {
        Some(status) => Ok(status),
        None => Err(Errno::INVAL),
    }
}

/// Whether `top` alone decides the beginning of `span`, and how long that beginning is. Errors: as [`status`].
pub async fn is_allocated(io: &Io, top: NodeId, span: Span) -> Result<(bool, u64), Errno> {
    let status = status(io, top, span).await?;
    Ok((status.is_local(), status.len))
}

/// Which of the layers from `top` down decides the beginning of `span`. Errors: as [`status`].
pub async fn status_above(io: &Io, top: NodeId, until: Until, span: Span) -> Result<Found, Errno> {
    let (last, inclusive) = match until {
        Until::Bottom => (None, true),
        Until::Above(base) => (Some(io.graph().skip_filters(base)), false),
        Until::Including(base) => (Some(io.graph().skip_filters(base)), true),
    };
    let mut found = Found {
        status: Status {
            len: span.len,
            content: Content::Below,
            mapping: Mapping::None,
        },
        end: End::Deferred,
        layer: None,
        depth: 0,
    };
    for layer in io.graph().chain(top) {
        if !inclusive && last == Some(layer) {
            return Ok(found);
        }
        let rest = Span {
            at: span.at,
            len: found.status.len,
        };
        let answer = ask(io, layer, rest).await?;
        found.layer = Some(layer);
        found.depth += 1;
        let Some(status) = answer else {
            // Past the end of the top there is nothing to say.
            found.end = (found.depth > 1)
                .then_some(End::Short)
                .ok_or(Errno::INVAL)?;
            found.status.content = Content::Zero;
            found.status.mapping = Mapping::None;
            return Ok(found);
        };
        found.status = status;
        if status.is_local() {
            found.end = End::Decided;
            return Ok(found);
        }
        if last == Some(layer) {
            return Ok(found);
        }
    }
    found.end = End::Nowhere;
    Ok(found)
}

/// Whether a layer from `top` down decides the beginning of `span`: which, counted from 1 at the top, or 0, and how long
/// that beginning is. Errors: as [`status`].
pub async fn is_allocated_above(
    io: &Io,
    top: NodeId,
    until: Until,
    span: Span,
) -> Result<(u32, u64), Errno> {
    let found = status_above(io, top, until, span).await?;
    Ok((found.allocation_depth(), found.status.len))
}

/// What one layer says of the part of `span` that lies within it; `None` if none does.
async fn ask(io: &Io, layer: NodeId, span: Span) -> Result<Option<Status>, Errno> {
    let info = io.graph().info(layer).ok_or(Errno::IO)?;
    let left = info.size_bytes.saturating_sub(span.at);
    if left == 0 || span.len == 0 {
        return Ok(None);
    }
    let within = Span {
        at: span.at,
        len: span.len.min(left),
    };
    let mut status = io.status(layer, within).await?;
    status.len = status.len.min(within.len);
    match status.len {
        // A walk that gets nowhere would go on for ever.
        0 => Err(Errno::IO),
        _ => Ok(Some(status)),
    }
}
