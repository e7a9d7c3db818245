//! Room for compressed clusters, which share host clusters.
//!
//! The rule: a host cluster has a reference for each compressed cluster that lies in it, in whole or in part.

use super::{Alloc, Want};
use crate::driver::qcow2::refcount::{Lack, Need, Refcounts};

/// Compressed clusters share host clusters: where the next one goes, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pack {
    at: u64,
    end: u64,
}

impl Alloc {
    /// No more compressed clusters are put into that one.
    pub(crate) fn stop_packing(&mut self, cluster: u64) {
        let at = cluster << self.cluster_bits;
        let packed = |pack: &Pack| pack.at > at && pack.at <= at + (1 << self.cluster_bits);
        if self.pack.as_ref().is_some_and(packed) {
            self.pack = None;
        }
    }

    /// Room for `len` compressed bytes (at most a cluster): beside earlier ones if possible. Raises the refcount of each
    /// cluster they lie in. Returns the offset in bytes.
    pub(crate) fn pack(&mut self, len: u64, refs: &mut Refcounts) -> Result<u64, Lack> {
        if let Some(at) = self.pack_beside(len, refs)? {
            return Ok(at);
        }
        let run = self.take(Want::Exactly(1), refs)?;
        let at = run.first << self.cluster_bits;
        self.pack = Some(Pack {
            at: at + len,
            end: at + (1 << self.cluster_bits),
        });
        Ok(at)
    }

    fn pack_beside(&mut self, len: u64, refs: &mut Refcounts) -> Result<Option<u64>, Lack> {
        let Some(pack) = self.pack.filter(|pack| pack.at < pack.end) else {
            return Ok(None);
        };
        let cluster = pack.at >> self.cluster_bits;
        if refs.get(cluster)? >= refs.width().max() {
            return Ok(None);
        }
        let mut end = pack.end;
        if pack.end - pack.at < len {
            // It may reach into the next cluster, if that is free and the very next one to be handed out.
            if pack.end >> self.cluster_bits != self.fresh || self.fresh_room(refs) == 0 {
                return Ok(None);
            }
            if refs.crowded() {
                return Err(Lack::Need(Need::Commit));
            }
            if self.table_for(1, refs) > 0 {
                return Ok(None);
            }
            self.fresh_run(1, refs)?;
            end += 1 << self.cluster_bits;
        }
        refs.increment(cluster)?;
        self.pack = Some(Pack {
            at: pack.at + len,
            end,
        });
        Ok(Some(pack.at))
    }
}
