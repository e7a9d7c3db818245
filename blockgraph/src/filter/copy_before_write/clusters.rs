//! What of a snapshot is where: still in the source, copied to the target, or nowhere any more.
//!
//! The rule: a cluster goes from `todo` (its data is in the source, and a guest write has to copy it first) to `done` (it is in
//! the target), or to neither (nobody may read it), and never back. Whoever looks without the lock looks at `todo` first and
//! at the reads under way second: a read of the source begins only while the cluster is `todo`, so a write that has seen it
//! not to be sees every such read, too.

use crate::units::Span;
use ring::Errno;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

const WORD_BITS: u64 = 64;
/// Larger disks need larger clusters: so many of them are 128 MiB of each map.
const CLUSTERS_MAX: u64 = 1 << 30;

/// The clusters of a snapshot.
#[derive(Debug)]
pub(super) struct Clusters {
    cluster_bytes: u64,
    size_bytes: u64,
    /// Changed under the lock of `state`, read without.
    todo: Vec<AtomicU64>,
    /// No cluster is `todo`, or the snapshot is broken: guest writes need nothing but the readers' leave.
    idle: AtomicBool,
    /// Why it is broken; 0: it is not.
    broken: AtomicI32,
    /// How many reads of the source there are, so that looking costs a load while there are none.
    reads: AtomicUsize,
    /// Never held across an await or an I/O.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    done: Vec<u64>,
    todo_count: u64,
    is_broken: bool,
    next_ticket: u64,
    reads: Vec<(u64, Span)>,
    waiting: Vec<Waker>,
}

/// Where the beginning of a range of the snapshot is.
#[derive(Debug)]
pub(super) enum Source<'a> {
    /// In the target, for so many bytes.
    Target(u64),
    /// In the source, for so many bytes; it stays there as long as the read lives.
    File(u64, Reading<'a>),
}

/// A read of the source; over on drop.
#[derive(Debug)]
pub(super) struct Reading<'a> {
    clusters: &'a Clusters,
    ticket: u64,
}

impl Clusters {
    /// Nobody wants any of a disk, until [`Clusters::want`] says otherwise. Errors: there would be too many clusters, or there is
    /// no memory for them.
    pub(super) fn new(size_bytes: u64, cluster_bytes: u64) -> Result<Clusters, Errno> {
        let count = size_bytes.div_ceil(cluster_bytes);
        if count > CLUSTERS_MAX {
            return Err(Errno(libc::EFBIG));
        }
        let words = count.div_ceil(WORD_BITS) as usize;
        let (mut todo, mut done) = (Vec::new(), Vec::new());
        todo.try_reserve_exact(words).map_err(|_| Errno::NOMEM)?;
        done.try_reserve_exact(words).map_err(|_| Errno::NOMEM)?;
        todo.resize_with(words, AtomicU64::default);
        done.resize(words, 0);
        Ok(Clusters {
            cluster_bytes,
            size_bytes,
            todo,
            idle: AtomicBool::new(true),
            broken: AtomicI32::new(0),
            reads: AtomicUsize::new(0),
            state: Mutex::new(State {
                done,
                todo_count: 0,
                is_broken: false,
                next_ticket: 0,
                reads: Vec::new(),
                waiting: Vec::new(),
            }),
        })
    }

    /// The size of each but the last.
    pub(super) fn cluster_bytes(&self) -> u64 {
        self.cluster_bytes
    }

    /// How many bytes are still to be copied.
    pub(super) fn todo_bytes(&self) -> u64 {
        let whole = Span {
            at: 0,
            len: self.size_bytes,
        };
        let (_, end) = self.touched(whole);
        let last_missing = end * self.cluster_bytes - self.size_bytes;
        let all = self.state().todo_count * self.cluster_bytes;
        match end > 0 && self.is_todo(end - 1) {
            true => all - last_missing,
            false => all,
        }
    }

    /// The clusters that `span` has a byte of are in the source, and are to be copied before they are written. Before the first
    /// request.
    pub(super) fn want(&mut self, span: Span) {
        let (first, end) = self.touched(span);
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        for word in first / WORD_BITS..end.div_ceil(WORD_BITS) {
            let bits = self.todo[word as usize].get_mut();
            let more = mask(word, first, end) & !*bits;
            *bits |= more;
            state.todo_count += u64::from(more.count_ones());
        }
        *self.idle.get_mut() = state.todo_count == 0;
    }

