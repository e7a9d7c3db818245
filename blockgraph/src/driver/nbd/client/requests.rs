//! From a request of the node to requests of the server: pieces it takes, whole blocks, and what it cannot do done by
//! other means.
//!
//! The rule: whatever is longer than a piece has a few pieces under way at once, and no more memory than these.

use super::NbdClient;
use super::link::{Ask, Reply, Ticket};
use crate::driver::file::Flushes;
use crate::driver::nbd::wire::{Command, CommandFlags, ExportHead, state};
use crate::hold::Hold;
use crate::node::{NodeId, Outcome};
use crate::request::{Kind, Request, Unmap};
use crate::status::{Content, Mapping, Status};
use crate::units::Span;
use ring::{Durability, Errno, Mem};
use std::collections::VecDeque;
use std::sync::atomic::Ordering;

/// Pieces of one request under way at once.
const WINDOW: usize = 4;
/// No more is asked about at once; servers answer with less anyway.
const STATUS_BYTES_MAX: u64 = 1 << 30;

/// Changes under way. Even after an error all of them are waited for: one that lands late would undo what is written
/// next.
struct Window {
    under_way: VecDeque<Ticket>,
    outcome: Outcome,
}

impl Window {
    fn new() -> Window {
        Window {
            under_way: VecDeque::with_capacity(WINDOW),
            outcome: Ok(()),
        }
    }

    fn note(&mut self, outcome: Outcome) {
        self.outcome = self.outcome.and(outcome);
    }

    /// Adds one, and waits for the oldest if there are enough of them.
    async fn push(&mut self, ticket: Ticket) {
        self.under_way.push_back(ticket);
        if self.under_way.len() >= WINDOW
            && let Some(first) = self.under_way.pop_front()
        {
            let result = first.await;
            self.note(result.map(drop));
        }
    }

    /// Waits for the rest; the first error of all.
    async fn close(mut self) -> Outcome {
        while let Some(first) = self.under_way.pop_front() {
            let result = first.await;
            self.note(result.map(drop));
        }
        self.outcome
    }
}

impl NbdClient {
    pub(super) async fn perform(&self, request: Request) -> Outcome {
        let Request { kind, span, mem } = request;
        match kind {
            Kind::Read => self.read(span, &mem).await,
            Kind::Write(durability) => self.write(span, &mem, self.asked(durability)).await,
            Kind::WriteZeroes(unmap, durability) => {
                let durability = self.asked(durability);
                self.write_zeroes(span, unmap, durability).await
            }
            Kind::Discard => self.trim(span).await,
            Kind::Flush => self.flush().await,
            Kind::WriteCompressed => Err(Errno::NOTSUP),
        }
    }

    fn flushes(&self) -> Flushes {
        match self.sends_flushes.load(Ordering::Relaxed) {
            true => Flushes::Sync,
            false => Flushes::Nothing,
        }
    }

    /// Without flushes nothing is written through either.
    fn asked(&self, durability: Durability) -> Durability {
        match self.flushes() {
            Flushes::Sync => durability,
            Flushes::Nothing => Durability::Cached,
        }
    }

    /// The part of `span` that the server has: a node's size is whole sectors, an export's need not be.
    fn within(&self, span: Span) -> Span {
        span.first(self.export.size_bytes.saturating_sub(span.at))
    }

    fn is_aligned(&self, span: Span) -> bool {
        let unit = self.export.minimum_bytes;
        span.at.is_multiple_of(unit) && span.len.is_multiple_of(unit)
    }

    async fn submit(&self, command: Command, flags: u16, span: Span) -> Ticket {
        self.send(command, flags, span, &Mem::none()).await
    }

    async fn send(&self, command: Command, flags: u16, span: Span, mem: &Mem) -> Ticket {
        let permit = self.link.permit().await;
        // Copied only now, when there is room for it.
        let mut payload = vec![0; mem.len()];
        mem.load(0, &mut payload);
        let Span { at, len } = span;
        let ask = Ask {
            command,
            flags,
            at,
            len,
        };
        self.link.submit(permit, ask, payload)
    }

