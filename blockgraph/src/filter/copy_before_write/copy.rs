//! What a guest write waits for: that the old data of its clusters is in the target, and that nobody is reading them.
//!
//! The rule: whoever copies a cluster holds it, so it is copied once; and a copy that was begun runs to its end, even where its
//! guest write waits no longer: a format must not be left in the middle of an allocation.

use super::{AfterCopy, CopyBeforeWrite, OnCbwError, here};
use crate::graph::Role;
use crate::graph::status::{Until, status_above};
use crate::io::Io;
use crate::job::Failure;
use crate::job::copy::{Writing, read};
use crate::node::{NodeId, Outcome};
use crate::request::{Kind, Request, Unmap};
use crate::units::Span;
use ring::{Durability, Errno};
use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// As much is copied at once, and as much memory taken.
const STEP_BYTES: u64 = 1 << 20;

impl CopyBeforeWrite {
    /// Makes `span` ready to be written. Errors: the copy's, where they are to break guest writes.
    pub(super) async fn before(&self, io: &Io, span: Span) -> Outcome {
        if let Err(errno) = self.copied(io, span).await {
            match self.on_error {
                OnCbwError::BreakGuestWrite => return Err(errno),
                OnCbwError::BreakSnapshot => self.clusters.set_broken(errno),
            }
        }
        self.clusters.unread(span).await;
        Ok(())
    }

    /// Errors: ETIMEDOUT, or what the source or the target answered.
    async fn copied(&self, io: &Io, span: Span) -> Outcome {
        if !self.clusters.has_todo(span) {
            return Ok(());
        }
        if self.timeout_ns == 0 {
            return errno_of(self.copy(io, span).await);
        }
        let copy = Background::start(io, span);
        let mut ended = pin!(copy.ended());
        let mut late = pin!(io.sleep(self.timeout_ns));
        poll_fn(|cx| {
            if let Poll::Ready(outcome) = ended.as_mut().poll(cx) {
                return Poll::Ready(outcome);
            }
            let timeout = late.as_mut().poll(cx);
            timeout.map(|()| Err(Errno(libc::ETIMEDOUT)))
        })
        .await
    }

    /// Copies what of `span` has to be copied, whoever does it; `io` is at this node.
    pub(crate) async fn copy(&self, io: &Io, span: Span) -> Result<(), Failure> {
        let mut rest = span;
        while let Some(run) = self.clusters.next_todo(rest, STEP_BYTES) {
            let _hold = self.copying.hold(run).await;
            // Asked again: another may have copied it while we waited.
            if let Some(run) = self.clusters.next_todo(run, STEP_BYTES) {
                self.copy_run(io, run).await?;
                let bytes = self.clusters.set_done(run);
                self.copies.count(bytes);
            }
            rest = rest.after(run.at.saturating_sub(rest.at));
        }
        Ok(())
    }

    async fn copy_run(&self, io: &Io, run: Span) -> Result<(), Failure> {
        let source = io.child(Role::Filtered).map_err(Failure::read)?;
        let target = io.child(Role::Target).map_err(Failure::write)?;
        let mut rest = run;
        while !rest.is_empty() {
            let step = rest.first(STEP_BYTES);
            let len = self.copy_step(io, source, target, step).await?;
            rest = rest.after(len);
        }
        if self.copies.after == AfterCopy::Discarded {
            // Advice: what is not taken costs space and nothing else.
            let _ = io.request(source, Request::plain(Kind::Discard, run)).await;
        }
        Ok(())
    }

    /// Copies the beginning of `step`, which begins with a cluster, and says how much that was: whole clusters, or all.
    async fn copy_step(
        &self,
        io: &Io,
        source: NodeId,
        target: NodeId,
        step: Span,
    ) -> Result<u64, Failure> {
        let unit = self.clusters.cluster_bytes().min(STEP_BYTES);
        let step = match status_above(io, source, Until::Bottom, step).await {
            Ok(found) => {
                let alike = step.first(found.status.len);
                let whole = match alike.len == step.len {
                    true => alike,
                    false => alike.first(alike.len - alike.len % unit),
                };
                if found.is_zero() && !whole.is_empty() {
                    let kind = Kind::WriteZeroes(Unmap::Allow, Durability::Cached);
                    let written = io.request(target, Request::plain(kind, whole)).await;
                    written.map_err(Failure::write)?;
                    return Ok(whole.len);
                }
                step.first(alike.len.next_multiple_of(unit))
            }
            // What cannot be told is read, which tells.
            Err(_) => step,
        };
        let mem = read(io, source, step).await.map_err(Failure::read)?;
        let kind = match self.copies.writing {
            Writing::Plain => Kind::Write(Durability::Cached),
            Writing::Compressed => Kind::WriteCompressed,
        };
        let write = Request {
            kind,
            span: step,
            mem,
        };
        io.request(target, write).await.map_err(Failure::write)?;
        Ok(step.len)
    }
}

fn errno_of(copied: Result<(), Failure>) -> Outcome {
    copied.map_err(|failure| failure.errno)
}

/// A copy that runs to its end by itself.
#[derive(Debug)]
struct Background(Rc<RefCell<End>>);

#[derive(Debug, Default)]
struct End {
    outcome: Option<Outcome>,
    waiting: Option<Waker>,
}

impl Background {
    /// Copies `span` of the node that `io` is at.
    fn start(io: &Io, span: Span) -> Background {
        let end = Rc::new(RefCell::new(End::default()));
        let (io, to) = (io.clone(), end.clone());
        io.clone().run_aside(async move {
            let outcome = match here(&io) {
                Ok(driver) => match driver.as_copy_before_write() {
                    Some(filter) => errno_of(filter.copy(&io, span).await),
                    None => Err(Errno::IO),
                },
                Err(errno) => Err(errno),
            };
            let mut end = to.borrow_mut();
            end.outcome = Some(outcome);
            if let Some(waker) = end.waiting.take() {
                waker.wake();
            }
        });
        Background(end)
    }

    async fn ended(&self) -> Outcome {
        poll_fn(|cx| {
            let mut end = self.0.borrow_mut();
            end.waiting = Some(cx.waker().clone());
            end.outcome.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}
