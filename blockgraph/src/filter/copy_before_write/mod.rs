//! copy-before-write: before a guest changes something, what was there is copied to a target, so that the disk as it was when
//! the filter came can still be read, through `driver/snapshot_access`.
//!
//! The rule: what is not copied yet is in the source and stays there. A guest write passes once all its clusters are copied
//! (or of no interest) and nobody is reading them from the source; that it may, stays true, so the fast walk may look first
//! and write later.

mod clusters;
mod copy;
mod snapshot;

use crate::bitmap::DirtyBitmap;
use crate::graph::name::{Described, Short};
use crate::graph::perm::{Perms, Wants};
use crate::graph::{Body, Edge, Role};
use crate::hold::Holds;
use crate::io::Io;
use crate::job::Progress;
use crate::job::copy::Writing;
use crate::node::{Driver, Info, Local, Map, Outcome};
use crate::request::{Dir, Kind, Prealloc, Request};
use crate::status::Status;
use crate::units::Span;
use clusters::Clusters;
use ring::Errno;
use std::sync::Arc;
use thiserror::Error;

/// No cluster is smaller.
const CLUSTER_BYTES_MIN: u64 = 64 << 10;
/// QEMU dies of larger ones (its bitmaps are counted in 32 bits).
const CLUSTER_BYTES_MAX: u64 = 1 << 31;

/// What becomes of a guest write whose copy fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnCbwError {
    /// It fails; the snapshot is whole.
    #[default]
    BreakGuestWrite,
    /// It is done; the snapshot is broken from then on.
    BreakSnapshot,
}

/// What the filter is made with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CbwOptions {
    /// `on-cbw-error`
    pub on_error: OnCbwError,
    /// `cbw-timeout`: a copy that takes longer has failed; 0: none does.
    pub timeout_ns: u64,
    /// `min-cluster-size`: a power of two; 0: as the target likes it.
    pub min_cluster_bytes: u64,
}

/// What becomes of the source once it is copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AfterCopy {
    /// Nothing.
    #[default]
    Kept,
    /// It is needed no more.
    Discarded,
}

/// How a job's filter copies.
#[derive(Clone, Debug)]
pub struct Copies {
    /// How the target is written.
    pub writing: Writing,
    /// What becomes of the source.
    pub after: AfterCopy,
    /// Whoever copies counts here.
    pub progress: Option<Arc<Progress>>,
}

impl Copies {
    fn count(&self, bytes: u64) {
        if let Some(progress) = &self.progress {
            progress.advance(bytes);
        }
    }
}

impl Default for Copies {
    fn default() -> Copies {
        Copies {
            writing: Writing::Plain,
            after: AfterCopy::Kept,
            progress: None,
        }
    }
}

/// Why there is no such filter; the texts are QEMU's but for the last two.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CbwError {
    /// No size for anything.
    #[error("Cannot create block-copy-state: min-cluster-size too large: {0} > {max}", max = i64::MAX)]
    Huge(u64),
    /// Clusters begin where a mask says.
    #[error("Cannot create block-copy-state: min-cluster-size needs to be a power of 2")]
    NotPowerOfTwo,
    /// QEMU dies of it.
    #[error(
        "Cannot create block-copy-state: min-cluster-size too large: {0} > {CLUSTER_BYTES_MAX}"
    )]
    TooLarge(u64),
    /// The bitmap is of another disk, or not to be had.
    #[error(
        "Cannot create block-copy-state: Failed to merge bitmap '{name}' to internal copy-bitmap: {why}"
    )]
    Bitmap {
        /// Its name.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// Too many clusters, or no memory for them.
    #[error("Cannot create block-copy-state: {0}; a larger min-cluster-size needs less memory")]
    Maps(Errno),
}

/// Copies what guest writes are about to replace.
#[derive(Debug)]
pub struct CopyBeforeWrite {
    below: Info,
    on_error: OnCbwError,
    timeout_ns: u64,
    clusters: Clusters,
    /// Clusters being copied.
    copying: Holds,
    copies: Copies,
}

