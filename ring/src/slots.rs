//! Operations in flight, in slots that exist from the start; a slot's generation makes stale names harmless.
//!
//! The rule: what the kernel may still touch lives in the slot (or is vouched for by the caller of `start`), and the slot
//! is freed only when the kernel's last report on it has been seen.

use crate::buf::{Buf, Mem};
use crate::op::{Errno, Op, OpId};
use crate::seg::Seg;
use std::task::Waker;

/// Who hears of an operation's end.
#[derive(Debug)]
pub(crate) enum Owner {
    /// Whoever takes the `Done` with this token.
    Token(u64),
    /// The future that holds the slot's name.
    Future(Option<Waker>),
    /// Nobody any more: the future was dropped.
    Orphan,
}

/// An operation's life.
#[derive(Debug)]
pub(crate) enum Stage {
    Free,
    InFlight,
    /// Over; waits for its future to look.
    Over(Result<(), Errno>),
}

#[derive(Debug)]
pub(crate) struct Slot {
    pub generation: u32,
    pub stage: Stage,
    pub op: Op,
    pub owner: Owner,
    /// The operation's memory. Kept between operations for its capacity.
    pub segs: Vec<Seg>,
    /// What of it the current step is given, if not all of `segs`.
    pub wire: Vec<Seg>,
    /// Bytes of `segs` already transferred, and in all.
    pub done_bytes: usize,
    pub len_bytes: usize,
    /// Bytes the current step was asked for.
    pub step_bytes: usize,
    /// Aligned stand-in for memory O_DIRECT cannot take.
    pub bounce: Option<Buf>,
    /// Keeps buffers of our own alive.
    pub keep: Option<Mem>,
    pub spec: io_uring::types::Timespec,
    /// Somebody asked that it end early: no further step is begun.
    pub cancelled: bool,
    /// How often in a row the kernel could not do the current step just now.
    pub refusals: u32,
}

#[derive(Debug)]
pub(crate) struct Slots {
    all: Box<[Slot]>,
    free: Vec<u32>,
}

impl Slots {
    pub(crate) fn new(count: u32) -> Slots {
        let slot = || Slot {
            generation: 0,
            stage: Stage::Free,
            op: Op::Timeout { ns: 0 },
            owner: Owner::Orphan,
            segs: Vec::new(),
            wire: Vec::new(),
            done_bytes: 0,
            len_bytes: 0,
            step_bytes: 0,
            bounce: None,
            keep: None,
            spec: io_uring::types::Timespec::new(),
            cancelled: false,
            refusals: 0,
        };
        Slots {
            all: (0..count).map(|_| slot()).collect(),
            free: (0..count).rev().collect(),
        }
    }

    pub(crate) fn room(&self) -> usize {
        self.free.len()
    }

    #[inline]
    pub(crate) fn take(&mut self, op: Op, owner: Owner) -> Option<OpId> {
        let slot = self.free.pop()?;
        let entry = &mut self.all[slot as usize];
        entry.stage = Stage::InFlight;
        entry.op = op;
        entry.owner = owner;
        entry.done_bytes = 0;
        entry.len_bytes = 0;
        entry.cancelled = false;
        entry.refusals = 0;
        entry.segs.clear();
        let generation = entry.generation;
        Some(OpId { slot, generation })
    }

    pub(crate) fn get(&mut self, slot: u32) -> &mut Slot {
        &mut self.all[slot as usize]
    }

    /// The slot of a name, unless the name is stale.
    #[inline]
    pub(crate) fn find(&mut self, id: OpId) -> Option<&mut Slot> {
        let slot = self.all.get_mut(id.slot as usize)?;
        (slot.generation == id.generation && !matches!(slot.stage, Stage::Free)).then_some(slot)
    }

    /// The operations an engine still has.
    pub(crate) fn busy(&self) -> Vec<OpId> {
        let all = self.all.iter().enumerate();
        let busy = all.filter(|(_, slot)| matches!(slot.stage, Stage::InFlight));
        busy.map(|(at, slot)| OpId {
            slot: at as u32,
            generation: slot.generation,
        })
        .collect()
    }

    #[inline]
    pub(crate) fn release(&mut self, slot: u32) {
        let entry = &mut self.all[slot as usize];
        entry.generation = entry.generation.wrapping_add(1) & GENERATION_MASK;
        entry.stage = Stage::Free;
        entry.owner = Owner::Orphan;
        entry.keep = None;
        entry.bounce = None;
        trim(&mut entry.segs);
        trim(&mut entry.wire);
        self.free.push(slot);
    }
}

/// A list of segments keeps its capacity from one operation to the next up to this many, which is more than guests need;
/// else one that asks for the longest lists once would hold their memory for ever.
const SEGS_KEPT_MAX: usize = 256;

/// Empties a list that is to be used again.
#[inline]
pub(crate) fn trim(segs: &mut Vec<Seg>) {
    segs.clear();
    if segs.capacity() > SEGS_KEPT_MAX {
        segs.shrink_to(SEGS_KEPT_MAX);
    }
}

/// Generations use 31 bits, so that no name ever looks like `engine::NOBODY`.
const GENERATION_MASK: u32 = u32::MAX >> 1;

impl OpId {
    pub(crate) fn user_data(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.slot)
    }

    pub(crate) fn from_user_data(user_data: u64) -> OpId {
        OpId {
            slot: user_data as u32,
            generation: (user_data >> 32) as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Mem;

    /// Every slot kept the longest lists it had ever seen, and a guest chooses their lengths.
    #[test]
    fn a_slot_keeps_the_memory_of_usual_lists_and_not_of_long_ones() {
        let seg = Mem::zeroed(1).expect("memory").segs().next().expect("one");
        let mut slots = Slots::new(1);
        for (len, kept) in [(130, 130..=256), (4096, 0..=256)] {
            let id = slots
                .take(Op::Timeout { ns: 0 }, Owner::Orphan)
                .expect("free");
            let slot = slots.get(id.slot);
            slot.segs.extend(std::iter::repeat_n(seg, len));
            slot.wire.extend(std::iter::repeat_n(seg, len));
            slots.release(id.slot);
            let slot = slots.get(id.slot);
            assert!(kept.contains(&slot.segs.capacity()), "{len}");
            assert!(kept.contains(&slot.wire.capacity()), "{len}");
        }
    }
}
