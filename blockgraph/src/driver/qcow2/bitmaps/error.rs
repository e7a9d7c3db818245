//! Why a bitmap does not get into an image, or out of it.

use crate::driver::qcow2::format::bitmap_dir::NAME_BYTES_MAX;
use crate::graph::errno_text;
use ring::Errno;
use thiserror::Error;

/// Why an image cannot keep a bitmap; the words are QEMU's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NotKept {
    /// Nothing in it would tell that somebody wrote who knows no bitmaps.
    #[error("Cannot store dirty bitmaps in qcow2 v2 files")]
    OldVersion,
    /// More than the format has room for.
    #[error("Too much space will be occupied by the bitmap. Use larger granularity")]
    TooLarge,
    /// Its name.
    #[error("Name length exceeds maximum ({NAME_BYTES_MAX} characters)")]
    LongName,
    /// As many as there may be.
    #[error("Maximum number of persistent bitmaps is already reached")]
    TooMany,
    /// Their names.
    #[error("Not enough space in the bitmap directory")]
    DirectoryFull,
}

/// Why bitmaps were not stored, or one not taken out; the words are QEMU's. What is in the image then says of itself that it
/// cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StoreError {
    /// The image is not written.
    #[error("No write access")]
    ReadOnly,
    /// More than the format has room for, by name.
    #[error("Bitmap '{0}' is too big")]
    TooLarge(String),
    /// There is no room for it.
    #[error("Failed to allocate clusters for bitmap '{name}': {}", text(*.errno))]
    Allocate {
        /// Which.
        name: String,
        /// Why.
        errno: Errno,
    },
    /// What it says cannot be written.
    #[error("Failed to write bitmap '{name}' to file: {}", text(*.errno))]
    Write {
        /// Which.
        name: String,
        /// Why.
        errno: Errno,
    },
    /// The directory cannot be.
    #[error("Failed to update bitmap extension: {}", text(*.0))]
    Update(Errno),
}

fn text(errno: Errno) -> String {
    errno_text(&errno.into())
}
