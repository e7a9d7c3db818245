//! The time of a batch: read at most once between two turns of a thread's ring, and only if somebody asks.
//!
//! The rule: nothing reads the clock per request. What must not act on a time gone by (a wait that has just ended) asks for
//! [`exact_ns`]. On a simulated disk time is the disk's own.

use std::cell::Cell;
use std::sync::LazyLock;
use std::time::Instant;

/// What a thread knows of the time.
#[derive(Clone, Copy, Debug)]
enum Now {
    /// It was not asked since the last turn.
    Unread,
    /// It was, then.
    Read(u64),
    /// Its ring has a time of its own.
    Virtual(u64),
}

thread_local! {
    static NOW: Cell<Now> = const { Cell::new(Now::Unread) };
}

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Nanoseconds since some moment before the first call, as of the calling thread's batch.
pub fn now_ns() -> u64 {
    match NOW.get() {
        Now::Read(ns) | Now::Virtual(ns) => ns,
        Now::Unread => exact_ns(),
    }
}

/// As [`now_ns`], as of this moment.
pub fn exact_ns() -> u64 {
    if let Now::Virtual(ns) = NOW.get() {
        return ns;
    }
    let ns = u64::try_from(START.elapsed().as_nanos()).unwrap_or(u64::MAX);
    NOW.set(Now::Read(ns));
    ns
}

/// A batch begins, or the thread's ring has turned: time has gone by. `virtual_ns` is the ring's own time if it has one.
pub(crate) fn goes_on(virtual_ns: Option<u64>) {
    NOW.set(virtual_ns.map_or(Now::Unread, Now::Virtual));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_stands_still_within_a_batch_and_goes_on_with_the_next() {
        goes_on(None);
        let first = now_ns();
        while START.elapsed().as_nanos() < u128::from(first) + 1000 {}
        assert_eq!(now_ns(), first);
        goes_on(None);
        let second = now_ns();
        assert!(second > first);
        assert!(exact_ns() >= second);
    }

    #[test]
    fn a_simulated_disk_has_its_own_time() {
        goes_on(Some(77));
        assert_eq!((now_ns(), exact_ns()), (77, 77));
        goes_on(None);
        assert_ne!(now_ns(), 77);
    }
}
