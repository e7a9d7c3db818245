//! How large the caches are: QSD's options, with QEMU's rules and texts.

use super::super::geometry::{Geometry, SLICE_BITS_DEFAULT, SLICE_BITS_MIN};
use thiserror::Error;

/// An L2 cache grows to this unless asked otherwise.
const L2_BYTES_DEFAULT_MAX: u64 = 32 << 20;
/// An L2 cache may grow to this even if the tables of a small disk take less: the disk may be resized.
const L2_BYTES_DEFAULT_MIN: u64 = 1 << 20;
/// No L2 cache has fewer slices.
const L2_SLICES_MIN: u64 = 2;
/// No refcount cache has fewer blocks.
const REFCOUNT_BLOCKS_MIN: u64 = 4;
/// Seconds after which an unused slice is forgotten, unless asked otherwise.
const CLEAN_INTERVAL_S: u64 = 600;

/// The options as they were given, sizes in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheOptions {
    /// `cache-size`: both together.
    pub total: Option<u64>,
    /// `l2-cache-size`
    pub l2: Option<u64>,
    /// `l2-cache-entry-size`
    pub l2_entry: Option<u64>,
    /// `refcount-cache-size`
    pub refcount: Option<u64>,
    /// `cache-clean-interval`, in seconds; 0 never cleans.
    pub clean_interval_s: Option<u64>,
}

/// Why the options make no sense together; the texts are QEMU's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SizeError {
    /// Nothing is left to choose.
    #[error("cache-size, l2-cache-size and refcount-cache-size may not be set at the same time")]
    All,
    /// A part larger than the whole.
    #[error("l2-cache-size may not exceed cache-size")]
    L2,
    /// A part larger than the whole.
    #[error("refcount-cache-size may not exceed cache-size")]
    Refcount,
    /// Not a size for a slice.
    #[error("L2 cache entry size must be a power of two between 512 and the cluster size ({0})")]
    Entry(u64),
    /// More slices than are ever counted.
    #[error("L2 cache size too big")]
    L2TooBig,
    /// More blocks than are ever counted.
    #[error("Refcount cache size too big")]
    RefcountTooBig,
    /// More seconds than are ever counted.
    #[error("Cache clean interval too big")]
    Interval,
}

/// What the options come to for one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSizes {
    /// A slice's size as a power of two.
    pub slice_bits: u32,
    /// Slices in the L2 cache, at least two.
    pub l2_slices: usize,
    /// Refcount blocks (of a cluster each) in their cache, at least four.
    pub refcount_blocks: usize,
    /// Seconds after which what is unused is forgotten, if ever.
    pub clean_interval_s: Option<u32>,
}

impl CacheOptions {
    /// The sizes for an image of `size_bytes`. `geometry`'s own slice size is of no account.
    pub fn sizes(&self, geometry: &Geometry, size_bytes: u64) -> Result<CacheSizes, SizeError> {
        let cluster = geometry.cluster_bytes();
        let entry_bytes = geometry.layout().words.count() * 8;
        let whole = (size_bytes.div_ceil(cluster))
            .saturating_mul(entry_bytes)
            .saturating_add(cluster - 1)
            & !(cluster - 1);
        let (l2, refcount) = self.split(whole, cluster)?;
        let slice_bits = self.slice_bits(geometry)?;
        let clean = self.clean_interval_s.unwrap_or(CLEAN_INTERVAL_S);
        let count = |bytes: u64, unit_bits: u32, min: u64| {
            let count = (bytes >> unit_bits).max(min);
            usize::try_from(count)
                .ok()
                .filter(|n| *n <= i32::MAX as usize)
        };
        Ok(CacheSizes {
            slice_bits,
            l2_slices: count(l2, slice_bits, L2_SLICES_MIN).ok_or(SizeError::L2TooBig)?,
            refcount_blocks: count(refcount, geometry.cluster_bits(), REFCOUNT_BLOCKS_MIN)
                .ok_or(SizeError::RefcountTooBig)?,
            clean_interval_s: match u32::try_from(clean) {
                Ok(0) => None,
                Ok(seconds) => Some(seconds),
                Err(_) => return Err(SizeError::Interval),
            },
        })
    }

    /// Bytes of the L2 and of the refcount cache; `whole` is what all L2 tables need.
    fn split(&self, whole: u64, cluster: u64) -> Result<(u64, u64), SizeError> {
        let l2_max = self.l2.unwrap_or(L2_BYTES_DEFAULT_MAX);
        let refcount = self.refcount.unwrap_or(0);
        let Some(total) = self.total else {
            return Ok((whole.max(L2_BYTES_DEFAULT_MIN).min(l2_max), refcount));
        };
        let l2 = whole.min(l2_max);
        if self.l2.is_some() && self.refcount.is_some() {
            return Err(SizeError::All);
        }
        if self.l2.is_some_and(|l2| l2 > total) {
            return Err(SizeError::L2);
        }
        if refcount > total {
            return Err(SizeError::Refcount);
        }
        if self.l2.is_some() {
            return Ok((l2, total - l2));
        }
        if self.refcount.is_some() {
            return Ok((total - refcount, refcount));
        }
        let refcount_min = REFCOUNT_BLOCKS_MIN * cluster;
        // As much as is of use goes to the L2 cache.
        Ok(match total >= whole.saturating_add(refcount_min) {
            true => (whole, total - whole),
            false => (total - total.min(refcount_min), total.min(refcount_min)),
        })
    }

