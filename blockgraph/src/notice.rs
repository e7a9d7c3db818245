//! What happens to nodes that nobody asked about at that moment: told once, to be fetched by whoever speaks to the operator.
//!
//! The rule: posting never waits and never grows without bound, so whoever posts may be serving a guest; and it is for the
//! rare: nothing that happens per request is a notice.

use ring::Bell;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// More notices than this are not kept for somebody to fetch them.
pub const NOTICES_MAX: usize = 256;

/// Something that happened to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// An image's metadata is not what it should be (QEMU's event `BLOCK_IMAGE_CORRUPTED`).
    ImageCorrupted {
        /// The node's name.
        node: String,
        /// What is wrong, in words.
        msg: String,
        /// The first byte of the file that would have been overwritten, if it is about that.
        offset: Option<u64>,
        /// How many bytes.
        size: Option<u64>,
        /// Is the image of no use to writers from now on?
        fatal: Fatal,
    },
    /// A bitmap journal has something to end, now or in a while: see [`crate::graph::journals`].
    JournalDue,
}

/// What damage does to the image's users.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fatal {
    /// It was marked corrupt, and takes no more changes.
    Yes,
    /// The request failed, and that is all.
    No,
}

/// Notices, the oldest first, for one listener. Shared by all generations of a graph.
#[derive(Debug, Default)]
pub struct Notices(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Notice>,
    lost: u64,
    bell: Option<Bell>,
}

/// What was posted since the last time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Posted {
    /// In order.
    pub notices: Vec<Notice>,
    /// How many came after these while there was no room.
    pub lost: u64,
}

impl Notices {
    /// Keeps a notice, if there is room, and rings the listener's bell.
    pub fn post(&self, notice: Notice) {
        let mut state = self.state();
        if state.queue.len() < NOTICES_MAX {
            state.queue.push_back(notice);
        } else {
            state.lost += 1;
        }
        if let Some(bell) = &state.bell {
            bell.ring();
        }
    }

    /// Rings `bell` for every notice from now on, and at once if some are waiting. It replaces an earlier listener's.
    pub fn listen(&self, bell: Bell) {
        let mut state = self.state();
        if !state.queue.is_empty() {
            bell.ring();
        }
        state.bell = Some(bell);
    }

    /// Everything that is waiting.
    pub fn take(&self) -> Posted {
        let mut state = self.state();
        Posted {
            notices: std::mem::take(&mut state.queue).into(),
            lost: std::mem::take(&mut state.lost),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn notice(offset: u64) -> Notice {
        Notice::ImageCorrupted {
            node: "disk".to_owned(),
            msg: "a test".to_owned(),
            offset: Some(offset),
            size: None,
            fatal: Fatal::No,
        }
    }

    /// Was it rung since the last look?
    fn rung(bell: &Bell) -> bool {
        let fd = std::os::fd::AsFd::as_fd(bell).try_clone_to_owned();
        let mut file = std::fs::File::from(fd.expect("a descriptor"));
        file.read(&mut [0; 8]).is_ok()
    }

    #[test]
    fn the_oldest_are_kept_and_the_rest_counted() {
        let notices = Notices::default();
        let posted = NOTICES_MAX as u64 + 3;
        (0..posted).for_each(|at| notices.post(notice(at)));
        let taken = notices.take();
        let kept: Vec<Notice> = (0..NOTICES_MAX as u64).map(notice).collect();
        assert_eq!((taken.notices, taken.lost), (kept, 3));
        assert_eq!(notices.take(), Posted::default());
    }

    #[test]
    fn a_listener_is_woken_for_what_waits_and_for_what_comes() {
        let notices = Notices::default();
        notices.post(notice(1));
        let bell = Bell::new().expect("a bell");
        notices.listen(bell.clone());
        assert!(rung(&bell), "something waits");
        assert!(!rung(&bell), "once");
        notices.post(notice(2));
        assert!(rung(&bell), "something came");
        assert_eq!(notices.take().notices.len(), 2);
    }
}
