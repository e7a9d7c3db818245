//! The disk made larger and smaller.
//!
//! The rule: what a larger disk has more reads as zeroes, whatever was there when it was larger before, and whatever a
//! backing file has there.

use super::Qcow2;
use super::check::CheckError;
use super::format::bitmap_dir::BitmapError;
use super::format::entry::L2Entry;
use super::format::header::{L1_BYTES_MAX, Version};
use super::meta::Why;
use super::restructure::{Still, Touched};
use super::snapshot::{DISK_AT, disk_fields};
use super::zero::Held;
use crate::driver::{SECTOR_BYTES, SIZE_BYTES_MAX};
use crate::filter::blkdebug::BlkdebugEvent;
use crate::graph::Role;
use crate::io::Io;
use crate::node::Outcome;
use crate::request::{Kind, Prealloc, Request, Unmap};
use crate::units::Span;
use ring::{Durability, Errno};
use std::cmp::Ordering;

/// Why the disk keeps its size. The words are QEMU's where it has any.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResizeFailure {
    /// Sizes are whole sectors.
    #[error("The new size must be a multiple of {SECTOR_BYTES}")]
    Sectors,
    /// Its snapshots do not say what size they are of.
    #[error("Can't resize a version 2 image which has snapshots")]
    OldSnapshots,
    /// A bitmap that would be wrong.
    #[error(transparent)]
    Bitmap(#[from] BitmapError),
    /// Nothing is new that could be set aside.
    #[error("Preallocation can't be used for shrinking an image")]
    ShrinkAndPreallocate,
    /// More than an L1 table can lead to.
    #[error("Failed to grow the L1 table: File too large")]
    TooLarge,
    /// The image.
    #[error("Failed to resize the image: {0}")]
    Image(CheckError),
}

impl From<Errno> for ResizeFailure {
    fn from(errno: Errno) -> ResizeFailure {
        ResizeFailure::Image(CheckError::File(errno))
    }
}

impl From<ResizeFailure> for Errno {
    fn from(failure: ResizeFailure) -> Errno {
        match failure {
            ResizeFailure::Sectors | ResizeFailure::ShrinkAndPreallocate => Errno::INVAL,
            ResizeFailure::OldSnapshots | ResizeFailure::Bitmap(_) => Errno::NOTSUP,
            ResizeFailure::TooLarge => Errno(libc::EFBIG),
            ResizeFailure::Image(CheckError::File(errno)) => errno,
            ResizeFailure::Image(_) => Errno::IO,
        }
    }
}

impl Qcow2 {
    /// Makes the disk `size_bytes` long. Errors: see [`ResizeFailure`]; the disk then has the size it had, and if space could
    /// not be set aside, what could be stays so.
    pub async fn resize(
        &self,
        io: &Io,
        size_bytes: u64,
        how: Prealloc,
    ) -> Result<(), ResizeFailure> {
        self.may_be(size_bytes, how)?;
        let before = self.disk_bytes();
        match size_bytes.cmp(&before) {
            Ordering::Less => self.shrink(io, before, size_bytes).await,
            Ordering::Equal => Ok(()),
            Ordering::Greater => self.grow_disk(io, before, size_bytes, how).await,
        }
    }