impl CopyBeforeWrite {
    /// Above a node of which `below` is known, to a target that allocates `target_unit_bytes` at once; the snapshot has what is
    /// dirty in `wanted`, or else everything.
    pub fn new(
        below: Info,
        target_unit_bytes: u64,
        options: CbwOptions,
        wanted: Option<&DirtyBitmap>,
    ) -> Result<CopyBeforeWrite, CbwError> {
        let cluster_bytes = cluster_bytes(target_unit_bytes, options.min_cluster_bytes)?;
        let size_bytes = below.size_bytes;
        let mut clusters = Clusters::new(size_bytes, cluster_bytes).map_err(CbwError::Maps)?;
        match wanted {
            Some(bitmap) => want_dirty(&mut clusters, bitmap, size_bytes)?,
            None => clusters.want(whole(size_bytes)),
        }
        Ok(CopyBeforeWrite {
            below,
            on_error: options.on_error,
            timeout_ns: options.timeout_ns,
            clusters,
            copying: Holds::default(),
            copies: Copies::default(),
        })
    }

    /// The same for a job, which copies through it what guests do not write. All of it is left to do now.
    pub fn of_job(self, copies: Copies) -> CopyBeforeWrite {
        if let Some(progress) = &copies.progress {
            progress.set_remaining(self.clusters.todo_bytes());
        }
        CopyBeforeWrite { copies, ..self }
    }

    /// The size of what is copied or not as one.
    pub fn cluster_bytes(&self) -> u64 {
        self.clusters.cluster_bytes()
    }

    /// The first of what of `span` is still to be copied, whole clusters of it; whether that is of any use or not.
    pub fn next_left(&self, span: Span) -> Option<Span> {
        self.clusters.next_left(span, u64::MAX)
    }

    /// The same for whoever copies: nothing, once the snapshot is broken.
    pub(crate) fn next_todo(&self, span: Span, len_max: u64) -> Option<Span> {
        self.clusters.next_todo(span, len_max)
    }

    /// The clusters of `span`, whole ones, need not be copied.
    pub(crate) fn skip(&self, span: Span) {
        let bytes = self.clusters.skip(span);
        if let Some(progress) = &self.copies.progress {
            progress.forget(bytes);
        }
    }

    /// What broke the snapshot, if something did.
    pub fn broken(&self) -> Option<Errno> {
        self.clusters.broken()
    }
}

fn whole(size_bytes: u64) -> Span {
    Span {
        at: 0,
        len: size_bytes,
    }
}

/// What is dirty is in the snapshot, whole clusters of it. The bitmap may go on recording, or go: that makes no difference any
/// more.
fn want_dirty(
    clusters: &mut Clusters,
    bitmap: &DirtyBitmap,
    size_bytes: u64,
) -> Result<(), CbwError> {
    bitmap.check_source(size_bytes).map_err(|why| {
        let (name, why) = (bitmap.name().to_owned(), why.to_string());
        CbwError::Bitmap { name, why }
    })?;
    let mut rest = whole(size_bytes);
    while let Some(dirty) = bitmap.next_dirty(rest) {
        clusters.want(dirty);
        rest = rest.after(dirty.end() - rest.at);
    }
    Ok(())
}

/// What is copied at once: as much as the target allocates, as is asked for, and not less than [`CLUSTER_BYTES_MIN`].
fn cluster_bytes(target_unit_bytes: u64, min_cluster_bytes: u64) -> Result<u64, CbwError> {
    let min = min_cluster_bytes.max(1);
    if min > i64::MAX as u64 {
        return Err(CbwError::Huge(min));
    }
    if !min.is_power_of_two() {
        return Err(CbwError::NotPowerOfTwo);
    }
    if min > CLUSTER_BYTES_MAX {
        return Err(CbwError::TooLarge(min));
    }
    let unit = match target_unit_bytes.is_power_of_two() {
        true => target_unit_bytes.min(CLUSTER_BYTES_MAX),
        false => 1,
    };
    Ok(unit.max(min).max(CLUSTER_BYTES_MIN))
}

