//! The parts of a reply that are there as a whole, held against the request before anything of them is believed.
//!
//! The rule: nothing is told that was not asked for, and nothing twice.

use super::session::{Broken, violation};
use super::slots::Slots;
use crate::driver::nbd::wire::{ChunkHead, ChunkKind, ErrorChunk, ExtentForm, Hole, StatusChunk};
use ring::Errno;

/// Notes that a server tells of `len` bytes at `at`; returns where they are in what a read asked for. `None`: not all of
/// them are, or more has been told than was asked for.
pub(super) fn tell(slots: &mut Slots, slot: usize, at: u64, len: u64) -> Option<usize> {
    let in_flight = slots.get(slot)?;
    let ask = in_flight.call.ask;
    let from = at.checked_sub(ask.at)?;
    if from.checked_add(len)? > ask.len {
        return None;
    }
    in_flight.told_bytes = in_flight.told_bytes.checked_add(len)?;
    (in_flight.told_bytes <= ask.len).then_some(from as usize)
}

/// A chunk that is there as a whole.
pub(super) fn take_small(
    slots: &mut Slots,
    slot: usize,
    head: ChunkHead,
    payload: &[u8],
    context: Option<u32>,
) -> Result<(), Broken> {
    match head.kind {
        ChunkKind::Hole => {
            let hole = Hole::decode(payload)?;
            // What a read asked for is zeroes from the beginning, and told once.
            if hole.len == 0 || tell(slots, slot, hole.at, u64::from(hole.len)).is_none() {
                return violation("a hole beyond what was asked for");
            }
        }
        ChunkKind::Status | ChunkKind::StatusExtended => {
            let form = match head.kind {
                ChunkKind::Status => ExtentForm::Narrow,
                _ => ExtentForm::Wide,
            };
            let status = StatusChunk::decode(form, payload)?;
            if Some(status.context) != context {
                return violation("the status of a context nobody asked for");
            }
            let Some(in_flight) = slots.get(slot) else {
                return Ok(());
            };
            if in_flight.extent.is_some() {
                return violation("the status of one context twice");
            }
            in_flight.extent = status.extents.first().copied();
        }
        kind => {
            let error = ErrorChunk::decode(kind, payload)?.error;
            if let Some(in_flight) = slots.get(slot) {
                in_flight.error.get_or_insert(Errno(error.to_errno()));
            }
        }
    }
    Ok(())
}
