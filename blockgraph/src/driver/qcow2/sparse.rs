//! Images whose clusters are set aside but not written, as `preallocation=metadata` leaves them: where the file has a hole,
//! the disk reads as zeroes.
//!
//! The rule: it is looked for only where the file takes up much less than its clusters would, which is found out once, by the
//! first question for block status (QEMU looks at the same numbers, and so answers the same).

use super::Qcow2;
use super::image_file::ImageFile;
use super::width::Width;
use crate::io::Io;
use crate::node::NodeId;
use crate::status::{Content, Mapping, Status};
use crate::units::Span;
use ring::Errno;
use std::sync::atomic::{AtomicU8, Ordering};

/// Bytes of refcounts that are looked at; an image with more is not taken for preallocated.
const REFCOUNT_BYTES_MAX: u64 = 256 << 20;

const UNKNOWN: u8 = 0;
const DENSE: u8 = 1;
const SPARSE: u8 = 2;

/// Is an image one of those? Not known at first.
#[derive(Debug, Default)]
pub(crate) struct Sparse(AtomicU8);

impl Qcow2 {
    /// `status` of data, with what the file knows of it.
    pub(super) async fn refine(&self, io: &Io, status: Status) -> Status {
        let (Content::Data, Mapping::At(node, at)) = (status.content, status.mapping) else {
            return status;
        };
        match self.is_sparse(io).await {
            true => in_file(io, node, at, status).await,
            false => status,
        }
    }

    async fn is_sparse(&self, io: &Io) -> bool {
        match self.sparse.0.load(Ordering::Relaxed) {
            UNKNOWN => {}
            known => return known == SPARSE,
        }
        // What cannot be found out is no reason to fail: this is additional information.
        let is_sparse = self.find_out(io).await.unwrap_or(false);
        let known = if is_sparse { SPARSE } else { DENSE };
        self.sparse.0.store(known, Ordering::Relaxed);
        is_sparse
    }

    /// Are a tenth more clusters in use than there is space behind the file, and more than two?
    async fn find_out(&self, io: &Io) -> Result<bool, Errno> {
        let node = io.child(self.metadata_role())?;
        let bits = self.geometry.cluster_bits();
        let there = io.allocated(node).await? >> bits;
        let too_many = (there.saturating_mul(10) / 9).max(there.saturating_add(2));
        let file = ImageFile::new(io, node);
        let clusters = file.size_bytes().div_ceil(self.geometry.cluster_bytes());
        if clusters < too_many {
            return Ok(false);
        }
        self.uses_clusters(&file, clusters, too_many).await
    }

    /// Do at least `enough` of the first `clusters` host clusters have a refcount?
    async fn uses_clusters(
        &self,
        file: &ImageFile,
        clusters: u64,
        enough: u64,
    ) -> Result<bool, Errno> {
        let header = self.header();
        let width = Width::from_order(header.refcount_order).unwrap_or_default();
        let cluster_bytes = self.geometry.cluster_bytes();
        let per_block = 1u64 << width.block_bits(header.cluster_bits);
        let table_entries = u64::from(header.refcount_table.count) * (cluster_bytes / 8);
        let blocks = clusters.div_ceil(per_block).min(table_entries);
        // At most 8 MiB: the header is checked.
        let table = file.read(header.refcount_table.at, blocks as usize * 8);
        let table = table.await?;
        let mut left = clusters;
        let (mut used, mut looked_at) = (0, 0);
        for word in table.as_chunks().0 {
            let here = left.min(per_block);
            left -= here;
            // qcow2.txt, refcount table entry: bits 0 to 8 are reserved.
            let at = u64::from_be_bytes(*word) & !511;
            if at == 0 {
                continue;
            }
            looked_at += cluster_bytes;
            if looked_at > REFCOUNT_BYTES_MAX {
                return Ok(false);
            }
            let block = file.read(at, cluster_bytes as usize).await?;
            let in_use = |index: &usize| width.get(&block, *index) != 0;
            used += (0..here as usize).filter(in_use).count() as u64;
            if used >= enough {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

async fn in_file(io: &Io, node: NodeId, at: u64, status: Status) -> Status {
    let zero = |len| Status {
        len,
        content: Content::Zero,
        ..status
    };
    let size = io.graph().info(node).map_or(0, |info| info.size_bytes);
    let there = size.saturating_sub(at).min(status.len);
    if there == 0 {
        return zero(status.len);
    }
    match io.status(node, Span { at, len: there }).await {
        Ok(found) if found.content == Content::Zero => zero(found.len.min(there)),
        Ok(found) => Status {
            len: found.len.min(there),
            ..status
        },
        Err(_) => status,
    }
}