    /// May a guest write `span` right now? Never waits: if the list of reads is being changed, the answer is no.
    #[inline]
    pub(super) fn may_write(&self, span: Span) -> bool {
        if !self.idle.load(Ordering::SeqCst) && self.has_todo(span) {
            return false;
        }
        if self.reads.load(Ordering::SeqCst) == 0 {
            return true;
        }
        match self.state.try_lock() {
            Ok(state) => !state.is_read(span),
            Err(_) => false,
        }
    }

    /// Has a byte of `span` still to be copied?
    pub(super) fn has_todo(&self, span: Span) -> bool {
        let (first, end) = self.touched(span);
        (first / WORD_BITS..end.div_ceil(WORD_BITS)).any(|word| {
            let bits = self.todo.get(word as usize);
            bits.is_some_and(|bits| bits.load(Ordering::SeqCst) & mask(word, first, end) != 0)
        })
    }

    /// The first clusters of `span` that have to be copied, as one range of at most `len_max` bytes, or of one cluster.
    pub(super) fn next_todo(&self, span: Span, len_max: u64) -> Option<Span> {
        match self.idle.load(Ordering::SeqCst) {
            true => None,
            false => self.next_left(span, len_max),
        }
    }

    /// The same whether that is of any use any more or not.
    pub(super) fn next_left(&self, span: Span, len_max: u64) -> Option<Span> {
        let (first, end) = self.touched(span);
        let from = self.first_todo(first, end)?;
        let most = end.min(from + (len_max / self.cluster_bytes).max(1));
        let to = (from..most).find(|at| !self.is_todo(*at)).unwrap_or(most);
        Some(self.span_of(from, to))
    }

    /// `span` has been copied; says how much of it had not been before.
    pub(super) fn set_done(&self, span: Span) -> u64 {
        let (first, end) = self.touched(span);
        let mut state = self.state();
        let mut bytes = 0;
        for at in first..end {
            if self.clear_todo(&mut state, at) {
                state.done[(at / WORD_BITS) as usize] |= bit(at);
                bytes += self.span_of(at, at + 1).len;
            }
        }
        bytes
    }

    /// The clusters within `span`, which are whole ones, need not be copied; says how much of them had to be.
    pub(super) fn skip(&self, span: Span) -> u64 {
        let (first, end) = self.touched(span);
        let mut state = self.state();
        let mut bytes = 0;
        for at in first..end {
            if self.clear_todo(&mut state, at) {
                bytes += self.span_of(at, at + 1).len;
            }
        }
        bytes
    }

    /// Nobody needs the clusters that lie within `span` any more; says which they are.
    pub(super) fn forget(&self, span: Span) -> Option<Span> {
        let first = span.at.div_ceil(self.cluster_bytes);
        let end = match span.end() >= self.size_bytes {
            true => self.size_bytes.div_ceil(self.cluster_bytes),
            false => span.end() / self.cluster_bytes,
        };
        if first >= end {
            return None;
        }
        let mut state = self.state();
        for at in first..end {
            self.clear_todo(&mut state, at);
            state.done[(at / WORD_BITS) as usize] &= !bit(at);
        }
        Some(self.span_of(first, end))
    }

    /// The snapshot is of no use any more: nobody may read it, and nothing more is copied.
    pub(super) fn set_broken(&self, errno: Errno) {
        self.state().is_broken = true;
        self.broken.store(errno.0, Ordering::SeqCst);
        self.idle.store(true, Ordering::SeqCst);
    }

    /// What broke it, if something did.
    pub(super) fn broken(&self) -> Option<Errno> {
        let errno = self.broken.load(Ordering::SeqCst);
        (errno != 0).then_some(Errno(errno))
    }

