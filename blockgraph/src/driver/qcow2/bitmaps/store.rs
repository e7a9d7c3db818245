//! Bitmaps into an image, when it is closed or not written any more.
//!
//! The rule: what is stored is written where nothing was, and made durable with its refcounts, before the directory leads to it;
//! the directory says that all of it is in use until the last step, which says that it is right. From before that step on
//! nothing may be written that the guest sees without the bitmaps being in use again: see `gate.rs`. Should anything fail,
//! bitmaps are in use, and there are leaks at worst.

use super::load::decode_table;
use super::{ONE, StoreError, of};
use crate::bitmap::{DirtyBitmap, State};
use crate::driver::qcow2::Qcow2;
use crate::driver::qcow2::alloc::Want;
use crate::driver::qcow2::format::bitmap_dir::{
    Bitmap, Recording, STORED_BYTES_MAX, Stored, TABLE_ENTRIES_MAX, TableEntry,
};
use crate::driver::qcow2::image_file::ImageFile;
use crate::driver::qcow2::meta::{Freed, Why};
use crate::driver::qcow2::writer::Prepared;
use crate::graph::Access;
use crate::io::Io;
use ring::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Clusters that were written and that nothing leads to yet, and what becomes free when something does.
#[derive(Debug, Default)]
pub(super) struct Exchange<'a> {
    pub(super) prepared: Vec<Prepared<'a>>,
    pub(super) freed: Vec<Freed>,
}

impl<'a> Exchange<'a> {
    /// Something leads, or may lead, to what was written.
    pub(super) fn keep(&mut self) {
        self.prepared.drain(..).for_each(Prepared::keep);
    }

    /// Nothing leads to those bytes any more, once that is so.
    pub(super) fn leave(&mut self, at: u64, len: u64) {
        let why = Why::Other;
        self.freed.push(Freed { at, len, why });
    }
}

/// Where the bits of a bitmap are now.
struct Table {
    at: u64,
    entries: u32,
}

impl Qcow2 {
    /// Stores those bitmaps of the node's that are to be stored; the newest is the first. No request changes anything meanwhile.
    /// Errors: see [`StoreError`]; all of them are in use then.
    pub(crate) async fn store_bitmaps(
        &self,
        io: &Io,
        bitmaps: &[Arc<DirtyBitmap>],
    ) -> Result<(), StoreError> {
        let stored = bitmaps.iter().filter(|bitmap| bitmap.is_to_be_stored());
        let mut stored: Vec<&Arc<DirtyBitmap>> = stored.collect();
        if stored.is_empty() {
            return Ok(());
        }
        if self.access == Access::ReadOnly {
            return Err(StoreError::ReadOnly);
        }
        self.record_bitmaps(io).await.map_err(StoreError::Update)?;
        let mut exchange = Exchange::default();
        let mut entries = self.bitmaps();
        let places = entries.iter().map(Bitmap::text).enumerate();
        let places: BTreeMap<String, usize> = places.map(|(at, name)| (name, at)).collect();
        let place = |bitmap: &DirtyBitmap| places.get(bitmap.name()).copied();
        stored.sort_by_key(|bitmap| place(bitmap).unwrap_or(usize::MAX));
        let mut written = BTreeSet::new();
        for bitmap in stored {
            // Whoever resized the image may not have known of it.
            bitmap.resize(self.disk_bytes());
            let known = place(bitmap);
            if let Some(known) = known {
                let left = self.leave_table(io, &entries[known], &mut exchange).await;
                left.map_err(StoreError::Update)?;
            }
            let table = self.write_bits(io, bitmap, &mut exchange).await?;
            let entry = entry_of(bitmap, &table);
            match known {
                Some(known) => {
                    let name = std::mem::take(&mut entries[known].name);
                    entries[known] = Bitmap { name, ..entry };
                }
                None => entries.push(entry),
            }
            written.insert(known.unwrap_or(entries.len() - 1));
        }
        let replaced = self.replace_directory(io, entries, exchange).await;
        replaced.map_err(StoreError::Update)?;
        self.end_writing();
        let _opening = self.writer.opening.hold(ONE).await;
        let marked = self
            .mark_bitmaps(io, Stored::Whole, |index, _| written.contains(&index))
            .await;
        marked.map_err(StoreError::Update)
    }

