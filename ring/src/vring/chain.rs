//! One request as the guest laid it out: what the device may read, then what it may write.
//!
//! The rule: a chain is reused. Its lists keep their capacity, so that popping into it allocates nothing after warm-up.

use crate::Seg;

/// A popped descriptor chain as host memory.
///
/// Its segments are valid until the head is pushed or abandoned; the ring keeps the memory mapped that long.
#[derive(Debug, Default)]
pub struct Chain {
    /// The descriptor it began with: what `push` wants back.
    pub head: u16,
    /// What the device may read, in order; zero-length descriptors are left out.
    pub readable: Vec<Seg>,
    /// What the device may write, in order; zero-length descriptors are left out.
    pub writable: Vec<Seg>,
    /// Total length of `readable`.
    pub readable_bytes: u64,
    /// Total length of `writable`.
    pub writable_bytes: u64,
    /// Whether the parts came in the order the specification asks for.
    pub shape: Shape,
}

/// Order of the two kinds of descriptors in a chain.
// virtio 1.2, 2.7.4.2: "The driver MUST place any device-writable descriptor elements after any device-readable
// descriptor elements." A chain that does not is one malformed request, not a broken ring: it still can be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Shape {
    /// All readable ones first.
    #[default]
    Proper,
    /// A readable one after a writable one: answer with an error.
    ReadableAfterWritable,
}

impl Chain {
    /// An empty chain to pop into.
    pub fn new() -> Chain {
        Chain::default()
    }

    /// Forgets the segments, and the capacity of lists longer than guests usually ask for. For a chain that waits to be
    /// used again.
    #[inline]
    pub fn trim(&mut self) {
        crate::slots::trim(&mut self.readable);
        crate::slots::trim(&mut self.writable);
    }

    /// Forgets what it held and keeps the capacity.
    #[inline]
    pub fn clear(&mut self) {
        self.head = 0;
        self.readable.clear();
        self.writable.clear();
        self.readable_bytes = 0;
        self.writable_bytes = 0;
        self.shape = Shape::Proper;
    }
}
