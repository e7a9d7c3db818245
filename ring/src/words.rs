//! Tables of atomic words, in memory that the system gives when a word is first touched and takes back on request.
//!
//! The rule: words are always there to be read and written, by any thread; one that was given back reads as zero.

use std::io;
use std::ops::{Deref, Range};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

/// How many words a page of memory has; only whole pages are given back.
pub const PAGE_WORDS: usize = 4096 / size_of::<AtomicU64>();

/// A table of words, zero at first; used as a slice.
#[derive(Debug)]
pub struct Words {
    host: NonNull<AtomicU64>,
    count: usize,
}

// SAFETY: the memory is the table's own, and all access to it is atomic.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    /// A table of `count` words, at least one. Errors: ENOMEM, EINVAL for none.
    pub fn new(count: usize) -> io::Result<Words> {
        let len_bytes = count
            .checked_mul(size_of::<AtomicU64>())
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let host = unsafe { libc::mmap(std::ptr::null_mut(), len_bytes, prot, flags, -1, 0) };
        if host == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let host = NonNull::new(host.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Words { host, count })
    }

    /// Gives the memory of `range` back as far as it is whole pages; those words are zero from now on. Words outside the
    /// table, and an empty range, are ignored.
    pub fn release(&self, range: Range<usize>) {
        let from = range.start.next_multiple_of(PAGE_WORDS);
        let to = range.end.min(self.count) / PAGE_WORDS * PAGE_WORDS;
        let Some(words) = to.checked_sub(from).filter(|words| *words > 0) else {
            return;
        };
        let len_bytes = words * size_of::<AtomicU64>();
        // SAFETY: `from` is at most `to`, which lies within the mapping.
        let start = unsafe { self.host.add(from) };
        // SAFETY: these pages are ours, private and anonymous: their words become zero, which is a value like any other.
        // An error (there is none for such a range) leaves them as they are.
        unsafe { libc::madvise(start.as_ptr().cast(), len_bytes, libc::MADV_DONTNEED) };
    }
}

impl Deref for Words {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: `count` words of zeroed memory, aligned to a page, mapped until `drop`; every bit pattern is a word.
        unsafe { std::slice::from_raw_parts(self.host.as_ptr(), self.count) }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        let len_bytes = self.count * size_of::<AtomicU64>();
        // SAFETY: mapped in `new` with this length, and no borrow of it is left.
        unsafe { libc::munmap(self.host.as_ptr().cast(), len_bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering::Relaxed;

    #[test]
    fn words_begin_as_zero_and_only_whole_pages_go_back() {
        let words = Words::new(3 * PAGE_WORDS).expect("memory");
        assert!(words.iter().all(|word| word.load(Relaxed) == 0));
        words.iter().for_each(|word| word.store(7, Relaxed));
        words.release(1..2 * PAGE_WORDS);
        let left = |at: usize| words[at].load(Relaxed);
        assert_eq!((left(0), left(PAGE_WORDS - 1)), (7, 7));
        assert_eq!((left(PAGE_WORDS), left(2 * PAGE_WORDS - 1)), (0, 0));
        assert_eq!(left(2 * PAGE_WORDS), 7);
        words.release(usize::MAX - 5000..usize::MAX - 4096);
        words.release(5 * PAGE_WORDS..9 * PAGE_WORDS);
        assert_eq!(left(2 * PAGE_WORDS), 7);
    }

    #[test]
    fn a_table_of_no_words_or_too_many_is_refused() {
        assert!(Words::new(0).is_err());
        assert!(Words::new(usize::MAX).is_err());
    }
}
