//! The image's file as bytes, for work that is done cluster by cluster and not for a guest: making, checking, resizing.
//!
//! The rule: what lies past the end of the file reads as zeroes, and no call uses more memory than it returns plus one
//! step.

use crate::io::Io;
use crate::node::{NodeId, Outcome};
use crate::request::{Kind, Prealloc, Request, Unmap};
use crate::units::Span;
use ring::{Durability, Errno, Mem};

/// Bytes that are moved at once.
pub const STEP_BYTES: usize = 1 << 20;

/// A node taken as a file.
#[derive(Clone, Debug)]
pub struct ImageFile {
    io: Io,
    node: NodeId,
}

impl ImageFile {
    /// That node.
    pub fn new(io: &Io, node: NodeId) -> ImageFile {
        ImageFile {
            io: io.clone(),
            node,
        }
    }

    /// How long it is now.
    pub fn size_bytes(&self) -> u64 {
        let info = self.io.graph().info(self.node);
        info.map_or(0, |info| info.size_bytes)
    }

    /// `len` bytes at `at`. Errors: ENOMEM, and what the node answers.
    pub async fn read(&self, at: u64, len: usize) -> Result<Vec<u8>, Errno> {
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).map_err(|_| Errno::NOMEM)?;
        bytes.resize(len, 0);
        self.read_into(at, &mut bytes).await?;
        Ok(bytes)
    }

    /// Fills `bytes` from `at` on.
    pub async fn read_into(&self, at: u64, bytes: &mut [u8]) -> Outcome {
        let size = self.size_bytes();
        let mut at = at;
        for step in bytes.chunks_mut(STEP_BYTES) {
            let there = size.saturating_sub(at).min(step.len() as u64) as usize;
            let (from_file, past) = step.split_at_mut(there);
            past.fill(0);
            if there > 0 {
                let mem = Mem::zeroed(there).ok_or(Errno::NOMEM)?;
                self.io.read(self.node, at, &mem).await?;
                mem.load(0, from_file);
            }
            at = at.saturating_add(step.len() as u64);
        }
        Ok(())
    }

    /// Writes `bytes` at `at`; the file grows if it must.
    pub async fn write(&self, at: u64, bytes: &[u8]) -> Outcome {
        self.grow_to(end(at, bytes.len() as u64)?).await?;
        let mut at = at;
        for step in bytes.chunks(STEP_BYTES) {
            let mem = Mem::zeroed(step.len()).ok_or(Errno::NOMEM)?;
            mem.store(0, step);
            self.io.write(self.node, at, &mem).await?;
            at += step.len() as u64;
        }
        Ok(())
    }

    /// Makes `len` bytes at `at` read as zeroes; the file grows if it must.
    pub async fn zero(&self, at: u64, len: u64, unmap: Unmap) -> Outcome {
        self.grow_to(end(at, len)?).await?;
        let span = Span::new(at, len).ok_or(Errno::INVAL)?;
        let kind = Kind::WriteZeroes(unmap, Durability::Cached);
        self.io.request(self.node, Request::plain(kind, span)).await
    }

    /// Gives `len` bytes at `at` back; advice.
    pub async fn discard(&self, at: u64, len: u64) -> Outcome {
        let len = len.min(self.size_bytes().saturating_sub(at));
        let span = Span::new(at, len).ok_or(Errno::INVAL)?;
        let request = Request::plain(Kind::Discard, span);
        self.io.request(self.node, request).await
    }

    /// Makes everything written so far durable.
    pub async fn flush(&self) -> Outcome {
        let nowhere = Span { at: 0, len: 0 };
        let request = Request::plain(Kind::Flush, nowhere);
        self.io.request(self.node, request).await
    }

    /// Makes it at least that long.
    pub async fn grow_to(&self, size_bytes: u64) -> Outcome {
        if size_bytes <= self.size_bytes() {
            return Ok(());
        }
        self.set_size(size_bytes, Prealloc::Off).await
    }

    /// Makes it that long.
    pub async fn set_size(&self, size_bytes: u64, how: Prealloc) -> Outcome {
        self.io.truncate(self.node, size_bytes, how).await
    }
}

fn end(at: u64, len: u64) -> Result<u64, Errno> {
    at.checked_add(len).ok_or(Errno(libc::EFBIG))
}
