//! `cache-clean-interval`: slices that nobody used for so long are forgotten, and their memory given back.
//!
//! The rule: one thread of the process does it for all images; it is there as long as one wishes to be cleaned.

use super::Cache;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// An image's wish to be cleaned; withdrawn on drop.
#[derive(Debug)]
pub struct Cleaning {
    ticket: u64,
}

#[derive(Debug)]
struct Wish {
    ticket: u64,
    cache: Weak<Cache>,
    every: Duration,
    due: Instant,
}

#[derive(Debug)]
struct Wishes {
    next_ticket: u64,
    list: Vec<Wish>,
    /// Is the thread there?
    attended: bool,
}

static WISHES: Mutex<Wishes> = Mutex::new(Wishes {
    next_ticket: 0,
    list: Vec::new(),
    attended: false,
});
static CHANGED: Condvar = Condvar::new();

fn wishes() -> MutexGuard<'static, Wishes> {
    WISHES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Cleans `cache` every so often, for as long as the answer lives. Errors: EAGAIN if there can be no thread.
pub fn clean_every(cache: &Arc<Cache>, every: Duration) -> io::Result<Cleaning> {
    let mut wishes = wishes();
    if !wishes.attended {
        let thread = std::thread::Builder::new().name("qcow2-clean".to_owned());
        thread.spawn(attend)?;
        wishes.attended = true;
    }
    let ticket = wishes.next_ticket;
    wishes.next_ticket += 1;
    wishes.list.push(Wish {
        ticket,
        cache: Arc::downgrade(cache),
        every,
        due: Instant::now() + every,
    });
    CHANGED.notify_one();
    Ok(Cleaning { ticket })
}

impl Drop for Cleaning {
    fn drop(&mut self) {
        let mut wishes = wishes();
        wishes.list.retain(|wish| wish.ticket != self.ticket);
        CHANGED.notify_one();
    }
}

fn attend() {
    while let Some(due) = due() {
        due.iter().for_each(|cache| cache.clean());
    }
}

/// Waits until a cache is to be cleaned; `None` when nobody wishes it any more, and the thread has signed off.
fn due() -> Option<Vec<Arc<Cache>>> {
    let mut wishes = wishes();
    loop {
        let Some(next) = wishes.list.iter().map(|wish| wish.due).min() else {
            wishes.attended = false;
            return None;
        };
        let now = Instant::now();
        let left = next.saturating_duration_since(now);
        if left.is_zero() {
            return Some(take_due(&mut wishes, now));
        }
        let waited = CHANGED.wait_timeout(wishes, left);
        wishes = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
}

fn take_due(wishes: &mut Wishes, now: Instant) -> Vec<Arc<Cache>> {
    let mut due = Vec::new();
    for wish in wishes.list.iter_mut().filter(|wish| wish.due <= now) {
        wish.due = now + wish.every;
        due.extend(wish.cache.upgrade());
    }
    due
}

#[cfg(test)]
mod tests {
    use super::super::super::format::entry::{DataIn, Layout, Words, ZeroFlag};
    use super::super::super::geometry::Geometry;
    use super::*;

    fn cache() -> Arc<Cache> {
        let layout = Layout {
            cluster_bits: 16,
            words: Words::One,
            data: DataIn::Image,
            zero_flag: ZeroFlag::Known,
        };
        Arc::new(Cache::new(Geometry::new(layout, 12), 16).expect("memory"))
    }

    #[test]
    fn what_is_not_used_is_forgotten_in_time_and_the_thread_ends_with_the_last_wish() {
        let cache = cache();
        drop(cache.keep(3, None));
        let cleaning = clean_every(&cache, Duration::from_millis(1)).expect("a thread");
        while cache.slot_of(3).is_some() {
            std::thread::yield_now();
        }
        drop(cleaning);
        while wishes().attended {
            std::thread::yield_now();
        }
    }
}
