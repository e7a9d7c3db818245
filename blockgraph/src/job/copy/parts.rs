//! What there is to copy of a range, and the copying of it.

use crate::graph::status::{Until, status_above};
use crate::io::Io;
use crate::job::errors::Failure;
use crate::node::{Local, NodeId, Outcome};
use crate::request::{Kind, Request, Unmap};
use crate::units::Span;
use ring::{Durability, Errno, Mem};
use std::rc::Rc;

/// No more is read into memory as one, however large a range is.
const PART_BYTES_MAX: u64 = 2 << 20;

/// How the beginning of a range is alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// What is to be done about it.
    pub what: What,
    /// For how many bytes, 1 to the range's length.
    pub len: u64,
}

/// What is to be done about a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Nothing.
    Skip,
    /// It reads as zeroes, and is to there.
    Zero,
    /// It is to be read and written.
    Data,
}

/// What a job copies, and how: its ranges are looked at one after the other, and copied many at a time.
pub trait Parts: std::fmt::Debug {
    /// What the beginning of `span` is. What is known of it must not change what a guest reads, whenever that was found out.
    fn look<'a>(&'a self, io: &'a Io, span: Span) -> Local<'a, Result<Look, Failure>>;

    /// Copies all of `span`, of which it is known that some has to be.
    fn copy<'a>(&'a self, io: &'a Io, span: Span) -> Local<'a, Result<(), Failure>>;
}

/// Which ranges of a source are copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Select {
    /// All; what reads as zeroes is written as zeroes.
    All,
    /// What layers from the source down decide.
    Allocated(Until),
}

/// How zeroes are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeroes {
    /// As such, whether they were stored or not; they may be nowhere at all.
    Detect(Unmap),
    /// The same, and what reads as zeroes by its status is left alone: the target is zero to begin with.
    There,
    /// Those that are stored are written like any other bytes.
    Plain,
}

/// How data is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writing {
    /// As it is.
    Plain,
    /// Compressed, where the target does that.
    Compressed,
}

/// From one node to another, at the same place.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    /// Where from.
    pub source: NodeId,
    /// Where to.
    pub target: NodeId,
    /// What of it.
    pub select: Select,
    /// What becomes of zeroes.
    pub zeroes: Zeroes,
    /// How the rest is written.
    pub writing: Writing,
}

impl Transfer {
    async fn look_at(&self, io: &Io, span: Span) -> Result<Look, Failure> {
        let until = match self.select {
            Select::All => Until::Bottom,
            Select::Allocated(until) => until,
        };
        let found = status_above(io, self.source, until, span).await;
        let found = found.map_err(Failure::read)?;
        let selected = self.select == Select::All || found.is_allocated();
        let what = match (selected, found.is_zero(), self.zeroes) {
            (false, ..) | (true, true, Zeroes::There) => What::Skip,
            (true, true, _) => What::Zero,
            (true, false, _) => What::Data,
        };
        let len = found.status.len;
        Ok(Look { what, len })
    }

    async fn copy_parts(&self, io: &Io, span: Span) -> Result<(), Failure> {
        let mut rest = span;
        while !rest.is_empty() {
            let look = self.look_at(io, rest).await?;
            let most = match look.what {
                What::Data => PART_BYTES_MAX,
                What::Skip | What::Zero => u64::MAX,
            };
            let part = rest.first(look.len.min(most));
            match look.what {
                What::Skip => {}
                What::Zero => self.write_zeroes(io, part).await.map_err(Failure::write)?,
                What::Data => self.copy_data(io, part).await?,
            }
            rest = rest.after(part.len);
        }
        Ok(())
    }

    async fn copy_data(&self, io: &Io, part: Span) -> Result<(), Failure> {
        let mem = read(io, self.source, part).await.map_err(Failure::read)?;
        let zero = self.zeroes != Zeroes::Plain && mem.is_zero();
        let written = match zero {
            true => self.write_zeroes(io, part).await,
            false => self.write(io, part, mem).await,
        };
        written.map_err(Failure::write)
    }

    async fn write(&self, io: &Io, span: Span, mem: Mem) -> Outcome {
        let kind = match self.writing {
            Writing::Plain => Kind::Write(Durability::Cached),
            Writing::Compressed => Kind::WriteCompressed,
        };
        let request = Request { kind, span, mem };
        io.request(self.target, request).await
    }

    async fn write_zeroes(&self, io: &Io, span: Span) -> Outcome {
        let unmap = match self.zeroes {
            Zeroes::Detect(unmap) => unmap,
            Zeroes::There | Zeroes::Plain => Unmap::Allow,
        };
        let kind = Kind::WriteZeroes(unmap, Durability::Cached);
        io.request(self.target, Request::plain(kind, span)).await
    }
}

/// Reads a range into memory of its own. Errors: ENOMEM as well.
pub async fn read(io: &Io, node: NodeId, span: Span) -> Result<Mem, Errno> {
    let len = usize::try_from(span.len).map_err(|_| Errno::NOMEM)?;
    let mem = Mem::zeroed(len).ok_or(Errno::NOMEM)?;
    io.read(node, span.at, &mem).await?;
    Ok(mem)
}

impl Parts for Transfer {
    fn look<'a>(&'a self, io: &'a Io, span: Span) -> Local<'a, Result<Look, Failure>> {
        Box::pin(self.look_at(io, span))
    }

    fn copy<'a>(&'a self, io: &'a Io, span: Span) -> Local<'a, Result<(), Failure>> {
        Box::pin(self.copy_parts(io, span))
    }
}

/// Parts as tasks share them.
pub(super) type SharedParts = Rc<dyn Parts>;
