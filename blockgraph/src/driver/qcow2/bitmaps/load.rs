//! Bitmaps out of an image, when it is opened.
//!
//! The rule: memory is taken before anything is read for it, so an image cannot have more read than the memory that all bitmaps
//! share; of one that is in use nothing is read at all.

use crate::bitmap::{self, BitmapMemory, DirtyBitmap, State};
use crate::driver::qcow2::Qcow2Error;
use crate::driver::qcow2::format::bitmap_dir::{
    Bitmap, BitmapError, Of, Recording, Stored, TableEntry,
};
use crate::driver::qcow2::image_file::ImageFile;
use crate::io::Io;
use crate::node::NodeId;
use ring::Errno;
use std::collections::BTreeSet;
use std::sync::Arc;

/// What the bitmaps of the image in `file` say, in the order of its directory. Errors: one that cannot be read, two of one
/// name, and no memory.
pub(crate) async fn load_bitmaps(
    io: &Io,
    file: NodeId,
    (bitmaps, of): (Vec<Bitmap>, Of),
) -> Result<Vec<Arc<DirtyBitmap>>, Qcow2Error> {
    let memory = io.graph().bitmap_memory().clone();
    let file = ImageFile::new(io, file);
    let mut names = BTreeSet::new();
    let mut loaded = Vec::new();
    for bitmap in bitmaps {
        let new = in_memory(&bitmap, of, &memory).map_err(Qcow2Error::BitmapMemory)?;
        if !names.insert(bitmap.text()) {
            return Err(Qcow2Error::BitmapMemory(bitmap::BitmapError::Exists(
                bitmap.text(),
            )));
        }
        if bitmap.stored == Stored::Whole {
            read(&file, &bitmap, &new, of).await?;
        }
        loaded.push(Arc::new(new));
    }
    Ok(loaded)
}

fn in_memory(
    bitmap: &Bitmap,
    of: Of,
    memory: &Arc<BitmapMemory>,
) -> Result<DirtyBitmap, bitmap::BitmapError> {
    let state = match (bitmap.stored, bitmap.recording) {
        (Stored::InUse, _) => State::Inconsistent,
        (Stored::Whole, Recording::Auto) => State::Recording,
        (Stored::Whole, Recording::Disabled) => State::Disabled,
    };
    let granularity_bytes = 1 << bitmap.granularity_bits;
    DirtyBitmap::of_image(
        bitmap.text(),
        granularity_bytes,
        of.size_bytes,
        state,
        memory,
    )
}

/// The table has as many entries as the disk needs: that was checked.
async fn read(
    file: &ImageFile,
    bitmap: &Bitmap,
    to: &DirtyBitmap,
    of: Of,
) -> Result<(), Qcow2Error> {
    let table_error = |errno| BitmapError::Table {
        name: bitmap.text(),
        errno,
    };
    let bits_error = |errno| BitmapError::Bits {
        name: bitmap.text(),
        errno,
    };
    let table_bytes = u64::from(bitmap.table_entries) * 8;
    let bytes = read_all(file, bitmap.table_at, table_bytes).await;
    let bytes = bytes.map_err(table_error)?;
    let table = decode_table(&bytes, of);
    let table = table.ok_or_else(|| table_error(Errno::INVAL))?;
    let mut from = 0;
    for entry in table {
        match entry {
            TableEntry::Zeroes => {}
            TableEntry::Ones => to.load_ones(from, of.cluster_bytes),
            TableEntry::At(at) => {
                let len = to.len_bytes().saturating_sub(from).min(of.cluster_bytes);
                let bytes = read_all(file, at, len).await;
                let bytes = bytes.map_err(bits_error)?;
                to.load_bytes(from, &bytes);
            }
        }
        from += of.cluster_bytes;
    }
    Ok(())
}

/// What a file has lost reads as zeroes elsewhere; here that would be a bitmap that misses something. Errors: EIO for that.
async fn read_all(file: &ImageFile, at: u64, len: u64) -> Result<Vec<u8>, Errno> {
    match at.checked_add(len) {
        Some(end) if end <= file.size_bytes() => file.read(at, len as usize).await,
        _ => Err(Errno::IO),
    }
}

/// `None` for words that mean nothing.
pub(super) fn decode_table(bytes: &[u8], of: Of) -> Option<Vec<TableEntry>> {
    let words = bytes.as_chunks().0.iter();
    let entries = words.map(|word| {
        let word = u64::from_be_bytes(*word);
        TableEntry::decode(word, of.cluster_bytes)
    });
    entries.collect::<Result<_, _>>().ok()
}
