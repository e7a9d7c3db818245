//! Requests as tasks: each does what was asked and leaves its reply in the outbox.
//!
//! The rule: a task ends well whatever the disk says; what went wrong is in the reply. Nothing here waits for the client.

use super::admit::{Ask, CACHE_STEP_BYTES};
use super::budget::Permit;
use super::desk::Desk;
use super::pool::Lease;
use crate::stats::Ended;
use blockgraph::driver::nbd::wire::{NbdError, RequestHead};
use blockgraph::graph::status::{Until, status_above};
use blockgraph::{Io, Kind, Outcome, Request, Span, Unmap};
use ring::{Durability, Errno};
use std::rc::Rc;

/// A read that has to know about holes asks so far ahead, for the reads that follow it.
const LOOK_AHEAD_BYTES: u64 = 64 << 20;

/// One request.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) desk: Rc<Desk>,
    pub(super) io: Io,
    pub(super) head: RequestHead,
    pub(super) permit: Rc<Permit>,
}

impl Job {
    /// Does what was asked.
    pub(super) async fn perform(self, ask: Ask) {
        match ask {
            Ask::Read { whole } => self.read(whole).await,
            Ask::Flush => self.end(self.flush().await, "flush failed"),
            Ask::Trim { fua } => {
                let outcome = self.change(Kind::Discard, fua).await;
                self.end(outcome, "discard failed");
            }
            Ask::Cache => self.end(self.cache().await, "caching data failed"),
            Ask::WriteZeroes { fua, keep, fast } => {
                self.end(self.zero(fua, keep, fast).await, "writing to file failed");
            }
            Ask::Status { one } => {
                let contexts = self.desk.contexts.clone();
                self.status(self.head.len, one, &contexts).await;
            }
        }
    }

    /// Writes what the client sent.
    pub(super) async fn write(self, data: Lease, fua: bool) {
        let kind = Kind::Write(self.durability(fua));
        let outcome = match self.span() {
            Ok(span) => {
                let mem = data.mem.clone();
                self.ask(Request { kind, span, mem }).await
            }
            Err(errno) => Err(errno),
        };
        if outcome.is_ok() {
            self.desk.recycle(data);
        }
        self.end(outcome, "writing to file failed");
    }

    fn end(&self, outcome: Outcome, text: &str) {
        match outcome {
            Ok(()) => {
                self.count(Ended::Done);
                self.desk.done(&self.head, &self.permit);
            }
            Err(errno) => self.fail(errno, text),
        }
    }

    fn count(&self, how: Ended) {
        self.desk.ended(&self.head, &self.permit, how);
    }

    fn fail(&self, errno: Errno, text: &str) {
        self.count(Ended::Failed);
        let error = NbdError::from_errno(errno.0);
        self.desk.failed(&self.head, error, text, &self.permit);
    }

    fn span(&self) -> Result<Span, Errno> {
        Span::new(self.head.at, self.head.len).ok_or(Errno::INVAL)
    }

    fn durability(&self, fua: bool) -> Durability {
        match fua {
            true => Durability::Through,
            false => self.desk.export.options.durability,
        }
    }

    async fn ask(&self, request: Request) -> Outcome {
        self.io
            .request(self.desk.export.options.node, request)
            .await
    }

    async fn flush(&self) -> Outcome {
        let nothing = Span { at: 0, len: 0 };
        self.ask(Request::plain(Kind::Flush, nothing)).await
    }

    /// A change that carries no data and knows nothing of durability.
    async fn change(&self, kind: Kind, fua: bool) -> Outcome {
        self.ask(Request::plain(kind, self.span()?)).await?;
        match self.durability(fua) {
            Durability::Through => self.flush().await,
            Durability::Cached => Ok(()),
        }
    }

    async fn zero(&self, fua: bool, keep: bool, fast: bool) -> Outcome {
        let unmap = match keep {
            true => Unmap::Keep,
            false => Unmap::Allow,
        };
        let node = self.desk.export.options.node;
        if fast && !self.io.graph().zeroes_fast(node, unmap) {
            return Err(Errno::NOTSUP);
        }
        let kind = Kind::WriteZeroes(unmap, self.durability(fua));
        self.ask(Request::plain(kind, self.span()?)).await
    }

    /// Reads and forgets: what lies above the disk keeps it (the page cache, copy-on-read).
    async fn cache(&self) -> Outcome {
        let mut rest = self.span()?;
        while !rest.is_empty() {
            let part = rest.first(CACHE_STEP_BYTES);
            let data = self.desk.memory(part.len)?;
            self.io
                .read(self.desk.export.options.node, part.at, &data.mem)
                .await?;
            self.desk.recycle(data);
            rest = rest.after(part.len);
        }
        Ok(())
    }

    async fn read(&self, whole: bool) {
        let Ok(span) = self.span() else {
            return self.fail(Errno::INVAL, "reading from file failed");
        };
        if span.is_empty() {
            return self.end(Ok(()), "");
        }
        let result = match self.desk.has_chunks() && !whole {
            true => self.read_sparse(span).await,
            false => self.read_data(span, true).await,
        };
        match result {
            Ok(()) => self.count(Ended::Done),
            Err((errno, text)) => self.fail(errno, text),
        }
    }

    async fn read_data(&self, span: Span, last: bool) -> Result<(), (Errno, &'static str)> {
        let failed = |errno| (errno, "reading from file failed");
        let data = self.desk.memory(span.len).map_err(failed)?;
        let node = self.desk.export.options.node;
        let outcome = self.io.read(node, span.at, &data.mem).await;
        outcome.map_err(failed)?;
        self.desk
            .data(&self.head, span.at, data, last, &self.permit);
        Ok(())
    }

    /// Data as chunks of data, what reads as zeroes as holes.
    async fn read_sparse(&self, span: Span) -> Result<(), (Errno, &'static str)> {
        let mut rest = span;
        while !rest.is_empty() {
            if self.desk.is_known_data(rest) {
                return self.read_data(rest, true).await;
            }
            let (len, zero) = self
                .run(rest)
                .await
                .map_err(|errno| (errno, "unable to check for holes"))?;
            let part = rest.first(len);
            rest = rest.after(len);
            match zero {
                true => self
                    .desk
                    .hole(&self.head, part, rest.is_empty(), &self.permit),
                false => self.read_data(part, rest.is_empty()).await?,
            }
        }
        Ok(())
    }

    /// How much from the start of `span` is all data, or all zeroes.
    async fn run(&self, span: Span) -> Result<(u64, bool), Errno> {
        let options = &self.desk.export.options;
        let ahead = (options.size_bytes - span.at).min(span.len.max(LOOK_AHEAD_BYTES));
        let asked = Span {
            at: span.at,
            len: ahead,
        };
        let found = status_above(&self.io, options.node, Until::Bottom, asked).await?;
        let (len, zero) = (found.status.len, found.is_zero());
        if !zero {
            self.desk.know_data(asked.first(len));
        }
        Ok((len.min(span.len), zero))
    }
}
