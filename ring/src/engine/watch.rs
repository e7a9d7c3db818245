//! Descriptors watched for readability on behalf of engines that are not the kernel's ring.
//!
//! The rule: edge-triggered and never reading, as a multishot poll of io_uring: each write to an eventfd is one event (or
//! shares one with others), and the counter is left to its owner.

use super::Report;
use crate::sys;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// Events taken per look; the rest stay ready.
const EVENTS_MAX: usize = 64;

pub(crate) struct Watch {
    epoll: OwnedFd,
    polls: Vec<(u64, RawFd)>,
    events: Box<[libc::epoll_event]>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Watch({:?})", self.polls)
    }
}

impl Watch {
    /// Errors: out of descriptors.
    pub(crate) fn new() -> io::Result<Watch> {
        Ok(Watch {
            epoll: sys::epoll()?,
            polls: Vec::new(),
            events: vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX].into(),
        })
    }

    /// Watches `fd` for the operation `user_data`. Errors: a descriptor that is closed, watched or cannot be.
    pub(crate) fn add(&mut self, user_data: u64, fd: RawFd) -> io::Result<()> {
        sys::epoll_add(&self.epoll, fd, user_data)?;
        self.polls.push((user_data, fd));
        Ok(())
    }

    /// Ends the watch of `user_data`; false if there is none.
    pub(crate) fn remove(&mut self, user_data: u64) -> bool {
        let Some(at) = self.polls.iter().position(|&(has, _)| has == user_data) else {
            return false;
        };
        let (_, fd) = self.polls.swap_remove(at);
        // A descriptor that was closed meanwhile has left the set by itself.
        let _ = sys::epoll_remove(&self.epoll, fd);
        true
    }

    /// True if nothing is watched.
    pub(crate) fn is_empty(&self) -> bool {
        self.polls.is_empty()
    }

    /// Appends what has become readable; does not wait. Becomes readable itself when there is something.
    pub(crate) fn take(&mut self, out: &mut Vec<Report>) {
        if self.polls.is_empty() {
            return;
        }
        // A signal in the middle is no loss: the events stay ready.
        let ready = sys::epoll_take(&self.epoll, &mut self.events).unwrap_or(0);
        out.extend(self.events[..ready].iter().map(|event| Report {
            user_data: event.u64,
            result: libc::POLLIN.into(),
            more: true,
        }));
    }
}

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}
