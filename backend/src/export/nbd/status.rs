//! NBD_CMD_BLOCK_STATUS: a chunk of extents for each context that was asked for.

use super::exports::Context;
use super::serve::Job;
use blockgraph::Span;
use blockgraph::bitmap::DirtyBitmap;
use blockgraph::driver::nbd::wire::{Extent, NbdError, StatusChunk, dirty_state, state};
use blockgraph::graph::status::{Found, Until, status_above};
use ring::Errno;

/// No chunk has more extents; QEMU's limit too ("a server may truncate").
const EXTENTS_MAX: usize = (1 << 20) / 8;

impl Job {
    /// Tells of `len` bytes from the request's offset.
    pub(super) async fn status(&self, len: u64, one: bool, contexts: &[Context]) {
        let Some(span) = Span::new(self.head.at, len) else {
            return self.cannot(Errno::INVAL);
        };
        let extents_max = if one { 1 } else { EXTENTS_MAX };
        for (at, context) in contexts.iter().enumerate() {
            let last = at + 1 == contexts.len();
            let extents = match context {
                Context::Bitmap(at) => match self.desk.export.bitmap(*at) {
                    Some(bitmap) => Ok(dirty(bitmap, span, extents_max)),
                    None => Err(Errno::INVAL),
                },
                _ => self.collect(*context, span, extents_max).await,
            };
            let extents = match extents {
                Ok(extents) => extents,
                Err(errno) => return self.cannot(errno),
            };
            let chunk = StatusChunk {
                context: context.id(),
                extents,
            };
            self.desk.extents(&self.head, &chunk, last, &self.permit);
        }
    }

    fn cannot(&self, errno: Errno) {
        let error = NbdError::from_errno(errno.0);
        let text = "can't get block status";
        self.desk.failed(&self.head, error, text, &self.permit);
    }

    /// Neighbours of one status are one extent. Errors: those of the nodes; ESHUTDOWN once the connection is to end.
    async fn collect(
        &self,
        context: Context,
        span: Span,
        extents_max: usize,
    ) -> Result<Vec<Extent>, Errno> {
        let node = self.desk.export.options.node;
        let mut extents: Vec<Extent> = Vec::new();
        let mut rest = span;
        while !rest.is_empty() {
            if self.desk.is_closing() {
                return Err(Errno(libc::ESHUTDOWN));
            }
            let found = status_above(&self.io, node, Until::Bottom, rest).await?;
            let len = found.status.len;
            let flags = flags(context, &found);
            let full = extents.len() == extents_max;
            match extents.last_mut() {
                Some(last) if last.flags == flags => last.len += len,
                _ if full => break,
                _ => extents.push(Extent { len, flags }),
            }
            rest = rest.after(len);
        }
        Ok(extents)
    }
}

/// What of `span` a bitmap says was written, and what not. What is beyond the bitmap's end was not.
fn dirty(bitmap: &DirtyBitmap, span: Span, extents_max: usize) -> Vec<Extent> {
    let mut extents = Vec::new();
    let mut rest = span;
    while !rest.is_empty() && extents.len() < extents_max {
        let next = bitmap.next_dirty(rest);
        let (len, flags) = match next {
            Some(dirty) if dirty.at == rest.at => (dirty.len, dirty_state::DIRTY),
            Some(dirty) => (dirty.at - rest.at, 0),
            None => (rest.len, 0),
        };
        extents.push(Extent { len, flags });
        rest = rest.after(len);
    }
    extents
}

fn flags(context: Context, found: &Found) -> u64 {
    match context {
        Context::Depth => u64::from(found.allocation_depth()),
        // It has an answer of its own.
        Context::Bitmap(_) => 0,
        Context::Allocation => {
            // HOLE is the absence of QEMU's DATA, not that of space: a zero cluster with space behind it (preallocated) is
            // HOLE|ZERO, as qemu-nbd says. So `qemu-img map` shows the same of a file and of our export of it, and a copy
            // that keeps holes is no larger. It costs a client nothing: it may not conclude from HOLE that a write needs
            // new space (proto.md: "SHOULD set" for unallocated, no promise the other way).
            let hole = if found.is_data() { 0 } else { state::HOLE };
            let zero = if found.is_zero() { state::ZERO } else { 0 };
            hole | zero
        }
    }
}
