//! What is known of a range of a node, as one closed type, so that impossible combinations cannot be written.
//!
//! The words QEMU's users know (ALLOCATED, ZERO, DATA, OFFSET_VALID) are derived, never stored.

use crate::node::NodeId;

/// Who decides what the range reads as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Deferred to the copy-on-write child.
    Below,
    /// This layer: data.
    Data,
    /// This layer: zeroes.
    Zero,
}

/// The host space that stands behind the range, in a child other than the backing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// None.
    None,
    /// Some, but not as plain bytes (compressed, encrypted).
    Opaque,
    /// Plain bytes at that offset of that node (the asked node itself for a protocol driver).
    At(NodeId, u64),
}

/// The answer for `len` bytes from the start of the asked span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// How many bytes the answer covers, 1 to the span's length.
    pub len: u64,
    /// Who decides the content.
    pub content: Content,
    /// What stands behind it.
    pub mapping: Mapping,
}

impl Status {
    /// This layer decides the content (QEMU's ALLOCATED).
    pub fn is_local(&self) -> bool {
        self.content != Content::Below
    }

    /// This layer says it reads as zeroes.
    pub fn is_zero(&self) -> bool {
        self.content == Content::Zero
    }

    /// Host space stands behind it (QEMU's DATA as it should have been).
    pub fn is_mapped(&self) -> bool {
        self.mapping != Mapping::None
    }

    /// Where it can be read directly, if it can (QEMU's OFFSET_VALID; it is mapped then).
    pub fn offset(&self) -> Option<(NodeId, u64)> {
        match self.mapping {
            Mapping::At(node, offset) => Some((node, offset)),
            Mapping::None | Mapping::Opaque => None,
        }
    }
}
