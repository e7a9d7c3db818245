//! preallocate: the file below is made longer in large steps whose space is set aside, so that a format's growth is seldom
//! the file system's.
//!
//! The rule: the node shows the size it was asked for; what the file has beyond that reads as zeroes, is nobody's, and is cut
//! off again at the end. Nobody else may change the file's size meanwhile.

use crate::driver::file::LockError;
use crate::graph::open::{DriverSpec, FilterSpec};
use crate::graph::perm::{Perm, Perms, Wants};
use crate::graph::{Edge, Role};
use crate::hold::Holds;
use crate::io::Io;
use crate::node::{Driver, Info, Local, Map, Outcome, Shown};
use crate::request::{Dir, Prealloc, Request};
use crate::status::Status;
use crate::units::Span;
use ring::Errno;
use std::sync::atomic::{AtomicU64, Ordering};

/// Nobody writes, so the file may change in other ways than through here.
const UNKNOWN: u64 = u64::MAX;

/// Grows the file below ahead of time.
#[derive(Debug)]
pub struct Preallocate {
    below: Info,
    align_bytes: AtomicU64,
    ahead_bytes: AtomicU64,
    /// The size that is shown; [`UNKNOWN`] is whatever the file has.
    data_end: AtomicU64,
    /// The size of the file.
    file_end: AtomicU64,
    /// Whoever changes the sizes holds the first byte of this.
    changing: Holds,
}

impl Preallocate {
    /// Above a node of which `below` is known: when it grows it becomes `ahead_bytes` longer than asked, up to the next
    /// multiple of `align_bytes`.
    pub fn new(below: Info, align_bytes: u64, ahead_bytes: u64) -> Preallocate {
        Preallocate {
            below,
            align_bytes: AtomicU64::new(align_bytes.max(1)),
            ahead_bytes: AtomicU64::new(ahead_bytes),
            data_end: AtomicU64::new(UNKNOWN),
            file_end: AtomicU64::new(UNKNOWN),
            changing: Holds::default(),
        }
    }

    async fn resize(&self, io: &Io, size_bytes: u64, how: Prealloc) -> Outcome {
        let _alone = self.changing.hold(Span { at: 0, len: 1 }).await;
        self.know(io)?;
        let data_end = self.data_end.load(Ordering::Acquire);
        let sets_aside = matches!(how, Prealloc::Off | Prealloc::Falloc);
        if size_bytes < data_end || !sets_aside {
            return self.resize_exactly(io, size_bytes, how).await;
        }
        if size_bytes > self.file_end.load(Ordering::Acquire)
            && !self.grow_ahead(io, size_bytes).await?
        {
            return self.resize_exactly(io, size_bytes, how).await;
        }
        self.data_end.store(size_bytes, Ordering::Release);
        Ok(())
    }

    /// From here on the file has the size that is known here.
    fn know(&self, io: &Io) -> Outcome {
        if self.data_end.load(Ordering::Acquire) == UNKNOWN {
            let child = io.child(Role::Filtered)?;
            let size = io.graph().info(child).ok_or(Errno::IO)?.size_bytes;
            self.file_end.store(size, Ordering::Release);
            self.data_end.store(size, Ordering::Release);
        }
        Ok(())
    }

    /// The size it shows by itself.
    fn known(&self) -> Option<u64> {
        let data_end = self.data_end.load(Ordering::Acquire);
        (data_end != UNKNOWN).then_some(data_end)
    }

    /// False if there is no such space.
    async fn grow_ahead(&self, io: &Io, size_bytes: u64) -> Result<bool, Errno> {
        let (ahead, align) = (&self.ahead_bytes, &self.align_bytes);
        let end = size_bytes.checked_add(ahead.load(Ordering::Relaxed));
        let align = align.load(Ordering::Relaxed);
        let Some(end) = end.and_then(|end| end.checked_next_multiple_of(align)) else {
            return Ok(false);
        };
        let child = io.child(Role::Filtered)?;
        if io.truncate(child, end, Prealloc::Falloc).await.is_err() {
            return Ok(false);
        }
        self.file_end.store(end, Ordering::Release);
        Ok(true)
    }

