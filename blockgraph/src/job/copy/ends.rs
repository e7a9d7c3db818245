//! What becomes of looks and copies that have ended. The rule: what could not be copied is back in the work set before anybody
//! is told, unless failures are left out.

use super::{Copier, CopyError, Counts, Done, Ignored, Look, RETRY_NS, What};
use crate::clock;
use crate::job::Word;
use crate::job::errors::{ErrorAction, Failure};
use crate::units::Span;
use ring::Wait;

impl Copier<'_> {
    pub(super) fn turn(&mut self, wait: Wait) -> Result<(), CopyError> {
        self.worker.turn(wait)?;
        for done in self.done.take() {
            match done {
                Done::Looked(span, look) => self.looked(span, look),
                Done::Copied(span, copied) => self.copied(span, copied),
            }
        }
        self.hear_of_others();
        self.count();
        Ok(())
    }

    /// What others could not copy is a failure like its own.
    pub(super) fn hear_of_others(&mut self) {
        if let Some((span, failure)) = self.plan.work.take_failed() {
            self.failed(span, failure);
        }
    }

    pub(super) fn count(&self) {
        if self.plan.counts == Counts::Left {
            let out = self.looking.or(self.next).map_or(0, |span| span.len);
            let left = self.plan.work.left_bytes() + self.copying_bytes + out;
            self.progress.set_remaining(left);
        }
    }

    /// What has been looked at is either skipped, as far as that goes, or its first chunk is the next to be copied. The rest is
    /// to be looked at again.
    fn looked(&mut self, span: Span, look: Result<Look, Failure>) {
        self.looking = None;
        let chunk = self.chunk(span);
        let look = match look {
            Ok(look) => look,
            Err(failure) => {
                self.plan.work.add(span.after(chunk.len));
                return self.failed(chunk, failure);
            }
        };
        let unit = self.plan.work.unit_bytes();
        let alike = span.first(look.len);
        let whole = match alike.end() == span.end() {
            true => alike,
            false => span.first(look.len - (alike.end() % unit).min(look.len)),
        };
        let skips = look.what == What::Skip && !whole.is_empty();
        let taken = match look.what {
            What::Skip if skips => whole,
            // No bytes go anywhere: as much as may be under way.
            What::Zero if whole.len > chunk.len => self.most_of(whole),
            _ => chunk,
        };
        self.cursor = taken.end();
        self.plan.work.add(span.after(taken.len));
        match skips {
            true => self.progress.advance(whole.len),
            false => self.next = Some(taken),
        }
    }

    fn copied(&mut self, span: Span, copied: Result<(), Failure>) {
        self.copies -= 1;
        self.copying_bytes -= span.len;
        match copied {
            Ok(()) => self.progress.advance(span.len),
            Err(failure) => self.failed(span, failure),
        }
    }

    fn failed(&mut self, span: Span, failure: Failure) {
        let Failure { operation, errno } = failure;
        let action = self.plan.errors.of(operation).action(errno);
        let leaves_out =
            action == ErrorAction::Ignore && self.plan.errors.ignored == Ignored::LeftOut;
        match leaves_out {
            true => {
                self.left_out.get_or_insert(errno);
                self.progress.advance(span.len);
            }
            false => self.put_back(span),
        }
        // One that stops the job, or ends it, is told once.
        let stopped = self.reported.is_some() || self.worker.steer().wish().pause;
        if action != ErrorAction::Ignore && stopped {
            return;
        }
        (self.tell)(Word::Failed {
            operation,
            action,
            errno,
        });
        match action {
            ErrorAction::Report => self.reported = Some(errno),
            ErrorAction::Stop => self.worker.steer().change(|wish| wish.pause = true),
            ErrorAction::Ignore if leaves_out => {}
            ErrorAction::Ignore => self.retry_at_ns = clock::exact_ns().saturating_add(RETRY_NS),
        }
    }

    pub(super) fn put_back_next(&mut self) {
        if let Some(span) = self.next.take() {
            self.put_back(span);
        }
    }

    pub(super) fn put_back(&mut self, span: Span) {
        self.plan.work.add(span);
        self.cursor = self.cursor.min(span.at);
    }
}
