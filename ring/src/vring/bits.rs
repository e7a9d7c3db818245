//! Which heads are in flight: one bit per descriptor of the ring.

#[derive(Debug)]
pub(super) struct Bits {
    words: Box<[u64]>,
}

impl Bits {
    pub(super) fn new(count: u16) -> Bits {
        Bits {
            words: vec![0; usize::from(count).div_ceil(64)].into(),
        }
    }

    /// True if the bit is set; bits beyond the set count as clear.
    #[inline]
    pub(super) fn has(&self, at: u16) -> bool {
        let word = self.words.get(usize::from(at / 64)).copied().unwrap_or(0);
        word & mask(at) != 0
    }

    #[inline]
    pub(super) fn set(&mut self, at: u16) {
        if let Some(word) = self.words.get_mut(usize::from(at / 64)) {
            *word |= mask(at);
        }
    }

    #[inline]
    pub(super) fn clear(&mut self, at: u16) {
        if let Some(word) = self.words.get_mut(usize::from(at / 64)) {
            *word &= !mask(at);
        }
    }
}

#[inline]
fn mask(at: u16) -> u64 {
    1 << (at % 64)
}
