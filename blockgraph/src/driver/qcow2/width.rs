//! How wide a refcount is, and how refcounts lie in a block.
//!
//! The rule: every index is below what the block holds; whoever computes one masks it first.

/// The width of a refcount: 1, 2, 4, 8, 16, 32 or 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Width {
    order: u32,
}

impl Default for Width {
    /// 16 bits, the only width that version 2 has.
    fn default() -> Width {
        Width { order: 4 }
    }
}

impl Width {
    /// `refcount_order` of the header; `None` above 6.
    pub(crate) fn from_order(order: u32) -> Option<Width> {
        (order <= 6).then_some(Width { order })
    }

    /// In bits.
    pub(crate) fn bits(self) -> u32 {
        1 << self.order
    }

    /// The largest refcount.
    pub(crate) fn max(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }

    /// How many refcounts a cluster of `1 << cluster_bits` bytes holds, as a power of two.
    pub(crate) fn block_bits(self, cluster_bits: u32) -> u32 {
        cluster_bits + 3 - self.order
    }

    /// The refcount at `index`.
    pub(crate) fn get(self, block: &[u8], index: usize) -> u64 {
        let bits = self.bits() as usize;
        if bits < 8 {
            // qcow2.txt, refcount blocks: "bits are numbered ... from the least significant" within a byte.
            let shift = (index * bits) % 8;
            return u64::from(block[index * bits / 8] >> shift) & self.max();
        }
        let bytes = bits / 8;
        let mut word = [0; 8];
        word[8 - bytes..].copy_from_slice(&block[index * bytes..][..bytes]);
        u64::from_be_bytes(word)
    }

    /// Changes the refcount at `index`; `value` fits the width.
    pub(crate) fn set(self, block: &mut [u8], index: usize, value: u64) {
        debug_assert!(value <= self.max());
        let bits = self.bits() as usize;
        if bits < 8 {
            let shift = (index * bits) % 8;
            let byte = &mut block[index * bits / 8];
            *byte &= !((self.max() as u8) << shift);
            *byte |= (value as u8) << shift;
            return;
        }
        let bytes = bits / 8;
        block[index * bytes..][..bytes].copy_from_slice(&value.to_be_bytes()[8 - bytes..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_gives_back_what_was_set_and_leaves_its_neighbours() {
        for order in 0..=6 {
            let width = Width::from_order(order).expect("a width");
            let count = 512 * 8 / width.bits() as usize;
            let mut block = vec![0; 512];
            let value =
                |index: usize| (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) & width.max();
            (0..count).for_each(|index| width.set(&mut block, index, value(index)));
            width.set(&mut block, 5, 0);
            width.set(&mut block, 5, width.max());
            for index in 0..count {
                let want = if index == 5 {
                    width.max()
                } else {
                    value(index)
                };
                assert_eq!(width.get(&block, index), want, "{width:?} {index}");
            }
        }
    }

    #[test]
    fn narrow_refcounts_begin_at_the_low_bit_and_wide_ones_are_big_endian() {
        let set = |order, index, value| {
            let mut block = vec![0; 16];
            Width::from_order(order)
                .expect("a width")
                .set(&mut block, index, value);
            block
        };
        assert_eq!(set(0, 9, 1)[1], 0b10);
        assert_eq!(set(2, 1, 0xa)[0], 0xa0);
        assert_eq!(set(4, 1, 0x1234)[..4], [0, 0, 0x12, 0x34]);
        assert_eq!(set(6, 0, 1)[..8], [0, 0, 0, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn the_limits_are_those_of_the_format() {
        assert_eq!(Width::from_order(7), None);
        let width = |order| Width::from_order(order).expect("a width");
        assert_eq!(
            (width(0).max(), width(4).max(), width(6).max()),
            (1, 0xffff, u64::MAX)
        );
        assert_eq!(width(4).block_bits(16), 15);
        assert_eq!(width(6).block_bits(9), 6);
    }
}
