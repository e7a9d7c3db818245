//! What the header says of an image that is being written: features that end with the first write, the dirty bit, the
//! corrupt bit.
//!
//! The rule: a bit that warns others is durable before what it warns of. Fields are written one by one, each within a
//! sector, so none is ever torn.

use super::Qcow2;
use super::alloc::Alloc;
use super::commit::{sync_node, write_all};
use super::format::header::{Bitmaps, TableAt, Version};
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
const AUTOCLEAR_AT: u64 = 88;

impl Qcow2 {
    /// Before anything is written: may it be, and does the header say so? Errors: EIO once metadata was found impossible.
    pub(crate) async fn open_for_writing(&self, io: &Io) -> Outcome {
        match self.writer.gate() {
            Gate::Open => return Ok(()),
            Gate::Corrupt => return Err(Errno::IO),
            Gate::Shut => {}
        }
        let _opening = self.writer.opening.hold(Span { at: 0, len: 1 }).await;
        if self.writer.gate() == Gate::Shut {
            self.lengthen_files(io).await?;
            self.load_refcount_table(io).await?;
            self.load_overlaps(io).await?;
            self.end_autoclear_features(io).await?;
            self.writer.set_gate(Gate::Open);
            self.may_map_writes.store(true, Ordering::Release);
        }
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

    /// "If this bit is unset [...] the bitmaps extension data is considered inconsistent": nobody maintains bitmaps here
    /// yet, nor what unknown bits stand for.
    async fn end_autoclear_features(&self, io: &Io) -> Outcome {
        let (before, after, version) = {
            let header = &self.meta().header;
            let before = header.autoclear;
            (before, before.after_write(), header.version)
        };
        if version == Version::V2 || before == after {
            return Ok(());
        }
        self.write_field(io, AUTOCLEAR_AT, after.bits()).await?;
        let mut meta = self.meta();
        meta.header.autoclear = after;
        if matches!(meta.header.bitmaps, Bitmaps::Valid(_)) {
            meta.header.bitmaps = Bitmaps::Stale;
        }
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
        self.write_field(io, INCOMPATIBLE_AT, bits.bits()).await?;
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
        self.write_field(io, INCOMPATIBLE_AT, bits.bits()).await?;
        self.meta().header.incompatible.dirty = false;
        self.writer.set_lazy(false);
        Ok(())
    }

    /// Metadata is impossible: nothing is written any more, and the header says why if it still can.
    pub(crate) async fn corrupt(&self, io: &Io) {
        if self.writer.gate() == Gate::Corrupt {
            return;
        }
        self.writer.set_gate(Gate::Corrupt);
        self.may_map_writes.store(false, Ordering::Release);
        let (version, mut bits) = {
            let header = &self.meta().header;
            (header.version, header.incompatible)
        };
        bits.corrupt = true;
        if version == Version::V3
            && self
                .write_field(io, INCOMPATIBLE_AT, bits.bits())
                .await
                .is_ok()
        {
            self.meta().header.incompatible.corrupt = true;
        }
    }

    /// The refcount table is elsewhere now, on disk as well.
    pub(crate) fn refcount_table_moved(&self, at: u64, clusters: u64) {
        let count = clusters as u32;
        self.meta().header.refcount_table = TableAt { at, count };
    }

    /// Writes eight bytes of the header, durably.
    async fn write_field(&self, io: &Io, at: u64, value: u64) -> Outcome {
        let file = self.file(io)?;
        let bytes = value.to_be_bytes().to_vec();
        write_all(io, file, vec![Patch { at, bytes }]).await?;
        sync_node(io, file).await
    }
}
