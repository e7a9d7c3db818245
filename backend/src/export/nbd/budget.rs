//! How much one client may have under way: requests and bytes, from the moment a request is read until its last reply
//! has left.
//!
//! The rule: a client that does not read its replies gives nothing back, so nothing more of it is read.

use std::cell::Cell;
use std::rc::Rc;

/// Requests of one client under way.
pub(super) const REQUESTS_MAX: usize = 64;
/// Data of requests of one client under way. A single request may have as much.
pub(super) const BYTES_MAX: usize = 32 << 20;
/// What every request counts beside its data: heads, texts, extents.
const REQUEST_BYTES: usize = 4 << 10;

/// What one client has under way.
#[derive(Debug, Default)]
pub(super) struct Budget {
    requests: Cell<usize>,
    bytes: Cell<usize>,
}

/// A request's part of the budget, given back when the last copy goes.
#[derive(Debug)]
pub(super) struct Permit {
    budget: Rc<Budget>,
    bytes: Cell<usize>,
    /// When the disk was first asked.
    began_ns: Cell<u64>,
}

impl Budget {
    /// A request of so many bytes, if there is room. An empty budget has room for any.
    pub(super) fn take(self: &Rc<Budget>, data_bytes: usize) -> Option<Rc<Permit>> {
        let bytes = data_bytes + REQUEST_BYTES;
        let (requests, taken) = (self.requests.get(), self.bytes.get());
        let full = requests >= REQUESTS_MAX || taken + bytes > BYTES_MAX;
        if full && requests > 0 {
            return None;
        }
        self.requests.set(requests + 1);
        self.bytes.set(taken + bytes);
        Some(Rc::new(Permit {
            budget: self.clone(),
            bytes: Cell::new(bytes),
            began_ns: Cell::new(0),
        }))
    }

    /// Requests under way.
    pub(super) fn requests(&self) -> usize {
        self.requests.get()
    }

    /// Their bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.get()
    }
}

impl Permit {
    /// The disk is asked now.
    pub(super) fn begin(&self, now_ns: u64) {
        self.began_ns.set(now_ns);
    }

    /// When it was.
    pub(super) fn began_ns(&self) -> u64 {
        self.began_ns.get()
    }

    /// The reply turned out to be that much longer.
    pub(super) fn grow(&self, bytes: usize) {
        self.bytes.set(self.bytes.get() + bytes);
        self.budget.bytes.set(self.budget.bytes.get() + bytes);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let budget = &self.budget;
        budget.requests.set(budget.requests.get() - 1);
        budget.bytes.set(budget.bytes.get() - self.bytes.get());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_request_always_fits_and_all_together_are_bounded() {
        let budget = Rc::new(Budget::default());
        let large = budget.take(BYTES_MAX).expect("the only one");
        assert!(budget.take(0).is_none());
        drop(large);
        let small: Vec<_> = (0..REQUESTS_MAX).map(|_| budget.take(1)).collect();
        assert!(small.iter().all(Option::is_some));
        assert!(budget.take(1).is_none());
        drop(small);
        assert_eq!((budget.requests(), budget.bytes.get()), (0, 0));
    }

    #[test]
    fn a_reply_that_grew_counts_until_its_last_part_is_gone() {
        let budget = Rc::new(Budget::default());
        let permit = budget.take(0).expect("room");
        let last = permit.clone();
        permit.grow(BYTES_MAX);
        drop(permit);
        assert!(budget.take(0).is_none());
        drop(last);
        assert!(budget.take(0).is_some());
    }
}
