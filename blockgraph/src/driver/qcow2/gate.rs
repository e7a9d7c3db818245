//! What the header says of an image that is being written: features that end with the first write, the dirty bit.
//!
//! The rule: a bit that warns others is durable before what it warns of. Fields are written one by one, each within a
//! sector, so none is ever torn.

use super::Qcow2;
use super::alloc::Alloc;
use super::commit::{sync_node, write_all};
use super::format::features::Incompatible;
use super::format::header::{Backing, Bitmaps, HeaderError, TableAt, Version};
use super::plan::Patch;
use super::refcount::Refcounts;
use super::width::Width;
use super::writer::Gate;
use crate::io::Io;
use crate::node::Outcome;
use crate::request::Prealloc;
use crate::units::Span;
use ring::Errno;
use std::sync::atomic::Ordering;

// Offsets in the header (qcow2.txt, "Header").
const INCOMPATIBLE_AT: u64 = 72;
pub(super) const AUTOCLEAR_AT: u64 = 88;

impl Qcow2 {
    /// Before anything is written that the guest sees: may it be, and does the image say so? Errors: EIO once metadata was
    /// found impossible.
    pub(crate) async fn open_for_writing(&self, io: &Io) -> Outcome {
        if self.writer.gate() == Gate::Open {
            return Ok(());
        }
        let _opening = self.writer.opening.hold(Span { at: 0, len: 1 }).await;
        self.prepare_metadata(io).await?;
        if self.writer.gate() == Gate::Metadata {
            self.end_recording(io).await?;
            self.writer.advance(Gate::Open);
            self.may_map_writes.store(true, Ordering::Release);
        }
        if self.writer.gate() == Gate::Open {
            return Ok(());
        }
        self.shut();
        Err(Errno::IO)
    }

    /// Before metadata is written, the guest seeing nothing of it. Errors: as [`Qcow2::open_for_writing`].
    pub(crate) async fn open_for_metadata(&self, io: &Io) -> Outcome {
        let _opening = self.writer.opening.hold(Span { at: 0, len: 1 }).await;
        self.prepare_metadata(io).await
    }

    async fn prepare_metadata(&self, io: &Io) -> Outcome {
        match self.writer.gate() {
            Gate::Metadata | Gate::Open => return Ok(()),
            Gate::Corrupt => return Err(Errno::IO),
            Gate::Shut if self.retired.load(Ordering::Acquire) => return Err(Errno::IO),
            Gate::Shut => {}
        }
        self.lengthen_files(io).await?;
        self.load_refcount_table(io).await?;
        self.load_overlaps(io).await?;
        self.end_autoclear_features(io).await?;
        self.writer.advance(Gate::Metadata);
        Ok(())
    }

    /// A file may end within its last cluster, and a data file before the disk does; whole clusters are written.
    async fn lengthen_files(&self, io: &Io) -> Outcome {
        let file = self.file(io)?;
        let bytes = io.graph().info(file).ok_or(Errno::IO)?.size_bytes;
        let whole = bytes.next_multiple_of(self.geometry.cluster_bytes());
        if whole != bytes {
            io.truncate(file, whole, Prealloc::Off).await?;
        }
        let data = self.data(io)?;
        let needed = self
            .disk_bytes()
            .next_multiple_of(self.geometry.cluster_bytes());
        if data != file && io.graph().info(data).ok_or(Errno::IO)?.size_bytes < needed {
            io.truncate(data, needed, Prealloc::Off).await?;
        }
        Ok(())
    }

