//! An image as a checker sees it: its header, its snapshots, its file; nobody else is at it.

use super::CheckError;
use crate::driver::qcow2::format::bitmap_dir::{self, Bitmap};
use crate::driver::qcow2::format::header::{Bitmaps, Header, PREFIX_BYTES, Strictness, TableAt};
use crate::driver::qcow2::format::snapshot_table::{self, Snapshot, SnapshotError};
use crate::driver::qcow2::image_file::ImageFile;
use crate::driver::qcow2::width::Width;
use ring::Errno;

/// An entry of a snapshot table is at most so long: fixed part, extra data, two names, padding.
const ENTRY_BYTES_MAX: usize = 40 + 1024 + 2 * 65535 + 8;
/// Bytes of the snapshot table that are looked at together.
const WINDOW_BYTES: usize = 1 << 20;

/// The image.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) file: ImageFile,
    pub(super) header: Header,
    pub(super) width: Width,
    pub(super) snapshots: Vec<Snapshot>,
    pub(super) bitmaps: Vec<Bitmap>,
    /// Length of the snapshot table.
    pub(super) snapshots_bytes: u64,
    /// Length of the file.
    pub(super) file_bytes: u64,
    /// What refers to clusters besides what the header leads to.
    pub(super) extra: Extra,
}

/// Structures that the header does not lead to yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extra {
    /// L1 tables, with all they lead to.
    pub(crate) l1: Vec<TableAt>,
    /// Other regions: offset and length in bytes.
    pub(crate) regions: Vec<(u64, u64)>,
}

/// Reads and checks the header.
pub(crate) async fn read_header(file: &ImageFile) -> Result<Header, CheckError> {
    let prefix = file.read(0, PREFIX_BYTES).await?;
    let cluster_bytes = Header::cluster_bytes_of(&prefix)?;
    let cluster = file.read(0, cluster_bytes).await?;
    Ok(Header::parse(&cluster, Strictness::Check)?)
}

/// Reads the snapshot table; also says how long it is. Errors: EFBIG, and those of the entries, come as `Snapshots`.
pub(crate) async fn read_snapshots(
    file: &ImageFile,
    header: &Header,
) -> Result<(Vec<Snapshot>, u64), CheckError> {
    let mut table = Vec::new();
    let (mut window, mut window_at) = (Vec::new(), 0);
    let mut within = 0;
    for number in 0..header.snapshots.count as usize {
        if window.len().saturating_sub(within) < ENTRY_BYTES_MAX {
            window_at += within as u64;
            within = 0;
            let at = header.snapshots.at.saturating_add(window_at);
            window = file.read(at, WINDOW_BYTES).await?;
        }
        let entry = window.get(within..).unwrap_or_default();
        table.push(Snapshot::parse(entry, number)?);
        let len = snapshot_table::entry_bytes(entry).ok_or(SnapshotError::Short(number))?;
        within += len as usize;
        if window_at + within as u64 > snapshot_table::TABLE_BYTES_MAX {
            return Err(SnapshotError::TooBig.into());
        }
    }
    Ok((table, window_at + within as u64))
}

impl Image {
    pub(super) async fn read(file: ImageFile) -> Result<Image, CheckError> {
        let header = read_header(&file).await?;
        let (snapshots, snapshots_bytes) = read_snapshots(&file, &header).await?;
        let bitmaps = read_bitmaps(&file, &header).await?;
        let file_bytes = file.size_bytes();
        Ok(Image {
            // Checked when the header was parsed.
            width: Width::from_order(header.refcount_order).unwrap_or_default(),
            file,
            header,
            snapshots,
            bitmaps,
            snapshots_bytes,
            file_bytes,
            extra: Extra::default(),
        })
    }

    /// Host clusters of the file; the last one may be there in part.
    pub(super) fn clusters(&self) -> u64 {
        self.file_bytes.div_ceil(self.header.cluster_bytes())
    }

    /// Refcounts in a block.
    pub(super) fn per_block(&self) -> u64 {
        1 << self.width.block_bits(self.header.cluster_bits)
    }

    pub(super) async fn refcount_table(&self) -> Result<Vec<u64>, Errno> {
        let table = self.header.refcount_table;
        let len = u64::from(table.count) << self.header.cluster_bits;
        read_words(&self.file, table.at, len as usize / 8).await
    }
}

/// `count` big-endian words at `at`; the caller knows that there are not too many.
pub(super) async fn read_words(file: &ImageFile, at: u64, count: usize) -> Result<Vec<u64>, Errno> {
    let bytes = file.read(at, count * 8).await?;
    let words = bytes.chunks_exact(8);
    Ok(words
        .filter_map(|word| Some(u64::from_be_bytes(word.try_into().ok()?)))
        .collect())
}

async fn read_bitmaps(file: &ImageFile, header: &Header) -> Result<Vec<Bitmap>, CheckError> {
    let Bitmaps::Valid(at) = header.bitmaps else {
        return Ok(Vec::new());
    };
    // At most 64 MiB, by the header's own check.
    let bytes = file.read(at.at, at.len_bytes as usize).await?;
    let of = bitmap_dir::Of {
        cluster_bytes: header.cluster_bytes(),
        size_bytes: header.size_bytes,
    };
    Ok(bitmap_dir::parse_directory(&bytes, at.count, of)?)
}
