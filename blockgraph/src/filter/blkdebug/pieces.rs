//! Requests cut to limits that are only pretended.
//!
//! The rule: the child never sees a request that the limits do not allow. What is not aligned is read, changed and written
//! back, in whole blocks that are held meanwhile.

use super::{Blkdebug, BlkdebugEvent, IoType};
use crate::graph::Role;
use crate::io::Io;
use crate::node::Outcome;
use crate::request::{Kind, Request};
use crate::units::Span;
use ring::{Durability, Errno, Mem};

/// Memory for zeroes that are written because they do not fit what writes of zeroes are multiples of.
const ZEROES_BYTES_MAX: u64 = 1 << 20;

/// The beginning of `span` that goes in one piece: up to the next multiple of `unit`, or whole units up to `most`, or what
/// is left of one.
fn piece(span: Span, unit: u64, most: u64) -> Span {
    let into = span.at % unit;
    if into != 0 {
        return span.first(unit - into);
    }
    let most = (most - most % unit).max(unit);
    match span.len.min(most) {
        len if len >= unit => span.first(len - len % unit),
        _ => span,
    }
}

fn fits(span: Span, unit: u64) -> bool {
    (span.at | span.len).is_multiple_of(unit)
}

fn or_any(limit: Option<u32>) -> u64 {
    limit.map_or(u64::MAX, u64::from)
}

impl Blkdebug {
    fn align(&self) -> u64 {
        u64::from(self.pretended.align.unwrap_or(1))
    }

    pub(super) async fn read(&self, io: &Io, request: Request) -> Outcome {
        let (whole, align) = (request.span, self.align());
        let most = or_any(self.pretended.max_transfer);
        let mut rest = whole;
        while !rest.is_empty() {
            let part = piece(rest, align, most);
            let mem = window(&request, part);
            let blocks = part.widened(align);
            self.check(io, IoType::Read, blocks).await?;
            if fits(part, align) {
                self.pass(io, Kind::Read, part, mem).await?;
            } else {
                let block = Mem::zeroed(blocks.len as usize).ok_or(Errno::NOMEM)?;
                self.pass(io, Kind::Read, blocks, block.clone()).await?;
                let from = (part.at - blocks.at) as usize;
                mem.copy_from(&block.slice(from, part.len as usize));
            }
            rest = rest.after(part.len);
        }
        Ok(())
    }

    pub(super) async fn write(&self, io: &Io, request: Request) -> Outcome {
        let (whole, align) = (request.span, self.align());
        let _hold = self.holds.hold(whole.widened(align)).await;
        let most = or_any(self.pretended.max_transfer);
        let mut rest = whole;
        while !rest.is_empty() {
            let part = piece(rest, align, most);
            let mem = window(&request, part);
            if fits(part, align) {
                self.check(io, IoType::Write, part).await?;
                self.pass(io, request.kind, part, mem).await?;
            } else {
                self.patch(io, request.kind, part, &mem).await?;
            }
            rest = rest.after(part.len);
        }
        Ok(())
    }

    /// Changes part of one block, which the caller holds.
    async fn patch(&self, io: &Io, kind: Kind, part: Span, mem: &Mem) -> Outcome {
        let (before, after) = match part.at % self.align() {
            0 => (
                BlkdebugEvent::PwritevRmwTail,
                BlkdebugEvent::PwritevRmwAfterTail,
            ),
            _ => (
                BlkdebugEvent::PwritevRmwHead,
                BlkdebugEvent::PwritevRmwAfterHead,
            ),
        };
        let blocks = part.widened(self.align());
        let block = Mem::zeroed(blocks.len as usize).ok_or(Errno::NOMEM)?;
        self.rules().fire(before);
        self.check(io, IoType::Read, blocks).await?;
        self.pass(io, Kind::Read, blocks, block.clone()).await?;
        self.rules().fire(after);
        let to = (part.at - blocks.at) as usize;
        block.slice(to, part.len as usize).copy_from(mem);
        self.check(io, IoType::Write, blocks).await?;
        self.pass(io, kind, blocks, block).await
    }

    pub(super) async fn write_zeroes(&self, io: &Io, request: Request) -> Outcome {
        let Kind::WriteZeroes(_, durability) = request.kind else {
            return Err(Errno::INVAL);
        };
        let unit = u64::from(self.pretended.opt_write_zero.unwrap_or(1));
        let unit = unit.max(self.align());
        let most = or_any(self.pretended.max_write_zero);
        let mut rest = request.span;
        while !rest.is_empty() {
            let part = piece(rest, unit, most);
            if fits(part, unit) {
                self.check(io, IoType::WriteZeroes, part).await?;
                self.pass(io, request.kind, part, Mem::none()).await?;
            } else {
                self.write_zero_bytes(io, part, durability).await?;
            }
            rest = rest.after(part.len);
        }
        Ok(())
    }

    async fn write_zero_bytes(&self, io: &Io, span: Span, durability: Durability) -> Outcome {
        let mut rest = span;
        while !rest.is_empty() {
            let part = rest.first(ZEROES_BYTES_MAX);
            let request = Request {
                kind: Kind::Write(durability),
                span: part,
                mem: Mem::zeroed(part.len as usize).ok_or(Errno::NOMEM)?,
            };
            self.write(io, request).await?;
            rest = rest.after(part.len);
        }
        Ok(())
    }

    /// What does not fit is not discarded.
    pub(super) async fn discard(&self, io: &Io, span: Span) -> Outcome {
        let unit = u64::from(self.pretended.opt_discard.unwrap_or(1));
        let unit = unit.max(self.align());
        let most = or_any(self.pretended.max_discard);
        let mut rest = span;
        while !rest.is_empty() {
            let part = piece(rest, unit, most);
            if fits(part, unit) {
                self.check(io, IoType::Discard, part).await?;
                self.pass(io, Kind::Discard, part, Mem::none()).await?;
            }
            rest = rest.after(part.len);
        }
        Ok(())
    }

    /// Widened to whole blocks, a request may end beyond a child whose size is no multiple of them: the rest of the last
    /// block is not there, reads as zeroes and need not be written.
    async fn pass(&self, io: &Io, kind: Kind, span: Span, mem: Mem) -> Outcome {
        let child = io.child(Role::Filtered)?;
        let size_bytes = io.graph().info(child).ok_or(Errno::IO)?.size_bytes;
        let span = span.first(size_bytes.saturating_sub(span.at));
        let mem = mem.slice(0, span.len as usize);
        io.request(child, Request { kind, span, mem }).await
    }
}

fn window(request: &Request, part: Span) -> Mem {
    let from = (part.at - request.span.at) as usize;
    request.mem.slice(from, part.len as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_edges_or_whole_units_within_the_limit_and_add_up() {
        for (at, len, unit, most) in [
            (0, 10_000, 512, 4096),
            (100, 10_000, 4096, 8192),
            (512, 100, 4096, 4096),
            (0, 100_000, 1, 999),
            (7, 5, 3, u64::MAX),
            (0, 1 << 40, 12_288, 12_288),
        ] {
            let mut rest = Span { at, len };
            for _ in 0..20_000 {
                let part = piece(rest, unit, most);
                assert!(part.is_empty() == rest.is_empty() && part.len <= most.max(unit));
                assert!(fits(part, unit) || part.at / unit == (part.end() - 1) / unit);
                rest = rest.after(part.len);
            }
        }
    }
}
