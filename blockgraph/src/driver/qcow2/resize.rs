//! The disk made larger and smaller.
//!
//! The rule: what a larger disk has more reads as zeroes, whatever was there when it was larger before, and whatever a
//! backing file has there.

use super::Qcow2;
use super::check::CheckError;
use super::format::header::{L1_BYTES_MAX, Version};
use super::restructure::Still;
use super::snapshot::{DISK_AT, disk_fields};
use crate::driver::{SECTOR_BYTES, SIZE_BYTES_MAX};
use crate::filter::blkdebug::BlkdebugEvent;
use crate::io::Io;
use crate::node::Outcome;
use crate::request::{Prealloc, Unmap};
use crate::units::Span;
use ring::{Durability, Errno};

/// Why the disk keeps its size. The words are QEMU's where it has any.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResizeFailure {
    /// Sizes are whole sectors.
    #[error("The new size must be a multiple of {SECTOR_BYTES}")]
    Sectors,
    /// Its snapshots do not say what size they are of.
    #[error("Can't resize a version 2 image which has snapshots")]
    OldSnapshots,
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
            ResizeFailure::OldSnapshots => Errno::NOTSUP,
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
        if size_bytes < before {
            return self.shrink(io, before, size_bytes).await;
        }
        if size_bytes > before {
            self.grow_disk(io, before, size_bytes).await?;
            let new = Span {
                at: before,
                len: size_bytes - before,
            };
            if let Err(errno) = self.fill_new(io, new, how).await {
                // The first error is the one to tell.
                let _ = self.shrink(io, size_bytes, before).await;
                return Err(errno.into());
            }
        }
        Ok(())
    }

    fn may_be(&self, size_bytes: u64, how: Prealloc) -> Result<(), ResizeFailure> {
        if !size_bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(ResizeFailure::Sectors);
        }
        let header = self.header();
        if header.version == Version::V2 && header.snapshots.count > 0 {
            return Err(ResizeFailure::OldSnapshots);
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

    async fn grow_disk(&self, io: &Io, before: u64, size_bytes: u64) -> Result<(), ResizeFailure> {
        let still = self.still(io).await?;
        // Two at once: the second sees what the first did.
        if self.disk_bytes() != before {
            return Err(Errno(libc::EBUSY).into());
        }
        let data = self.data(io)?;
        if data != self.file(io)? {
            let there = io.graph().info(data).ok_or(Errno::IO)?.size_bytes;
            let needed = size_bytes.next_multiple_of(self.geometry.cluster_bytes());
            if there < needed {
                io.truncate(data, needed, Prealloc::Off).await?;
            }
        }
        self.switch_size(io, &still, size_bytes).await
    }

    /// A disk that an L1 table leads to the whole of has its size in the header, and that is all; else the table moves.
    async fn switch_size(
        &self,
        io: &Io,
        still: &Still<'_>,
        size_bytes: u64,
    ) -> Result<(), ResizeFailure> {
        let mut plan = self.new_plan(io)?;
        let fields = {
            let meta = self.meta();
            let needed = meta.header.l1_entries_for(size_bytes) as usize;
            if needed == meta.l1.len() {
                disk_fields(size_bytes, meta.header.l1)
            } else {
                let mut words = meta.l1.clone();
                plan.tells(self.tell_table(io, words.len(), needed));
                words.resize(needed, 0);
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
    async fn fill_new(&self, io: &Io, new: Span, how: Prealloc) -> Outcome {
        self.hide_backing(io, new).await?;
        let how = match (how, self.header().autoclear.data_file_raw) {
            // A raw data file is one only if all the metadata is there.
            (Prealloc::Off, true) => Prealloc::Metadata,
            (how, _) => how,
        };
        if how != Prealloc::Off {
            self.preallocate(io, new, how).await?;
        }
        self.flush(io).await
    }

    /// A backing file longer than the disk was would show in what is new.
    async fn hide_backing(&self, io: &Io, new: Span) -> Outcome {
        let Ok(below) = io.child(crate::graph::Role::Cow) else {
            return Ok(());
        };
        let below_bytes = io.graph().info(below).ok_or(Errno::IO)?.size_bytes;
        let shown = new.first(below_bytes.saturating_sub(new.at));
        if shown.is_empty() {
            return Ok(());
        }
        self.write_zeroes(io, shown, Unmap::Allow, Durability::Cached)
            .await
    }

    async fn shrink(&self, io: &Io, before: u64, size_bytes: u64) -> Result<(), ResizeFailure> {
        let cut = Span {
            at: size_bytes,
            len: before - size_bytes,
        };
        // Should the disk grow again, what was there is gone.
        self.write_zeroes(io, cut, Unmap::Allow, Durability::Cached)
            .await?;
        let still = self.still(io).await?;
        if self.disk_bytes() != before {
            return Err(Errno(libc::EBUSY).into());
        }
        self.switch_size(io, &still, size_bytes).await?;
        if self.header().autoclear.data_file_raw {
            io.truncate(self.data(io)?, size_bytes, Prealloc::Off)
                .await?;
        }
        Ok(())
    }
}
