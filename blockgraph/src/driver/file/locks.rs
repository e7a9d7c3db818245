//! Image locks: the bytes by which QEMU's tools, and we, see who uses an image and what they let others do.
//!
//! The rule: a shared lock on byte 100+n says "I use permission n", one on byte 200+n says "I let nobody else use it";
//! whoever wants n looks whether others hold 200+n, and whoever shares it not, whether others hold 100+n.

use crate::graph::perm::{Perm, Perms, Wants};
use ring::sys::lock;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use thiserror::Error;

const USES_BASE: u64 = 100;
const REFUSES_BASE: u64 = 200;

/// `locking=`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locking {
    /// No locks.
    Off,
    /// Locks, or a failure.
    On,
    /// Locks where the kernel has them.
    Auto,
}

/// Why an image may not be used so.
#[derive(Debug, Error)]
pub enum LockError {
    /// Others do not let us.
    #[error("Failed to get \"{perm}\" lock")]
    Refused {
        /// Which permission.
        perm: Perm,
        /// The image, as it was named.
        path: String,
    },
    /// Others do what we do not allow.
    #[error("Failed to get shared \"{perm}\" lock")]
    Used {
        /// Which permission.
        perm: Perm,
        /// The image, as it was named.
        path: String,
    },
    /// The lock itself failed.
    #[error("Failed to lock byte {byte}")]
    Byte {
        /// Which byte.
        byte: u64,
        /// Why.
        source: io::Error,
        /// The image, as it was named.
        path: String,
    },
}

impl LockError {
    /// What QEMU prints on a line of its own below the message.
    pub fn hint(&self) -> String {
        let (LockError::Refused { path, .. }
        | LockError::Used { path, .. }
        | LockError::Byte { path, .. }) = self;
        format!("Is another process using the image [{path}]?")
    }
}

/// The locks of one open file.
#[derive(Debug)]
pub(super) struct Locks {
    path: String,
    locking: Locking,
    /// What the locks say now. Held while they change, on the control thread.
    held: Mutex<Held>,
    /// The file is closed.
    over: AtomicBool,
}

/// What the locks say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Held {
    uses: Perms,
    refuses: Perms,
}

impl Held {
    fn of(wants: Wants) -> Held {
        Held {
            uses: wants.needs,
            refuses: Perms::ALL.without(wants.shares),
        }
    }

    fn bytes(self) -> impl Iterator<Item = u64> {
        let uses = Perm::EACH.into_iter().filter(move |p| self.uses.has(*p));
        let refuses = Perm::EACH.into_iter().filter(move |p| self.refuses.has(*p));
        let uses = uses.map(|perm| USES_BASE + perm as u64);
        uses.chain(refuses.map(|perm| REFUSES_BASE + perm as u64))
    }
}

impl Locks {
    /// `None` for `locking=off`.
    pub(super) fn new(path: String, locking: Locking) -> Option<Locks> {
        (locking != Locking::Off).then(|| Locks {
            path,
            locking,
            held: Mutex::default(),
            over: AtomicBool::new(false),
        })
    }

    /// Changes the locks to say `wants`, or leaves them as they are and says why. What is new is locked first, then
    /// others are looked at: of two who do so at once, at least one sees the other.
    pub(super) fn update(&self, fd: BorrowedFd<'_>, wants: Wants) -> Result<(), LockError> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let next = Held::of(wants);
        let taken = self.take(fd, next).and_then(|()| self.look(fd, next));
        let (stays, goes) = match taken {
            Ok(()) => (next, *held),
            Err(_) => (*held, next),
        };
        for byte in goes
            .bytes()
            .filter(|byte| stays.bytes().all(|b| b != *byte))
        {
            // Giving up a lock cannot fail but for reasons that would have kept us from taking it.
            let _ = lock::release(fd, byte);
        }
        *held = stays;
        taken
    }

    /// The same for another descriptor of the file whose locks say `wants` already: nobody is to be asked any more, and to
    /// ask would be to find the first descriptor's locks.
    pub(super) fn copy(&self, fd: BorrowedFd<'_>, wants: Wants) -> Result<(), LockError> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let next = Held::of(wants);
        self.take(fd, next)?;
        let stale = held.bytes().filter(|byte| next.bytes().all(|b| b != *byte));
        for byte in stale {
            let _ = lock::release(fd, byte);
        }
        *held = next;
        Ok(())
    }

    /// Gives up all of them for good.
    pub(super) fn end(&self, fd: BorrowedFd<'_>) {
        self.over.store(true, Ordering::Release);
        if let Err(error) = self.update(fd, Wants::NOTHING) {
            debug_assert!(false, "unlocking cannot conflict: {error}");
        }
    }

    /// Are they given up?
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    fn take(&self, fd: BorrowedFd<'_>, next: Held) -> Result<(), LockError> {
        for byte in next.bytes() {
            match lock::share(fd, byte) {
                Err(error) if self.tolerates(&error) => return Ok(()),
                Err(source) => {
                    let path = self.path.clone();
                    return Err(LockError::Byte { byte, source, path });
                }
                Ok(()) => {}
            }
        }
        Ok(())
    }

    fn look(&self, fd: BorrowedFd<'_>, next: Held) -> Result<(), LockError> {
        let path = || self.path.clone();
        for perm in Perm::EACH {
            if next.uses.has(perm) && self.others(fd, REFUSES_BASE + perm as u64)? {
                return Err(LockError::Refused { perm, path: path() });
            }
            if next.refuses.has(perm) && self.others(fd, USES_BASE + perm as u64)? {
                return Err(LockError::Used { perm, path: path() });
            }
        }
        Ok(())
    }

    fn others(&self, fd: BorrowedFd<'_>, byte: u64) -> Result<bool, LockError> {
        match lock::held_by_others(fd, byte) {
            Ok(held) => Ok(held),
            Err(error) if self.tolerates(&error) => Ok(false),
            Err(source) => {
                let path = self.path.clone();
                Err(LockError::Byte { byte, source, path })
            }
        }
    }

    /// True for the answer of a kernel without such locks, where `locking=auto` goes without.
    fn tolerates(&self, error: &io::Error) -> bool {
        self.locking == Locking::Auto && error.raw_os_error() == Some(libc::EINVAL)
    }
}