    /// Nothing leads to what a bitmap has once the exchange is made. A table that is nonsense says of no cluster that it is the
    /// bitmap's.
    pub(super) async fn leave_table(
        &self,
        io: &Io,
        bitmap: &Bitmap,
        exchange: &mut Exchange<'_>,
    ) -> Result<(), Errno> {
        let of = of(&self.header());
        let file = ImageFile::new(io, self.file(io)?);
        let table_bytes = bitmap.table_entries as usize * 8;
        let bytes = file.read(bitmap.table_at, table_bytes).await?;
        for entry in decode_table(&bytes, of).unwrap_or_default() {
            if let TableEntry::At(at) = entry {
                exchange.leave(at, of.cluster_bytes);
            }
        }
        exchange.leave(bitmap.table_at, table_bytes as u64);
        Ok(())
    }

    /// Writes what a bitmap says to new clusters.
    async fn write_bits<'a>(
        &'a self,
        io: &Io,
        bitmap: &DirtyBitmap,
        exchange: &mut Exchange<'a>,
    ) -> Result<Table, StoreError> {
        let cluster = self.geometry.cluster_bytes();
        let entries = bitmap.len_bytes().div_ceil(cluster);
        if entries == 0 {
            // The format has no word for a bitmap of nothing.
            return Err(StoreError::Allocate {
                name: bitmap.name().to_owned(),
                errno: Errno::INVAL,
            });
        }
        if entries > u64::from(TABLE_ENTRIES_MAX) || entries * cluster > STORED_BYTES_MAX {
            return Err(StoreError::TooLarge(bitmap.name().to_owned()));
        }
        let mut table = vec![0; entries as usize * 8];
        let mut bytes = vec![0; cluster as usize];
        let mut from = 0;
        while let Some(dirty) = bitmap.next_byte(from) {
            let index = dirty / cluster;
            bitmap.store_bytes(index * cluster, &mut bytes);
            let at = self
                .write_piece(io, bitmap.name(), &bytes, exchange)
                .await?;
            let word = TableEntry::At(at).encode().to_be_bytes();
            table[index as usize * 8..][..8].copy_from_slice(&word);
            from = (index + 1) * cluster;
        }
        let at = self
            .write_piece(io, bitmap.name(), &table, exchange)
            .await?;
        let entries = entries as u32;
        Ok(Table { at, entries })
    }

    /// Writes bytes for the bitmap of that name to new clusters; answers where.
    async fn write_piece<'a>(
        &'a self,
        io: &Io,
        name: &str,
        bytes: &[u8],
        exchange: &mut Exchange<'a>,
    ) -> Result<u64, StoreError> {
        let name = || name.to_owned();
        let at = self.reserve_for(io, bytes.len() as u64, exchange).await;
        let at = at.map_err(|errno| StoreError::Allocate {
            name: name(),
            errno,
        })?;
        let written = self.write_apart(io, at, bytes).await;
        written.map_err(|errno| StoreError::Write {
            name: name(),
            errno,
        })?;
        Ok(at)
    }

    /// New clusters for so many bytes.
    pub(super) async fn reserve_for<'a>(
        &'a self,
        io: &Io,
        len: u64,
        exchange: &mut Exchange<'a>,
    ) -> Result<u64, Errno> {
        let bits = self.geometry.cluster_bits();
        let clusters = len.div_ceil(1 << bits);
        let (run, prepared) = self.allocate(io, Want::Exactly(clusters)).await?;
        exchange.prepared.push(prepared);
        Ok(run.first << bits)
    }

    /// Writes to clusters that nothing leads to yet. What is left of the last one means nothing.
    pub(super) async fn write_apart(&self, io: &Io, at: u64, bytes: &[u8]) -> Result<(), Errno> {
        let file = ImageFile::new(io, self.file(io)?);
        file.write(at, bytes).await
    }
}

/// What the directory is to say of a bitmap; not yet that it is right.
fn entry_of(bitmap: &DirtyBitmap, table: &Table) -> Bitmap {
    Bitmap {
        name: bitmap.name().as_bytes().to_vec(),
        table_at: table.at,
        table_entries: table.entries,
        stored: Stored::InUse,
        recording: match bitmap.state() {
            State::Recording => Recording::Auto,
            State::Disabled | State::Inconsistent => Recording::Disabled,
        },
        granularity_bits: bitmap.granularity_bytes().ilog2() as u8,
    }
}
