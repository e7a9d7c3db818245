//! Reads that a lookup alone cannot answer: slices to load, clusters to unpack, files that end early, many pieces.

use super::format::entry::Part;
use super::pieces::Pieces;
use super::{Qcow2, extent};
use crate::filter::blkdebug::BlkdebugEvent;
use crate::graph::Role;
use crate::io::Io;
use crate::node::{Local, NodeId, Outcome};
use crate::units::Span;
use ring::{Errno, Mem};

impl Qcow2 {
    /// Fills `mem` from `span`, which is as long and within the disk.
    pub(super) async fn read(&self, io: &Io, span: Span, mem: Mem) -> Outcome {
        let _user = self.users.enter();
        let mut pieces = Pieces::new();
        let mut rest = span;
        while !rest.is_empty() {
            let changes = self.l2.compressed_changes();
            let view = match self.view(io, self.geometry.entry_at(rest.at).slice).await {
                Ok(view) => view,
                // What is under way ends first: its memory is the caller's.
                Err(errno) => return pieces.finish().await.and(Err(errno)),
            };
            let slice = self.rest_of_slice(rest);
            let mut left = slice;
            while !left.is_empty() {
                let run = extent(&self.geometry, left, |index| view.entry(index));
                let (part, len) = match run {
                    Ok(run) => run,
                    Err(malformed) => {
                        let errno = self.impossible(io, malformed);
                        return pieces.finish().await.and(Err(errno));
                    }
                };
                let mem = mem.slice((left.at - span.at) as usize, len as usize);
                let piece = self.piece(io, part, left.at, mem, changes);
                left = left.after(len);
                if let Some(piece) = piece
                    && pieces.add(piece).await.is_err()
                {
                    return pieces.finish().await;
                }
            }
            rest = rest.after(slice.len);
        }
        pieces.finish().await
    }

    /// The part of `span` that is described by the slice in which it begins.
    pub(super) fn rest_of_slice(&self, span: Span) -> Span {
        let slice_bytes = self.geometry.slice_guest_bytes();
        // A power of two.
        span.first(slice_bytes - (span.at & (slice_bytes - 1)))
    }

    /// Fills `mem` from a run that begins at guest byte `guest`; `None` if that is done.
    fn piece<'a>(
        &'a self,
        io: &'a Io,
        part: Part,
        guest: u64,
        mem: Mem,
        changes: u64,
    ) -> Option<Local<'a, Outcome>> {
        match part {
            Part::Zero { .. } => {
                mem.zero();
                None
            }
            Part::Below { .. } => match io.child(Role::Cow) {
                Ok(backing) => Some(Box::pin(async move {
                    self.tell(io, BlkdebugEvent::ReadBackingAio);
                    read_or_zeroes(io, backing, guest, mem).await
                })),
                Err(_) => {
                    mem.zero();
                    None
                }
            },
            Part::Data { host, .. } => Some(Box::pin(async move {
                let node = io.child(self.data_role())?;
                self.tell(io, BlkdebugEvent::ReadAio);
                read_or_zeroes(io, node, host, mem).await
            })),
            Part::Compressed { host, len_bytes } => {
                let packed = Span::new(host, len_bytes);
                Some(Box::pin(async move {
                    let packed = packed.ok_or(Errno::IO)?;
                    self.read_compressed(io, packed, guest, mem, changes).await
                }))
            }
        }
    }
}

/// Fills `mem` from `at` of `node`; with zeroes as far as the node ends before ("If [...] the backing file is smaller than
/// the image, they shall read zeros for all parts that are not covered by the backing file").
pub(super) async fn read_or_zeroes(io: &Io, node: NodeId, at: u64, mem: Mem) -> Outcome {
    let size = io.graph().info(node).ok_or(Errno::IO)?.size_bytes;
    let there = size.saturating_sub(at).min(mem.len() as u64) as usize;
    mem.slice(there, mem.len()).zero();
    match there {
        0 => Ok(()),
        _ => io.read(node, at, &mem.slice(0, there)).await,
    }
}
