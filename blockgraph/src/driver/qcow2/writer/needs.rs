//! What metadata in memory needs before it can answer: a refcount block read, a longer file, a commit.
//!
//! The rule: the lock on [`Meta`] is let go while a need is met, and the question is asked again.

use crate::driver::qcow2::Qcow2;
use crate::driver::qcow2::damage::Damage;
use crate::driver::qcow2::meta::Meta;
use crate::driver::qcow2::refcount::{Lack, Need};
use crate::filter::blkdebug::BlkdebugEvent;
use crate::io::Io;
use crate::node::Outcome;
use crate::request::{Prealloc, Unmap};
use crate::units::Span;
use ring::{Errno, Mem};

/// A request waits for metadata at most this often; each time something was read, grown or committed.
const TRIES_MAX: u32 = 100_000;

impl Qcow2 {
    /// Asks the metadata, and meets what it needs until there is an answer. Errors: ENOSPC, EFBIG, EIO for impossible
    /// metadata, and those of the file.
    pub(crate) async fn meet<T>(
        &self,
        io: &Io,
        mut ask: impl FnMut(&mut Meta) -> Result<T, Lack>,
    ) -> Result<T, Errno> {
        for _ in 0..TRIES_MAX {
            // The lock is let go before anything is awaited.
            let (answer, noted) = {
                let mut meta = self.meta();
                (ask(&mut meta), self.note_added(&mut meta))
            };
            if let Err(damage) = noted {
                self.corrupt(io, damage).await;
                return Err(Errno::IO);
            }
            match answer {
                Ok(answer) => return Ok(answer),
                Err(Lack::Need(Need::Block(index))) => self.load_block(io, index).await?,
                Err(Lack::Need(Need::Length(length))) => self.grow(io, length).await?,
                Err(Lack::Need(Need::Commit)) => self.commit_refcounts(io).await?,
                Err(Lack::Full) => return Err(Errno(libc::EFBIG)),
                Err(Lack::Saturated) => return Err(Errno::INVAL),
                Err(Lack::Corrupt) => {
                    self.corrupt(io, Damage::refcounts()).await;
                    return Err(Errno::IO);
                }
            }
        }
        Err(Errno::IO)
    }

    /// Asks the metadata what refcount blocks alone can answer. Errors: EIO for impossible metadata, and those of the file.
    pub(crate) async fn meet_loaded<T>(
        &self,
        io: &Io,
        mut ask: impl FnMut(&mut Meta) -> Result<T, Lack>,
    ) -> Result<T, Errno> {
        for _ in 0..TRIES_MAX {
            let answer = ask(&mut self.meta());
            match answer {
                Ok(answer) => return Ok(answer),
                Err(Lack::Need(Need::Block(index))) => self.load_block(io, index).await?,
                Err(_) => {
                    self.corrupt(io, Damage::refcounts()).await;
                    return Err(Errno::IO);
                }
            }
        }
        Err(Errno::IO)
    }

    async fn load_block(&self, io: &Io, index: u64) -> Outcome {
        let _load = self.writer.loads.hold(Span { at: index, len: 1 }).await;
        let at = {
            let meta = self.meta();
            if meta.refs.has(index) {
                return Ok(());
            }
            meta.refs.block_at(index).ok_or(Errno::IO)?
        };
        self.tell(io, BlkdebugEvent::RefblockLoad);
        let bytes = self
            .read_metadata(io, at, self.geometry.cluster_bytes())
            .await?;
        self.meta().refs.loaded(index, bytes.into_boxed_slice());
        Ok(())
    }

    /// Reads `len` bytes of metadata; what lies past the end of the file is zero.
    pub(crate) async fn read_metadata(&self, io: &Io, at: u64, len: u64) -> Result<Vec<u8>, Errno> {
        let file = self.file(io)?;
        let mem = Mem::zeroed(len as usize).ok_or(Errno::NOMEM)?;
        let file_bytes = io.graph().info(file).ok_or(Errno::IO)?.size_bytes;
        let there = file_bytes.saturating_sub(at).min(len) as usize;
        if there == 0 {
            return Err(Errno::IO);
        }
        io.read(file, at, &mem.slice(0, there)).await?;
        let mut bytes = vec![0; len as usize];
        mem.load(0, &mut bytes);
        Ok(bytes)
    }

    /// Makes the image file at least `needed` bytes long, or has freed clusters used instead.
    async fn grow(&self, io: &Io, needed: u64) -> Outcome {
        let _growth = self.writer.growth.hold(Span { at: 0, len: 1 }).await;
        let (length, step, was_stuck) = {
            let meta = self.meta();
            let alloc = &meta.alloc;
            (alloc.length(), alloc.step(needed), alloc.is_stuck())
        };
        if length >= needed {
            return Ok(());
        }
        if was_stuck {
            return self.last_resort(io).await;
        }
        match self.lengthen_file(io, step, needed).await {
            Ok(length) => {
                self.meta().alloc.grown(length);
                Ok(())
            }
            // A device, or a full file system: what was freed may do.
            Err(Errno(libc::EFBIG | libc::ENOSPC | libc::EOPNOTSUPP | libc::EINVAL)) => {
                self.meta().alloc.set_stuck(true);
                Ok(())
            }
            Err(errno) => Err(errno),
        }
    }

    /// Makes the image file `step` bytes long, or `needed`, and returns which.
    async fn lengthen_file(&self, io: &Io, step: u64, needed: u64) -> Result<u64, Errno> {
        let file = self.file(io)?;
        let ahead = self.meta().alloc.ahead();
        if ahead != Prealloc::Off && io.graph().zeroes_fast(file, Unmap::Keep) {
            match io.truncate(file, step, ahead).await {
                Ok(()) => return Ok(step),
                Err(_) => self.meta().alloc.set_ahead(Prealloc::Off),
            }
        }
        match io.truncate(file, step, Prealloc::Off).await {
            Ok(()) => Ok(step),
            Err(_) => io
                .truncate(file, needed, Prealloc::Off)
                .await
                .map(|()| needed),
        }
    }

    /// Neither the file nor the free clusters give what is needed: what waits for a commit might.
    async fn last_resort(&self, io: &Io) -> Outcome {
        let waiting = {
            let mut meta = self.meta();
            meta.alloc.set_stuck(false);
            !meta.freed.is_empty()
        };
        if !waiting {
            return Err(Errno::NOSPC);
        }
        self.commit(io).await
    }
}
