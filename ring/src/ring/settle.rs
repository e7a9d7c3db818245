//! From an engine's report to the next step of the operation, or to its end.

use super::Ring;
use crate::engine::Report;
use crate::file::Align;
use crate::op::{Done, Durability, Errno, Op, OpId};
use crate::slots::{Owner, Stage};
use crate::transfer::{self, BOUNCE_BYTES_MAX, Verdict};

impl Ring {
    #[inline]
    pub(super) fn settle(&mut self, report: Report, out: &mut Vec<Done>) {
        let id = OpId::from_user_data(report.user_data);
        let Some(slot) = self.slots.find(id) else {
            return;
        };
        let result = match slot.op {
            Op::Poll { fd } => return self.settle_poll(id, fd, report, out),
            Op::Timeout { .. } if report.result == -libc::ETIME => Ok(()),
            // A full counter's reader is awake, and what cannot be cancelled any more is over.
            Op::Signal { .. } | Op::Cancel { .. } => Ok(()),
            Op::Read { file, .. } | Op::Write { file, .. } => {
                let known = self.files.get(file.0 as usize).and_then(Option::as_ref);
                let align = known.map_or(Align::NONE, |known| known.align);
                let through = is_through(slot.op);
                match transfer::judge(slot, align, report.result) {
                    Verdict::Again => return self.again(id, out),
                    Verdict::Over(result) => {
                        if let (Err(errno), true, Some(known)) = (result, through, known) {
                            known.open.note_end(errno);
                        }
                        result
                    }
                }
            }
            _ => match transfer::judge(slot, Align::NONE, report.result) {
                Verdict::Again => return self.again(id, out),
                Verdict::Over(result) => result,
            },
        };
        self.finish(id, result, out);
    }

    /// The operation's next step, unless somebody asked meanwhile that it end.
    pub(super) fn again(&mut self, id: OpId, out: &mut Vec<Done>) {
        if self.slots.get(id.slot).cancelled {
            return self.finish(id, Err(Errno::CANCELED), out);
        }
        self.launch(id.slot);
    }

    pub(super) fn settle_poll(&mut self, id: OpId, fd: i32, report: Report, out: &mut Vec<Done>) {
        if report.result < 0 {
            return self.finish(id, Err(Errno(-report.result)), out);
        }
        let slot = self.slots.get(id.slot);
        if let Owner::Token(token) = slot.owner {
            out.push(Done {
                token,
                result: Ok(()),
            });
        }
        if !report.more {
            // Without multishot polls (before Linux 5.13) the next one would fire for the same event.
            crate::sys::take_counter(fd);
            self.again(id, out);
        }
    }

    #[inline]
    pub(super) fn finish(&mut self, id: OpId, result: Result<(), Errno>, out: &mut Vec<Done>) {
        let slot = self.slots.get(id.slot);
        if slot.bounce.take().is_some() {
            self.bounced_bytes -= BOUNCE_BYTES_MAX;
        }
        match &mut slot.owner {
            Owner::Token(token) => {
                out.push(Done {
                    token: *token,
                    result,
                });
                self.release(id.slot);
            }
            Owner::Future(waker) => {
                let waker = waker.take();
                slot.keep = None;
                slot.stage = Stage::Over(result);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            Owner::Orphan => self.release(id.slot),
        }
    }
}

fn is_through(op: Op) -> bool {
    let through = Durability::Through;
    matches!(op, Op::Write { durability, .. } if durability == through)
}
