//! From an operation in its slot to a step that an engine has.

use super::{BOUNCE_BYTES_TOTAL_MAX, Ring};
use crate::engine::{Engine, Report, Space, Step, Target};
use crate::file::{Align, Syncs};
use crate::op::{Durability, Errno, Op, OpId};
use crate::transfer::{self, BOUNCE_BYTES_MAX};

impl Ring {
    #[inline]
    pub(super) fn launch(&mut self, at: u32) {
        match self.try_launch(at) {
            Launch::Gone => {}
            Launch::Later => self.backlog.push_back(at),
            Launch::Failed(errno) => self.fail(at, errno),
        }
    }

    #[inline]
    fn try_launch(&mut self, at: u32) -> Launch {
        let slot = self.slots.get(at);
        let known = match slot.op {
            Op::Read { file, .. }
            | Op::Write { file, .. }
            | Op::Sync { file, .. }
            | Op::Punch { file, .. }
            | Op::Zero { file, .. }
            | Op::Truncate { file, .. } => match self.files.get(file.0 as usize) {
                Some(Some(known)) => {
                    if let Some(end_bytes) = slot.op.written_end(slot.len_bytes) {
                        known.open.writes_to(end_bytes);
                    }
                    Some((known.target, known.align))
                }
                _ => return Launch::Failed(Errno(libc::EBADF)),
            },
            _ => None,
        };
        if let (Op::Read { .. } | Op::Write { .. }, Some((_, align))) = (slot.op, known) {
            let had = slot.bounce.is_some();
            if !had && transfer::needs_bounce(slot, align) {
                if self.bounced_bytes + BOUNCE_BYTES_MAX > BOUNCE_BYTES_TOTAL_MAX {
                    return Launch::Later;
                }
                self.bounced_bytes += BOUNCE_BYTES_MAX;
            }
            if !transfer::prepare(slot, align) {
                self.bounced_bytes -= BOUNCE_BYTES_MAX;
                return Launch::Failed(Errno::NOMEM);
            }
        }
        let id = OpId {
            slot: at,
            generation: slot.generation,
        };
        match slot.op {
            Op::Timeout { ns } => slot.spec = crate::engine::uring::timespec(ns),
            Op::Cancel { target } => self.mark_cancelled(target),
            Op::Truncate { .. } if !self.engine.can_truncate() => {
                return Launch::Failed(Errno::NOTSUP);
            }
            _ => {}
        }
        if push(&mut self.engine, self.slots.get(at), known, id) {
            return Launch::Gone;
        }
        self.submit();
        if push(&mut self.engine, self.slots.get(at), known, id) {
            return Launch::Gone;
        }
        Launch::Later
    }

    #[cold]
    pub(super) fn retry_backlog(&mut self) {
        for _ in 0..self.backlog.len() {
            let Some(at) = self.backlog.pop_front() else {
                return;
            };
            self.launch(at);
        }
    }

    pub(super) fn fail(&mut self, at: u32, errno: Errno) {
        let id = OpId {
            slot: at,
            generation: self.slots.get(at).generation,
        };
        self.reports.push(Report {
            user_data: id.user_data(),
            result: -errno.0,
            more: false,
        });
    }
}

enum Launch {
    Gone,
    Later,
    Failed(Errno),
}

#[inline]
fn push(
    engine: &mut Engine,
    slot: &crate::slots::Slot,
    known: Option<(Target, Align)>,
    id: OpId,
) -> bool {
    let segs = if slot.wire.is_empty() {
        &slot.segs
    } else {
        &slot.wire
    };
    let step = match (slot.op, known) {
        (Op::Read { at, .. }, Some((file, _))) => Step::Read {
            file,
            at: at + slot.done_bytes as u64,
            segs,
        },
        (Op::Write { at, durability, .. }, Some((file, _))) => Step::Write {
            file,
            at: at + slot.done_bytes as u64,
            segs,
            through: durability == Durability::Through && file.syncs == Syncs::Asked,
        },
        (Op::Sync { level, .. }, Some((file, _))) => Step::Sync { file, level },
        (Op::Punch { at, len_bytes, .. }, Some((file, _))) => Step::Space {
            file,
            how: Space::Punch,
            at,
            len_bytes,
        },
        (Op::Zero { at, len_bytes, .. }, Some((file, _))) => Step::Space {
            file,
            how: Space::Zero,
            at,
            len_bytes,
        },
        (Op::Truncate { len_bytes, .. }, Some((file, _))) => Step::Truncate { file, len_bytes },
        (Op::Poll { fd }, _) => Step::Poll { fd },
        (Op::Signal { fd }, _) => Step::Signal { fd },
        (Op::Timeout { ns }, _) => Step::Timeout {
            ns,
            spec: &slot.spec,
        },
        (Op::Cancel { target }, _) => Step::Cancel {
            target: target.user_data(),
        },
        // Operations on files were resolved or refused above.
        (_, None) => return true,
    };
    engine.push(step, id.user_data()).is_ok()
}
