//! An export's socket: lets in one front end at a time, and gives each a session of its own.
//!
//! The rule: while nobody is connected there is no thread and nothing wakes; the control thread polls the listener.
//! While somebody is, nobody polls it: the next front end waits in the listener's queue.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::link::{End, Link, describe};
use super::private::Private;
use super::pump::Pump;
use super::session::Session;
use super::{Device, Rings};

/// How long a front end may leave a reply unread before it is given up.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// What a door tells its owner, from the session's thread. The callee must not call the door: it tells its own thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DoorEvent {
    /// A front end is in: do not poll the listener.
    Connected,
    /// It is gone; its rings are stopped and its memory is unmapped.
    Ended(End),
    /// Nobody waits: poll the listener and call [`Door::accept_ready`].
    Listening,
    /// The next front end cannot be let in for now (out of descriptors or threads): call `accept_ready` in a while.
    Exhausted,
}

/// Where a door's events go.
pub type Events = Arc<dyn Fn(DoorEvent) + Send + Sync>;

/// What came of looking at the listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// A session has begun.
    Began,
    /// Nobody was there.
    Nobody,
    /// A session is running, or the door is stopping: nobody was looked for.
    Busy,
}

/// A session did not end in time: its I/O is stuck.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a vhost-user session is still waiting for its I/O")]
pub struct StillDraining;

/// An export's door. Clones are the same door.
#[derive(Clone)]
pub struct Door {
    inner: Arc<Inner>,
}

struct Inner {
    listener: Option<UnixListener>,
    private: Private,
    device: Arc<dyn Device>,
    rings: Arc<dyn Rings>,
    events: Events,
    state: Mutex<State>,
    /// Signalled when a session's thread is done.
    idle: Condvar,
}

#[derive(Default)]
struct State {
    /// The session's thread, until someone has joined it.
    thread: Option<JoinHandle<()>>,
    /// The link of the session that runs.
    link: Option<Link>,
    running: bool,
    stopping: bool,
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Door")
            .field("listener", &self.inner.listener)
            .finish_non_exhaustive()
    }
}

impl Door {
    /// A door at a listening socket. Nothing happens before [`Door::accept_ready`].
    ///
    /// # Errors
    /// If the private socket for the protocol handler cannot be made.
    pub fn listen(
        listener: UnixListener,
        device: Arc<dyn Device>,
        rings: Arc<dyn Rings>,
        events: Events,
    ) -> io::Result<Door> {
        listener.set_nonblocking(true)?;
        Door::new(Some(listener), device, rings, events)
    }

    /// A door with one front end already inside; after it, there is no other.
    ///
    /// # Errors
    /// As [`Door::listen`], or if the session's thread cannot be made.
    pub fn connected(
        front: UnixStream,
        device: Arc<dyn Device>,
        rings: Arc<dyn Rings>,
        events: Events,
    ) -> io::Result<Door> {
        front.set_nonblocking(false)?;
        let door = Door::new(None, device, rings, events)?;
        door.inner.begin(&mut door.inner.lock(), front)?;
        Ok(door)
    }

    fn new(
        listener: Option<UnixListener>,
        device: Arc<dyn Device>,
        rings: Arc<dyn Rings>,
        events: Events,
    ) -> io::Result<Door> {
        let private = Private::new().map_err(|error| io::Error::other(describe(&error)))?;
        let inner = Inner {
            listener,
            private,
            device,
            rings,
            events,
            state: Mutex::default(),
            idle: Condvar::new(),
        };
        Ok(Door {
            inner: Arc::new(inner),
        })
    }

