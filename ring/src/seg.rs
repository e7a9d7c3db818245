//! Pieces of memory the kernel, a guest or both may touch at any time.
//!
//! The rule: nobody ever makes a Rust reference into a segment's bytes. They are copied in and out through raw
//! pointers, and whoever makes a segment keeps its memory mapped until every operation on it has completed.

/// A piece of memory: a host pointer and a length in bytes, laid out as the kernel's `iovec`.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Seg {
    iov: libc::iovec,
}

// SAFETY: a segment is a number pair; the contract of `Seg::new` makes its memory valid from any thread.
unsafe impl Send for Seg {}
// SAFETY: as above; a shared segment is only ever copied from or to, never borrowed.
unsafe impl Sync for Seg {}

impl std::fmt::Debug for Seg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:p}+{:#x}", self.iov.iov_base, self.iov.iov_len)
    }
}

impl Seg {
    /// The segment of `len_bytes` at `host`.
    ///
    /// # Safety
    /// `host..host+len_bytes` must stay mapped, readable and writable while the segment, or an operation made of it,
    /// is alive. Other parties may write there at any time; no Rust reference may cover it meanwhile.
    pub const unsafe fn new(host: *mut u8, len_bytes: usize) -> Seg {
        Seg {
            iov: libc::iovec {
                iov_base: host.cast(),
                iov_len: len_bytes,
            },
        }
    }

    /// Where it begins in this process.
    pub fn host(&self) -> *mut u8 {
        self.iov.iov_base.cast()
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.iov.iov_len
    }

    /// True if it covers no byte.
    pub fn is_empty(&self) -> bool {
        self.iov.iov_len == 0
    }

    /// The part from `from` of at most `len_bytes` bytes; empty past the end.
    pub fn part(&self, from: usize, len_bytes: usize) -> Seg {
        let from = from.min(self.len());
        Seg {
            iov: libc::iovec {
                iov_base: self.host().wrapping_add(from).cast(),
                iov_len: len_bytes.min(self.len() - from),
            },
        }
    }

    /// Copies out of the segment; returns how many bytes fitted.
    pub fn load(&self, to: &mut [u8]) -> usize {
        let len = to.len().min(self.len());
        // SAFETY: `len` bytes are mapped by the contract of `new`, and `to` is ours alone, so they cannot overlap.
        unsafe { std::ptr::copy_nonoverlapping(self.host(), to.as_mut_ptr(), len) };
        len
    }

    /// Copies into the segment; returns how many bytes fitted.
    pub fn store(&self, from: &[u8]) -> usize {
        let len = from.len().min(self.len());
        // SAFETY: as in `load`; `from` is a Rust slice, so by the contract of `new` it does not overlap.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.host(), len) };
        len
    }

    /// Fills it with zeroes.
    pub fn zero(&self) {
        // SAFETY: the whole segment is mapped and writable by the contract of `new`.
        unsafe { std::ptr::write_bytes(self.host(), 0, self.len()) };
    }
}

/// Total length of a list in bytes.
pub fn len_bytes(segs: &[Seg]) -> usize {
    segs.iter().map(Seg::len).sum()
}

/// The pieces of `segs` that cover `len_bytes` bytes from byte `from` of the list.
pub fn window(segs: &[Seg], from: usize, len_bytes: usize) -> impl Iterator<Item = Seg> + '_ {
    let mut skip = from;
    let mut left = len_bytes;
    segs.iter().filter_map(move |seg| {
        if left == 0 || skip >= seg.len() {
            skip = skip.saturating_sub(seg.len());
            return None;
        }
        let part = seg.part(skip, left);
        skip = 0;
        left -= part.len();
        (!part.is_empty()).then_some(part)
    })
}

/// Copies `to.len()` bytes out of the list from byte `from`; returns how many there were.
pub fn load(segs: &[Seg], from: usize, to: &mut [u8]) -> usize {
    let mut done = 0;
    for part in window(segs, from, to.len()) {
        done += part.load(&mut to[done..]);
    }
    done
}

