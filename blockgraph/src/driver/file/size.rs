//! Files made longer and shorter.
//!
//! The rule: the node's size never promises bytes the file does not have: it grows after the file did and shrinks before.

use super::{FileDriver, FileKind};
use crate::blocking::blocking;
use crate::driver::whole_sectors;
use crate::io::Io;
use crate::node::Outcome;
use crate::request::{Prealloc, Unmap};
use crate::units::Span;
use ring::{Errno, Mem, Op};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

impl FileDriver {
    /// Errors: EINVAL for a device that is smaller, and for space set aside while cutting; ENOTSUP for metadata, which a
    /// file has none of.
    pub(super) async fn resize(&self, io: &Io, size_bytes: u64, how: Prealloc) -> Outcome {
        // One at a time.
        let _alone = self.resizing.hold(Span { at: 0, len: 1 }).await;
        let before = self.size_bytes.load(Ordering::Acquire);
        if how == Prealloc::Metadata {
            return Err(Errno::NOTSUP);
        }
        if self.parts.kind == FileKind::Device {
            // A device has the size it has: enough is good enough.
            return if size_bytes <= before {
                Ok(())
            } else {
                Err(Errno::INVAL)
            };
        }
        if size_bytes < before {
            return match how {
                Prealloc::Off => self.cut(io, before, size_bytes).await,
                _ => Err(Errno::INVAL),
            };
        }
        self.set_file_size(io, size_bytes).await?;
        if let Err(errno) = self.set_aside(io, before, size_bytes, how).await {
            // What little could be set aside is given back; the first error is the one to tell.
            let _ = self.set_file_size(io, before).await;
            return Err(errno);
        }
        self.size_bytes
            .store(whole_sectors(size_bytes), Ordering::Release);
        Ok(())
    }

    async fn cut(&self, io: &Io, before: u64, size_bytes: u64) -> Outcome {
        self.size_bytes
            .store(whole_sectors(size_bytes), Ordering::Release);
        // A write that was let pass while the file was longer would make it so again.
        io.grace().await;
        let outcome = self.set_file_size(io, size_bytes).await;
        if outcome.is_err() {
            self.size_bytes.store(before, Ordering::Release);
        }
        outcome
    }

    async fn set_aside(&self, io: &Io, from: u64, to: u64, how: Prealloc) -> Outcome {
        let new = Span {
            at: from,
            len: to.saturating_sub(from),
        };
        match how {
            Prealloc::Falloc => self.write_zeroes(io, new, Unmap::Keep).await?,
            Prealloc::Full => self.zero_by_writing(io, new).await?,
            Prealloc::Off | Prealloc::Metadata => return Ok(()),
        }
        // The last block, written whole, may have made it too long.
        if to.is_multiple_of(self.block_bytes()) {
            return Ok(());
        }
        self.set_file_size(io, to).await
    }

    async fn set_file_size(&self, io: &Io, len_bytes: u64) -> Outcome {
        let file = self.parts.file.id();
        match io.file(Op::Truncate { file, len_bytes }, Mem::none()).await {
            Err(Errno(libc::EOPNOTSUPP)) => {
                let file = self.parts.file.clone();
                let set = blocking(move || ring::sys::disk::set_size(file.as_fd(), len_bytes));
                let done = set.await?;
                done.map_err(|error| error.raw_os_error().map_or(Errno::IO, Errno))
            }
            other => other,
        }
    }
}
