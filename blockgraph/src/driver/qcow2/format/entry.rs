//! Entries of the L1 and L2 tables as closed types (qcow2.txt, "Cluster mapping" and "Extended L2 Entries").
//!
//! The rule: a table word becomes one of these types or is [`Malformed`]; nobody else looks at its bits. Bits that the
//! specification reserves must be zero: an entry that has one set means something we do not know.

use thiserror::Error;

/// Subclusters of a cluster with extended L2 entries.
pub const SUBCLUSTERS: u32 = 32;
/// Smallest cluster, as a power of two.
pub const CLUSTER_BITS_MIN: u32 = 9;
/// Largest cluster, as a power of two.
pub const CLUSTER_BITS_MAX: u32 = 21;
/// A compressed cluster's length is counted in these.
const COMPRESSED_SECTOR_BYTES: u64 = 512;

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
/// Bits 9 to 55.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Bits 56 to 62 and 0 to 8.
const L1_RESERVED: u64 = !(COPIED | OFFSET);
/// Bits 56 to 61 and 1 to 8.
const L2_RESERVED: u64 = !(COPIED | COMPRESSED | OFFSET | ZERO);

/// A table entry that no image may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Malformed {
    /// A reserved bit is set.
    #[error("reserved bits set in table entry {0:#018x}")]
    Reserved(u64),
    /// An offset is not at the beginning of a cluster.
    #[error("offset of table entry {0:#018x} is not aligned to a cluster")]
    Unaligned(u64),
    /// "Copied" is said of a cluster at offset 0, which holds the header.
    #[error("table entry {0:#018x} has the copied flag but no offset")]
    NoOffset(u64),
    /// A zero cluster where there is no such thing: in a version 2 image, or with extended entries.
    #[error("table entry {0:#018x} has a zero flag that the image's format does not have")]
    ZeroFlag(u64),
    /// A compressed cluster in an external data file.
    #[error("compressed cluster {0:#018x} in an image with an external data file")]
    CompressedInDataFile(u64),
    /// A cluster of an external data file that is not where the guest sees it.
    #[error("table entry {0:#018x} of an external data file does not match the guest's offset")]
    Moved(u64),
    /// A subcluster that is both data and zeroes, or data without a host cluster, or any for a compressed cluster.
    #[error("impossible subcluster bitmap {bitmap:#018x} for table entry {entry:#018x}")]
    Subclusters {
        /// The first word.
        entry: u64,
        /// The second.
        bitmap: u64,
    },
}

/// How many words an L2 entry has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Words {
    /// The standard layout.
    One,
    /// Extended entries: a descriptor and a subcluster bitmap.
    Two,
}

impl Words {
    /// As a number.
    pub fn count(self) -> u64 {
        match self {
            Words::One => 1,
            Words::Two => 2,
        }
    }
}

/// Where guest clusters are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataIn {
    /// In the image file.
    Image,
    /// In an external data file, at the very offset they have in the guest.
    DataFile,
}

/// May a standard entry have the zero flag?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroFlag {
    /// Version 3.
    Known,
    /// Version 2.
    Unknown,
}

/// What must be known of an image to read its L2 entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Cluster size as a power of two, 9 to 21.
    pub cluster_bits: u32,
    /// One word or two.
    pub words: Words,
    /// Where the clusters are.
    pub data: DataIn,
    /// Version 2 has no zero clusters.
    pub zero_flag: ZeroFlag,
}

/// An L1 entry: where an L2 table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L1Entry {
    /// Nowhere: all its clusters are unallocated.
    Absent,
    /// In the image file.
    Table {
        /// Offset in bytes.
        at: u64,
        /// Its refcount is exactly one, so it may be written in place.
        copied: bool,
    },
}

impl L1Entry {
    /// Reads a table word.
    pub fn decode(word: u64, cluster_bits: u32) -> Result<L1Entry, Malformed> {
        if word & L1_RESERVED != 0 {
            return Err(Malformed::Reserved(word));
        }
        let at = aligned(word, cluster_bits)?;
        match (at, word & COPIED != 0) {
            (0, false) => Ok(L1Entry::Absent),
            (0, true) => Err(Malformed::NoOffset(word)),
            (at, copied) => Ok(L1Entry::Table { at, copied }),
        }
    }

