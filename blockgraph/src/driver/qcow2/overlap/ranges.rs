//! Ranges of a file that many threads look up and few change, without a lock for those who look.
//!
//! The rule: who looks while somebody changes them is told that there is a hit, and asks again where that can be said for
//! certain. (A sequence lock: the version is odd during a change, and another afterwards.)

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// Ranges the first buffer has room for; each further one has room for twice as many.
const FIRST_RANGES: usize = 64;
/// The last of them has room for far more ranges than the limits on an image's tables allow.
const BUFFERS: usize = 24;

/// In order: first byte and the one past the last. None touches the next.
#[derive(Debug, Default)]
pub(crate) struct Ranges {
    version: AtomicU64,
    /// Which buffer holds them, and how many they are.
    current: AtomicUsize,
    count: AtomicUsize,
    buffers: [OnceLock<Box<[Range]>>; BUFFERS],
    /// The same for whoever changes them: one at a time.
    list: Mutex<Vec<(u64, u64)>>,
}

#[derive(Debug, Default)]
struct Range {
    from: AtomicU64,
    end: AtomicU64,
}

impl Ranges {
    /// True if one of them has a byte of `len` bytes at `at`, or may have.
    pub(crate) fn hit(&self, at: u64, len: u64) -> bool {
        let before = self.version.load(Ordering::Acquire);
        let found = self.search(at, at.saturating_add(len));
        // What was read above is of that version if it is still the same here.
        fence(Ordering::Acquire);
        found || before & 1 == 1 || self.version.load(Ordering::Relaxed) != before
    }

    fn search(&self, at: u64, end: u64) -> bool {
        let buffer = self.buffers.get(self.current.load(Ordering::Relaxed));
        let Some(ranges) = buffer.and_then(OnceLock::get) else {
            return false;
        };
        let count = self.count.load(Ordering::Relaxed).min(ranges.len());
        let next = ranges[..count].partition_point(|r| r.end.load(Ordering::Relaxed) <= at);
        let found = ranges[..count].get(next);
        found.is_some_and(|found| found.from.load(Ordering::Relaxed) < end)
    }

    /// These and no others.
    pub(crate) fn replace(&self, mut all: Vec<(u64, u64)>) {
        all.retain(|(at, end)| at < end);
        all.sort_unstable();
        let mut list = self.list();
        list.clear();
        for (at, end) in all {
            match list.last_mut() {
                Some(last) if at <= last.1 => last.1 = last.1.max(end),
                _ => list.push((at, end)),
            }
        }
        self.publish(&list, 0);
    }

    /// One more.
    pub(crate) fn insert(&self, mut at: u64, mut end: u64) {
        if at >= end {
            return;
        }
        let mut list = self.list();
        // Those it touches become one with it.
        let first = list.partition_point(|range| range.1 < at);
        let beyond = list.partition_point(|range| range.0 <= end);
        if let Some(touched) = list
            .get(first..beyond)
            .filter(|touched| !touched.is_empty())
        {
            at = at.min(touched[0].0);
            end = end.max(touched[touched.len() - 1].1);
        }
        list.splice(first..beyond, [(at, end)]);
        self.publish(&list, first);
    }

    /// Shows the list to those who look; what comes before `from` is as it was.
    fn publish(&self, list: &[(u64, u64)], from: usize) {
        let index = (0..BUFFERS).find(|index| list.len() <= FIRST_RANGES << index);
        let index = index.unwrap_or(BUFFERS - 1);
        let from = match self.current.load(Ordering::Relaxed) == index {
            true => from,
            false => 0,
        };
        let empty = || (0..FIRST_RANGES << index).map(|_| Range::default());
        let ranges = self.buffers[index].get_or_init(|| empty().collect());
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version + 1, Ordering::Relaxed);
        // Nobody sees what follows without seeing the version odd.
        fence(Ordering::Release);
        self.current.store(index, Ordering::Relaxed);
        self.count.store(list.len(), Ordering::Relaxed);
        for (range, (at, end)) in ranges.iter().zip(list).skip(from) {
            range.from.store(*at, Ordering::Relaxed);
            range.end.store(*end, Ordering::Relaxed);
        }
        self.version.store(version + 2, Ordering::Release);
    }

    fn list(&self) -> MutexGuard<'_, Vec<(u64, u64)>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn ranges_are_hit_by_their_bytes_and_no_others() {
        let ranges = Ranges::default();
        assert!(!ranges.hit(0, u64::MAX));
        ranges.replace(vec![(100, 200), (0, 10), (150, 300), (300, 310), (5, 5)]);
        assert_eq!(*ranges.list(), [(0, 10), (100, 310)]);
        assert!(ranges.hit(0, 1) && ranges.hit(9, 1) && ranges.hit(50, 51));
        assert!(ranges.hit(305, 100) && ranges.hit(0, u64::MAX));
        assert!(!ranges.hit(10, 90) && !ranges.hit(310, 1));
    }

    proptest! {
        #[test]
        fn ranges_put_in_one_by_one_are_those_put_in_together(
            all in proptest::collection::vec((0u64..4000, 0u64..8), 0..300), asked in 0u64..4010,
        ) {
            let all: Vec<(u64, u64)> = all.into_iter().map(|(at, len)| (at, at + len)).collect();
            let (one_by_one, together) = (Ranges::default(), Ranges::default());
            all.iter().for_each(|(at, end)| one_by_one.insert(*at, *end));
            together.replace(all.clone());
            prop_assert_eq!(&*one_by_one.list(), &*together.list());
            let inside = all.iter().any(|(at, end)| (*at..*end).contains(&asked));
            prop_assert_eq!(one_by_one.hit(asked, 1), inside);
            prop_assert_eq!(together.hit(asked, 1), inside);
        }
    }

    #[test]
    fn what_is_there_is_never_missed_while_others_come_and_go() {
        let ranges = Ranges::default();
        ranges.insert(1 << 20, (1 << 20) + 10);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut looks = 0u64;
                while !done.load(Ordering::Relaxed) || looks < 1000 {
                    assert!(ranges.hit((1 << 20) + 3, 1), "missed after {looks} looks");
                    looks += 1;
                }
            });
            for round in 0..200u64 {
                ranges.replace(vec![(1 << 20, (1 << 20) + 10)]);
                for n in 0..100 {
                    ranges.insert((round * 7 + n) * 20, (round * 7 + n) * 20 + 5);
                }
            }
            done.store(true, Ordering::Relaxed);
            reader.join().expect("it missed none");
        });
    }
}