    /// The socket to poll for reading while no session runs.
    pub fn listener(&self) -> Option<BorrowedFd<'_>> {
        self.inner.listener.as_ref().map(AsFd::as_fd)
    }

    /// Is a front end in, or nobody to be let in any more? Then nobody polls the listener.
    pub fn is_busy(&self) -> bool {
        let state = self.inner.lock();
        state.running || state.stopping
    }

    /// Lets the next front end in, if one waits. Never blocks.
    ///
    /// # Errors
    /// Those of accept(2) and of making a thread: EMFILE, ENFILE, EAGAIN. Stop polling for a while then, as the
    /// listener stays readable.
    pub fn accept_ready(&self) -> io::Result<Accepted> {
        let mut state = self.inner.lock();
        if state.running || state.stopping {
            return Ok(Accepted::Busy);
        }
        match self.inner.accept()? {
            None => Ok(Accepted::Nobody),
            Some(front) => {
                self.inner.begin(&mut state, front)?;
                Ok(Accepted::Began)
            }
        }
    }

    /// Ends the session, if one runs, and lets nobody in any more. Returns when its rings are drained and its thread
    /// is gone.
    ///
    /// # Errors
    /// [`StillDraining`] after `timeout`: the I/O of its rings does not end. It may be called again.
    pub fn stop(&self, timeout: Duration) -> Result<(), StillDraining> {
        let deadline = Instant::now() + timeout;
        let mut state = self.inner.lock();
        state.stopping = true;
        if let Some(link) = &state.link {
            link.close(End::Stopped);
        }
        while state.running {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(StillDraining);
            }
            let waited = self.inner.idle.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let thread = state.thread.take();
        drop(state);
        join(thread);
        Ok(())
    }

    /// Ends the session that runs, if any, for a reason. Returns at once; the rings are drained by the session.
    pub fn fail(&self, reason: impl Into<String>) {
        let link = self.inner.lock().link.clone();
        if let Some(link) = link {
            link.fail(reason);
        }
    }

    /// Tells the front end that the configuration space changed, if it wants to know.
    pub fn config_changed(&self) {
        let link = self.inner.lock().link.clone();
        if let Some(link) = link {
            link.config_changed();
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(&self) -> io::Result<Option<UnixStream>> {
        let Some(listener) = &self.listener else {
            return Ok(None);
        };
        loop {
            match listener.accept() {
                Ok((front, _)) => return Ok(Some(front)),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Ok(None),
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                    _ => return Err(error),
                },
            }
        }
    }

    /// Starts a thread for the session of `front`.
    fn begin(self: &Arc<Self>, state: &mut State, front: UnixStream) -> io::Result<()> {
        // The last session's thread has said that it is done; it is about to return.
        join(state.thread.take());
        let link = Link::new(&front)?;
        let inner = Arc::clone(self);
        let thread_link = link.clone();
        let thread = thread::Builder::new()
            .name("vhost-user".to_owned())
            .spawn(move || inner.sessions(front, thread_link))?;
        state.thread = Some(thread);
        state.link = Some(link);
        state.running = true;
        Ok(())
    }

    /// Serves one front end after the other until nobody waits.
    fn sessions(self: Arc<Self>, front: UnixStream, link: Link) {
        // However this thread ends, the door must not stay locked.
        let done = Done(&self);
        let mut next = Some((front, link));
        let mut last = DoorEvent::Listening;
        while let Some((front, link)) = next.take() {
            (self.events)(DoorEvent::Connected);
            let end = self.session(&front, &link);
            drop(front);
            match &end {
                End::Disconnected | End::Stopped => {
                    tracing::info!("vhost-user session over: {end}")
                }
                _ => tracing::warn!("vhost-user session over: {end}"),
            }
            (self.events)(DoorEvent::Ended(end));
            match self.next_front() {
                Ok(found) => next = found,
                Err(error) => {
                    tracing::warn!("cannot let the next front end in: {error}");
                    last = DoorEvent::Exhausted;
                }
            }
        }
        let stopping = self.lock().stopping;
        drop(done);
        if self.listener.is_some() && !stopping {
            (self.events)(last);
        }
    }

    fn next_front(&self) -> io::Result<Option<(UnixStream, Link)>> {
        let mut state = self.lock();
        state.link = None;
        if state.stopping {
            return Ok(None);
        }
        let Some(front) = self.accept()? else {
            return Ok(None);
        };
        let link = Link::new(&front)?;
        state.link = Some(link.clone());
        Ok(Some((front, link)))
    }

    /// One front end, from its first message to the last of its memory.
    fn session(&self, front: &UnixStream, link: &Link) -> End {
        // What the last guest chose is not the next one's.
        self.device.reset();
        let session = Session::new(
            Arc::clone(&self.device),
            Arc::clone(&self.rings),
            link.clone(),
        );
        let session = Arc::new(session);
        let draining = Draining(&session);
        let end = self.pump(front, link, &session);
        // Whatever ended it: the handler is gone, and now the rings.
        drop(draining);
        // None runs any more, so this cannot fail.
        let _ = session.drop_inflight();
        link.finish(end)
    }

    fn pump(&self, front: &UnixStream, link: &Link, session: &Arc<Session>) -> End {
        if let Err(error) = front.set_write_timeout(Some(SEND_TIMEOUT)) {
            return End::Failed(format!("cannot set up the socket: {error}"));
        }
        let backend = match self.private.connect(session) {
            Ok(backend) => backend,
            Err(error) => return End::Failed(describe(&error)),
        };
        Pump::new(front, &backend.socket, Arc::clone(session), link.clone()).run()
    }
}

/// Stops the rings when a session ends, however it does.
struct Draining<'a>(&'a Session);

impl Drop for Draining<'_> {
    fn drop(&mut self) {
        self.0.stop_all();
    }
}

/// Marks the door idle when the session's thread leaves.
struct Done<'a>(&'a Inner);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.running = false;
        state.link = None;
        self.0.idle.notify_all();
    }
}

fn join(thread: Option<JoinHandle<()>>) {
    if let Some(thread) = thread
        && thread.join().is_err()
    {
        tracing::error!("a vhost-user session panicked");
    }
}
