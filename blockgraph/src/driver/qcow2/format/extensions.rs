//! Header extensions: typed records between the header's fields and the backing file's name.
//!
//! The rule (qcow2.txt, "Header extensions"): an extension without a name here is kept, byte for byte.

use super::bytes::{pad8, slice_at, u32_at, u64_at};
use super::header::HeaderError;

const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const FEATURE_NAMES: u32 = 0x6803_f857;
const BITMAPS: u32 = 0x2385_2875;
const ENCRYPTION: u32 = 0x0537_be77;
const DATA_FILE: u32 = 0x4441_5441;

/// QEMU's limit: the name of a format driver, with its end.
const FORMAT_BYTES_MAX: usize = 15;
/// QEMU's limit on the number of bitmaps.
pub const BITMAPS_MAX: u32 = 65535;
/// QEMU's limit on the bitmap directory.
pub const BITMAP_DIRECTORY_BYTES_MAX: u64 = 1024 * BITMAPS_MAX as u64;

/// Where the bitmap directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitmapsAt {
    /// How many bitmaps: 1 to [`BITMAPS_MAX`].
    pub count: u32,
    /// The directory's length, at most [`BITMAP_DIRECTORY_BYTES_MAX`].
    pub len_bytes: u64,
    /// The directory's offset, a multiple of the cluster size.
    pub at: u64,
}

/// An extension without a name here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown {
    /// Its type.
    pub kind: u32,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// All extensions of a header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extensions {
    /// The backing file's format.
    pub backing_format: Option<String>,
    /// The data file's name.
    pub data_file: Option<String>,
    /// The feature name table as stored; made anew when written.
    pub feature_names: Vec<u8>,
    /// The bitmaps extension as stored, to be read by [`parse_bitmaps`] if the autoclear bit says it is valid.
    pub bitmaps: Option<Vec<u8>>,
    /// The pointer to the LUKS header, if there is one.
    pub encryption: Option<Vec<u8>>,
    /// The rest, in order.
    pub unknown: Vec<Unknown>,
}

/// Takes apart `area`, which ends where the backing file's name or the first cluster does.
pub fn parse(area: &[u8]) -> Result<Extensions, HeaderError> {
    let mut all = Extensions::default();
    let mut at = 0;
    // Fewer than eight bytes left are an end, as is type 0.
    while let (Some(kind), Some(len)) = (u32_at(area, at), u32_at(area, at + 4)) {
        if kind == END {
            break;
        }
        let len = len as usize;
        let bytes = slice_at(area, at + 8, len).ok_or(HeaderError::ExtensionTooLarge)?;
        take(&mut all, kind, bytes)?;
        at += 8 + len.next_multiple_of(8);
    }
    Ok(all)
}

fn take(all: &mut Extensions, kind: u32, bytes: &[u8]) -> Result<(), HeaderError> {
    match kind {
        BACKING_FORMAT if bytes.len() > FORMAT_BYTES_MAX => {
            return Err(HeaderError::BackingFormatTooLong(bytes.len()));
        }
        BACKING_FORMAT => all.backing_format = Some(text(bytes, "backing format")?),
        DATA_FILE => all.data_file = Some(text(bytes, "data file name")?),
        FEATURE_NAMES => all.feature_names = bytes.to_vec(),
        BITMAPS => all.bitmaps = Some(bytes.to_vec()),
        ENCRYPTION => all.encryption = Some(bytes.to_vec()),
        kind => all.unknown.push(Unknown {
            kind,
            bytes: bytes.to_vec(),
        }),
    }
    Ok(())
}

/// A name inside the image: text up to the first NUL.
pub(super) fn text(bytes: &[u8], what: &'static str) -> Result<String, HeaderError> {
    let bytes = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
    let text = std::str::from_utf8(bytes).map_err(|_| HeaderError::NotText(what))?;
    Ok(text.to_owned())
}

/// Reads the bitmaps extension (qcow2.txt, "Bitmaps extension").
pub fn parse_bitmaps(bytes: &[u8], cluster_bytes: u64) -> Result<BitmapsAt, HeaderError> {
    let (Some(count), Some(reserved), Some(len_bytes), Some(at), 24) = (
        u32_at(bytes, 0),
        u32_at(bytes, 4),
        u64_at(bytes, 8),
        u64_at(bytes, 16),
        bytes.len(),
    ) else {
        return Err(HeaderError::BitmapsLength);
    };
    if reserved != 0 {
        return Err(HeaderError::BitmapsReserved);
    }
    if count > BITMAPS_MAX {
        return Err(HeaderError::BitmapsCount(count));
    }
    if count == 0 {
        return Err(HeaderError::BitmapsNone);
    }
    if at == 0 || !at.is_multiple_of(cluster_bytes) || at > i64::MAX as u64 {
        return Err(HeaderError::BitmapsOffset);
    }
    if len_bytes > BITMAP_DIRECTORY_BYTES_MAX {
        return Err(HeaderError::BitmapsDirectoryTooLarge(len_bytes));
    }
    if len_bytes == 0 {
        return Err(HeaderError::BitmapsDirectoryEmpty);
    }
    Ok(BitmapsAt {
        count,
        len_bytes,
        at,
    })
}

/// What is written: the extensions in the order other programs are used to. `feature_names` is empty to leave it out.
pub(super) fn encode(
    all: &Extensions,
    bitmaps: Option<BitmapsAt>,
    feature_names: &[u8],
) -> Vec<u8> {
    let mut out = Vec::new();
    if let Some(format) = &all.backing_format {
        put(&mut out, BACKING_FORMAT, format.as_bytes());
    }
    if let Some(name) = &all.data_file {
        put(&mut out, DATA_FILE, name.as_bytes());
    }
    if let Some(encryption) = &all.encryption {
        put(&mut out, ENCRYPTION, encryption);
    }
    if !feature_names.is_empty() {
        put(&mut out, FEATURE_NAMES, feature_names);
    }
    if let Some(bitmaps) = bitmaps {
        put(&mut out, BITMAPS, &bitmaps.encode());
    }
    for unknown in &all.unknown {
        put(&mut out, unknown.kind, &unknown.bytes);
    }
    out.extend_from_slice(&[0; 8]);
    out
}

impl BitmapsAt {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(24);
        out.extend_from_slice(&self.count.to_be_bytes());
        out.extend_from_slice(&0u32.to_be_bytes());
        out.extend_from_slice(&self.len_bytes.to_be_bytes());
        out.extend_from_slice(&self.at.to_be_bytes());
        out
    }
}

fn put(out: &mut Vec<u8>, kind: u32, bytes: &[u8]) {
    out.extend_from_slice(&kind.to_be_bytes());
    // Everything put here came out of one cluster or is a name, so the length fits.
    out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    out.extend_from_slice(bytes);
    pad8(out);
}
