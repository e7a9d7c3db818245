//! The end of a writable image: everything durable, the file as long as it has to be, the dirty bit gone.
//!
//! The rule: the dirty bit is cleared last, when refcounts are right on disk. An image that cannot be closed cleanly is one
//! that a crash left: nothing is lost, some clusters may be.

use super::Qcow2;
use super::writer::Gate;
use crate::io::Io;
use crate::node::Outcome;
use crate::request::Prealloc;
use ring::Errno;
use std::sync::atomic::Ordering;

/// Freed clusters give refcounts to write, whose writing frees none: more rounds than this are never needed.
const ROUNDS_MAX: u32 = 4;

impl Qcow2 {
    /// Nothing of the image is in flight, nor will be. That bitmaps were lost is said, and is no reason to lose more.
    pub(super) async fn close_image(&self, io: &Io) -> Outcome {
        let graph = io.graph().clone();
        if !self.retired.load(Ordering::Acquire)
            && let Some(node) = graph.node(io.here())
        {
            let bitmaps = node.bitmaps().bitmaps();
            match self.store_bitmaps(io, &bitmaps).await {
                Ok(()) => bitmaps.iter().for_each(|bitmap| bitmap.set_readonly(true)),
                Err(error) => tracing::error!(
                    "Lost persistent bitmaps during inactivation of node '{}': {error}",
                    node.name()
                ),
            }
        }
        self.close_writer(io).await
    }

    /// Nothing of the image is in flight.
    async fn close_writer(&self, io: &Io) -> Outcome {
        if self.retired.load(Ordering::Acquire) {
            return Ok(());
        }
        match self.writer.gate() {
            Gate::Shut => return Ok(()),
            // Nothing may be written any more. Memory may know more than the disk, and that is lost, as was said.
            Gate::Corrupt => return Err(Errno::IO),
            Gate::Metadata | Gate::Open => {}
        }
        self.write_everything(io).await?;
        self.cut_file(io).await?;
        self.clear_dirty_bit(io).await
    }

    /// Everything is on disk as at the end, for another driver to take over; this one could go on. Nothing of the image is in
    /// flight. Bitmaps are in use still: see [`Qcow2::store_bitmaps`].
    pub(crate) async fn hand_over(&self, io: &Io) -> Outcome {
        self.close_writer(io).await
    }

    /// Another driver has taken over: nothing is written by this one any more.
    pub(crate) fn retire(&self) {
        self.may_map_writes.store(false, Ordering::Release);
        self.retired.store(true, Ordering::Release);
    }

    /// Brings the disk to where memory is, refcounts included.
    pub(super) async fn write_everything(&self, io: &Io) -> Outcome {
        // From here on refcounts are written in every commit.
        self.writer.set_lazy(false);
        for _ in 0..ROUNDS_MAX {
            self.commit(io).await?;
            let meta = self.meta();
            if !meta.is_ahead() && meta.freed.is_empty() && !meta.refs.is_dirty() {
                return Ok(());
            }
        }
        Err(Errno::IO)
    }

    /// Gives back what was added to the file's end and not used.
    pub(super) async fn cut_file(&self, io: &Io) -> Outcome {
        let (length, used) = {
            let mut meta = self.meta();
            if !meta.alloc.knows_end() {
                return Ok(());
            }
            (meta.alloc.length(), meta.alloc.trim())
        };
        if used >= length {
            return Ok(());
        }
        match io.truncate(self.file(io)?, used, Prealloc::Off).await {
            Ok(()) => {
                self.meta().alloc.cut(used);
                Ok(())
            }
            // A device: its size is what it is.
            Err(Errno::NOTSUP | Errno::INVAL) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}