    /// The table word.
    pub fn encode(self) -> u64 {
        match self {
            L1Entry::Absent => 0,
            L1Entry::Table { at, copied } => at | flag(copied),
        }
    }
}

/// Which subclusters are data and which are zeroes; bit x is subcluster x, and none is both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Subclusters {
    /// Data in the host cluster.
    pub data: u32,
    /// Zeroes.
    pub zero: u32,
}

/// An L2 entry: what a guest cluster is. Offsets are in bytes of the image file, or of the data file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L2Entry {
    /// Deferred to the backing file.
    Unallocated,
    /// Zeroes, without a host cluster.
    Zero,
    /// Zeroes, with a host cluster that keeps the space.
    ZeroPrealloc {
        /// Where.
        host: u64,
        /// Its refcount is exactly one.
        copied: bool,
    },
    /// Data.
    Data {
        /// Where.
        host: u64,
        /// Its refcount is exactly one, so it may be written in place.
        copied: bool,
    },
    /// Compressed data, which begins at any byte and may end in another host cluster.
    Compressed {
        /// Where.
        host: u64,
        /// At most how long; the last sector may hold other things too.
        len_bytes: u64,
    },
    /// Only with extended entries, and only what none of the others says: subclusters of several kinds, or none of them
    /// allocated in a host cluster that is.
    Split {
        /// Where, if there is a host cluster.
        host: Option<u64>,
        /// Its refcount is exactly one.
        copied: bool,
        /// What each subcluster is.
        subclusters: Subclusters,
    },
}

/// What a piece of a guest cluster is. Offsets are those of its first byte, but for compressed clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Deferred to the backing file; `host` is space that is kept for it.
    Below {
        /// Where, if there is any.
        host: Option<u64>,
    },
    /// Zeroes; `host` is space that is kept for them.
    Zero {
        /// Where, if there is any.
        host: Option<u64>,
    },
    /// Data.
    Data {
        /// Where.
        host: u64,
        /// May it be written in place?
        copied: bool,
    },
    /// Part of a compressed cluster.
    Compressed {
        /// Where the whole cluster's compressed bytes begin.
        host: u64,
        /// At most how many they are.
        len_bytes: u64,
    },
}

impl L2Entry {
    /// What the cluster is at byte `within` of it, and for how many bytes from there on.
    #[inline]
    pub fn part(self, within: u64, cluster_bits: u32) -> (Part, u64) {
        let rest = (1u64 << cluster_bits) - within;
        let part = match self {
            L2Entry::Unallocated => Part::Below { host: None },
            L2Entry::Zero => Part::Zero { host: None },
            L2Entry::ZeroPrealloc { host, .. } => Part::Zero {
                host: Some(host + within),
            },
            L2Entry::Data { host, copied } => Part::Data {
                host: host + within,
                copied,
            },
            L2Entry::Compressed { host, len_bytes } => Part::Compressed { host, len_bytes },
            L2Entry::Split {
                host,
                copied,
                subclusters,
            } => return split_part(host, copied, subclusters, within, cluster_bits),
        };
        (part, rest)
    }

    /// The host cluster that a standard entry refers to, whatever its content.
    pub fn host_cluster(self) -> Option<u64> {
        match self {
            L2Entry::ZeroPrealloc { host, .. } | L2Entry::Data { host, .. } => Some(host),
            L2Entry::Split { host, .. } => host,
            L2Entry::Unallocated | L2Entry::Zero | L2Entry::Compressed { .. } => None,
        }
    }
}