    async fn read(&self, span: Span, mem: &Mem) -> Outcome {
        let there = self.within(span);
        let (here, beyond) = (there.len as usize, mem.len() - there.len as usize);
        mem.slice(here, beyond).zero();
        let whole = there.widened(self.export.minimum_bytes);
        let mut under_way = VecDeque::new();
        let mut rest = whole;
        while !rest.is_empty() || !under_way.is_empty() {
            if !rest.is_empty() && under_way.len() < WINDOW {
                let piece = rest.first(self.export.piece_bytes);
                let ticket = self.submit(Command::Read, 0, piece).await;
                under_way.push_back((piece, ticket));
                rest = rest.after(piece.len);
            } else if let Some((piece, ticket)) = under_way.pop_front() {
                place(there, mem, piece, &ticket.await?);
            }
        }
        Ok(())
    }

    async fn write(&self, span: Span, mem: &Mem, durability: Durability) -> Outcome {
        let there = self.within(span);
        let here = there.len as usize;
        if !mem.slice(here, mem.len() - here).is_zero() {
            // Reads as zeroes for ever; saying that it was written would be a lie.
            return Err(Errno::NOSPC);
        }
        let mem = mem.slice(0, here);
        let _hold = self.hold(there).await;
        let fua = self.fua(durability);
        let mut window = Window::new();
        let mut rest = there;
        while !rest.is_empty() && window.outcome.is_ok() {
            let piece = rest.first(part_bytes(rest, self.export.minimum_bytes));
            let piece = piece.first(self.export.piece_bytes);
            let from = mem.slice((piece.at - there.at) as usize, piece.len as usize);
            if self.is_aligned(piece) {
                let ticket = self.send(Command::Write, fua, piece, &from).await;
                window.push(ticket).await;
            } else {
                window.note(self.patch(piece, Some(&from), fua).await);
            }
            rest = rest.after(piece.len);
        }
        window.close().await?;
        self.make_durable(fua, durability).await
    }

    async fn write_zeroes(&self, span: Span, unmap: Unmap, durability: Durability) -> Outcome {
        let there = self.within(span);
        let _hold = self.hold(there).await;
        let fua = self.fua(durability);
        let flags = fua
            | match unmap {
                Unmap::Keep => CommandFlags::NO_HOLE,
                Unmap::Allow => 0,
            };
        let mut can = self.export.can(ExportHead::SEND_WRITE_ZEROES);
        let mut window = Window::new();
        let mut rest = there;
        while !rest.is_empty() && window.outcome.is_ok() {
            let part = rest.first(part_bytes(rest, self.export.minimum_bytes));
            let mut piece = part.first(self.export.range_bytes);
            if !self.is_aligned(piece) {
                window.note(self.patch(piece, None, fua).await);
            } else if can {
                let ticket = self.submit(Command::WriteZeroes, flags, piece).await;
                match ticket.await {
                    // Some of a server's disks can, and some cannot.
                    Err(Errno::NOTSUP) => {
                        can = false;
                        continue;
                    }
                    result => window.note(result.map(drop)),
                }
            } else {
                piece = part.first(self.export.piece_bytes);
                match Mem::zeroed(piece.len as usize) {
                    Some(zeroes) => {
                        let ticket = self.send(Command::Write, fua, piece, &zeroes).await;
                        window.push(ticket).await;
                    }
                    None => window.note(Err(Errno::NOMEM)),
                }
            }
            rest = rest.after(piece.len);
        }
        window.close().await?;
        self.make_durable(fua, durability).await
    }

    /// Advice: blocks that are not whole stay as they are.
    async fn trim(&self, span: Span) -> Outcome {
        if !self.export.can(ExportHead::SEND_TRIM) {
            return Ok(());
        }
        let unit = self.export.minimum_bytes;
        let there = self.within(span);
        let skip = there.at.next_multiple_of(unit) - there.at;
        let mut rest = there.after(skip);
        rest = rest.first(rest.len - rest.len % unit);
        let _hold = self.hold(rest).await;
        let mut window = Window::new();
        while !rest.is_empty() && window.outcome.is_ok() {
            let piece = rest.first(self.export.range_bytes);
            let ticket = self.submit(Command::Trim, 0, piece).await;
            window.push(ticket).await;
            rest = rest.after(piece.len);
        }
        window.close().await
    }

