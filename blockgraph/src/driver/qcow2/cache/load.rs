//! Slices come from disk: one reader per slice, everybody else waits for it.

use super::tag::Holds;
use super::{Cache, Slot, State};
use crate::io::Io;
use crate::node::NodeId;
use ring::{Errno, Mem};
use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::atomic::Ordering;
use std::task::{Poll, Waker};

/// What is being loaded, and who waits for it.
#[derive(Debug, Default)]
pub(super) struct Loads {
    under_way: HashMap<u64, Vec<Waker>>,
    /// Where the search for a slot to empty goes on.
    hand: usize,
}

/// Why a slice could not be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    /// It could not be read.
    Failed(Errno),
    /// Every slot it may be in is dirty or held: commit, then try again.
    Crowded,
}

/// A slice for reading.
#[derive(Debug)]
pub enum View<'a> {
    /// Cached.
    Cached(Slot<'a>),
    /// There was no room for it. As on disk when it was read, so it counts only for readers that any later change of the
    /// image waits for.
    Copy(Vec<u64>, usize),
}

impl View<'_> {
    /// The words of one entry (the second is zero where entries have one).
    pub fn entry(&self, index: usize) -> [u64; 2] {
        match self {
            View::Cached(slot) => slot.entry(index),
            View::Copy(words, entry_words) => {
                let word = |at: usize| words.get(at).copied().unwrap_or(0);
                match entry_words {
                    1 => [word(index), 0],
                    _ => [word(index * 2), word(index * 2 + 1)],
                }
            }
        }
    }
}

/// A load that is under way; whoever waits for it tries anew when it ends, however it ends.
struct Loading<'a> {
    cache: &'a Cache,
    slice: u64,
}

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        let waiting = self.cache.lock().under_way.remove(&self.slice);
        waiting.into_iter().flatten().for_each(Waker::wake);
    }
}

/// Where a slice is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDisk {
    /// Nowhere: its table does not exist.
    Absent,
    /// At that byte of that node.
    At(NodeId, u64),
}

impl Cache {
    /// The slice, read from where `locate` says if it is not cached. `locate` is asked after everybody else's load of
    /// this slice is over.
    pub async fn load(
        &self,
        io: &Io,
        slice: u64,
        locate: impl Fn() -> Result<OnDisk, Errno>,
    ) -> Result<Slot<'_>, Miss> {
        match self.fetch(io, slice, locate).await.map_err(Miss::Failed)? {
            View::Cached(slot) => Ok(slot),
            View::Copy(..) => Err(Miss::Crowded),
        }
    }

    /// As [`Cache::load`], for readers, who do with a copy if there is no room.
    pub async fn fetch(
        &self,
        io: &Io,
        slice: u64,
        locate: impl Fn() -> Result<OnDisk, Errno>,
    ) -> Result<View<'_>, Errno> {
        let loading = match self.begin_load(slice).await {
            Ok(slot) => return Ok(View::Cached(slot)),
            Err(loading) => loading,
        };
        let mem = match locate()? {
            OnDisk::Absent => None,
            OnDisk::At(node, at) => Some(self.read(io, node, at).await?),
        };
        let view = self.keep(slice, mem.as_ref());
        drop(loading);
        Ok(view)
    }

    /// Waits until the slice is cached, or it is the caller's to load.
    async fn begin_load(&self, slice: u64) -> Result<Slot<'_>, Loading<'_>> {
        poll_fn(|cx| {
            let mut loads = self.lock();
            if let Some(slot) = self.take(&loads, slice) {
                return Poll::Ready(Ok(slot));
            }
            if let Some(waiting) = loads.under_way.get_mut(&slice) {
                crate::waiting::enter(waiting, cx);
                return Poll::Pending;
            }
            loads.under_way.insert(slice, Vec::new());
            let cache = self;
            Poll::Ready(Err(Loading { cache, slice }))
        })
        .await
    }

    /// Reads a slice. A table that begins past the end of the file is an error; one that ends past it, as files whose last
    /// cluster was never written whole do, reads as zeroes there.
    async fn read(&self, io: &Io, node: NodeId, at: u64) -> Result<Mem, Errno> {
        let len = self.slice_words * 8;
        let mem = Mem::zeroed(len).ok_or(Errno::NOMEM)?;
        let file_bytes = io.graph().info(node).ok_or(Errno::IO)?.size_bytes;
        let there = file_bytes.saturating_sub(at).min(len as u64) as usize;
        if there == 0 {
            return Err(Errno::IO);
        }
        io.read(node, at, &mem.slice(0, there)).await?;
        Ok(mem)
    }

    /// Puts a slice into a slot if there is one for it.
    pub(super) fn keep(&self, slice: u64, mem: Option<&Mem>) -> View<'_> {
        let mut loads = self.lock();
        let Some(slot) = self.victim(&mut loads, slice) else {
            drop(loads);
            let mut words = vec![0; self.slice_words];
            each_word(mem, self.slice_words, |at, word| words[at] = word);
            return View::Copy(words, self.entry_words);
        };
        let tag = self.begin_change(slot);
        // A slice without entries takes no memory.
        let mem = mem.filter(|mem| !mem.is_zero());
        let holds = match mem {
            None => Holds::Blank(slice),
            Some(mem) => {
                let words = self.words_of(slot);
                each_word(Some(mem), self.slice_words, |at, word| {
                    words[at].store(word, Ordering::Relaxed);
                });
                Holds::Stored(slice)
            }
        };
        let State {
            used,
            holders,
            changes,
            written,
        } = &self.states[slot];
        used.store(true, Ordering::Relaxed);
        holders.store(1, Ordering::Release);
        changes.store(0, Ordering::Release);
        written.store(0, Ordering::Release);
        self.end_change(slot, tag, holds);
        let cache = self;
        View::Cached(Slot { cache, slot, slice })
    }

    /// A slot of the slice's set that is empty, or else the first that the clock's hand finds unused.
    fn victim(&self, loads: &mut Loads, slice: u64) -> Option<usize> {
        let set = self.set(slice);
        let is_empty = |slot: &usize| self.tag(*slot).slice().is_none();
        if let Some(slot) = set.clone().find(is_empty) {
            return Some(slot);
        }
        // Twice around: the first time takes the mark that the second time finds missing.
        for _ in 0..2 * self.ways {
            loads.hand = loads.hand.wrapping_add(1);
            let slot = set.start + loads.hand % self.ways;
            let state = &self.states[slot];
            if state.may_go() && !state.used.swap(false, Ordering::Relaxed) {
                return Some(slot);
            }
        }
        None
    }
}

/// Takes the first `count` big-endian words out of memory; all zero if there is none.
fn each_word(mem: Option<&Mem>, count: usize, mut put: impl FnMut(usize, u64)) {
    let mut block = [0u8; 4096];
    for first in (0..count).step_by(block.len() / 8) {
        let here = (count - first).min(block.len() / 8);
        if let Some(mem) = mem {
            mem.load(first * 8, &mut block[..here * 8]);
        }
        for (n, bytes) in block[..here * 8].as_chunks().0.iter().enumerate() {
            put(first + n, u64::from_be_bytes(*bytes));
        }
    }
}
