//! The bitmaps of a node, as the threads that write to it see them.
//!
//! The rule: a thread that ends a write marks every bitmap that records by then, without a lock. Each generation has the list of
//! the node's bitmaps as it was; a request of an older generation, which may find a newer list, takes that from under the mutex.
//! Whether any bitmap records is asked on the way down by mapped writes, so whoever makes the first one record awaits a grace
//! period before relying on it.

use super::dirty::{DirtyBitmap, State};
use super::journal::{Covering, Journal};
use crate::io::Io;
use crate::node::Local;
use crate::units::Span;
use ring::Errno;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A node's bitmaps in one generation. Clones are of the same node.
#[derive(Clone, Debug, Default)]
pub struct Tracker {
    shared: Arc<Shared>,
    list: Arc<List>,
}

/// The same in all generations.
#[derive(Debug, Default)]
struct Shared {
    /// Does any bitmap record, or is there a journal?
    recording: AtomicBool,
    journal: Option<Arc<Journal>>,
    version: AtomicU64,
    newest: Mutex<Arc<List>>,
}

/// All bitmaps of a node, the newest first. Never changes.
#[derive(Clone, Debug, Default)]
struct List {
    version: u64,
    bitmaps: Vec<Arc<DirtyBitmap>>,
}

impl List {
    fn mark(&self, span: Span) {
        for bitmap in &self.bitmaps {
            bitmap.mark(span);
        }
    }
}

impl Tracker {
    /// That of a node that has a journal beside it.
    pub(crate) fn journaled(journal: Arc<Journal>) -> Tracker {
        let shared = Shared {
            recording: AtomicBool::new(true),
            journal: Some(journal),
            ..Shared::default()
        };
        Tracker {
            shared: Arc::new(shared),
            list: Arc::default(),
        }
    }

    /// The journal beside the node.
    pub fn journal(&self) -> Option<&Arc<Journal>> {
        self.shared.journal.as_ref()
    }

    /// Does any bitmap record, or a journal?
    #[inline]
    pub(crate) fn is_recording(&self) -> bool {
        self.shared.recording.load(Ordering::Relaxed)
    }

    /// Does the journal, if there is one, say already that `span` is written? If not, its write is served.
    #[inline]
    pub(crate) fn covers(&self, span: Span) -> bool {
        let journal = self.shared.journal.as_ref();
        journal.is_none_or(|journal| journal.covers(span))
    }

    /// What is in memory of an image is about to be written to its file.
    pub(crate) async fn say_a_word(&self, io: &Io) {
        if let Some(journal) = self.shared.journal.as_ref() {
            words(journal, io).await;
        }
    }

