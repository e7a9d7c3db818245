//! Transfers that do not fit the file's blocks: whole blocks are read, and for a write changed and written back.
//!
//! The rule: every served write of such a file holds the blocks it touches, and one that must read first also waits for
//! the mapped writes already under way (`hold.rs`): then nothing changes a block between its reading and its writing.

use super::FileDriver;
use crate::io::Io;
use crate::node::Outcome;
use crate::units::Span;
use ring::{Durability, Errno, Mem, Op};

/// Memory that an unaligned read or a write of zeroes uses at once.
pub(super) const STEP_BYTES: u64 = 1 << 20;

/// What a block is to be filled with.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fill<'a> {
    /// These bytes.
    Bytes(&'a Mem),
    /// Zeroes.
    Zeroes,
}

/// How much of `rest`, from its beginning, is all blocks of `unit` bytes, or else all within one block.
pub(super) fn part_bytes(rest: Span, unit: u64) -> u64 {
    let into = rest.at % unit;
    if into != 0 {
        return rest.len.min(unit - into);
    }
    match rest.len - rest.len % unit {
        0 => rest.len,
        whole => whole,
    }
}

impl FileDriver {
    /// The unit of offsets and lengths.
    pub(super) fn block_bytes(&self) -> u64 {
        u64::from(self.parts.file.align().offset_bytes)
    }

    pub(super) fn fits(&self, span: Span) -> bool {
        self.parts.file.align().takes(span.at, span.len)
    }

    pub(super) async fn read(&self, io: &Io, span: Span, mem: &Mem) -> Outcome {
        if self.fits(span) {
            return self.get(io, span.at, mem.clone()).await;
        }
        let mut rest = span;
        while !rest.is_empty() {
            let part = rest.first(STEP_BYTES - rest.at % STEP_BYTES);
            let blocks = part.widened(self.block_bytes());
            let whole = Mem::zeroed(blocks.len as usize).ok_or(Errno::NOMEM)?;
            self.get(io, blocks.at, whole.clone()).await?;
            let from = whole.slice((part.at - blocks.at) as usize, part.len as usize);
            mem.slice((part.at - span.at) as usize, part.len as usize)
                .copy_from(&from);
            rest = rest.after(part.len);
        }
        Ok(())
    }

    pub(super) async fn write(
        &self,
        io: &Io,
        span: Span,
        mem: &Mem,
        durability: Durability,
    ) -> Outcome {
        if self.block_bytes() == 1 {
            return self.put(io, span.at, mem.clone(), durability).await;
        }
        let _hold = self.holds.hold(span.widened(self.block_bytes())).await;
        if self.fits(span) {
            return self.put(io, span.at, mem.clone(), durability).await;
        }
        io.grace().await;
        let mut rest = span;
        while !rest.is_empty() {
            let part = rest.first(part_bytes(rest, self.block_bytes()));
            let from = mem.slice((part.at - span.at) as usize, part.len as usize);
            if self.fits(part) {
                self.put(io, part.at, from, durability).await?;
            } else {
                self.patch(io, part, Fill::Bytes(&from), durability).await?;
            }
            rest = rest.after(part.len);
        }
        Ok(())
    }

    /// Changes part of one block. The caller holds the block and has waited for mapped writes to it.
    pub(super) async fn patch(
        &self,
        io: &Io,
        part: Span,
        fill: Fill<'_>,
        durability: Durability,
    ) -> Outcome {
        let block = part.widened(self.block_bytes());
        let whole = Mem::zeroed(block.len as usize).ok_or(Errno::NOMEM)?;
        self.get(io, block.at, whole.clone()).await?;
        let window = whole.slice((part.at - block.at) as usize, part.len as usize);
        match fill {
            Fill::Bytes(mem) => window.copy_from(mem),
            Fill::Zeroes => window.zero(),
        }
        self.put(io, block.at, whole, durability).await
    }

    pub(super) async fn get(&self, io: &Io, at: u64, mem: Mem) -> Outcome {
        let file = self.parts.file.id();
        io.file(Op::Read { file, at }, mem).await
    }

    pub(super) async fn put(&self, io: &Io, at: u64, mem: Mem, durability: Durability) -> Outcome {
        let file = self.parts.file.id();
        let op = Op::Write {
            file,
            at,
            durability,
        };
        io.file(op, mem).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_an_edge_or_whole_blocks_and_add_up() {
        for (at, len) in [
            (0, 8192),
            (512, 512),
            (512, 8192),
            (4096, 100),
            (100, 20_000),
        ] {
            let mut rest = Span::new(at, len).expect("a span");
            while !rest.is_empty() {
                let part = rest.first(part_bytes(rest, 4096));
                let whole = part.at.is_multiple_of(4096) && part.len.is_multiple_of(4096);
                assert!(!part.is_empty());
                assert!(whole || part.widened(4096).len == 4096, "{part}");
                rest = rest.after(part.len);
            }
        }
    }
}
