//! Clusters handed out to whoever is about to write them.
//!
//! The rule: they are in use from then on, and free again if nothing came to refer to them.

use crate::driver::qcow2::Qcow2;
use crate::driver::qcow2::alloc::{Run, Want};
use crate::driver::qcow2::meta::{Freed, Meta, Why};
use crate::filter::blkdebug::BlkdebugEvent;
use crate::io::Io;
use crate::node::Outcome;
use ring::Errno;

/// Clusters that were handed out and that nothing refers to yet. Dropped, they are free again.
#[derive(Debug)]
pub(crate) struct Prepared<'a> {
    image: &'a Qcow2,
    freed: Option<Freed>,
}

impl Prepared<'_> {
    /// Something refers to them now.
    pub(crate) fn keep(mut self) {
        self.freed = None;
    }
}

impl Drop for Prepared<'_> {
    fn drop(&mut self) {
        if let Some(freed) = self.freed {
            // Not at once: the kernel may still be writing to them if the request was given up in mid-flight.
            self.image.meta().free(freed);
        }
    }
}

impl Qcow2 {
    fn prepared(&self, at: u64, len: u64) -> Prepared<'_> {
        let why = Why::Unused;
        let freed = Some(Freed { at, len, why });
        Prepared { image: self, freed }
    }

    /// Hands out clusters of the image file.
    pub(crate) async fn allocate(&self, io: &Io, want: Want) -> Result<(Run, Prepared<'_>), Errno> {
        self.tell(io, BlkdebugEvent::ClusterAlloc);
        self.begin_allocating(io).await?;
        let run = self
            .meet(io, |meta| meta.alloc.take(want, &mut meta.refs))
            .await?;
        let bits = self.geometry.cluster_bits();
        let prepared = self.prepared(run.first << bits, run.count << bits);
        self.check_run(io, run).await?;
        Ok((run, prepared))
    }

    /// Room for compressed bytes in the image file; returns where.
    pub(crate) async fn pack(&self, io: &Io, len: u64) -> Result<(u64, Prepared<'_>), Errno> {
        self.tell(io, BlkdebugEvent::ClusterAllocBytes);
        self.begin_allocating(io).await?;
        let at = self
            .meet(io, |meta| meta.alloc.pack(len, &mut meta.refs))
            .await?;
        let prepared = self.prepared(at, len);
        self.check_write(io, at, len).await?;
        Ok((at, prepared))
    }

    /// Makes sure that slices of that L2 table may be changed.
    pub(crate) async fn own_table(&self, io: &Io, index: usize) -> Outcome {
        let owned = self.meta().owns_table(index);
        match owned {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(malformed) => return Err(self.malformed(io, malformed).await),
        }
        self.tell(io, BlkdebugEvent::ClusterAlloc);
        self.begin_allocating(io).await?;
        self.meet(io, |meta| match meta.owns_table(index) {
            Ok(true) => Ok(()),
            _ => meta.own_table(index),
        })
        .await
    }

    /// The first time clusters are wanted: says on disk that refcounts will be late, if they may be, and learns where what
    /// is used ends.
    pub(crate) async fn begin_allocating(&self, io: &Io) -> Outcome {
        if self.writer.may_be_lazy && !self.writer.is_lazy() {
            self.set_dirty_bit(io).await?;
        }
        if self.meta().alloc.knows_end() {
            return Ok(());
        }
        self.meet(io, |meta| {
            let Meta { alloc, refs, .. } = meta;
            alloc.find_end(refs)
        })
        .await
    }
}
