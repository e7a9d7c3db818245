//! Another directory of bitmaps: with more, with fewer, or with their bits elsewhere.
//!
//! The rule: all that the old and the new one lead to is in use, so it does not matter which of the two a power cut leaves. The
//! new one is durable, and its clusters' refcounts are, before the header leads to it; what the old one had is free after that.

use super::store::Exchange;
use super::{ONE, StoreError};
use crate::driver::qcow2::Qcow2;
use crate::driver::qcow2::commit::{sync_node, write_all};
use crate::driver::qcow2::format::bitmap_dir::{Bitmap, Stored, encode_directory};
use crate::driver::qcow2::format::extensions::BitmapsAt;
use crate::driver::qcow2::format::header::{self, Header};
use crate::driver::qcow2::gate::AUTOCLEAR_AT;
use crate::driver::qcow2::plan::Patch;
use crate::graph::Access;
use crate::io::Io;
use crate::node::Outcome;
use ring::Errno;

impl Qcow2 {
    /// Takes a bitmap out of the image, if it is there. Errors: see [`StoreError`]; the directory is as it was, or of those that
    /// are in use.
    pub(crate) async fn remove_bitmap(&self, io: &Io, name: &[u8]) -> Result<(), StoreError> {
        let is_it = |bitmap: &Bitmap| bitmap.text().as_bytes() == name;
        let mut entries = self.bitmaps();
        let Some(at) = entries.iter().position(is_it) else {
            return Ok(());
        };
        if self.access == Access::ReadOnly {
            return Err(StoreError::Update(Errno::PERM));
        }
        let removed = entries.remove(at);
        let work = async {
            self.record_bitmaps(io).await?;
            let mut exchange = Exchange::default();
            self.leave_table(io, &removed, &mut exchange).await?;
            self.replace_directory(io, entries, exchange).await
        };
        work.await.map_err(StoreError::Update)
    }

    /// Has the header lead to a directory of these, all in use; those that it leads to now are.
    pub(super) async fn replace_directory(
        &self,
        io: &Io,
        mut entries: Vec<Bitmap>,
        mut exchange: Exchange<'_>,
    ) -> Outcome {
        for entry in &mut entries {
            entry.stored = Stored::InUse;
        }
        let bytes = encode_directory(&entries);
        let bitmaps = match bytes.len() as u64 {
            0 => header::Bitmaps::None,
            len_bytes => {
                let at = self.reserve_for(io, len_bytes, &mut exchange).await?;
                self.write_apart(io, at, &bytes).await?;
                header::Bitmaps::Valid(BitmapsAt {
                    count: entries.len() as u32,
                    len_bytes,
                    at,
                })
            }
        };
        // With them their refcounts, or else the dirty bit, which has those made anew.
        self.commit(io).await?;
        // Should the rest fail the header may lead there already.
        exchange.keep();
        self.switch_directory(io, bitmaps, entries, &mut exchange)
            .await?;
        self.load_overlaps(io).await?;
        {
            let mut meta = self.meta();
            let freed = std::mem::take(&mut exchange.freed).into_iter();
            freed.for_each(|freed| meta.free(freed));
        }
        self.commit(io).await
    }

    async fn switch_directory(
        &self,
        io: &Io,
        bitmaps: header::Bitmaps,
        entries: Vec<Bitmap>,
        exchange: &mut Exchange<'_>,
    ) -> Outcome {
        let _alone = self.writer.commits.alone().await;
        let _opening = self.writer.opening.hold(ONE).await;
        let mut header = self.header();
        let before = std::mem::replace(&mut header.bitmaps, bitmaps);
        header.autoclear.bitmaps = matches!(bitmaps, header::Bitmaps::Valid(_));
        self.write_header(io, &header).await?;
        let mut meta = self.meta();
        meta.header.bitmaps = header.bitmaps;
        meta.header.autoclear = header.autoclear;
        drop(meta);
        self.bitmaps.replace(entries);
        if let header::Bitmaps::Valid(at) = before {
            exchange.leave(at.at, at.len_bytes);
        }
        Ok(())
    }

    /// In one sector, if it fits: whole or not at all after a power cut. A longer one may be torn: meanwhile it says that there
    /// are no bitmaps.
    async fn write_header(&self, io: &Io, header: &Header) -> Outcome {
        let file = self.file(io)?;
        let write = async |at, bytes| {
            write_all(io, file, vec![Patch { at, bytes }]).await?;
            sync_node(io, file).await
        };
        if let Some(bytes) = header.encode_in_sector() {
            return write(0, bytes).await;
        }
        let mut without = header.clone();
        without.autoclear.bitmaps = false;
        let field = |header: &Header| header.autoclear.bits().to_be_bytes().to_vec();
        write(AUTOCLEAR_AT, field(&without)).await?;
        let bytes = without.encode().map_err(|_| Errno::NOSPC)?;
        write(0, bytes).await?;
        write(AUTOCLEAR_AT, field(header)).await
    }
}