    fn may_be(&self, size_bytes: u64, how: Prealloc) -> Result<(), ResizeFailure> {
        if !size_bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(ResizeFailure::Sectors);
        }
        let header = self.header();
        if header.version == Version::V2 && header.snapshots.count > 0 {
            return Err(ResizeFailure::OldSnapshots);
        }
        if size_bytes != self.disk_bytes() {
            self.may_fit(size_bytes)?;
        }
        if size_bytes < self.disk_bytes() && how != Prealloc::Off {
            return Err(ResizeFailure::ShrinkAndPreallocate);
        }
        let l1_bytes = header.l1_entries_for(size_bytes).saturating_mul(8);
        if size_bytes > SIZE_BYTES_MAX || l1_bytes > L1_BYTES_MAX {
            return Err(ResizeFailure::TooLarge);
        }
        Ok(())
    }

    /// What is new is made to read as zeroes first, and has its space if that is asked; only then it is part of the disk.
    async fn grow_disk(
        &self,
        io: &Io,
        before: u64,
        size_bytes: u64,
        how: Prealloc,
    ) -> Result<(), ResizeFailure> {
        self.open_for_writing(io).await?;
        let new = Span {
            at: before,
            len: size_bytes - before,
        };
        let how = match (how, self.header().autoclear.data_file_raw) {
            // A raw data file is one only if all the metadata is there.
            (Prealloc::Off, true) => Prealloc::Metadata,
            (how, _) => how,
        };
        if how != Prealloc::Off || !self.shown_of_backing(io, new)?.is_empty() {
            let stale = self.stale_in_data_file(io, new)?;
            self.lengthen(io, before, size_bytes).await?;
            if let Err(errno) = self.fill_new(io, new, stale, how).await {
                // The first error is the one to tell.
                let _ = self.clear(io, new, Held::Not).await;
                return Err(errno.into());
            }
        } else {
            // Whoever made the disk smaller before may have left there what it had.
            self.zero_part(io, self.first_part(new), Unmap::Allow, Held::Not)
                .await?;
        }
        let still = self.still_of(io, before).await?;
        self.lengthen_data_file(io, size_bytes).await?;
        let entries = self.entries_for(size_bytes).max(self.meta().l1.len());
        self.switch_size(io, &still, size_bytes, entries).await
    }

    /// Nothing changes from here on. Two resize at once: the second sees what the first did, and gives up.
    async fn still_of(&self, io: &Io, size_bytes: u64) -> Result<Still<'_>, Errno> {
        let still = self.still(io, Touched::Disk).await?;
        match self.disk_bytes() == size_bytes {
            true => Ok(still),
            false => Err(Errno(libc::EBUSY)),
        }
    }

    fn entries_for(&self, size_bytes: u64) -> usize {
        self.meta().header.l1_entries_for(size_bytes) as usize
    }

    /// Room for what lies past the end of the disk.
    async fn lengthen(&self, io: &Io, before: u64, size_bytes: u64) -> Result<(), ResizeFailure> {
        let entries = self.entries_for(size_bytes);
        let still = self.still_of(io, before).await?;
        self.lengthen_data_file(io, size_bytes).await?;
        if entries <= self.meta().l1.len() {
            return Ok(());
        }
        self.switch_size(io, &still, before, entries).await
    }

    async fn lengthen_data_file(&self, io: &Io, size_bytes: u64) -> Outcome {
        let data = self.data(io)?;
        if data == self.file(io)? {
            return Ok(());
        }
        let there = io.graph().info(data).ok_or(Errno::IO)?.size_bytes;
        let needed = size_bytes.next_multiple_of(self.geometry.cluster_bytes());
        match there < needed {
            true => io.truncate(data, needed, Prealloc::Off).await,
            false => Ok(()),
        }
    }

    /// With an L1 table as long as it was the size in the header is all that changes; else the table moves.
    async fn switch_size(
        &self,
        io: &Io,
        still: &Still<'_>,
        size_bytes: u64,
        entries: usize,
    ) -> Result<(), ResizeFailure> {
        let mut plan = self.new_plan(io, Why::Other)?;
        let fields = {
            let meta = self.meta();
            if entries == meta.l1.len() {
                disk_fields(size_bytes, meta.header.l1)
            } else {
                let mut words = meta.l1.clone();
                plan.tells(self.tell_table(io, words.len(), entries));
                words.resize(entries, 0);
                disk_fields(size_bytes, plan.l1(&words))
            }
        };
        plan.switch(DISK_AT, fields);
        let done = self.restructure(io, still, plan).await;
        done.map_err(ResizeFailure::Image)
    }

    /// The L1 table is about to get another length. Returns what else is to be told.
    fn tell_table(&self, io: &Io, before: usize, after: usize) -> [Option<BlkdebugEvent>; 2] {
        if after < before {
            return [Some(BlkdebugEvent::L1ShrinkWriteTable), None];
        }
        self.tell(io, BlkdebugEvent::L1GrowAllocTable);
        let (write, activate) = (
            BlkdebugEvent::L1GrowWriteTable,
            BlkdebugEvent::L1GrowActivateTable,
        );
        [Some(write), Some(activate)]
    }

    /// What is new reads as zeroes, and has its space if that is asked.
    async fn fill_new(&self, io: &Io, new: Span, stale: Span, how: Prealloc) -> Outcome {
        let cluster = self.geometry.cluster_bytes();
        // A cluster that the end of the disk cuts is zeroed whole.
        let shown = self.shown_of_backing(io, new)?;
        let len = shown.end().next_multiple_of(cluster).saturating_sub(new.at);
        match shown.is_empty() {
            true => {
                self.zero_part(io, self.first_part(new), Unmap::Allow, Held::Not)
                    .await?;
            }
            false => {
                let shown = Span { at: new.at, len };
                self.write_zeroes(io, shown, Unmap::Allow, Durability::Cached)
                    .await?;
            }
        }
        if how == Prealloc::Metadata && !stale.is_empty() {
            let kind = Kind::WriteZeroes(Unmap::Allow, Durability::Cached);
            io.request(self.data(io)?, Request::plain(kind, stale))
                .await?;
        }
        if how != Prealloc::Off {
            self.preallocate(io, new, how).await?;
        }
        self.flush(io).await
    }

    /// What of `new` a data file has already. Nobody took away there what a disk that was larger before had, and metadata
    /// that is set aside leads to it.
    fn stale_in_data_file(&self, io: &Io, new: Span) -> Result<Span, Errno> {
        let data = self.data(io)?;
        if data == self.file(io)? {
            return Ok(new.first(0));
        }
        let there = io.graph().info(data).ok_or(Errno::IO)?.size_bytes;
        Ok(new.first(there.saturating_sub(new.at)))
    }

    /// A backing file longer than the disk was would show in what is new: there.
    fn shown_of_backing(&self, io: &Io, new: Span) -> Result<Span, Errno> {
        let Ok(below) = io.child(Role::Cow) else {
            return Ok(new.first(0));
        };
        let below_bytes = io.graph().info(below).ok_or(Errno::IO)?.size_bytes;
        Ok(new.first(below_bytes.saturating_sub(new.at)))
    }

    /// What of `span` lies in a cluster that begins before it.
    fn first_part(&self, span: Span) -> Span {
        let boundary = span.at.next_multiple_of(self.geometry.cluster_bytes());
        span.first(boundary - span.at)
    }

    async fn shrink(&self, io: &Io, before: u64, size_bytes: u64) -> Result<(), ResizeFailure> {
        let cut = Span {
            at: size_bytes,
            len: before - size_bytes,
        };
        self.open_for_writing(io).await?;
        // Should the disk grow again, what was there is gone. The bulk of it goes while guests go on ...
        self.clear(io, cut, Held::Not).await?;
        let still = self.still_of(io, before).await?;
        // ... and what they have written there meanwhile now.
        self.clear(io, cut, Held::ByCaller).await?;
        self.write_everything(io).await?;
        let entries = self.entries_for(size_bytes);
        self.switch_size(io, &still, size_bytes, entries).await?;
        if self.header().autoclear.data_file_raw {
            // Whole clusters are written.
            let whole = size_bytes.next_multiple_of(self.geometry.cluster_bytes());
            io.truncate(self.data(io)?, whole, Prealloc::Off).await?;
        }
        Ok(())
    }

    /// Frees what `cut` has, which ends where the disk does or beyond. Were it part of a disk again it would read as what a
    /// backing file has, which growing hides.
    async fn clear(&self, io: &Io, cut: Span, held: Held) -> Outcome {
        let part = self.first_part(cut);
        self.zero_part(io, part, Unmap::Allow, held).await?;
        let cluster = self.geometry.cluster_bytes();
        let mut rest = cut.after(part.len);
        if !rest.is_empty() {
            rest = rest.widened(cluster);
        }
        while !rest.is_empty() {
            let part = self.rest_of_slice(rest);
            self.clear_clusters(io, part, held).await?;
            self.keep_up(io).await?;
            rest = rest.after(part.len);
        }
        Ok(())
    }

    /// Clusters of one slice.
    async fn clear_clusters(&self, io: &Io, span: Span, held: Held) -> Outcome {
        let _hold = match held {
            Held::Not => Some(self.holds.hold(span).await),
            Held::ByCaller => None,
        };
        self.zero_data_file(io, span, Unmap::Allow).await?;
        let change = |_| L2Entry::Unallocated;
        self.edit(io, span, Why::Cut, change).await
    }
}
