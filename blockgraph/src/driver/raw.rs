//! raw: a window on its child, by default the whole of it.
//!
//! The rule: it moves offsets and changes nothing else; a request that it was given lies within the window, and so within
//! the child.

use super::SECTOR_BYTES;
use crate::filter::blkdebug::BlkdebugEvent;
use crate::graph::name::{Described, Setting, Short};
use crate::graph::perm::{Perms, Wants};
use crate::graph::status::{Until, status_above};
use crate::graph::{Edge, Role};
use crate::io::Io;
use crate::node::{Driver, Info, Limits, Local, Map, Outcome, Zeroing};
use crate::request::{Dir, Kind, Prealloc, Request, Unmap};
use crate::status::{Content, Status};
use crate::units::Span;
use ring::Errno;
use std::sync::atomic::{AtomicU64, Ordering};
use thiserror::Error;

/// The window that is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// Where it starts, in bytes of the child.
    pub offset_bytes: u64,
    /// How long it is; `None`: to the end of the child.
    pub size_bytes: Option<u64>,
}

/// Why there is no such window; the texts are QEMU's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum WindowError {
    /// It starts past the end.
    #[error("Offset ({offset}) cannot be greater than size of the containing file ({size})")]
    Offset {
        /// Where it would start.
        offset: u64,
        /// The child's size.
        size: u64,
    },
    /// It ends past the end. (The two spaces are in the original.)
    #[error(
        "The sum of offset ({offset}) and size ({window}) has to be smaller or equal to the  actual size of the \
         containing file ({size})"
    )]
    Size {
        /// Where it would start.
        offset: u64,
        /// How long it would be.
        window: u64,
        /// The child's size.
        size: u64,
    },
    /// It is not made of whole sectors.
    #[error("Specified size is not multiple of {SECTOR_BYTES}")]
    Sectors,
}

/// A window on a child.
#[derive(Debug)]
pub struct Raw {
    offset_bytes: u64,
    size_bytes: AtomicU64,
    limits: Limits,
    window: Window,
}

impl Raw {
    /// The window on a child of which `below` is known. A window that begins off a sector and has no size ends with the
    /// last whole sector of it.
    pub fn new(below: Info, window: Window) -> Result<Raw, WindowError> {
        let (offset, size) = (window.offset_bytes, below.size_bytes);
        let Some(rest) = size.checked_sub(offset) else {
            return Err(WindowError::Offset { offset, size });
        };
        if let Some(window) = window.size_bytes.filter(|window| *window > rest) {
            return Err(WindowError::Size {
                offset,
                window,
                size,
            });
        }
        let length = window.size_bytes.unwrap_or(rest - rest % SECTOR_BYTES);
        if !length.is_multiple_of(SECTOR_BYTES) {
            return Err(WindowError::Sectors);
        }
        Ok(Raw {
            offset_bytes: offset,
            size_bytes: AtomicU64::new(length),
            limits: below.limits,
            window,
        })
    }
}

impl Driver for Raw {
    fn map(&self, _dir: Dir, span: Span) -> Map {
        Map::Below {
            to: Role::Image,
            at: span.at + self.offset_bytes,
            len: span.len,
        }
    }

    fn described(&self, _kind: &str) -> Described {
        let number = |name: &str, value| (name.to_owned(), Setting::Number(value));
        let offset = Some(self.offset_bytes).filter(|offset| *offset > 0);
        let offset = offset.map(|offset| number("offset", offset));
        let size = self.window.size_bytes.map(|size| number("size", size));
        Described {
            settings: offset.into_iter().chain(size).collect(),
            short: Short::Storage,
        }
    }

    fn serve<'a>(&'a self, io: &'a Io, request: Request) -> Local<'a, Outcome> {
        match request.kind {
            Kind::Read => io.event(Role::Image, BlkdebugEvent::ReadAio),
            Kind::Write(_) => io.event(Role::Image, BlkdebugEvent::WriteAio),
            _ => {}
        }
        // A flush has no span to move.
        let moved = match request.kind {
            Kind::Flush => request,
            _ => request.moved(request.span.at + self.offset_bytes),
        };
        io.below(Role::Image, moved)
    }