/// The driver of the node that `io` is at.
pub(crate) fn here(io: &Io) -> Result<Arc<dyn Driver>, Errno> {
    match io.graph().node(io.here()).map(|node| node.body()) {
        Some(Body::Driver(driver)) => Ok(driver.clone()),
        _ => Err(Errno::IO),
    }
}

impl Driver for CopyBeforeWrite {
    #[inline]
    fn map(&self, dir: Dir, span: Span) -> Map {
        if dir == Dir::Write && !self.clusters.may_write(span) {
            return Map::Slow;
        }
        let Span { at, len } = span;
        let to = Role::Filtered;
        Map::Below { to, at, len }
    }

    fn serve<'a>(&'a self, io: &'a Io, request: Request) -> Local<'a, Outcome> {
        if matches!(request.kind, Kind::Read | Kind::Flush) {
            return io.below(Role::Filtered, request);
        }
        Box::pin(async move {
            self.before(io, request.span).await?;
            io.below(Role::Filtered, request).await
        })
    }

    fn status<'a>(&'a self, io: &'a Io, span: Span) -> Local<'a, Result<Status, Errno>> {
        Box::pin(async move { io.status(io.child(Role::Filtered)?, span).await })
    }

    fn info(&self) -> Info {
        self.below
    }

    fn described(&self, _kind: &str) -> Described {
        Described::plainly(Short::Child)
    }

    /// What is cut off stays in the snapshot: it is copied first.
    fn truncate<'a>(&'a self, io: &'a Io, size_bytes: u64, how: Prealloc) -> Local<'a, Outcome> {
        Box::pin(async move {
            let len = i64::MAX as u64 - size_bytes.min(i64::MAX as u64);
            let gone = Span::new(size_bytes, len).ok_or(Errno::INVAL)?;
            self.before(io, gone).await?;
            io.truncate(io.child(Role::Filtered)?, size_bytes, how)
                .await
        })
    }

    fn as_copy_before_write(&self) -> Option<&CopyBeforeWrite> {
        Some(self)
    }

    /// The source is written by nobody but through this filter, or the snapshot would change. The target may be: what it is
    /// written with is its owner's business.
    fn wants(&self, edge: &Edge, above: Wants) -> Wants {
        match edge.role {
            Role::Target => TARGET,
            _ => Wants {
                needs: above.needs.or(self.source_needs()),
                shares: above.shares.without(Perms::WRITE.or(Perms::RESIZE)),
            },
        }
    }

    /// A filter that nobody uses yet is about to be put above a source that somebody writes.
    fn wants_unused(&self, edge: &Edge) -> Wants {
        match edge.role {
            Role::Target => TARGET,
            _ => Wants::NOTHING,
        }
    }
}

impl CopyBeforeWrite {
    fn source_needs(&self) -> Perms {
        match self.copies.after {
            AfterCopy::Kept => Perms::READ,
            AfterCopy::Discarded => Perms::READ_WRITE,
        }
    }
}

const TARGET: Wants = Wants {
    needs: Perms::WRITE,
    shares: Perms::ALL_BUT_RESIZE,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_are_as_large_as_the_largest_of_what_is_asked() {
        assert_eq!(cluster_bytes(1, 0), Ok(64 << 10));
        assert_eq!(cluster_bytes(2 << 20, 4096), Ok(2 << 20));
        assert_eq!(cluster_bytes(4096, 1 << 20), Ok(1 << 20));
        assert_eq!(cluster_bytes(1, 1 << 31), Ok(1 << 31));
        assert_eq!(cluster_bytes(1, 3), Err(CbwError::NotPowerOfTwo));
        assert_eq!(cluster_bytes(1, 1 << 32), Err(CbwError::TooLarge(1 << 32)));
        assert_eq!(cluster_bytes(1, u64::MAX), Err(CbwError::Huge(u64::MAX)));
    }
}
