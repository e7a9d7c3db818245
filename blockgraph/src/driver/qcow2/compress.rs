//! Writes of compressed clusters: packed one behind the other, several to a host cluster.
//!
//! The rule: what does not become smaller is written as it is. A compressed cluster is never changed: writing to it replaces
//! it.

use super::Qcow2;
use super::format::entry::{DataIn, L2Entry};
use super::format::header::Compression;
use super::meta::Why;
use crate::blocking::blocking;
use crate::filter::blkdebug::BlkdebugEvent;
use crate::io::Io;
use crate::node::Outcome;
use crate::units::Span;
use flate2::{Compress, FlushCompress, Status};
use ring::{Durability, Errno, Mem};

/// QEMU inflates with a window of 4 KiB (`windowBits` -12).
const WINDOW_BITS: u8 = 12;
/// Zstandard's own default.
const ZSTD_LEVEL: i32 = 3;

impl Qcow2 {
    /// Writes `mem` to `span`, which is as long and within the disk; whole clusters of it compressed.
    pub(super) async fn write_compressed(&self, io: &Io, span: Span, mem: &Mem) -> Outcome {
        if self.geometry.layout().data == DataIn::DataFile {
            return Err(Errno::NOTSUP);
        }
        self.open_for_writing(io).await?;
        let cluster = self.geometry.cluster_bytes();
        let mut rest = span;
        while !rest.is_empty() {
            let part = rest.first(cluster - self.geometry.within_cluster(rest.at));
            let mem = mem.slice((rest.at - span.at) as usize, part.len as usize);
            let is_whole = part.len == cluster
                || (self.geometry.within_cluster(part.at) == 0 && part.end() == self.disk_bytes());
            match is_whole {
                true => self.compress_cluster(io, part, &mem).await?,
                false => self.write_all(io, part, &mem).await?,
            }
            rest = rest.after(part.len);
        }
        // Several share a host cluster: a log of them would have to say how many.
        let durability = match self.is_logged() {
            true => Durability::Through,
            false => Durability::Cached,
        };
        self.after_change(io, durability).await
    }

    async fn compress_cluster(&self, io: &Io, span: Span, mem: &Mem) -> Outcome {
        let mut bytes = vec![0; self.geometry.cluster_bytes() as usize];
        mem.load(0, &mut bytes);
        let method = self.meta().header.compression;
        match blocking(move || squeeze(method, &bytes)).await? {
            Some(packed) => self.write_packed(io, span, mem, packed).await,
            None => self.write_all(io, span, mem).await,
        }
    }

    async fn write_packed(&self, io: &Io, span: Span, mem: &Mem, packed: Vec<u8>) -> Outcome {
        let layout = self.geometry.layout();
        let len_bytes = packed.len() as u64;
        let hold = self
            .holds
            .hold(span.widened(self.geometry.cluster_bytes()))
            .await;
        let at = self.geometry.entry_at(span.at);
        self.own_table(io, self.geometry.l1_index(at.slice)).await?;
        let (host, prepared) = self.pack(io, len_bytes).await?;
        if !layout.compressed_fits(host, len_bytes) {
            drop((prepared, hold));
            return self.write_all(io, span, mem).await;
        }
        let out = Mem::zeroed(packed.len()).ok_or(Errno::NOMEM)?;
        out.store(0, &packed);
        self.tell(io, BlkdebugEvent::L2UpdateCompressed);
        self.tell(io, BlkdebugEvent::WriteCompressed);
        io.write(self.file(io)?, host, &out).await?;
        let slot = self.slice(io, at.slice).await?;
        let mut meta = self.meta();
        // As the entry will read: to the end of the last sector.
        let entry = layout.encode(L2Entry::Compressed { host, len_bytes });
        let new = layout.decode(entry).map_err(|_| Errno::IO)?;
        self.replace(&mut meta, &slot, at.index, Why::Unused, |_| new)
            .map_err(|_| Errno::IO)?;
        meta.dirty.insert(at.slice);
        drop(meta);
        prepared.keep();
        Ok(())
    }
}

/// The bytes of a cluster, compressed; `None` if that takes no less space.
fn squeeze(method: Compression, bytes: &[u8]) -> Option<Vec<u8>> {
    // One byte less than a cluster is of use; more is not looked at.
    let room = bytes.len() - 1;
    match method {
        Compression::Zlib => {
            let mut out = vec![0; room];
            let level = flate2::Compression::default();
            let mut deflate = Compress::new_with_window_bits(level, false, WINDOW_BITS);
            let status = deflate
                .compress(bytes, &mut out, FlushCompress::Finish)
                .ok()?;
            (status == Status::StreamEnd).then(|| {
                out.truncate(deflate.total_out() as usize);
                out
            })
        }
        Compression::Zstd => {
            let out = zstd::bulk::compress(bytes, ZSTD_LEVEL).ok()?;
            (out.len() <= room).then_some(out)
        }
    }
}