    /// A server that has no flush has nothing to flush.
    async fn flush(&self) -> Outcome {
        if !self.export.can(ExportHead::SEND_FLUSH) || self.flushes() == Flushes::Nothing {
            return Ok(());
        }
        let nothing = Span { at: 0, len: 0 };
        let ticket = self.submit(Command::Flush, 0, nothing).await;
        ticket.await.map(|_| ())
    }

    /// What the server could not be asked to do with each piece.
    async fn make_durable(&self, fua: u16, durability: Durability) -> Outcome {
        match (durability, fua) {
            (Durability::Through, 0) => self.flush().await,
            _ => Ok(()),
        }
    }

    fn fua(&self, durability: Durability) -> u16 {
        let can = self.export.can(ExportHead::SEND_FUA);
        match (durability, can) {
            (Durability::Through, true) => CommandFlags::FUA,
            _ => 0,
        }
    }

    /// Where blocks may be read, changed and written back, nobody else may write to them meanwhile.
    async fn hold(&self, span: Span) -> Option<Hold<'_>> {
        let unit = self.export.minimum_bytes;
        if unit == 1 || span.is_empty() {
            return None;
        }
        Some(self.holds.hold(span.widened(unit)).await)
    }

    /// Changes part of one block, to `with` or to zeroes. The caller holds the block.
    async fn patch(&self, part: Span, with: Option<&Mem>, fua: u16) -> Outcome {
        let block = part.widened(self.export.minimum_bytes);
        let reply = self.submit(Command::Read, 0, block).await.await?;
        let whole = Mem::zeroed(reply.data.len()).ok_or(Errno::NOMEM)?;
        whole.store(0, &reply.data);
        let window = whole.slice((part.at - block.at) as usize, part.len as usize);
        match with {
            Some(mem) => window.copy_from(mem),
            None => window.zero(),
        }
        let ticket = self.send(Command::Write, fua, block, &whole).await;
        ticket.await.map(|_| ())
    }

    pub(super) async fn ask_status(&self, here: NodeId, span: Span) -> Result<Status, Errno> {
        let data = Status {
            len: span.len,
            content: Content::Data,
            mapping: Mapping::At(here, span.at),
        };
        let there = self.within(span);
        if there.is_empty() {
            return Ok(Status {
                content: Content::Zero,
                mapping: Mapping::None,
                ..data
            });
        }
        if !self.tells_status {
            return Ok(data);
        }
        let whole = there.widened(self.export.minimum_bytes);
        let asked = whole.first(STATUS_BYTES_MAX);
        let flags = CommandFlags::REQ_ONE;
        let reply = self
            .submit(Command::BlockStatus, flags, asked)
            .await
            .await?;
        let extent = reply.extent.ok_or(Errno::IO)?;
        // "the server MAY return ... beyond the requested length"; and less than a block is nothing that can be told.
        let told = extent.len.min(asked.len);
        let len = told.saturating_sub(there.at - asked.at).min(there.len);
        if len == 0 {
            return Err(Errno::IO);
        }
        let flags = match self.tells_depth {
            true => extent.flags.min(2),
            false => extent.flags,
        };
        Ok(Status {
            len,
            content: match flags & state::ZERO {
                0 => Content::Data,
                _ => Content::Zero,
            },
            mapping: match flags & state::HOLE {
                0 => data.mapping,
                _ => Mapping::None,
            },
        })
    }
}

/// How much of `rest`, from its beginning, is whole blocks, or else all within one block.
fn part_bytes(rest: Span, unit: u64) -> u64 {
    let into = rest.at % unit;
    if into != 0 {
        return rest.len.min(unit - into);
    }
    match rest.len - rest.len % unit {
        0 => rest.len,
        whole => whole,
    }
}

/// Puts the data of a piece where it belongs in `mem`, which is the memory of `span`.
fn place(span: Span, mem: &Mem, piece: Span, reply: &Reply) {
    // A piece may begin before the span, where that is not a whole block, and end behind it.
    let skip = span.at.saturating_sub(piece.at) as usize;
    let at = piece.at.saturating_sub(span.at) as usize;
    let Some(data) = reply.data.get(skip..) else {
        return;
    };
    let room = (span.len as usize).saturating_sub(at).min(data.len());
    mem.store(at, &data[..room]);
}
