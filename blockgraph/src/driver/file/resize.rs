//! Files made longer and shorter.
//!
//! The rule: the size that is shown shrinks before the file does and grows after it has, so that no request is let pass to
//! bytes that are not there. A growth that fails half-way is taken back.

use super::{FileDriver, FileKind};
use crate::blocking::blocking;
use crate::driver::{SIZE_BYTES_MAX, whole_sectors};
use crate::io::Io;
use crate::node::Outcome;
use crate::request::Prealloc;
use crate::units::Span;
use ring::sys::disk::set_size;
use ring::{Errno, Mem, Op};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

impl FileDriver {
    /// Errors: ENOTSUP for metadata to preallocate, and for a device that is to have another size; EINVAL for a device that
    /// is to be longer, and for a preallocation that shrinks; EFBIG; the file system's own.
    pub(super) async fn resize(&self, io: &Io, size_bytes: u64, how: Prealloc) -> Outcome {
        if size_bytes > SIZE_BYTES_MAX {
            return Err(Errno(libc::EFBIG));
        }
        let _alone = self.resizing.hold(Span { at: 0, len: 1 }).await;
        let before = self.size_bytes.load(Ordering::Acquire);
        match self.parts.kind {
            FileKind::Device => resize_device(before, size_bytes, how),
            FileKind::Regular if size_bytes >= before => {
                self.grow(io, before, size_bytes, how).await
            }
            FileKind::Regular if how != Prealloc::Off => Err(Errno::INVAL),
            FileKind::Regular => self.shrink(io, before, size_bytes).await,
        }
    }

    /// Mapped requests that began while the file was longer end first: a write among them would make it so again.
    async fn shrink(&self, io: &Io, before: u64, size_bytes: u64) -> Outcome {
        let size = whole_sectors(size_bytes);
        self.size_bytes.store(size, Ordering::Release);
        io.grace().await;
        let outcome = self.set_len(io, size_bytes).await;
        if outcome.is_err() {
            self.size_bytes.store(before, Ordering::Release);
        }
        outcome
    }

    async fn grow(&self, io: &Io, before: u64, size_bytes: u64, how: Prealloc) -> Outcome {
        let gained = Span {
            at: before,
            len: size_bytes - before,
        };
        let outcome = match how {
            Prealloc::Off => self.set_len(io, size_bytes).await,
            Prealloc::Metadata => return Err(Errno::NOTSUP),
            Prealloc::Falloc => self.set_aside(io, gained).await,
            Prealloc::Full => self.write_gained(io, gained).await,
        };
        if let Err(errno) = outcome {
            // What was there before is worth more than to know why this failed too.
            if how != Prealloc::Off {
                let _ = self.set_len(io, before).await;
            }
            return Err(errno);
        }
        let size = whole_sectors(size_bytes);
        self.size_bytes.store(size, Ordering::Release);
        Ok(())
    }

    async fn set_aside(&self, io: &Io, gained: Span) -> Outcome {
        if gained.is_empty() {
            return Ok(());
        }
        let op = Op::Allocate {
            file: self.parts.file.id(),
            at: gained.at,
            len_bytes: gained.len,
        };
        match io.file(op, Mem::none()).await {
            // The file system does not know how: what posix_fallocate(3) does then.
            Err(Errno(libc::EOPNOTSUPP | libc::ENOSYS)) => self.write_gained(io, gained).await,
            outcome => outcome,
        }
    }

    /// The file's end may lie within a block that only whole writes reach, so it is made longer first.
    async fn write_gained(&self, io: &Io, gained: Span) -> Outcome {
        self.set_len(io, gained.end()).await?;
        if gained.is_empty() {
            return Ok(());
        }
        let _hold = self.holds.hold(gained.widened(self.block_bytes())).await;
        self.zero_by_writing(io, gained).await?;
        // A last block written whole may have made it too long.
        if self.block_bytes() > 1 {
            self.set_len(io, gained.end()).await?;
        }
        self.sync(io).await
    }

    async fn set_len(&self, io: &Io, len_bytes: u64) -> Outcome {
        let file = self.parts.file.clone();
        let op = Op::Truncate {
            file: file.id(),
            len_bytes,
        };
        match io.file(op, Mem::none()).await {
            Err(Errno::NOTSUP) => {}
            outcome => return outcome,
        }
        let done = blocking(move || set_size(file.as_fd(), len_bytes)).await?;
        done.map_err(|error| Errno(error.raw_os_error().unwrap_or(libc::EIO)))
    }
}

/// A device is as long as it is.
fn resize_device(size_bytes: u64, wanted: u64, how: Prealloc) -> Outcome {
    match (how, wanted.cmp(&size_bytes)) {
        (Prealloc::Off, std::cmp::Ordering::Equal) => Ok(()),
        (Prealloc::Off, std::cmp::Ordering::Greater) => Err(Errno::INVAL),
        _ => Err(Errno::NOTSUP),
    }
}