    /// What is found in the child and below it: this layer decides the content (LOCAL), as it has nothing to defer to.
    fn status<'a>(&'a self, io: &'a Io, span: Span) -> Local<'a, Result<Status, Errno>> {
        let below = Span {
            at: span.at + self.offset_bytes,
            len: span.len,
        };
        Box::pin(async move {
            let found = status_above(io, io.child(Role::Image)?, Until::Bottom, below).await?;
            let content = match found.is_zero() {
                true => Content::Zero,
                false => Content::Data,
            };
            Ok(Status {
                content,
                ..found.status
            })
        })
    }

    fn zeroing(&self, _unmap: Unmap) -> Zeroing {
        Zeroing::Below(Role::Image)
    }

    fn allocated<'a>(&'a self, io: &'a Io) -> Local<'a, Result<u64, Errno>> {
        Box::pin(async move { io.allocated(io.child(Role::Image)?).await })
    }

    fn info(&self) -> Info {
        Info {
            size_bytes: self.size_bytes.load(Ordering::Acquire),
            limits: self.limits,
        }
    }

    /// Errors: ENOTSUP for a window of a given size (QEMU: "Cannot resize fixed-size raw disks"), EINVAL for one that would
    /// not fit behind its offset.
    fn truncate<'a>(&'a self, io: &'a Io, size_bytes: u64, how: Prealloc) -> Local<'a, Outcome> {
        Box::pin(async move {
            if self.window.size_bytes.is_some() {
                return Err(Errno::NOTSUP);
            }
            let whole = Span::new(self.offset_bytes, size_bytes).ok_or(Errno::INVAL)?;
            let before = self.size_bytes.load(Ordering::Acquire);
            let size = super::whole_sectors(size_bytes);
            if size < before {
                self.size_bytes.store(size, Ordering::Release);
            }
            let child = io.child(Role::Image)?;
            let outcome = io.truncate(child, whole.end(), how).await;
            let size = if outcome.is_ok() { size } else { before };
            self.size_bytes.store(size, Ordering::Release);
            outcome
        })
    }

    fn wants(&self, _edge: &Edge, mut above: Wants) -> Wants {
        // Somebody relies on the child's size staying as it is.
        if self.window != Window::default() {
            above.shares = above.shares.without(Perms::RESIZE);
        }
        above
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::Limits;

    fn window(offset_bytes: u64, size_bytes: Option<u64>) -> Result<u64, String> {
        let below = Info {
            size_bytes: 67_108_864,
            limits: Limits::PLAIN,
        };
        let window = Window {
            offset_bytes,
            size_bytes,
        };
        let raw = Raw::new(below, window).map_err(|error| error.to_string())?;
        Ok(raw.info().size_bytes)
    }

    #[test]
    fn windows_are_what_qemu_takes() {
        assert_eq!(window(0, None), Ok(67_108_864));
        assert_eq!(window(67_108_864, None), Ok(0));
        assert_eq!(window(100, Some(1024)), Ok(1024));
        assert_eq!(window(511, None), Ok(67_108_352));
        assert_eq!(window(67_108_864, Some(0)), Ok(0));
    }

    #[test]
    fn other_windows_are_refused_in_its_words() {
        assert_eq!(
            window(67_109_376, None).expect_err("past the end"),
            "Offset (67109376) cannot be greater than size of the containing file (67108864)"
        );
        assert_eq!(
            window(1 << 20, Some(67_108_864)).expect_err("too long"),
            "The sum of offset (1048576) and size (67108864) has to be smaller or equal to the  actual size of the \
             containing file (67108864)"
        );
        assert_eq!(
            window(512, Some(511)).expect_err("not sectors"),
            "Specified size is not multiple of 512"
        );
        assert!(window(u64::MAX, Some(u64::MAX)).is_err());
    }
}