    pub(super) async fn load_refcount_table(&self, io: &Io) -> Outcome {
        let (table, order) = {
            let header = &self.meta().header;
            (header.refcount_table, header.refcount_order)
        };
        // At most 8 MiB: the header is checked.
        let len = u64::from(table.count) * self.geometry.cluster_bytes();
        let bytes = self.read_metadata(io, table.at, len).await?;
        let words = bytes.as_chunks().0.iter();
        let entries = words.map(|word| u64::from_be_bytes(*word)).collect();
        let file_bytes = io.graph().info(self.file(io)?).ok_or(Errno::IO)?.size_bytes;
        let bits = self.geometry.cluster_bits();
        let width = Width::from_order(order).ok_or(Errno::IO)?;
        let blocks_max = self.writer.blocks_max;
        let mut meta = self.meta();
        meta.refs = Refcounts::new(width, bits, entries, table.at, blocks_max);
        meta.alloc = Alloc::new(bits, file_bytes);
        Ok(())
    }

    /// Nobody keeps up what unknown bits stand for, nor bitmaps that are not there.
    async fn end_autoclear_features(&self, io: &Io) -> Outcome {
        let (before, after, version) = {
            let header = &self.meta().header;
            let (before, mut after) = (header.autoclear, header.autoclear.after_write());
            after.bitmaps &= matches!(header.bitmaps, Bitmaps::Valid(_));
            (before, after, header.version)
        };
        if version == Version::V2 || before == after {
            return Ok(());
        }
        self.write_field(io, AUTOCLEAR_AT, after.bits()).await?;
        self.meta().header.autoclear = after;
        Ok(())
    }

    /// Says on disk that refcounts may be out of date from now on.
    pub(crate) async fn set_dirty_bit(&self, io: &Io) -> Outcome {
        let _opening = self.writer.opening.hold(Span { at: 0, len: 1 }).await;
        if self.writer.is_lazy() {
            return Ok(());
        }
        let mut bits = self.meta().header.incompatible;
        bits.dirty = true;
        self.write_incompatible(io, bits).await?;
        self.meta().header.incompatible.dirty = true;
        self.writer.set_lazy(true);
        Ok(())
    }

    /// Says on disk that refcounts are right; they have to be, durably.
    pub(crate) async fn clear_dirty_bit(&self, io: &Io) -> Outcome {
        let mut bits = self.meta().header.incompatible;
        if !bits.dirty {
            return Ok(());
        }
        bits.dirty = false;
        self.write_incompatible(io, bits).await?;
        self.meta().header.incompatible.dirty = false;
        self.writer.set_lazy(false);
        Ok(())
    }

    /// The refcount table is elsewhere now, on disk as well.
    pub(crate) fn refcount_table_moved(&self, at: u64, clusters: u64) {
        let count = clusters as u32;
        self.meta().header.refcount_table = TableAt { at, count };
    }

    /// The image names another backing file from now on, or none; what is below it here stays. Errors: EINVAL for a name that is
    /// too long, ENOSPC where the header has no room for it, and those of the file.
    pub async fn rename_backing(&self, io: &Io, backing: Option<Backing>) -> Outcome {
        self.open_for_metadata(io).await?;
        let _alone = self.writer.commits.alone().await;
        let _opening = self.writer.opening.hold(Span { at: 0, len: 1 }).await;
        let mut header = self.header();
        header.backing = backing;
        let bytes = match header.encode_in_sector() {
            // In one sector it names the one or the other after a power cut. Longer headers may be torn.
            Some(bytes) => bytes,
            None => header.encode().map_err(|error| match error {
                HeaderError::DoesNotFit => Errno::NOSPC,
                _ => Errno::INVAL,
            })?,
        };
        let file = self.file(io)?;
        write_all(io, file, vec![Patch { at: 0, bytes }]).await?;
        sync_node(io, file).await?;
        self.meta().header.backing = header.backing;
        Ok(())
    }

    pub(super) async fn write_incompatible(&self, io: &Io, bits: Incompatible) -> Outcome {
        self.write_field(io, INCOMPATIBLE_AT, bits.bits()).await
    }

    /// Writes eight bytes of the header, durably.
    async fn write_field(&self, io: &Io, at: u64, value: u64) -> Outcome {
        let file = self.file(io)?;
        let bytes = value.to_be_bytes().to_vec();
        write_all(io, file, vec![Patch { at, bytes }]).await?;
        sync_node(io, file).await
    }
}
