//! Memory of our own for the kernel to read and write: aligned, reference-counted, never borrowed as a slice.
//!
//! The rule: a `Mem` keeps its buffer alive, and the ring's slot keeps a `Mem` until the kernel is done, so dropping
//! a future in mid-flight frees nothing that a disk may still write to.

use crate::seg::{self, Seg};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::rc::Rc;

/// Alignment of every buffer: a page satisfies every O_DIRECT file met so far.
pub const ALIGN_BYTES: usize = 4096;

/// No single buffer is larger; callers split their work.
pub const LEN_BYTES_MAX: usize = 64 << 20;

/// An aligned, zeroed block of memory.
#[derive(Debug)]
pub struct Buf {
    host: *mut u8,
    layout: Layout,
}

impl Buf {
    /// A zeroed buffer; `None` when it is empty, above `LEN_BYTES_MAX` or memory is short.
    pub fn new(len_bytes: usize) -> Option<Buf> {
        if len_bytes == 0 || len_bytes > LEN_BYTES_MAX {
            return None;
        }
        let layout = Layout::from_size_align(len_bytes, ALIGN_BYTES).ok()?;
        // SAFETY: the layout's size is not zero.
        let host = unsafe { alloc_zeroed(layout) };
        (!host.is_null()).then_some(Buf { host, layout })
    }

    /// The whole buffer as a segment; valid while the buffer lives.
    pub fn seg(&self) -> Seg {
        // SAFETY: whoever uses the segment keeps the buffer: `Mem` holds it by reference count, and the bounce
        // buffers hold it in the slot. No slice of it is ever made.
        unsafe { Seg::new(self.host, self.layout.size()) }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.layout.size()
    }

    /// Never true; a buffer has at least one byte.
    pub fn is_empty(&self) -> bool {
        false
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this very layout, and freed once.
        unsafe { dealloc(self.host, self.layout) };
    }
}

/// Memory of a request on the serve path: a window of segments, either a guest's or a buffer of our own. Cheap to
/// clone and to slice.
#[derive(Clone, Debug)]
pub struct Mem {
    segs: Rc<[Seg]>,
    _keep: Option<Rc<Buf>>,
    from: usize,
    len: usize,
}

impl Mem {
    /// Guest memory (or any other whose owner keeps it mapped, see [`Seg::new`]).
    pub fn borrowed(segs: &[Seg]) -> Mem {
        Mem {
            segs: segs.into(),
            _keep: None,
            from: 0,
            len: seg::len_bytes(segs),
        }
    }

    /// A zeroed buffer of our own; `None` as [`Buf::new`].
    pub fn zeroed(len_bytes: usize) -> Option<Mem> {
        let buf = Buf::new(len_bytes)?;
        Some(Mem {
            segs: Rc::new([buf.seg()]),
            _keep: Some(Rc::new(buf)),
            from: 0,
            len: len_bytes,
        })
    }

    /// No memory at all, for requests that carry none.
    pub fn none() -> Mem {
        Mem::borrowed(&[])
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if it covers no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The window of at most `len_bytes` bytes from `from`.
    pub fn slice(&self, from: usize, len_bytes: usize) -> Mem {
        let from = from.min(self.len);
        Mem {
            from: self.from + from,
            len: len_bytes.min(self.len - from),
            ..self.clone()
        }
    }

    /// The pieces of the window.
    pub fn segs(&self) -> impl Iterator<Item = Seg> + '_ {
        seg::window(&self.segs, self.from, self.len)
    }

    /// Copies out from byte `at` of the window; returns how many bytes there were.
    pub fn load(&self, at: usize, to: &mut [u8]) -> usize {
        let len = to.len().min(self.len.saturating_sub(at));
        seg::load(&self.segs, self.from + at, &mut to[..len])
    }

    /// Copies into the window at byte `at`; returns how many bytes fitted.
    pub fn store(&self, at: usize, from: &[u8]) -> usize {
        let len = from.len().min(self.len.saturating_sub(at));
        seg::store(&self.segs, self.from + at, &from[..len])
    }

    /// Copies as much of `other` as fits, both from their beginnings.
    pub fn copy_from(&self, other: &Mem) {
        let mut at = 0;
        for part in other.segs() {
            at += copy_into(self, at, part);
        }
    }

    /// Fills the window with zeroes.
    pub fn zero(&self) {
        self.segs().for_each(|part| part.zero());
    }

    /// True if every byte reads as zero right now (a guest may change it the next moment).
    pub fn is_zero(&self) -> bool {
        self.segs().all(|part| seg::is_zero(&[part]))
    }
}

fn copy_into(to: &Mem, at: usize, from: Seg) -> usize {
    let mut block = [0u8; 4096];
    let mut done = 0;
    while done < from.len() {
        let len = from.part(done, block.len()).load(&mut block);
        let stored = to.store(at + done, &block[..len]);
        if stored == 0 {
            break;
        }
        done += stored;
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_of_a_slice_is_the_window_of_a_window() {
        let mem = Mem::zeroed(100).expect("memory");
        let bytes: Vec<u8> = (0..100).collect();
        assert_eq!(mem.store(0, &bytes), 100);
        let part = mem.slice(10, 50).slice(5, 100);
        assert_eq!(part.len(), 45);
        let mut out = [0; 45];
        assert_eq!(part.load(0, &mut out), 45);
        assert_eq!(out.to_vec(), (15..60).collect::<Vec<u8>>());
        part.zero();
        assert!(part.is_zero() && !mem.is_zero());
        assert_eq!(
            part.store(44, &[1, 2]),
            1,
            "nothing is written past a window"
        );
    }

    #[test]
    fn copy_from_takes_what_fits() {
        let from = Mem::zeroed(10_000).expect("memory");
        from.store(0, &[9; 10_000]);
        let to = Mem::zeroed(9_000).expect("memory");
        to.copy_from(&from);
        let mut out = [0; 9_000];
        to.load(0, &mut out);
        assert!(out.iter().all(|&byte| byte == 9));
    }

    #[test]
    fn empty_and_oversized_buffers_are_refused() {
        assert!(Buf::new(0).is_none());
        assert!(Buf::new(LEN_BYTES_MAX + 1).is_none());
    }
}
