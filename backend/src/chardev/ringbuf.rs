//! `ringbuf`: what is written is kept, as much as fits, the oldest is lost first, and commands read it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The buffer, as seen from any thread.
#[derive(Clone, Debug)]
pub struct Ringbuf {
    bytes: Arc<Mutex<VecDeque<u8>>>,
    size_bytes: usize,
}

impl Ringbuf {
    /// An empty one.
    pub fn new(size_bytes: usize) -> Ringbuf {
        Ringbuf {
            bytes: Arc::default(),
            size_bytes,
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes out at most so many bytes, the oldest.
    pub fn read(&self, len_max: usize) -> Vec<u8> {
        let mut bytes = self.lock();
        let len = len_max.min(bytes.len());
        bytes.drain(..len).collect()
    }

    /// Puts bytes in; what does not fit pushes out what is oldest.
    pub fn write(&self, new: &[u8]) {
        let mut bytes = self.lock();
        let kept = &new[new.len().saturating_sub(self.size_bytes)..];
        let too_many = (bytes.len() + kept.len()).saturating_sub(self.size_bytes);
        bytes.drain(..too_many);
        bytes.extend(kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_lost_first() {
        let ring = Ringbuf::new(8);
        ring.write(b"abcdef");
        ring.write(b"ghij");
        assert_eq!(ring.read(3), b"cde");
        ring.write(b"0123456789");
        assert_eq!(ring.read(100), b"23456789");
        assert_eq!(ring.read(1), b"");
    }
}