    fn slice_bits(&self, geometry: &Geometry) -> Result<u32, SizeError> {
        let Some(asked) = self.l2_entry else {
            return Ok(SLICE_BITS_DEFAULT.min(geometry.cluster_bits()));
        };
        let fits = asked >= 1 << SLICE_BITS_MIN && asked <= geometry.cluster_bytes();
        match fits && asked.is_power_of_two() {
            true => Ok(asked.trailing_zeros()),
            false => Err(SizeError::Entry(geometry.cluster_bytes())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::format::entry::{DataIn, Layout, Words, ZeroFlag};
    use super::*;

    const NONE: CacheOptions = CacheOptions {
        total: None,
        l2: None,
        l2_entry: None,
        refcount: None,
        clean_interval_s: None,
    };

    fn sizes(options: CacheOptions, size_bytes: u64) -> Result<CacheSizes, String> {
        let layout = Layout {
            cluster_bits: 16,
            words: Words::One,
            data: DataIn::Image,
            zero_flag: ZeroFlag::Known,
        };
        let geometry = Geometry::new(layout, SLICE_BITS_DEFAULT);
        let sizes = options.sizes(&geometry, size_bytes);
        sizes.map_err(|error| error.to_string())
    }

    #[test]
    fn the_default_holds_all_tables_up_to_32_mib() {
        let small = sizes(NONE, 1 << 30).expect("sizes");
        assert_eq!((small.l2_slices, small.refcount_blocks), (256, 4));
        assert_eq!(small.clean_interval_s, Some(600));
        let large = sizes(NONE, 1 << 50).expect("sizes");
        assert_eq!(large.l2_slices, 8192);
        let medium = sizes(NONE, 64 << 30).expect("sizes");
        assert_eq!(medium.l2_slices, 2048);
        let l2 = Some(0);
        let least = sizes(CacheOptions { l2, ..NONE }, 1 << 30).expect("sizes");
        assert_eq!(least.l2_slices, 2);
    }

    #[test]
    fn a_total_is_divided_as_qemu_does() {
        let total = |total| CacheOptions {
            total: Some(total),
            ..NONE
        };
        let divided = |options| {
            let sizes = sizes(options, 8 << 30).expect("sizes");
            (sizes.l2_slices << 12, sizes.refcount_blocks << 16)
        };
        // All L2 tables of 8 GiB take 1 MiB.
        assert_eq!(divided(total(2 << 20)), (1 << 20, 1 << 20));
        assert_eq!(divided(total(512 << 10)), (256 << 10, 256 << 10));
        let options = CacheOptions {
            l2: Some(128 << 10),
            ..total(1 << 20)
        };
        assert_eq!(divided(options), (128 << 10, 896 << 10));
        let options = CacheOptions {
            refcount: Some(512 << 10),
            ..total(1 << 20)
        };
        assert_eq!(divided(options), (512 << 10, 512 << 10));
    }

    #[test]
    fn what_makes_no_sense_is_refused_in_qemus_words() {
        let refused = |options| sizes(options, 8 << 30).expect_err("refused");
        let total = Some(1 << 20);
        let (l2, refcount) = (Some(2 << 20), Some(1));
        assert_eq!(
            refused(CacheOptions {
                total,
                l2,
                refcount,
                ..NONE
            }),
            "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time"
        );
        assert_eq!(
            refused(CacheOptions { total, l2, ..NONE }),
            "l2-cache-size may not exceed cache-size"
        );
        let refcount = Some(2 << 20);
        assert_eq!(
            refused(CacheOptions {
                total,
                refcount,
                ..NONE
            }),
            "refcount-cache-size may not exceed cache-size"
        );
        for bad in [0, 256, 4095, 131_072] {
            let l2_entry = Some(bad);
            assert_eq!(
                refused(CacheOptions { l2_entry, ..NONE }),
                "L2 cache entry size must be a power of two between 512 and the cluster size (65536)"
            );
        }
        let clean_interval_s = Some(1 << 32);
        assert_eq!(
            refused(CacheOptions {
                clean_interval_s,
                ..NONE
            }),
            "Cache clean interval too big"
        );
        let refcount = Some(u64::MAX);
        assert_eq!(
            refused(CacheOptions { refcount, ..NONE }),
            "Refcount cache size too big"
        );
    }
}
