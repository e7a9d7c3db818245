//! What a mirror job copies, and what guests' writes do in its mode `write-blocking`.
//!
//! The rule: whoever writes a range of the target holds it (whole units of it), from before it reads or writes the source until the
//! target has it. So the target gets what the source got in the same order, whoever copies; and a range that leaves the work set is
//! back in it unless the target has all of it.

use super::Progress;
use super::copy::{Look, Parts, Transfer, What, WorkSet};
use super::errors::Failure;
use super::steer::Steer;
use crate::graph::Role;
use crate::graph::status::{Until, status_above};
use crate::hold::Holds;
use crate::io::Io;
use crate::node::{Local, NodeId, Outcome};
use crate::request::{Kind, Request, Unmap};
use crate::units::Span;
use ring::{Durability, Mem};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Pieces of a discarded range that a guest waits for; the rest is copied behind its back.
const PIECES_MAX: usize = 64;

/// What guests' writes and the job share.
#[derive(Debug)]
pub struct Mirrored {
    work: Arc<WorkSet>,
    target: NodeId,
    /// Who writes to the target where.
    holds: Holds,
    progress: Arc<Progress>,
    steer: Arc<Steer>,
    /// The work set has been filled, and the job has not ended.
    runs: AtomicBool,
    /// Guests wait for the target, while it runs.
    blocking: AtomicBool,
    /// The target is what the source is, and stays so.
    synced: AtomicBool,
}

impl Mirrored {
    /// Of a job that has not begun.
    pub fn new(
        work: Arc<WorkSet>,
        target: NodeId,
        progress: Arc<Progress>,
        steer: Arc<Steer>,
    ) -> Mirrored {
        Mirrored {
            work,
            target,
            holds: Holds::default(),
            progress,
            steer,
            runs: AtomicBool::new(false),
            blocking: AtomicBool::new(false),
            synced: AtomicBool::new(false),
        }
    }

    /// What is to be copied.
    pub fn work(&self) -> &Arc<WorkSet> {
        &self.work
    }

    /// The node that is copied to.
    pub fn target(&self) -> NodeId {
        self.target
    }

    /// What is to be copied is known, so guests may write to the target.
    pub fn begin(&self) {
        self.runs.store(true, Ordering::SeqCst);
    }

    /// The job is over before its time: guests do not wait for the target any more.
    pub fn give_up(&self) {
        self.runs.store(false, Ordering::SeqCst);
        self.synced.store(false, Ordering::SeqCst);
    }

    /// The filter above the source is one that has guests wait for the target.
    pub fn set_blocking(&self) {
        self.blocking.store(true, Ordering::SeqCst);
    }

    /// Is it?
    pub fn is_blocking(&self) -> bool {
        self.blocking.load(Ordering::SeqCst)
    }

    /// All was copied; where guests wait for the target, it stays so.
    pub fn all_copied(&self) {
        if !self.is_blocking() {
            return;
        }
        self.synced.store(true, Ordering::SeqCst);
        // A write that failed meanwhile may have looked before.
        if !self.work.is_empty() {
            self.synced.store(false, Ordering::SeqCst);
        }
    }

    /// Is the target what the source is, and stays so?
    pub fn is_synced(&self) -> bool {
        self.synced.load(Ordering::SeqCst)
    }

    fn writes_both(&self) -> bool {
        self.runs.load(Ordering::SeqCst) && !self.steer.is_cancelled()
    }

    /// The whole units that `span` touches.
    fn units(&self, span: Span) -> Span {
        span.widened(self.work.unit_bytes())
    }

    /// A guest's write, at the filter's node.
    pub(crate) async fn write(&self, io: &Io, request: Request) -> Outcome {
        let span = request.span;
        if !self.writes_both() {
            return self.write_source(io, request).await;
        }
        let _hold = self.holds.hold(self.units(span)).await;
        let both = match self.writes_both() {
            true => owned(&request),
            false => None,
        };
        // The job has ended meanwhile, or there is no memory: then it is copied later, if at all.
        let Some(request) = both else {
            return self.write_source(io, request).await;
        };
        // Whole units of it, that is; units of which it is a part stay to be copied if they are.
        self.work.remove(span);
        let owed = Owed {
            mirrored: self,
            span,
        };
        io.below(Role::Filtered, request.clone()).await?;
        self.progress.add_remaining(span.len);
        let written = match request.kind {
            Kind::Discard => self.discard(io, span).await,
            _ => io
                .request(self.target, request)
                .await
                .map_err(Failure::write),
        };
        match written {
            Ok(()) => {
                owed.paid();
                self.progress.advance(span.len);
            }
            // It is in the source: the guest is told so, and the job decides what becomes of it.
            Err(failure) => {
                self.synced.store(false, Ordering::SeqCst);
                self.progress.forget(span.len);
                self.work.fail(span, failure);
            }
        }
        Ok(())
    }

