//! Which table, slice and entry describes a guest byte: arithmetic on sizes that were checked when the image was opened.
//!
//! An L2 table is cached in slices (QEMU's `l2-cache-entry-size`), which are numbered over the whole disk, since tables
//! are whole numbers of slices.

use super::format::entry::{Layout, Words};

/// Largest active L1 table, in bytes (as QEMU).
pub const L1_BYTES_MAX: u64 = 32 << 20;
/// Smallest slice, as a power of two.
pub const SLICE_BITS_MIN: u32 = 9;
/// Largest slice unless asked otherwise, as a power of two: what a cold lookup reads.
pub const SLICE_BITS_DEFAULT: u32 = 12;

/// The sizes of an image's parts. All offsets given to it are below 2^63.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    layout: Layout,
    slice_bits: u32,
}

/// Where the entry of a guest cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryAt {
    /// In which slice.
    pub slice: u64,
    /// Which entry of it.
    pub index: usize,
}

impl Geometry {
    /// `slice_bits` is the size of a slice as a power of two, at least [`SLICE_BITS_MIN`]; a cluster at most.
    pub fn new(layout: Layout, slice_bits: u32) -> Geometry {
        let slice_bits = slice_bits.clamp(SLICE_BITS_MIN, layout.cluster_bits);
        Geometry { layout, slice_bits }
    }

    /// How L2 entries are read.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Cluster size as a power of two.
    pub fn cluster_bits(&self) -> u32 {
        self.layout.cluster_bits
    }

    /// Cluster size.
    pub fn cluster_bytes(&self) -> u64 {
        1 << self.layout.cluster_bits
    }

    /// Size of a subcluster, or of a cluster in images without them.
    pub fn subcluster_bytes(&self) -> u64 {
        match self.layout.words {
            Words::One => self.cluster_bytes(),
            Words::Two => self.cluster_bytes() / u64::from(super::format::entry::SUBCLUSTERS),
        }
    }

    /// Size of a slice in the file and in the cache.
    pub fn slice_bytes(&self) -> u64 {
        1 << self.slice_bits
    }

    /// An L2 entry's size as a power of two.
    fn entry_bits(&self) -> u32 {
        match self.layout.words {
            Words::One => 3,
            Words::Two => 4,
        }
    }

    /// Entries of a slice.
    pub fn slice_entries(&self) -> u64 {
        1 << (self.slice_bits - self.entry_bits())
    }

    /// Guest bytes that one slice describes.
    pub fn slice_guest_bytes(&self) -> u64 {
        self.slice_entries() << self.layout.cluster_bits
    }

    /// Guest bytes that one L2 table describes.
    pub fn table_guest_bytes(&self) -> u64 {
        1 << (2 * self.layout.cluster_bits - self.entry_bits())
    }

    /// Slices of an L2 table.
    pub fn table_slices(&self) -> u64 {
        1 << (self.layout.cluster_bits - self.slice_bits)
    }

    /// Where the entry of the cluster that holds guest byte `guest` is.
    pub fn entry_at(&self, guest: u64) -> EntryAt {
        let cluster = guest >> self.layout.cluster_bits;
        let entries_bits = self.slice_bits - self.entry_bits();
        EntryAt {
            slice: cluster >> entries_bits,
            index: (cluster & ((1 << entries_bits) - 1)) as usize,
        }
    }

    /// The first guest byte that a slice describes.
    pub fn slice_guest(&self, slice: u64) -> u64 {
        slice * self.slice_guest_bytes()
    }

    /// Which L1 entry has the table of a slice.
    pub fn l1_index(&self, slice: u64) -> usize {
        (slice >> (self.layout.cluster_bits - self.slice_bits)) as usize
    }

    /// Where in its table a slice begins, in bytes.
    pub fn slice_in_table(&self, slice: u64) -> u64 {
        (slice & (self.table_slices() - 1)) << self.slice_bits
    }

    /// L1 entries that a disk of `size_bytes` needs.
    pub fn l1_entries(&self, size_bytes: u64) -> u64 {
        size_bytes.div_ceil(self.table_guest_bytes())
    }

    /// Where the host cluster of an offset begins.
    pub fn cluster_start(&self, at: u64) -> u64 {
        at & !(self.cluster_bytes() - 1)
    }

    /// How far into its cluster an offset is.
    pub fn within_cluster(&self, at: u64) -> u64 {
        at & (self.cluster_bytes() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::super::format::entry::{DataIn, ZeroFlag};
    use super::*;

    fn geometry(cluster_bits: u32, words: Words) -> Geometry {
        let layout = Layout {
            cluster_bits,
            words,
            data: DataIn::Image,
            zero_flag: ZeroFlag::Known,
        };
        Geometry::new(layout, SLICE_BITS_DEFAULT)
    }

    #[test]
    fn the_default_image_has_slices_of_32_mib() {
        let geometry = geometry(16, Words::One);
        assert_eq!(geometry.slice_guest_bytes(), 32 << 20);
        assert_eq!(geometry.table_guest_bytes(), 512 << 20);
        assert_eq!(geometry.table_slices(), 16);
        let guest = (512 << 20) + (32 << 20) + 3 * 65536 + 17;
        let at = geometry.entry_at(guest);
        let (slice, index) = (17, 3);
        assert_eq!(at, EntryAt { slice, index });
        assert_eq!(geometry.l1_index(17), 1);
        assert_eq!(geometry.slice_in_table(17), 4096);
        assert_eq!(geometry.slice_guest(17), (512 << 20) + (32 << 20));
    }

    #[test]
    fn extended_entries_halve_what_a_table_describes() {
        let geometry = geometry(16, Words::Two);
        assert_eq!(geometry.table_guest_bytes(), 256 << 20);
        assert_eq!(geometry.subcluster_bytes(), 2048);
        assert_eq!(geometry.l1_entries((256 << 20) + 1), 2);
    }

    #[test]
    fn small_clusters_have_tables_of_one_slice() {
        let geometry = geometry(9, Words::One);
        assert_eq!((geometry.slice_bytes(), geometry.table_slices()), (512, 1));
        assert_eq!(geometry.entry_at(32768), EntryAt { slice: 1, index: 0 });
    }
}
