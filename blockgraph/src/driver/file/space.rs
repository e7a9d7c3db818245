//! Space given back and ranges zeroed without writing them.
//!
//! The rule: a discard is advice, and a file that cannot take it is asked once; a write of zeroes is an order, and what
//! the file cannot do by itself is written from a buffer of bounded size.

use super::blocks::{Fill, STEP_BYTES, part_bytes};
use super::{FileDriver, FileKind};
use crate::io::Io;
use crate::node::{Outcome, Zeroing};
use crate::request::Unmap;
use crate::units::Span;
use ring::{Durability, Errno, Mem, Op};
use std::sync::atomic::{AtomicBool, Ordering};

/// What became of an operation that a file may not know.
enum Tried {
    Done,
    Unknown,
}

impl FileDriver {
    pub(super) async fn discard(&self, io: &Io, span: Span) -> Outcome {
        let span = self.discardable(span);
        if span.is_empty() {
            return Ok(());
        }
        // Else a write to part of a block, reading before and writing back after, would bring the discarded bytes back.
        let _hold = match self.block_bytes() {
            1 => None,
            block => Some(self.holds.hold(span.widened(block)).await),
        };
        self.punch(io, span).await?;
        Ok(())
    }

    /// What of `span` fallocate(2) takes: all of it in a regular file, whose file system zeroes the edges of what it cannot
    /// give back; whole blocks of a device.
    fn discardable(&self, span: Span) -> Span {
        if self.parts.limits.discard_bytes == 0 {
            return span.first(0);
        }
        let unit = self.space_unit();
        let at = span.at.next_multiple_of(unit);
        let end = span.end() - span.end() % unit;
        Span {
            at,
            len: end.saturating_sub(at),
        }
    }

    pub(super) async fn write_zeroes(&self, io: &Io, span: Span, unmap: Unmap) -> Outcome {
        let _hold = match self.block_bytes() {
            1 => None,
            block => Some(self.holds.hold(span.widened(block)).await),
        };
        let unit = self.space_unit();
        let mut rest = span;
        while !rest.is_empty() {
            let part = rest.first(part_bytes(rest, unit));
            if (part.at | part.len).is_multiple_of(unit) {
                self.zero_blocks(io, part, unmap).await?;
            } else {
                self.zero_by_writing(io, part).await?;
            }
            rest = rest.after(part.len);
        }
        Ok(())
    }

    /// What fallocate(2) wants offsets and lengths to be multiples of: a file system takes anything, a device its blocks.
    fn space_unit(&self) -> u64 {
        match self.parts.kind {
            FileKind::Regular => 1,
            FileKind::Device => u64::from(self.parts.limits.logical_block_bytes),
        }
    }

    async fn zero_blocks(&self, io: &Io, span: Span, unmap: Unmap) -> Outcome {
        if unmap == Unmap::Allow
            && let Tried::Done = self.punch(io, span).await?
        {
            return Ok(());
        }
        let op = Op::Zero {
            file: self.parts.file.id(),
            at: span.at,
            len_bytes: span.len,
        };
        match try_once(io, &self.no_zero, op).await? {
            Tried::Done => Ok(()),
            Tried::Unknown => self.zero_by_writing(io, span).await,
        }
    }

    /// As far as the host has been asked.
    pub(super) fn zeroing_of(&self, unmap: Unmap) -> Zeroing {
        let zeroes = !self.no_zero.load(Ordering::Relaxed);
        let punches = unmap == Unmap::Allow && !self.no_punch.load(Ordering::Relaxed);
        match zeroes || punches {
            true => Zeroing::Fast,
            false => Zeroing::Written,
        }
    }

    async fn punch(&self, io: &Io, span: Span) -> Result<Tried, Errno> {
        let op = Op::Punch {
            file: self.parts.file.id(),
            at: span.at,
            len_bytes: span.len,
        };
        try_once(io, &self.no_punch, op).await
    }

    /// The caller holds the blocks.
    pub(super) async fn zero_by_writing(&self, io: &Io, span: Span) -> Outcome {
        if !self.fits(span) {
            io.grace().await;
        }
        let zeroes = Mem::zeroed(STEP_BYTES.min(span.len) as usize).ok_or(Errno::NOMEM)?;
        let mut rest = span;
        while !rest.is_empty() {
            let part = rest.first(part_bytes(rest, self.block_bytes()).min(STEP_BYTES));
            if self.fits(part) {
                let mem = zeroes.slice(0, part.len as usize);
                self.put(io, part.at, mem, Durability::Cached).await?;
            } else {
                let durability = Durability::Cached;
                self.patch(io, part, Fill::Zeroes, durability).await?;
            }
            rest = rest.after(part.len);
        }
        Ok(())
    }
}

/// Tries an operation unless the file is known not to know it, and remembers when it says so.
async fn try_once(io: &Io, unknown: &AtomicBool, op: Op) -> Result<Tried, Errno> {
    if unknown.load(Ordering::Relaxed) {
        return Ok(Tried::Unknown);
    }
    match io.file(op, Mem::none()).await {
        Ok(()) => Ok(Tried::Done),
        Err(Errno(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV | libc::ENOTTY)) => {
            unknown.store(true, Ordering::Relaxed);
            Ok(Tried::Unknown)
        }
        // Not this range, or not now: another holds the device (EBUSY), or the file system has rules of its own.
        Err(Errno(libc::EBUSY | libc::EINVAL)) => Ok(Tried::Unknown),
        Err(errno) => Err(errno),
    }
}
