//! Who is connected, as the server sees it: a seat for each connection, wherever that lives.
//!
//! The rule: the list is locked for a moment only, and whoever waits for somebody to leave waits with the lock open.

use super::exports::Export;
use ring::Bell;
use std::io;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// A connection as others see it.
#[derive(Debug)]
pub(super) struct Seat {
    bell: Bell,
    closing: AtomicBool,
    export: Mutex<Option<Arc<Export>>>,
}

impl Seat {
    /// Rings when the connection is to look around.
    pub(super) fn bell(&self) -> &Bell {
        &self.bell
    }

    /// Is the connection to end?
    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// The connection is about that export from here on.
    pub(super) fn sit_down(&self, export: Arc<Export>) {
        let mut served = self.export.lock().unwrap_or_else(PoisonError::into_inner);
        *served = Some(export);
    }

    /// The connection is about nothing any more.
    fn stand_up(&self) {
        let mut served = self.export.lock().unwrap_or_else(PoisonError::into_inner);
        *served = None;
    }

    /// Is it about that export?
    pub(super) fn serves(&self, export: &Arc<Export>) -> bool {
        let served = self.export.lock().unwrap_or_else(PoisonError::into_inner);
        served.as_ref().is_some_and(|e| Arc::ptr_eq(e, export))
    }
}

/// All seats of a server.
#[derive(Debug)]
pub(super) struct Seats {
    taken: Mutex<Vec<Arc<Seat>>>,
    /// Somebody left: for who waits for that,
    left: Condvar,
    /// and for who lets others in.
    bell: Bell,
}

impl Seats {
    /// Nobody sits. `bell` rings whenever somebody leaves.
    pub(super) fn new(bell: Bell) -> Seats {
        Seats {
            taken: Mutex::default(),
            left: Condvar::new(),
            bell,
        }
    }

    fn list(&self) -> MutexGuard<'_, Vec<Arc<Seat>>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many are taken.
    pub(super) fn len(&self) -> usize {
        self.list().len()
    }

    /// How many of those are taken.
    pub(super) fn count(&self, which: impl Fn(&Seat) -> bool) -> usize {
        self.list().iter().filter(|seat| which(seat)).count()
    }

    /// Takes one more. Errors: out of descriptors.
    pub(super) fn take(self: &Arc<Seats>) -> io::Result<Taken> {
        let seat = Arc::new(Seat {
            bell: Bell::new()?,
            closing: AtomicBool::new(false),
            export: Mutex::default(),
        });
        self.list().push(seat.clone());
        Ok(Taken {
            seats: self.clone(),
            seat,
        })
    }

    /// Bids those look around.
    pub(super) fn ring(&self, which: impl Fn(&Seat) -> bool) {
        for seat in self.list().iter().filter(|seat| which(seat)) {
            seat.bell.ring();
        }
    }

    /// Bids everybody leave.
    pub(super) fn close(&self) {
        for seat in self.list().iter() {
            seat.closing.store(true, Ordering::Release);
            seat.bell.ring();
        }
    }

    /// Waits until none of those is left; how many are at the deadline.
    pub(super) fn wait(&self, deadline: Instant, which: impl Fn(&Seat) -> bool) -> usize {
        let mut list = self.list();
        loop {
            let busy = list.iter().filter(|seat| which(seat)).count();
            let left = deadline.saturating_duration_since(Instant::now());
            if busy == 0 || left.is_zero() {
                return busy;
            }
            let waited = self.left.wait_timeout(list, left);
            list = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A seat taken; given back when dropped, however the connection ended.
#[derive(Debug)]
pub(super) struct Taken {
    seats: Arc<Seats>,
    seat: Arc<Seat>,
}

impl Deref for Taken {
    type Target = Seat;

    fn deref(&self) -> &Seat {
        &self.seat
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        // Before anybody is told, so that an export that was taken away is found to be gone.
        self.seat.stand_up();
        let mut list = self.seats.list();
        list.retain(|seat| !Arc::ptr_eq(seat, &self.seat));
        drop(list);
        self.seats.left.notify_all();
        self.seats.bell.ring();
    }
}
