//! Persistent bitmaps of an image: what its directory says of them, and the flag IN_USE.
//!
//! The rule: a bitmap that is not said to be in use is right. So all of them are said to be in use, durably, before the first
//! change of what the guest sees, and of what they say in memory; and not any more once they are stored (`bitmaps/store.rs`).

mod directory;
mod error;
mod load;
mod store;

pub use error::{NotKept, StoreError};
pub(crate) use load::load_bitmaps;

use super::Qcow2;
use super::damage::Damage;
use super::format::bitmap_dir::{
    Bitmap, BitmapError, FIXED_BYTES, NAME_BYTES_MAX, Of, STORED_BYTES_MAX, Stored,
    TABLE_ENTRIES_MAX,
};
use super::format::bitmap_edit::Directory;
use super::format::extensions::{BITMAP_DIRECTORY_BYTES_MAX, BITMAPS_MAX, BitmapsAt};
use super::format::header::{self, Header};
use super::image_file::ImageFile;
use super::overlap::{Region, Section};
use crate::bitmap::{DirtyBitmap, Keeping};
use crate::io::Io;
use crate::node::Outcome;
use crate::units::Span;
use ring::Errno;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One at a time.
const ONE: Span = Span { at: 0, len: 1 };

/// The bitmaps of an open image, in the order of its directory, as they are on disk; one of which that is not known is said not
/// to be in use.
#[derive(Debug, Default)]
pub(crate) struct Bitmaps(Mutex<Vec<Bitmap>>);

impl Bitmaps {
    /// Of an image that was just opened.
    pub(crate) fn new(bitmaps: Vec<Bitmap>) -> Bitmaps {
        Bitmaps(Mutex::new(bitmaps))
    }

    /// Never held across an await.
    fn list(&self) -> MutexGuard<'_, Vec<Bitmap>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The directory has these.
    fn replace(&self, bitmaps: Vec<Bitmap>) {
        *self.list() = bitmaps;
    }
}

/// Reads the directory of the image that has this header, if it has a valid one. Errors: EIO and the like as `Err`, what is
/// wrong with the directory as `Ok(Err)`.
pub(crate) async fn read_directory(
    file: &ImageFile,
    header: &Header,
) -> Result<Result<Vec<Bitmap>, BitmapError>, Errno> {
    let header::Bitmaps::Valid(at) = header.bitmaps else {
        return Ok(Ok(Vec::new()));
    };
    // At most 64 MiB: the header is checked.
    let bytes = file.read(at.at, at.len_bytes as usize).await?;
    let directory = Directory::parse(bytes, at.count, of(header));
    Ok(directory.map(|directory| directory.bitmaps().to_vec()))
}

/// What the tables of an image with this header are measured by.
pub(crate) fn of(header: &Header) -> Of {
    Of {
        cluster_bytes: header.cluster_bytes(),
        size_bytes: header.size_bytes,
    }
}

/// Has somebody written who did not know bitmaps? Then what became of them, in QEMU's words.
pub(crate) fn stale_warning(header: &Header) -> Option<&'static str> {
    match (header.bitmaps, header.version) {
        (header::Bitmaps::Stale, header::Version::V2) => Some(
            "This qcow2 v2 image contains bitmaps, but they may have been modified by a program without persistent bitmap \
             support; so now they must all be considered inconsistent",
        ),
        (header::Bitmaps::Stale, header::Version::V3) => Some(
            "a program lacking bitmap support modified this file, so all bitmaps are now considered inconsistent",
        ),
        _ => None,
    }
}

impl Qcow2 {
    /// The bitmaps in the image, as its directory has them.
    pub fn bitmaps(&self) -> Vec<Bitmap> {
        self.bitmaps.list().clone()
    }

    /// Can the image keep another bitmap besides those that its node has? Errors: why not.
    pub(crate) fn may_keep(
        &self,
        name: &str,
        granularity_bytes: u32,
        others: &[Arc<DirtyBitmap>],
    ) -> Result<(), NotKept> {
        let header = self.header();
        let bits = header.size_bytes.div_ceil(u64::from(granularity_bytes));
        let bytes = bits.div_ceil(8);
        let most = u64::from(TABLE_ENTRIES_MAX).saturating_mul(header.cluster_bytes());
        let kept = others.iter().filter(|b| b.keeping() == Keeping::Persistent);
        let names = kept.map(|bitmap| bitmap.name()).chain([name]);
        let (mut count, mut directory_bytes) = (0, 0);
        for name in names {
            count += 1;
            directory_bytes += (FIXED_BYTES + name.len()).next_multiple_of(8) as u64;
        }
        if header.version == header::Version::V2 {
            Err(NotKept::OldVersion)
        } else if bytes > STORED_BYTES_MAX.min(most) {
            Err(NotKept::TooLarge)
        } else if name.len() > NAME_BYTES_MAX {
            Err(NotKept::LongName)
        } else if count > BITMAPS_MAX {
            Err(NotKept::TooMany)
        } else if directory_bytes > BITMAP_DIRECTORY_BYTES_MAX {
            Err(NotKept::DirectoryFull)
        } else {
            Ok(())
        }
    }

