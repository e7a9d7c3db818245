//! Compressed clusters: unpacked whole, the last few kept.
//!
//! The rule: one task unpacks a cluster while everybody else who reads of it waits for that, few are unpacked at a time, and
//! what is kept counts only as long as no entry of a compressed cluster has changed.

use super::Qcow2;
use super::format::header::Compression;
use super::read::read_or_zeroes;
use crate::blocking::blocking;
use crate::filter::blkdebug::BlkdebugEvent;
use crate::hold::Holds;
use crate::io::Io;
use crate::node::Outcome;
use crate::units::Span;
use flate2::{Decompress, FlushDecompress};
use ring::{Errno, Mem};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use zstd::zstd_safe;

/// Larger clusters are unpacked on a helper thread: a queue thread is not held up for longer than this takes.
const INLINE_BYTES_MAX: usize = 16 << 10;
/// Unpacked bytes that are kept, and that are being made, as far as two clusters are not more.
const KEPT_BYTES: usize = 1 << 20;
const MAKING_BYTES: usize = 4 << 20;

/// The unpacked clusters of one image.
#[derive(Debug)]
pub(crate) struct Unpacked {
    compression: Compression,
    cluster_bytes: usize,
    /// Guest clusters that are being unpacked.
    making: Holds,
    /// Never held across an await.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    kept: VecDeque<Kept>,
    under_way: usize,
    waiting: Vec<Waker>,
}

#[derive(Clone, Debug)]
struct Kept {
    key: Key,
    bytes: Arc<Vec<u8>>,
}

/// Which cluster, packed where, after how many changes of compressed entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    guest: u64,
    packed: Span,
    changes: u64,
}

/// One of the few that unpack.
struct Turn<'a>(&'a Unpacked);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let waiting = {
            let mut state = self.0.state();
            state.under_way -= 1;
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }
}

impl Unpacked {
    /// None yet.
    pub(crate) fn new(compression: Compression, cluster_bytes: u64) -> Unpacked {
        Unpacked {
            compression,
            cluster_bytes: cluster_bytes as usize,
            making: Holds::default(),
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, key: Key) -> Option<Arc<Vec<u8>>> {
        let state = self.state();
        let kept = state.kept.iter().find(|kept| kept.key == key)?;
        Some(kept.bytes.clone())
    }

    fn keep(&self, key: Key, bytes: &Arc<Vec<u8>>) {
        let mut state = self.state();
        let room = (KEPT_BYTES / self.cluster_bytes).clamp(2, 64);
        state.kept.truncate(room - 1);
        let bytes = bytes.clone();
        state.kept.push_front(Kept { key, bytes });
    }

    async fn turn(&self) -> Turn<'_> {
        let together = (MAKING_BYTES / self.cluster_bytes).clamp(2, 16);
        poll_fn(|cx| {
            let mut state = self.state();
            if state.under_way >= together {
                crate::waiting::enter(&mut state.waiting, cx);
                return Poll::Pending;
            }
            state.under_way += 1;
            Poll::Ready(Turn(self))
        })
        .await
    }
}

impl Qcow2 {
    /// Fills `mem` from guest byte `guest` on, which is in the cluster whose packed bytes are `packed`. `changes` is what
    /// [`super::cache::Cache::compressed_changes`] said before the entry was looked up.
    pub(super) async fn read_compressed(
        &self,
        io: &Io,
        packed: Span,
        guest: u64,
        mem: Mem,
        changes: u64,
    ) -> Outcome {
        let key = Key {
            guest: self.geometry.cluster_start(guest),
            packed,
            changes,
        };
        let from = self.geometry.within_cluster(guest) as usize;
        let bytes = match self.unpacked.find(key) {
            Some(bytes) => bytes,
            None => self.unpack_once(io, key).await?,
        };
        let part = bytes.get(from..from + mem.len()).ok_or(Errno::IO)?;
        mem.store(0, part);
        Ok(())
    }

    async fn unpack_once(&self, io: &Io, key: Key) -> Result<Arc<Vec<u8>>, Errno> {
        let unpacked = &self.unpacked;
        let cluster = Span::new(key.guest, self.geometry.cluster_bytes()).ok_or(Errno::IO)?;
        let _making = unpacked.making.hold(cluster).await;
        if let Some(bytes) = unpacked.find(key) {
            return Ok(bytes);
        }
        let _turn = unpacked.turn().await;
        let packed = self.read_packed(io, key.packed).await?;
        let (compression, len) = (unpacked.compression, unpacked.cluster_bytes);
        let packed = Arc::new(packed);
        let here = packed.clone();
        let helped = match len > INLINE_BYTES_MAX {
            true => blocking(move || unpack(compression, &packed, len))
                .await
                .ok(),
            false => None,
        };
        // Without a helper it is done here.
        let bytes = helped.unwrap_or_else(|| unpack(compression, &here, len));
        let bytes = Arc::new(bytes.ok_or(Errno::IO)?);
        unpacked.keep(key, &bytes);
        Ok(bytes)
    }