fn split_part(
    host: Option<u64>,
    copied: bool,
    subclusters: Subclusters,
    within: u64,
    cluster_bits: u32,
) -> (Part, u64) {
    let sub_bits = cluster_bits - SUBCLUSTERS.trailing_zeros();
    let first = (within >> sub_bits) as u32;
    // From the first subcluster on, as many as are of its kind.
    let (data, zero) = (subclusters.data >> first, subclusters.zero >> first);
    let host = host.map(|host| host + within);
    let (part, same) = match (data & 1 != 0, zero & 1 != 0, host) {
        (true, _, Some(host)) => (Part::Data { host, copied }, data.trailing_ones()),
        (false, true, host) => (Part::Zero { host }, zero.trailing_ones()),
        // Data without a host cluster is not decoded; were it made up, it is nothing.
        (_, _, host) => (Part::Below { host }, (data | zero).trailing_zeros()),
    };
    let count = same.max(1).min(SUBCLUSTERS - first);
    let end = u64::from(first + count) << sub_bits;
    (part, end - within)
}

impl Layout {
    /// What [`Layout::decode`] makes of the entries that there are most of, found in a few steps: nothing, or data in the
    /// image file. `None` says that it has to be asked.
    #[inline]
    pub fn glance(self, [entry, bitmap]: [u64; 2]) -> Option<L2Entry> {
        if entry | bitmap == 0 {
            return Some(L2Entry::Unallocated);
        }
        let all = match self.words {
            Words::One => 0,
            Words::Two => u64::from(u32::MAX),
        };
        let clusters = OFFSET & !((1 << self.cluster_bits) - 1);
        let (host, copied) = (entry & clusters, entry & COPIED != 0);
        let is_data = host != 0 && entry & !(clusters | COPIED) == 0 && bitmap == all;
        (is_data && self.data == DataIn::Image).then_some(L2Entry::Data { host, copied })
    }

    /// Reads an entry; the second word counts only where entries have two.
    pub fn decode(self, words: [u64; 2]) -> Result<L2Entry, Malformed> {
        let [entry, bitmap] = words;
        if entry & COMPRESSED != 0 {
            return self.decode_compressed(words);
        }
        if entry & L2_RESERVED != 0 {
            return Err(Malformed::Reserved(entry));
        }
        let host = self.decode_host(entry)?;
        let copied = entry & COPIED != 0;
        match self.words {
            Words::One => self.decode_one(entry, host, copied),
            Words::Two if entry & ZERO != 0 => Err(Malformed::ZeroFlag(entry)),
            Words::Two => decode_two(entry, bitmap, host, copied),
        }
    }

    fn decode_one(self, entry: u64, host: Option<u64>, copied: bool) -> Result<L2Entry, Malformed> {
        let zero = entry & ZERO != 0;
        if zero && self.zero_flag == ZeroFlag::Unknown {
            return Err(Malformed::ZeroFlag(entry));
        }
        Ok(match (zero, host) {
            (false, None) => L2Entry::Unallocated,
            (false, Some(host)) => L2Entry::Data { host, copied },
            // Offset 0 of a data file is not told apart here: either way the space is there.
            (true, None | Some(0)) => L2Entry::Zero,
            (true, Some(host)) => L2Entry::ZeroPrealloc { host, copied },
        })
    }

    /// The host cluster of a standard entry. "The offset may only be 0 with bit 63 set [...] when an external data file
    /// is used."
    fn decode_host(self, entry: u64) -> Result<Option<u64>, Malformed> {
        let host = aligned(entry, self.cluster_bits)?;
        match (host, entry & COPIED != 0, self.data) {
            (0, false, _) => Ok(None),
            (0, true, DataIn::DataFile) => Ok(Some(0)),
            (0, true, DataIn::Image) => Err(Malformed::NoOffset(entry)),
            (host, _, _) => Ok(Some(host)),
        }
    }

    /// Bits of a compressed cluster's host offset ("x" in the specification).
    fn compressed_bits(self) -> u32 {
        62 - (self.cluster_bits - 8)
    }