/// Copies `from` into the list at byte `at`; returns how many bytes fitted.
pub fn store(segs: &[Seg], at: usize, from: &[u8]) -> usize {
    let mut done = 0;
    for part in window(segs, at, from.len()) {
        done += part.store(&from[done..]);
    }
    done
}

/// Fills `len_bytes` bytes of the list from byte `from` with zeroes.
pub fn zero(segs: &[Seg], from: usize, len_bytes: usize) {
    window(segs, from, len_bytes).for_each(|part| part.zero());
}

/// True if every byte of the list reads as zero right now.
pub fn is_zero(segs: &[Seg]) -> bool {
    let mut block = [0u8; 4096];
    segs.iter().all(|seg| {
        (0..seg.len()).step_by(block.len()).all(|at| {
            let len = seg.part(at, block.len()).load(&mut block);
            block[..len].iter().all(|&byte| byte == 0)
        })
    })
}

/// Cuts `len_bytes` bytes off the front of the list; all of it if it is shorter. Keeps the list's capacity.
pub fn cut_front(segs: &mut Vec<Seg>, len_bytes: usize) {
    let mut left = len_bytes;
    let mut whole = 0;
    for seg in segs.iter_mut() {
        if seg.len() > left {
            *seg = seg.part(left, usize::MAX);
            break;
        }
        left -= seg.len();
        whole += 1;
    }
    segs.drain(..whole);
}

/// Cuts `len_bytes` bytes off the end of the list; all of it if it is shorter. Keeps the list's capacity.
pub fn cut_back(segs: &mut Vec<Seg>, len_bytes: usize) {
    let mut left = len_bytes;
    while let Some(last) = segs.last_mut() {
        if last.len() > left {
            *last = last.part(0, last.len() - left);
            return;
        }
        left -= last.len();
        segs.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(bytes: &mut [u8], cuts: &[usize]) -> Vec<Seg> {
        let base = bytes.as_mut_ptr();
        let ends = cuts.iter().copied().chain([bytes.len()]);
        let mut from = 0;
        ends.map(|end| {
            // SAFETY: the test keeps `bytes` alive and untouched while it uses the list.
            let seg = unsafe { Seg::new(base.wrapping_add(from), end - from) };
            from = end;
            seg
        })
        .collect()
    }

    #[test]
    fn a_window_crosses_segments_and_skips_empty_ones() {
        let mut bytes: Vec<u8> = (0..100).collect();
        let segs = list(&mut bytes, &[10, 10, 37]);
        let mut out = [0; 40];
        assert_eq!(load(&segs, 5, &mut out), 40);
        assert_eq!(out.to_vec(), (5..45).collect::<Vec<u8>>());
        assert_eq!(load(&segs, 90, &mut out), 10);
        assert_eq!(load(&segs, 100, &mut out), 0);
    }

    #[test]
    fn cutting_drops_whole_segments_and_shortens_one() {
        let mut bytes = vec![0u8; 100];
        let mut segs = list(&mut bytes, &[10, 30]);
        cut_front(&mut segs, 10);
        assert_eq!(segs.iter().map(Seg::len).collect::<Vec<_>>(), [20, 70]);
        cut_front(&mut segs, 21);
        assert_eq!(segs.iter().map(Seg::len).collect::<Vec<_>>(), [69]);
        cut_back(&mut segs, 68);
        assert_eq!(segs[0].host(), bytes.as_mut_ptr().wrapping_add(31));
        cut_back(&mut segs, 2);
        assert!(segs.is_empty());
    }

    #[test]
    fn store_and_zero_touch_only_their_window() {
        let mut bytes = vec![7u8; 64];
        let segs = list(&mut bytes, &[16, 20]);
        zero(&segs, 10, 12);
        store(&segs, 62, &[1, 2, 3]);
        assert!(!is_zero(&segs));
        let mut all = [0; 64];
        load(&segs, 0, &mut all);
        assert_eq!(all[..10], [7; 10]);
        assert_eq!(all[10..22], [0; 12]);
        assert_eq!(all[22..62], [7; 40]);
        assert_eq!(all[62..], [1, 2]);
    }
}
