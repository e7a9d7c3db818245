//! Why a header is refused.
//!
//! The rule: the words are QEMU's where it has any.

use crate::driver::qcow2::format::extensions;

/// Why a header is refused. The words are QEMU's where it has any.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each message is the documentation
pub enum HeaderError {
    #[error("Image is not in qcow2 format")]
    Magic,
    #[error("Unsupported qcow2 version {0}")]
    Version(u32),
    #[error("Unsupported cluster size: 2^{0}")]
    ClusterBits(u32),
    #[error("qcow2 header too short")]
    TooShort,
    #[error("qcow2 header exceeds cluster size")]
    TooLong,
    #[error("Invalid backing file offset")]
    BackingOffset,
    #[error("Backing file name too long")]
    BackingTooLong,
    #[error("ERROR: ext_backing_format: len={0} too large (>=16)")]
    BackingFormatTooLong(usize),
    #[error("Header extension too large")]
    ExtensionTooLarge,
    #[error("The {0} in the image is not valid UTF-8")]
    NotText(&'static str),
    #[error("Unsupported qcow2 feature(s): {0}")]
    Features(String),
    #[error("Reference count entry width too large; may not exceed 64 bits")]
    RefcountOrder,
    #[error("Encrypted images are not supported (encryption method {0})")]
    Encrypted(u32),
    #[error("Unsupported encryption method {0}")]
    EncryptionMethod(u32),
    #[error("CRYPTO header extension only expected with LUKS encryption method")]
    StrayEncryption,
    #[error("Unsupported subcluster size: {0}")]
    SubclusterBytes(u64),
    #[error("qcow2: unknown compression type: {0}")]
    Compression(u8),
    #[error("qcow2: Compression type incompatible feature bit must be set")]
    CompressionBitMissing,
    #[error("qcow2: Compression type incompatible feature bit must not be set")]
    CompressionBitStray,
    #[error("data-file-raw requires a data file")]
    RawWithoutDataFile,
    #[error("Image is too big")]
    TooBig,
    #[error("L1 table is too small")]
    L1TooSmall,
    #[error("{0} too large")]
    TableTooLarge(&'static str),
    #[error("{0} offset invalid")]
    TableOffset(&'static str),
    #[error("Image does not contain a reference count table")]
    NoRefcountTable,
    #[error("bitmaps_ext: Invalid extension length")]
    BitmapsLength,
    #[error("bitmaps_ext: Reserved field is not zero")]
    BitmapsReserved,
    #[error(
        "bitmaps_ext: Image has {0} bitmaps, exceeding the QEMU supported maximum of {max}",
        max = extensions::BITMAPS_MAX
    )]
    BitmapsCount(u32),
    #[error("found bitmaps extension with zero bitmaps")]
    BitmapsNone,
    #[error("bitmaps_ext: invalid bitmap directory offset")]
    BitmapsOffset,
    #[error(
        "bitmaps_ext: bitmap directory size ({0}) exceeds the maximum supported size ({max})",
        max = extensions::BITMAP_DIRECTORY_BYTES_MAX
    )]
    BitmapsDirectoryTooLarge(u64),
    #[error("Requested bitmap directory size is zero")]
    BitmapsDirectoryEmpty,
    #[error("the header does not fit in one cluster")]
    DoesNotFit,
}