    /// The same of a job that copies later.
    async fn write_source(&self, io: &Io, request: Request) -> Outcome {
        let _owed = Owed {
            mirrored: self,
            span: request.span,
        };
        io.below(Role::Filtered, request).await
    }

    /// What a node does with a discard is its own business: the target gets what the source reads as afterwards.
    async fn discard(&self, io: &Io, span: Span) -> Result<(), Failure> {
        let source = io.child(Role::Filtered).map_err(Failure::read)?;
        let mut rest = span;
        for _ in 0..PIECES_MAX {
            if rest.is_empty() {
                return Ok(());
            }
            let found = status_above(io, source, Until::Bottom, rest).await;
            let found = found.map_err(Failure::read)?;
            let part = rest.first(found.status.len);
            match found.is_zero() {
                true => {
                    let kind = Kind::WriteZeroes(Unmap::Allow, Durability::Cached);
                    let written = io.request(self.target, Request::plain(kind, part)).await;
                    written.map_err(Failure::write)?;
                }
                false => self.owe(part),
            }
            rest = rest.after(part.len);
        }
        self.owe(rest);
        Ok(())
    }

    /// It is to be copied.
    fn owe(&self, span: Span) {
        self.work.add(span);
        if !span.is_empty() {
            self.synced.store(false, Ordering::SeqCst);
        }
    }
}

/// A range that has to be copied unless that is done: whatever becomes of a write, and be it that it is never ended.
#[derive(Debug)]
struct Owed<'a> {
    mirrored: &'a Mirrored,
    span: Span,
}

impl Owed<'_> {
    fn paid(self) {
        std::mem::forget(self);
    }
}

impl Drop for Owed<'_> {
    fn drop(&mut self) {
        self.mirrored.owe(self.span);
    }
}

/// The same with memory that no guest can change: both are to get the same bytes. `None`: there is no memory.
fn owned(request: &Request) -> Option<Request> {
    if request.mem.is_empty() {
        return Some(request.clone());
    }
    let mem = Mem::zeroed(request.mem.len())?;
    mem.copy_from(&request.mem);
    Some(Request {
        mem,
        ..request.clone()
    })
}

/// Copies beside guests that may write to the target themselves.
#[derive(Debug)]
pub struct Mirror {
    /// What, where to.
    pub transfer: Transfer,
    /// Whom else to mind.
    pub mirrored: Arc<Mirrored>,
}

impl Parts for Mirror {
    fn look<'a>(&'a self, io: &'a Io, span: Span) -> Local<'a, Result<Look, Failure>> {
        self.transfer.look(io, span)
    }

    fn copy<'a>(&'a self, io: &'a Io, span: Span) -> Local<'a, Result<(), Failure>> {
        Box::pin(async move {
            let _hold = self.mirrored.holds.hold(self.mirrored.units(span)).await;
            self.transfer.copy(io, span).await
        })
    }
}

/// Makes a target read as zeroes, so that only what is not need be copied.
#[derive(Clone, Copy, Debug)]
pub struct Zeroing {
    /// Which.
    pub target: NodeId,
}

impl Parts for Zeroing {
    fn look<'a>(&'a self, _io: &'a Io, span: Span) -> Local<'a, Result<Look, Failure>> {
        let len = span.len;
        let what = What::Zero;
        Box::pin(async move { Ok(Look { what, len }) })
    }

    fn copy<'a>(&'a self, io: &'a Io, span: Span) -> Local<'a, Result<(), Failure>> {
        let kind = Kind::WriteZeroes(Unmap::Allow, Durability::Cached);
        Box::pin(async move {
            let written = io.request(self.target, Request::plain(kind, span)).await;
            written.map_err(Failure::write)
        })
    }
}
