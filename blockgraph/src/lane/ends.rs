//! When the last of the requests ended that somebody waits for who changes the graph.
//!
//! The rule: used only while requests are held back. A request ended when the turn of the ring was over that brought its end.

use std::time::Instant;

#[derive(Debug, Default)]
pub(super) struct Ends {
    /// As of the last look.
    left: usize,
    turned: Option<Instant>,
    last: Option<Instant>,
}

impl Ends {
    /// Another wait begins.
    pub(super) fn forget(&mut self) {
        *self = Ends::default();
    }

    /// The ring has turned: what ends from now to the next time ended now.
    pub(super) fn turned(&mut self) {
        self.turned = Some(Instant::now());
    }

    /// So many are left now.
    pub(super) fn look(&mut self, left: usize) {
        if left < self.left {
            self.last = self.turned;
        }
        self.left = left;
    }

    /// When the last one ended, if any did since somebody waits.
    pub(super) fn last(&self) -> Option<Instant> {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_that_end_nothing_do_not_make_the_last_end_later() {
        let mut ends = Ends::default();
        ends.look(2);
        ends.turned();
        let first = ends.turned;
        ends.look(0);
        ends.turned();
        ends.look(0);
        assert_eq!(ends.last(), first);
        assert_ne!(ends.turned, first);
        ends.forget();
        assert_eq!(ends.last(), None);
    }
}
