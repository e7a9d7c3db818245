//! The rings as vhost-user-backend sees them: it tells them what the front end asked, they note it in the session.
//!
//! The rule: no method here touches guest memory; the walk over the ring is `ring::vring`, on its own thread.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::sync::{Arc, MutexGuard};

use vhost_user_backend::{VringMutex, VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::Error as QueueError;

use super::session::{Memory, Session};

thread_local! {
    /// The session whose rings are being made. `VringT::new` has no argument for it, but the daemon makes its rings in
    /// order on the thread that makes the daemon.
    static MAKING: RefCell<Option<Arc<Session>>> = const { RefCell::new(None) };
}

/// Runs `make`, in which every new ring belongs to `session`.
pub(super) fn making<T>(session: &Arc<Session>, make: impl FnOnce() -> T) -> T {
    MAKING.set(Some(Arc::clone(session)));
    let made = make();
    MAKING.set(None);
    made
}

/// One ring of one session.
#[derive(Clone)]
pub(super) struct Vring {
    queue: VringMutex<Memory>,
    session: Arc<Session>,
    index: u16,
}

impl<'a> VringStateGuard<'a, Memory> for Vring {
    type G = MutexGuard<'a, VringState<Memory>>;
}

impl<'a> VringStateMutGuard<'a, Memory> for Vring {
    type G = MutexGuard<'a, VringState<Memory>>;
}

impl VringT<Memory> for Vring {
    fn new(memory: Memory, max_queue_size: u16) -> Result<Self, QueueError> {
        let session = MAKING.with_borrow(Clone::clone);
        let session = session.ok_or(QueueError::QueueNotReady)?;
        let queue = VringMutex::new(memory, max_queue_size)?;
        let index = session.add_ring(queue.clone());
        let index = u16::try_from(index).map_err(|_| QueueError::InvalidSize)?;
        Ok(Vring {
            queue,
            session,
            index,
        })
    }

    fn get_ref(&self) -> MutexGuard<'_, VringState<Memory>> {
        self.queue.get_ref()
    }

    fn get_mut(&self) -> MutexGuard<'_, VringState<Memory>> {
        self.queue.get_mut()
    }

    fn set_enabled(&self, enabled: bool) {
        self.queue.set_enabled(enabled);
        self.session.set_enabled(self.index, enabled);
    }

    fn set_queue_info(&self, desc: u64, avail: u64, used: u64) -> Result<(), QueueError> {
        self.queue.set_queue_info(desc, avail, used)
    }

    fn queue_next_avail(&self) -> u16 {
        self.queue.queue_next_avail()
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.queue.set_queue_next_avail(base);
    }

    fn set_queue_next_used(&self, index: u16) {
        self.queue.set_queue_next_used(index);
    }

    /// The walk reads the index from guest memory when the ring starts, where a vanished page is survived.
    fn queue_used_idx(&self) -> Result<u16, QueueError> {
        Ok(0)
    }

    fn set_queue_size(&self, size: u16) {
        self.queue.set_queue_size(size);
        self.session.set_size(self.index, size);
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.queue.set_queue_event_idx(enabled);
    }

    fn set_queue_ready(&self, ready: bool) {
        self.queue.set_queue_ready(ready);
    }

    // The session owns the descriptors. The crate's own copy would only make it register them with an epoll thread, of
    // which there is none.

    fn set_kick(&self, file: Option<File>) {
        self.session.set_kick(self.index, file.map(File::into));
    }

    fn set_call(&self, file: Option<File>) {
        self.session.set_call(self.index, file.map(File::into));
    }

    fn set_err(&self, file: Option<File>) {
        self.session.set_err(self.index, file.map(File::into));
    }

    // For the epoll threads of the crate, which we do not have.

    fn add_used(&self, _index: u16, _len: u32) -> Result<(), QueueError> {
        Err(QueueError::QueueNotReady)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn enable_notification(&self) -> Result<bool, QueueError> {
        Err(QueueError::QueueNotReady)
    }

    fn disable_notification(&self) -> Result<(), QueueError> {
        Err(QueueError::QueueNotReady)
    }

    fn needs_notification(&self) -> Result<bool, QueueError> {
        Err(QueueError::QueueNotReady)
    }

    fn read_kick(&self) -> io::Result<bool> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
