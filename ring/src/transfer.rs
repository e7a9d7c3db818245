//! One operation as the steps it takes: bounced where O_DIRECT needs it, repeated until every byte is transferred.

use crate::buf::Buf;
use crate::file::Align;
use crate::op::{Errno, Op};
use crate::seg;
use crate::slots::Slot;

/// A bounced transfer moves at most this much per step, which bounds the memory it needs.
pub(crate) const BOUNCE_BYTES_MAX: usize = 1 << 20;
/// The kernel takes no longer list of segments (UIO_MAXIOV).
const SEGS_MAX: usize = 1024;
/// Nor more bytes at once (MAX_RW_COUNT, less a page).
const STEP_BYTES_MAX: usize = 0x7fff_e000;

/// So often in a row the kernel may have no memory or worker to spare (EAGAIN) before that is an error: a second or so.
/// Without an end, a request that never goes through would keep its thread busy and its ring from stopping.
const REFUSALS_MAX: u32 = 100_000;

/// What a report on a step means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Over(Result<(), Errno>),
    /// Another step is to be made.
    Again,
}

/// Is a bounce buffer needed for the rest of this transfer?
#[inline]
pub(crate) fn needs_bounce(slot: &Slot, align: Align) -> bool {
    let mask = align.memory_bytes as usize - 1;
    if mask == 0 {
        return false;
    }
    let misfits = |seg: &seg::Seg| (seg.host() as usize | seg.len()) & mask != 0;
    slot.segs.len() > SEGS_MAX || slot.segs.iter().any(misfits)
}

/// Prepares the next step of a read or write: what of the memory it covers, bounced or not. False: out of memory.
pub(crate) fn prepare(slot: &mut Slot, align: Align) -> bool {
    let left = slot.len_bytes - slot.done_bytes;
    if needs_bounce(slot, align) {
        return prepare_bounce(slot, left.min(BOUNCE_BYTES_MAX));
    }
    slot.bounce = None;
    slot.step_bytes = left.min(STEP_BYTES_MAX);
    slot.wire.clear();
    if slot.done_bytes > 0 || slot.segs.len() > SEGS_MAX || left > STEP_BYTES_MAX {
        let parts = seg::window(&slot.segs, slot.done_bytes, slot.step_bytes);
        slot.wire.extend(parts.take(SEGS_MAX));
        slot.step_bytes = seg::len_bytes(&slot.wire);
    }
    true
}

fn prepare_bounce(slot: &mut Slot, step_bytes: usize) -> bool {
    if slot.bounce.as_ref().is_none_or(|b| b.len() < step_bytes) {
        slot.bounce = Buf::new(step_bytes);
    }
    let Some(bounce) = &slot.bounce else {
        return false;
    };
    let whole = bounce.seg().part(0, step_bytes);
    slot.step_bytes = step_bytes;
    slot.wire.clear();
    slot.wire.push(whole);
    if matches!(slot.op, Op::Write { .. }) {
        copy(slot, whole, Direction::ToBounce, step_bytes);
    }
    true
}

enum Direction {
    ToBounce,
    FromBounce,
}

fn copy(slot: &Slot, bounce: seg::Seg, direction: Direction, len_bytes: usize) {
    let mut block = [0u8; 4096];
    let mut at = 0;
    while at < len_bytes {
        let len = block.len().min(len_bytes - at);
        let (block, part) = (&mut block[..len], bounce.part(at, len));
        match direction {
            Direction::ToBounce => {
                seg::load(&slot.segs, slot.done_bytes + at, block);
                part.store(block);
            }
            Direction::FromBounce => {
                part.load(block);
                seg::store(&slot.segs, slot.done_bytes + at, block);
            }
        }
        at += len;
    }
}

/// What the kernel's `result` on the current step means.
#[inline]
pub(crate) fn judge(slot: &mut Slot, align: Align, result: i32) -> Verdict {
    if result < 0 {
        return match -result {
            // The kernel could not do it just now: it keeps its place and goes again.
            libc::EINTR => Verdict::Again,
            libc::EAGAIN if slot.refusals < REFUSALS_MAX => {
                slot.refusals += 1;
                Verdict::Again
            }
            errno => Verdict::Over(Err(Errno(errno))),
        };
    }
    slot.refusals = 0;
    match slot.op {
        Op::Read { at, .. } => judge_read(slot, at, align, result as usize),
        Op::Write { .. } => judge_write(slot, result as usize),
        _ => Verdict::Over(Ok(())),
    }
}

fn judge_read(slot: &mut Slot, at: u64, align: Align, got: usize) -> Verdict {
    let got = got.min(slot.step_bytes);
    if let Some(bounce) = slot.bounce.as_ref().map(Buf::seg) {
        copy(slot, bounce, Direction::FromBounce, got);
    }
    slot.done_bytes += got;
    if slot.done_bytes == slot.len_bytes {
        return Verdict::Over(Ok(()));
    }
    // Nothing, or less than a block of an O_DIRECT file: that is its end, and what is past it reads as zeroes.
    let end_of_file = got == 0 || !align.takes(at + slot.done_bytes as u64, 0);
    if end_of_file {
        let left = slot.len_bytes - slot.done_bytes;
        seg::zero(&slot.segs, slot.done_bytes, left);
        return Verdict::Over(Ok(()));
    }
    Verdict::Again
}

fn judge_write(slot: &mut Slot, put: usize) -> Verdict {
    slot.done_bytes += put.min(slot.step_bytes);
    if slot.done_bytes == slot.len_bytes {
        return Verdict::Over(Ok(()));
    }
    if put == 0 {
        return Verdict::Over(Err(Errno::NOSPC));
    }
    Verdict::Again
}