    async fn resize_exactly(&self, io: &Io, size_bytes: u64, how: Prealloc) -> Outcome {
        let before = self.data_end.load(Ordering::Acquire);
        if size_bytes < before {
            self.data_end.store(size_bytes, Ordering::Release);
        }
        let outcome = self.set_exactly(io, before, size_bytes, how).await;
        let size = if outcome.is_ok() { size_bytes } else { before };
        self.data_end.store(size, Ordering::Release);
        outcome
    }

    async fn set_exactly(&self, io: &Io, before: u64, size_bytes: u64, how: Prealloc) -> Outcome {
        // What was set aside ahead is not what is asked for now.
        self.cut(io, before).await?;
        let child = io.child(Role::Filtered)?;
        io.truncate(child, size_bytes, how).await?;
        self.file_end.store(size_bytes, Ordering::Release);
        Ok(())
    }

    /// Cuts the file to `size_bytes` if it is longer.
    async fn cut(&self, io: &Io, size_bytes: u64) -> Outcome {
        if self.file_end.load(Ordering::Acquire) <= size_bytes {
            return Ok(());
        }
        let child = io.child(Role::Filtered)?;
        io.truncate(child, size_bytes, Prealloc::Off).await?;
        self.file_end.store(size_bytes, Ordering::Release);
        Ok(())
    }
}

impl Driver for Preallocate {
    fn adjust(&self, spec: &DriverSpec) {
        if let DriverSpec::Filter(filter) = spec
            && let FilterSpec::Preallocate {
                align_bytes,
                ahead_bytes,
                ..
            } = &**filter
        {
            self.align_bytes
                .store((*align_bytes).max(1), Ordering::Relaxed);
            self.ahead_bytes.store(*ahead_bytes, Ordering::Relaxed);
        }
    }

    #[inline]
    fn map(&self, _dir: Dir, span: Span) -> Map {
        let Span { at, len } = span;
        let to = Role::Filtered;
        Map::Below { to, at, len }
    }

    fn serve<'a>(&'a self, io: &'a Io, request: Request) -> Local<'a, Outcome> {
        io.below(Role::Filtered, request)
    }

    fn status<'a>(&'a self, io: &'a Io, span: Span) -> Local<'a, Result<Status, Errno>> {
        Box::pin(async move { io.status(io.child(Role::Filtered)?, span).await })
    }

    fn info(&self) -> Info {
        Info {
            size_bytes: self.known().unwrap_or(self.below.size_bytes),
            limits: self.below.limits,
        }
    }

    fn shown(&self) -> Shown {
        Shown {
            size_bytes: self.known(),
            limits: None,
        }
    }

    fn truncate<'a>(&'a self, io: &'a Io, size_bytes: u64, how: Prealloc) -> Local<'a, Outcome> {
        Box::pin(self.resize(io, size_bytes, how))
    }

    fn close<'a>(&'a self, io: &'a Io) -> Local<'a, Outcome> {
        Box::pin(async move {
            let _alone = self.changing.hold(Span { at: 0, len: 1 }).await;
            match self.known() {
                Some(data_end) => self.cut(io, data_end).await,
                None => Ok(()),
            }
        })
    }

    /// Without writers the file is anybody's again, unless it has to be cut first.
    fn permit(&self, wants: Wants) -> Result<(), LockError> {
        let writes = wants.needs.has(Perm::Write) || wants.needs.has(Perm::Resize);
        let ends = (&self.data_end, &self.file_end);
        if !writes && ends.0.load(Ordering::Acquire) == ends.1.load(Ordering::Acquire) {
            ends.0.store(UNKNOWN, Ordering::Release);
            ends.1.store(UNKNOWN, Ordering::Release);
        }
        Ok(())
    }

    /// Who may write or resize this may do both below, and nobody else may.
    fn wants(&self, _edge: &Edge, above: Wants) -> Wants {
        if !above.needs.has(Perm::Write) && !above.needs.has(Perm::Resize) {
            return above;
        }
        let both = Perms::WRITE.or(Perms::RESIZE);
        Wants {
            needs: above.needs.or(both),
            shares: above.shares.without(both),
        }
    }
}