    /// Has the journal say so, if there is one. Errors: see [`Journal::cover`].
    pub(crate) async fn cover(&self, io: &Io, span: Span) -> Result<Option<Covering<'_>>, Errno> {
        match &self.shared.journal {
            None => Ok(None),
            Some(journal) => cover(journal, io, span).await.map(Some),
        }
    }

    /// `span` was written, or may have been.
    pub(crate) fn mark(&self, span: Span) {
        if self.list.version == self.shared.version.load(Ordering::Acquire) {
            self.list.mark(span);
        } else {
            self.newest().mark(span);
        }
    }

    fn newest(&self) -> Arc<List> {
        let newest = self.shared.newest.lock();
        newest.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All of them, the newest first.
    pub fn bitmaps(&self) -> Vec<Arc<DirtyBitmap>> {
        self.newest().bitmaps.clone()
    }

    /// All of them by name.
    pub(crate) fn by_name(&self) -> BTreeMap<String, Arc<DirtyBitmap>> {
        let all = self.bitmaps().into_iter();
        all.map(|bitmap| (bitmap.name().to_owned(), bitmap))
            .collect()
    }

    /// One by name.
    pub fn find(&self, name: &str) -> Option<Arc<DirtyBitmap>> {
        let newest = self.newest();
        let found = newest.bitmaps.iter().find(|bitmap| bitmap.name() == name);
        found.cloned()
    }

    /// The node has that size now, and nothing is written beyond it meanwhile.
    pub(crate) fn resize(&self, size_bytes: u64) {
        for bitmap in &self.newest().bitmaps {
            bitmap.resize(size_bytes);
        }
    }

    /// The node has at least that size.
    pub(super) fn fit(&self, size_bytes: u64) {
        for bitmap in &self.newest().bitmaps {
            bitmap.fit(size_bytes);
        }
    }

    /// The same with other bitmaps, for the next generation. Threads of older ones find them at once.
    pub(crate) fn with(&self, bitmaps: Vec<Arc<DirtyBitmap>>) -> Tracker {
        let version = self.newest().version + 1;
        let list = Arc::new(List { version, bitmaps });
        let newest = self.shared.newest.lock();
        *newest.unwrap_or_else(PoisonError::into_inner) = list.clone();
        self.shared.version.store(version, Ordering::Release);
        self.note_recording();
        Tracker {
            shared: self.shared.clone(),
            list,
        }
    }

    /// After bitmaps came, went or changed their state.
    pub(super) fn note_recording(&self) {
        let newest = self.newest();
        let mut bitmaps = newest.bitmaps.iter();
        let recording = bitmaps.any(|bitmap| bitmap.state() == State::Recording);
        let recording = recording || self.shared.journal.is_some();
        self.shared.recording.store(recording, Ordering::SeqCst);
    }
}

// In boxes made elsewhere: every request of every layer of a chain would have room for these, and they are polled from within
// each other.

#[inline(never)]
fn words<'a>(journal: &'a Journal, io: &'a Io) -> Local<'a, ()> {
    Box::pin(journal.say_a_word(io))
}

#[inline(never)]
fn cover<'a, 'j: 'a>(
    journal: &'j Journal,
    io: &'a Io,
    span: Span,
) -> Local<'a, Result<Covering<'j>, Errno>> {
    Box::pin(journal.cover(io, span))
}

/// Marks what a request changes, when it is over: whatever came of it, and also if it was given up half-way.
#[derive(Debug)]
pub(crate) struct MarkAtEnd<'a> {
    pub(crate) tracker: &'a Tracker,
    pub(crate) span: Span,
}

impl Drop for MarkAtEnd<'_> {
    fn drop(&mut self) {
        if self.tracker.is_recording() {
            self.tracker.mark(self.span);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bitmap(name: &str) -> Arc<DirtyBitmap> {
        let memory = Arc::default();
        let bitmap = DirtyBitmap::new(name.into(), 512, 4096, State::Recording, &memory);
        Arc::new(bitmap.expect("memory"))
    }

    #[test]
    fn a_request_of_an_older_generation_marks_bitmaps_that_came_later_and_none_that_went() {
        let span = Span { at: 0, len: 1 };
        let (a, b) = (bitmap("a"), bitmap("b"));
        let first = Tracker::default().with(vec![a.clone()]);
        let second = first.with(vec![b.clone()]);
        first.mark(span);
        assert_eq!((a.dirty_bytes(), b.dirty_bytes()), (0, 512));
        b.clear();
        second.mark(span);
        assert_eq!(b.dirty_bytes(), 512);
    }

    #[test]
    fn a_node_records_while_one_of_its_bitmaps_does() {
        let tracker = Tracker::default();
        assert!(!tracker.is_recording());
        let (a, b) = (bitmap("a"), bitmap("b"));
        let tracker = tracker.with(vec![a.clone(), b.clone()]);
        assert!(tracker.is_recording());
        for bitmap in [a, b] {
            assert!(tracker.is_recording());
            bitmap.set_state(State::Disabled);
            tracker.note_recording();
        }
        assert!(!tracker.is_recording());
    }
}