    /// Before the first change of what the guest sees; the caller holds `opening`.
    pub(super) async fn end_recording(&self, io: &Io) -> Outcome {
        self.mark_bitmaps(io, Stored::InUse, |_, _| true).await
    }

    /// Says of all of them that they are in use, if the image has any: before what they say in memory may differ.
    pub(crate) async fn record_bitmaps(&self, io: &Io) -> Outcome {
        self.open_for_metadata(io).await?;
        let _opening = self.writer.opening.hold(ONE).await;
        self.end_recording(io).await
    }

    /// Says of all of them that were right before that they are: what [`Qcow2::record_bitmaps`] said is not to be so.
    pub(crate) async fn trust_bitmaps(&self, io: &Io, before: &[Bitmap]) -> Outcome {
        let _opening = self.writer.opening.hold(ONE).await;
        self.edit_directory(io, |directory| {
            let all = before.iter().enumerate();
            let right = all.filter(|(_, bitmap)| bitmap.stored == Stored::Whole);
            right.for_each(|(index, _)| directory.set_stored(index, Stored::Whole));
        })
        .await
    }

    /// Nothing that the guest sees is written any more before the image was opened for that again; nothing is under way.
    fn end_writing(&self) {
        self.may_map_writes.store(false, Ordering::Release);
        self.writer.step_back();
    }

    /// The tables of all of them for a disk of that size. Errors: one that could not be stored.
    pub(super) fn may_fit(&self, size_bytes: u64) -> Result<(), BitmapError> {
        let cluster_bytes = self.geometry.cluster_bytes();
        let of = Of {
            cluster_bytes,
            size_bytes,
        };
        for bitmap in self.bitmaps() {
            let entries = bitmap.entries_for(of);
            let bytes = entries.saturating_mul(cluster_bytes);
            if entries > u64::from(TABLE_ENTRIES_MAX) || bytes > STORED_BYTES_MAX {
                return Err(BitmapError::Constraints(bitmap.text()));
            }
        }
        Ok(())
    }

    /// Says of some bitmaps, durably, whether they can be trusted from now on. They are chosen by index and entry. Should it fail
    /// nobody knows which of the two it says.
    async fn mark_bitmaps(
        &self,
        io: &Io,
        stored: Stored,
        which: impl Fn(usize, &Bitmap) -> bool,
    ) -> Outcome {
        let chosen: Vec<usize> = {
            let list = self.bitmaps.list();
            let list = list.iter().enumerate();
            let changed =
                list.filter(|(index, bitmap)| bitmap.stored != stored && which(*index, bitmap));
            changed.map(|(index, _)| index).collect()
        };
        let set = |stored| {
            let mut list = self.bitmaps.list();
            for &index in &chosen {
                list[index].stored = stored;
            }
        };
        if chosen.is_empty() {
            return Ok(());
        }
        set(Stored::Whole);
        self.edit_directory(io, |directory| {
            for &index in &chosen {
                directory.set_stored(index, stored);
            }
        })
        .await?;
        set(stored);
        Ok(())
    }

    /// Changes the directory where it stands, durably. Errors: EIO if it is not what it was, or where other metadata is; the
    /// image is corrupt then.
    async fn edit_directory(&self, io: &Io, edit: impl FnOnce(&mut Directory)) -> Outcome {
        let header = self.header();
        let header::Bitmaps::Valid(at) = header.bitmaps else {
            return Ok(());
        };
        let file = ImageFile::new(io, self.file(io)?);
        let bytes = file.read(at.at, at.len_bytes as usize).await?;
        let mut directory = match Directory::parse(bytes, at.count, of(&header)) {
            Ok(directory) => directory,
            Err(error) => {
                self.corrupt(io, Damage::from(error)).await;
                return Err(Errno::IO);
            }
        };
        self.check_directory(io, at).await?;
        edit(&mut directory);
        file.write(at.at, directory.bytes()).await?;
        file.flush().await
    }

    /// The directory must not be where other metadata is.
    async fn check_directory(&self, io: &Io, at: BitmapsAt) -> Outcome {
        let region = Region::new(Section::BitmapDirectory, at.at, at.len_bytes);
        let conflict = self.conflict(&self.meta(), region);
        match conflict {
            None => Ok(()),
            Some(damage) => {
                self.corrupt(io, damage).await;
                Err(Errno::IO)
            }
        }
    }
}