    /// The packed bytes; the file may end before the last sector does.
    async fn read_packed(&self, io: &Io, packed: Span) -> Result<Vec<u8>, Errno> {
        let node = io.child(self.data_role())?;
        let len = packed.len as usize;
        let mem = Mem::zeroed(len).ok_or(Errno::NOMEM)?;
        self.tell(io, BlkdebugEvent::ReadCompressed);
        read_or_zeroes(io, node, packed.at, mem.clone()).await?;
        let mut bytes = vec![0; len];
        mem.load(0, &mut bytes);
        Ok(bytes)
    }
}

/// Unpacks a cluster of `len` bytes; `None` if `packed` does not hold as much, or is no such thing. What follows it is of no
/// account: "decompression stops when it has produced a cluster of data".
fn unpack(compression: Compression, packed: &[u8], len: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; len];
    match compression {
        Compression::Zlib => inflate(packed, &mut bytes)?,
        Compression::Zstd => decode_frames(packed, &mut bytes)?,
    }
    Some(bytes)
}

/// A raw deflate stream. QEMU's has a window of 4 KiB, which any larger one can read.
fn inflate(packed: &[u8], bytes: &mut [u8]) -> Option<()> {
    let mut stream = Decompress::new(false);
    // The status says whether the stream ended; what counts is that the cluster is full.
    stream
        .decompress(packed, bytes, FlushDecompress::Finish)
        .ok()?;
    (stream.total_out() == bytes.len() as u64).then_some(())
}

/// One or more zstd frames. Each is decoded in one go, into memory it can refer back to: no frame can ask for a window.
fn decode_frames(packed: &[u8], bytes: &mut [u8]) -> Option<()> {
    let mut context = zstd_safe::DCtx::try_create()?;
    let (mut from, mut to) = (0, 0);
    while to < bytes.len() {
        let rest = packed.get(from..)?;
        let frame = zstd_safe::find_frame_compressed_size(rest).ok()?;
        let frame = rest.get(..frame).filter(|frame| !frame.is_empty())?;
        to += context.decompress(&mut bytes[to..], frame).ok()?;
        from += frame.len();
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compress, Compression as Level, FlushCompress};

    const LEN: usize = 65536;

    fn text() -> Vec<u8> {
        (0..LEN).map(|n| (n / 7 % 251) as u8).collect()
    }

    fn deflated(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(LEN);
        let mut stream = Compress::new_with_window_bits(Level::default(), false, 12);
        let end = stream.compress_vec(bytes, &mut out, FlushCompress::Finish);
        end.expect("compressed");
        out
    }

    fn framed(bytes: &[u8]) -> Vec<u8> {
        zstd::bulk::compress(bytes, 3).expect("compressed")
    }

    #[test]
    fn what_follows_the_packed_bytes_is_of_no_account() {
        let mut zlib = deflated(&text());
        zlib.extend([0xee; 300]);
        assert_eq!(unpack(Compression::Zlib, &zlib, LEN), Some(text()));
        let mut zstd = framed(&text());
        zstd.extend([0xee; 300]);
        assert_eq!(unpack(Compression::Zstd, &zstd, LEN), Some(text()));
    }

    #[test]
    fn a_cluster_may_be_several_frames() {
        let text = text();
        let (first, second) = text.split_at(1000);
        let frames = [framed(first), framed(second)].concat();
        assert_eq!(unpack(Compression::Zstd, &frames, LEN), Some(text));
    }

    #[test]
    fn too_few_bytes_and_nonsense_are_refused() {
        for (compression, packed) in [
            (Compression::Zlib, deflated(&text())),
            (Compression::Zstd, framed(&text())),
        ] {
            for cut in [0, 1, 10, packed.len() / 2, packed.len() - 20] {
                assert_eq!(unpack(compression, &packed[..cut], LEN), None, "{cut}");
            }
            assert_eq!(unpack(compression, &packed, LEN + 1), None);
            assert_eq!(unpack(compression, &[0xff; 4096], LEN), None);
        }
        // Any number of empty frames is no cluster, and ends.
        assert_eq!(
            unpack(Compression::Zstd, &framed(&[]).repeat(100), LEN),
            None
        );
    }
}