    /// Where the beginning of `span` is. Errors: EACCES where nobody may read it.
    pub(super) fn source(&self, span: Span) -> Result<Source<'_>, Errno> {
        let mut state = self.state();
        let (first, end) = self.touched(span);
        let here = self.place(&state, first);
        if state.is_broken || here == Place::Nowhere || first >= end {
            return Err(Errno(libc::EACCES));
        }
        let alike = |at: &u64| self.place(&state, *at) == here;
        let to = first + (first..end).take_while(alike).count() as u64;
        let len = self.span_of(first, to).end().min(span.end()) - span.at;
        if here == Place::Done {
            return Ok(Source::Target(len));
        }
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.reads.push((ticket, span.first(len)));
        self.reads.store(state.reads.len(), Ordering::SeqCst);
        let clusters = self;
        Ok(Source::File(len, Reading { clusters, ticket }))
    }

    /// Waits until nobody reads a byte of `span` from the source.
    pub(super) async fn unread(&self, span: Span) {
        poll_fn(|cx| {
            let mut state = self.state();
            if !state.is_read(span) {
                return Poll::Ready(());
            }
            crate::waiting::enter(&mut state.waiting, cx);
            Poll::Pending
        })
        .await;
    }

    fn place(&self, state: &State, at: u64) -> Place {
        let is_done = state.done.get((at / WORD_BITS) as usize);
        match is_done.is_some_and(|bits| bits & bit(at) != 0) {
            true => Place::Done,
            false if self.is_todo(at) => Place::Todo,
            false => Place::Nowhere,
        }
    }

    fn is_todo(&self, at: u64) -> bool {
        let bits = self.todo.get((at / WORD_BITS) as usize);
        bits.is_some_and(|bits| bits.load(Ordering::SeqCst) & bit(at) != 0)
    }

    fn first_todo(&self, first: u64, end: u64) -> Option<u64> {
        let mut at = first;
        while at < end {
            let bits = self.todo.get((at / WORD_BITS) as usize)?;
            let left = bits.load(Ordering::SeqCst) & (u64::MAX << (at % WORD_BITS));
            if left != 0 {
                let found = at / WORD_BITS * WORD_BITS + u64::from(left.trailing_zeros());
                return (found < end).then_some(found);
            }
            at = (at / WORD_BITS + 1) * WORD_BITS;
        }
        None
    }

    /// True if it was.
    fn clear_todo(&self, state: &mut State, at: u64) -> bool {
        let word = &self.todo[(at / WORD_BITS) as usize];
        let was = word.fetch_and(!bit(at), Ordering::SeqCst) & bit(at) != 0;
        state.todo_count -= u64::from(was);
        if state.todo_count == 0 {
            self.idle.store(true, Ordering::SeqCst);
        }
        was
    }

    /// The clusters that `span` has a byte of.
    #[inline]
    fn touched(&self, span: Span) -> (u64, u64) {
        let shift = self.cluster_bytes.trailing_zeros();
        let end = span.end().min(self.size_bytes);
        (span.at >> shift, (end + self.cluster_bytes - 1) >> shift)
    }

    fn span_of(&self, first: u64, end: u64) -> Span {
        let at = first * self.cluster_bytes;
        let len = (end * self.cluster_bytes).min(self.size_bytes) - at;
        Span { at, len }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a cluster's data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Todo,
    Done,
    Nowhere,
}

