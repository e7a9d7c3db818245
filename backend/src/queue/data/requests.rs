//! One request in the data loop: begun from its chain, handed to the lane in parts, answered when the last has ended.
//!
//! The rule: whatever becomes of a request, its chain is given back exactly once, by `finish`.

use super::DataLoop;
use crate::stats::Counted;
use crate::virtio_blk::{Ask, RangeKind, Reply, Status, parse};
use blockgraph::{Kind, Span, Started};

impl DataLoop {
    /// Starts what a chain asks for.
    pub(super) fn begin(&mut self, at: usize, index: u32) {
        let Some(guest) = &mut self.guests[at] else {
            return;
        };
        self.burst += 1;
        let disk = &guest.disk;
        let slot = &mut self.slots[index as usize];
        slot.guest = at;
        slot.reply = Reply::of(&slot.chain);
        slot.left = 1;
        slot.status = Status::Ok;
        slot.data_bytes = 0;
        slot.op = None;
        slot.began_ns = self.now_ns;
        if !slot.reply.has_status() {
            // Nowhere to say how it went: given back with length 0, and nothing done.
            return self.finish(index);
        }
        match parse(disk, &mut slot.chain, &mut self.ranges) {
            Ask::Read(span) => {
                slot.data_bytes = span.len;
                slot.count(Counted::Read, span.len);
                self.start(index, Kind::Read, span);
            }
            Ask::Write(span) => {
                let kind = Kind::Write(disk.durability());
                slot.count(Counted::Write, span.len);
                guest.tally.wrote_to(span.end());
                self.start(index, kind, span);
            }
            Ask::Flush => {
                slot.count(Counted::Flush, 0);
                self.start(index, Kind::Flush, Span { at: 0, len: 0 });
            }
            Ask::Id => {
                let stored = ring::seg::store(&slot.chain.writable, 0, &disk.id);
                slot.data_bytes = stored as u64;
                self.finish(index);
            }
            Ask::Ranges(kind) => self.begin_ranges(at, index, kind),
            Ask::Answer(status) => {
                slot.status = status;
                self.finish(index);
            }
            Ask::Refuse(op, status) => {
                guest.tally.refused(op);
                slot.status = status;
                self.finish(index);
            }
        }
    }

    fn begin_ranges(&mut self, at: usize, index: u32, kind: RangeKind) {
        let Some(guest) = &mut self.guests[at] else {
            return;
        };
        let disk = guest.disk.clone();
        let ranges = std::mem::take(&mut self.ranges);
        let bytes = ranges.iter().map(|range| range.span.len).sum();
        self.slots[index as usize].count(kind.counted_as(), bytes);
        if kind == RangeKind::WriteZeroes {
            let ends = ranges.iter().map(|range| range.span.end());
            guest.tally.wrote_to(ends.max().unwrap_or(0));
        }
        self.slots[index as usize].left = ranges.len() as u32;
        for range in &ranges {
            self.start(index, range.graph_kind(kind, &disk), range.span);
        }
        self.ranges = ranges;
    }

    /// Hands one part of a request to the lane.
    fn start(&mut self, index: u32, kind: Kind, span: Span) {
        let slot = &self.slots[index as usize];
        let Some(guest) = &self.guests[slot.guest] else {
            return;
        };
        let segs = match kind {
            Kind::Read => &slot.chain.writable[..],
            Kind::Write(_) => &slot.chain.readable[..],
            _ => &[],
        };
        if span.is_empty() && kind != Kind::Flush {
            return self.part_done(index, Status::Ok);
        }
        match self
            .lane
            .start(guest.disk.node, kind, span, segs, u64::from(index))
        {
            Started::Pending => {}
            Started::Done(outcome) => self.part_done(index, outcome.into()),
            Started::Full => self.stalled.push_back((index, kind, span)),
            Started::Held => self.hold(index, kind, span),
        }
    }

    #[cold]
    fn hold(&mut self, index: u32, kind: Kind, span: Span) {
        let at = self.slots[index as usize].guest;
        if let Some(guest) = &mut self.guests[at] {
            guest.held += 1;
        }
        self.held.push_back((index, kind, span));
    }

    pub(super) fn retry_held(&mut self) {
        for (index, kind, span) in std::mem::take(&mut self.held) {
            let at = self.slots[index as usize].guest;
            if let Some(guest) = &mut self.guests[at] {
                guest.held -= 1;
            }
            self.start_later(index, kind, span);
        }
    }

    pub(super) fn retry_stalled(&mut self) {
        for _ in 0..self.stalled.len() {
            let Some((index, kind, span)) = self.stalled.pop_front() else {
                return;
            };
            self.start_later(index, kind, span);
        }
    }

    /// The disk may have become smaller since the request was checked.
    fn start_later(&mut self, index: u32, kind: Kind, span: Span) {
        let slot = &self.slots[index as usize];
        let disk = self.guests[slot.guest].as_ref().map(|guest| &guest.disk);
        match disk.is_none_or(|disk| disk.has(span)) {
            true => self.start(index, kind, span),
            false => self.part_done(index, Status::IoErr),
        }
    }

    /// One part of a request is over.
    pub(super) fn part_done(&mut self, index: u32, status: Status) {
        let slot = &mut self.slots[index as usize];
        if status != Status::Ok {
            slot.status = status;
        }
        slot.left -= 1;
        if slot.left == 0 {
            self.finish(index);
        }
    }

    /// Answers a request.
    fn finish(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        let written_bytes = match slot.status {
            Status::Ok => slot.data_bytes,
            Status::IoErr | Status::Unsupported => 0,
        };
        let used_bytes = slot.reply.finish(slot.status, written_bytes);
        if let Some(guest) = &mut self.guests[slot.guest] {
            guest.answer(slot, used_bytes, self.now_ns);
        }
        slot.chain.trim();
        self.free.push(index);
    }
}