    fn decode_compressed(self, [entry, bitmap]: [u64; 2]) -> Result<L2Entry, Malformed> {
        if self.data == DataIn::DataFile {
            return Err(Malformed::CompressedInDataFile(entry));
        }
        if self.words == Words::Two && bitmap != 0 {
            return Err(Malformed::Subclusters { entry, bitmap });
        }
        let bits = self.compressed_bits();
        let host = entry & ((1 << bits) - 1);
        // "If cluster_bits is small enough that this field includes bits beyond 55, those upper bits must be set to 0."
        if entry & COPIED != 0 || host >> 56 != 0 {
            return Err(Malformed::Reserved(entry));
        }
        let more_sectors = (entry & (COMPRESSED - 1)) >> bits;
        let len_bytes =
            (more_sectors + 1) * COMPRESSED_SECTOR_BYTES - host % COMPRESSED_SECTOR_BYTES;
        Ok(L2Entry::Compressed { host, len_bytes })
    }

    /// The words of an entry. A compressed cluster's length is rounded up to where its last sector ends; it takes at
    /// most two clusters' worth of sectors (see [`Layout::compressed_fits`]).
    pub fn encode(self, entry: L2Entry) -> [u64; 2] {
        let all = match self.words {
            Words::One => 0,
            Words::Two => u64::from(u32::MAX),
        };
        match (entry, self.words) {
            (L2Entry::Unallocated, _) => [0, 0],
            (L2Entry::Zero, Words::One) => [ZERO, 0],
            (L2Entry::Zero, Words::Two) => [0, all << 32],
            (L2Entry::ZeroPrealloc { host, copied }, Words::One) => [host | flag(copied) | ZERO, 0],
            (L2Entry::ZeroPrealloc { host, copied }, Words::Two) => {
                [host | flag(copied), all << 32]
            }
            (L2Entry::Data { host, copied }, _) => [host | flag(copied), all],
            (L2Entry::Compressed { host, len_bytes }, _) => {
                let sectors =
                    (host % COMPRESSED_SECTOR_BYTES + len_bytes).div_ceil(COMPRESSED_SECTOR_BYTES);
                let more = sectors.saturating_sub(1) << self.compressed_bits();
                [COMPRESSED | more | host, 0]
            }
            (
                L2Entry::Split {
                    host,
                    copied,
                    subclusters,
                },
                _,
            ) => {
                let Subclusters { data, zero } = subclusters;
                let first = host.map_or(0, |host| host | flag(copied));
                [first, u64::from(zero) << 32 | u64::from(data)]
            }
        }
    }

    /// Can an entry say that a compressed cluster begins at `host` and is `len_bytes` long?
    pub fn compressed_fits(self, host: u64, len_bytes: u64) -> bool {
        let bits = self.compressed_bits();
        let sectors = (host % COMPRESSED_SECTOR_BYTES)
            .saturating_add(len_bytes)
            .div_ceil(COMPRESSED_SECTOR_BYTES);
        let sectors_max = 1u64 << (62 - bits);
        host >> bits.min(56) == 0 && (1..=sectors_max).contains(&sectors)
    }
}

fn decode_two(
    entry: u64,
    bitmap: u64,
    host: Option<u64>,
    copied: bool,
) -> Result<L2Entry, Malformed> {
    let (data, zero) = (bitmap as u32, (bitmap >> 32) as u32);
    if data & zero != 0 || (data != 0 && host.is_none()) {
        return Err(Malformed::Subclusters { entry, bitmap });
    }
    Ok(match (host, data, zero) {
        (None, 0, 0) => L2Entry::Unallocated,
        (None, 0, u32::MAX) => L2Entry::Zero,
        (Some(host), 0, u32::MAX) => L2Entry::ZeroPrealloc { host, copied },
        (Some(host), u32::MAX, 0) => L2Entry::Data { host, copied },
        (host, data, zero) => L2Entry::Split {
            host,
            copied,
            subclusters: Subclusters { data, zero },
        },
    })
}

/// Is an L2 entry with this first word that of a compressed cluster?
pub fn is_compressed(word: u64) -> bool {
    word & COMPRESSED != 0
}

fn flag(copied: bool) -> u64 {
    if copied { COPIED } else { 0 }
}

fn aligned(word: u64, cluster_bits: u32) -> Result<u64, Malformed> {
    let at = word & OFFSET;
    match at & ((1 << cluster_bits) - 1) {
        0 => Ok(at),
        _ => Err(Malformed::Unaligned(word)),
    }
}

#[cfg(test)]
mod tests;