impl State {
    fn is_read(&self, span: Span) -> bool {
        self.reads.iter().any(|(_, read)| read.overlaps(span))
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let waiting = {
            let mut state = self.clusters.state();
            state.reads.retain(|(ticket, _)| *ticket != self.ticket);
            let left = state.reads.len();
            self.clusters.reads.store(left, Ordering::SeqCst);
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }
}

fn bit(at: u64) -> u64 {
    1 << (at % WORD_BITS)
}

/// The bits of a word that stand for `first..end`.
#[inline]
fn mask(word: u64, first: u64, end: u64) -> u64 {
    let base = word * WORD_BITS;
    let below = |at: u64| match at.saturating_sub(base) {
        count @ 0..WORD_BITS => (1 << count) - 1,
        _ => u64::MAX,
    };
    below(end) & !below(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    const K: u64 = 1 << 10;

    fn span(at: u64, len: u64) -> Span {
        Span { at, len }
    }

    /// 100 clusters, the last of them half.
    fn clusters() -> Clusters {
        let mut clusters = Clusters::new(100 * K - 512, K).expect("clusters");
        clusters.want(span(0, 100 * K - 512));
        clusters
    }

    #[test]
    fn what_is_to_be_copied_is_found_in_runs_and_only_once() {
        let clusters = clusters();
        let all = span(0, 100 * K - 512);
        assert_eq!(clusters.next_todo(all, 1000 * K), Some(all));
        assert_eq!(
            clusters.next_todo(span(70 * K + 1, 1), 10),
            Some(span(70 * K, K))
        );
        clusters.set_done(span(2 * K, 70 * K));
        assert_eq!(clusters.next_todo(all, 1000 * K), Some(span(0, 2 * K)));
        assert!(clusters.may_write(span(2 * K, 70 * K)));
        assert!(
            !clusters.may_write(span(2 * K - 1, 2)) && !clusters.may_write(span(72 * K - 1, 2))
        );
        clusters.set_done(all);
        assert!(clusters.may_write(all) && clusters.next_todo(all, K).is_none());
    }

    #[test]
    fn a_read_of_the_source_holds_a_write_up_and_a_read_of_the_target_does_not() {
        let clusters = clusters();
        let Ok(Source::File(len, reading)) = clusters.source(span(K / 2, 3 * K)) else {
            panic!("in the source")
        };
        assert_eq!(len, 3 * K);
        clusters.set_done(span(0, 8 * K));
        assert!(!clusters.may_write(span(K, 1)) && clusters.may_write(span(4 * K, K)));
        let Ok(Source::Target(len)) = clusters.source(span(7 * K + 1, 8 * K)) else {
            panic!("in the target")
        };
        assert_eq!(len, K - 1);
        drop(reading);
        assert!(clusters.may_write(span(K, 1)));
    }

    #[test]
    fn only_whole_clusters_are_forgotten_and_the_last_is_whole_at_the_end_of_the_disk() {
        let clusters = clusters();
        assert_eq!(clusters.forget(span(1, K)), None);
        assert_eq!(clusters.forget(span(1, 2 * K)), Some(span(K, K)));
        let refused = clusters.source(span(K, 1)).expect_err("forgotten");
        assert_eq!(refused, Errno(libc::EACCES));
        assert!(clusters.may_write(span(K, K)));
        assert_eq!(clusters.forget(span(98 * K, K)), Some(span(98 * K, K)));
        assert_eq!(
            clusters.forget(span(99 * K, K - 512)),
            Some(span(99 * K, K - 512))
        );
        clusters.set_done(span(99 * K, 1));
        assert!(
            clusters.source(span(99 * K, 1)).is_err(),
            "what is forgotten stays so"
        );
    }

    #[test]
    fn bytes_are_counted_to_the_end_of_the_disk_and_each_once() {
        let clusters = clusters();
        assert_eq!(clusters.todo_bytes(), 100 * K - 512);
        assert_eq!(clusters.set_done(span(98 * K, 2 * K - 512)), 2 * K - 512);
        assert_eq!(clusters.set_done(span(97 * K, 2 * K)), K);
        assert_eq!(clusters.skip(span(90 * K, 8 * K)), 7 * K);
        assert_eq!(clusters.todo_bytes(), 90 * K);
        let refused = clusters.source(span(90 * K, 1)).expect_err("left out");
        assert_eq!(refused, Errno(libc::EACCES));
    }

    #[test]
    fn what_nobody_wants_is_neither_copied_nor_read() {
        let mut clusters = Clusters::new(200 * K, K).expect("clusters");
        assert!(
            clusters.may_write(span(0, 200 * K)),
            "nothing is wanted yet"
        );
        for wanted in [span(5 * K + 1, 1), span(63 * K, 2 * K), span(64 * K, 1)] {
            clusters.want(wanted);
        }
        let all = span(0, 200 * K);
        assert_eq!(clusters.next_todo(all, all.len), Some(span(5 * K, K)));
        let rest = span(6 * K, 194 * K);
        assert_eq!(clusters.next_todo(rest, all.len), Some(span(63 * K, 2 * K)));
        assert!(clusters.may_write(span(0, 5 * K)) && !clusters.may_write(span(5 * K, 1)));
        let refused = clusters
            .source(span(4 * K, 2 * K))
            .expect_err("of no interest");
        assert_eq!(refused, Errno(libc::EACCES));
        clusters.set_done(all);
        assert!(clusters.may_write(all) && clusters.source(span(4 * K, 1)).is_err());
    }

    #[test]
    fn a_broken_snapshot_is_read_by_nobody_and_holds_up_nobody() {
        let clusters = clusters();
        clusters.set_broken(Errno::IO);
        assert_eq!(clusters.broken(), Some(Errno::IO));
        assert!(clusters.may_write(span(0, 50 * K)));
        assert!(clusters.next_todo(span(0, K), K).is_none());
        assert!(clusters.source(span(0, 1)).is_err());
    }

    #[test]
    fn no_disk_has_maps_without_bounds() {
        let refused = Clusters::new(1 << 62, 1 << 16).expect_err("2^46 clusters");
        assert_eq!(refused, Errno(libc::EFBIG));
        assert!(
            Clusters::new(0, 1 << 16)
                .expect("none")
                .may_write(span(0, 1))
        );
    }
}
