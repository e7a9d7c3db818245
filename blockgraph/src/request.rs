//! What can be asked of a node.

use crate::units::Span;
use ring::{Durability, Mem};

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dir {
    /// From the node.
    Read,
    /// To the node.
    Write,
}

/// May a write of zeroes give its space back?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmap {
    /// The space stays allocated.
    Keep,
    /// The space may be deallocated.
    Allow,
}

/// What becomes of the space that a node grows by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prealloc {
    /// Nothing: it is allocated when it is written.
    Off,
    /// The format's metadata says where it will be.
    Metadata,
    /// The file system sets it aside.
    Falloc,
    /// It is written with zeroes.
    Full,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Fill the memory from the span.
    Read,
    /// Write the memory to the span.
    Write(Durability),
    /// Write the memory to the span, compressed where that is smaller; only formats that compress take it, and others
    /// answer ENOTSUP.
    WriteCompressed,
    /// Make the span read as zeroes; carries no memory.
    WriteZeroes(Unmap, Durability),
    /// The span's content is no longer needed; carries no memory. Advice: a node may do nothing.
    Discard,
    /// Make every completed write durable; carries neither span nor memory.
    Flush,
}

impl Kind {
    /// The direction the fast walk is asked about; flush, discard and write-zeroes always serve.
    pub fn mapped_dir(self) -> Option<Dir> {
        match self {
            Kind::Read => Some(Dir::Read),
            Kind::Write(Durability::Cached) => Some(Dir::Write),
            // The bytes could be written durably where a walk says, but what the walk went by may itself not be durable: a
            // qcow2 cluster that was allocated since the last flush. So the drivers on the way have their say.
            Kind::Write(Durability::Through) => None,
            Kind::WriteCompressed | Kind::WriteZeroes(..) | Kind::Discard | Kind::Flush => None,
        }
    }

    /// What filters are told: everything but a read changes the node.
    pub fn dir(self) -> Dir {
        match self {
            Kind::Read => Dir::Read,
            _ => Dir::Write,
        }
    }

    /// True if it changes what the node reads as.
    pub fn writes(self) -> bool {
        !matches!(self, Kind::Read | Kind::Flush)
    }
}

/// A request on the serve path. `mem.len() == span.len` for reads and writes, and `mem` is empty otherwise.
#[derive(Clone, Debug)]
pub struct Request {
    /// What is asked.
    pub kind: Kind,
    /// Of which bytes.
    pub span: Span,
    /// With which memory.
    pub mem: Mem,
}

impl Request {
    /// A request without memory.
    pub fn plain(kind: Kind, span: Span) -> Request {
        Request {
            kind,
            span,
            mem: Mem::none(),
        }
    }

    /// The same request moved to where the span begins at `at` of a child.
    pub fn moved(&self, at: u64) -> Request {
        Request {
            span: Span {
                at,
                len: self.span.len,
            },
            ..self.clone()
        }
    }
}
