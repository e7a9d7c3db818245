//! The server: a thread that lets clients in, and a thread for each of them.
//!
//! The rule: whoever stops a server or takes an export away waits for the disk at most, never for a client.

use super::exports::{Export, Exports, NbdExportOptions};
use super::handshake::{Terms, shake_hands};
use super::line::{Gone, Line};
use super::session::Session;
use super::transport::Transport;
use blockgraph::pin::Epochs;
use blockgraph::{Current, Lane, Mode};
use ring::{Bell, Ring};
use rustls::ServerConfig;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long nobody is let in after that failed: out of descriptors is not mended by trying again at once.
const RETRY: Duration = Duration::from_millis(250);

/// What a server is made with.
#[derive(Debug)]
pub struct NbdServerOptions {
    /// Where clients knock: listening stream sockets.
    pub listeners: Vec<OwnedFd>,
    /// What to encrypt with; nothing is to be had without, then.
    pub tls: Option<Arc<ServerConfig>>,
    /// Clients at once; `None`: any number.
    pub connections_max: Option<usize>,
    /// How long a handshake may take; `None`: for ever.
    pub handshake_max: Option<Duration>,
    /// How long a client may leave its replies unread.
    pub send_timeout: Duration,
    /// The graph to serve from.
    pub current: Arc<Current>,
    /// The clock of pins.
    pub epochs: Arc<Epochs>,
}

/// Some connections did not end in time: a disk is stuck.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} NBD connections did not end in time")]
pub struct NbdStillBusy(pub usize);

/// A running server.
#[derive(Debug)]
pub struct NbdServer {
    shared: Arc<Shared>,
    accept: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    exports: Exports,
    tls: Option<Arc<ServerConfig>>,
    connections_max: usize,
    handshake_max: Option<Duration>,
    send_timeout: Duration,
    current: Arc<Current>,
    epochs: Arc<Epochs>,
    /// Wakes the thread that lets clients in.
    bell: Bell,
    stopping: AtomicBool,
    /// One for each connection. Never held across anything that waits, but by `left`.
    seats: Mutex<Vec<Arc<Seat>>>,
    /// Somebody left.
    left: Condvar,
}

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

    fn serves(&self, export: &Arc<Export>) -> bool {
        let served = self.export.lock().unwrap_or_else(PoisonError::into_inner);
        served.as_ref().is_some_and(|e| Arc::ptr_eq(e, export))
    }
}

/// A seat taken; given back when dropped, however the connection ended.
struct Taken {
    shared: Arc<Shared>,
    seat: Arc<Seat>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut seats = self.shared.seats();
        seats.retain(|seat| !Arc::ptr_eq(seat, &self.seat));
        drop(seats);
        self.shared.left.notify_all();
        self.shared.bell.ring();
    }
}

impl NbdServer {
    /// Lets clients in from now on. Errors: out of descriptors or threads.
    pub fn start(options: NbdServerOptions) -> io::Result<NbdServer> {
        let listeners = options.listeners;
        for listener in &listeners {
            ring::sock::set_nonblocking(listener.as_fd())?;
        }
        let shared = Arc::new(Shared {
            exports: Exports::default(),
            tls: options.tls,
            connections_max: options.connections_max.unwrap_or(usize::MAX),
            handshake_max: options.handshake_max,
            send_timeout: options.send_timeout,
            current: options.current,
            epochs: options.epochs,
            bell: Bell::new()?,
            stopping: AtomicBool::new(false),
            seats: Mutex::default(),
            left: Condvar::new(),
        });
        let its = shared.clone();
        let name = "nbd-accept".to_owned();
        let accept = std::thread::Builder::new().name(name);
        let accept = accept.spawn(move || its.let_in(&listeners))?;
        Ok(NbdServer {
            shared,
            accept: Some(accept),
        })
    }

    /// Offers an export; false if its name is taken.
    pub fn add(&self, export: NbdExportOptions) -> bool {
        self.shared.exports.add(export)
    }

    /// Is there an export of that name?
    pub fn has(&self, name: &str) -> bool {
        self.shared.exports.find(name.as_bytes()).is_some()
    }

    /// Takes an export away and waits until its connections have ended. Errors: a disk is stuck; they end when it is not.
    pub fn remove(&self, name: &str, deadline: Instant) -> Result<(), NbdStillBusy> {
        let Some(export) = self.shared.exports.remove(name) else {
            return Ok(());
        };
        let serves = |seat: &Arc<Seat>| seat.serves(&export);
        for seat in self.shared.seats().iter().filter(|seat| serves(seat)) {
            seat.bell.ring();
        }
        self.shared.wait(deadline, serves)
    }

    /// How many clients there are.
    pub fn connections(&self) -> usize {
        self.shared.seats().len()
    }

    /// Lets nobody in any more, ends every connection, and waits for what is in flight. Errors: a disk is stuck.
    pub fn stop(&mut self, deadline: Instant) -> Result<(), NbdStillBusy> {
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.bell.ring();
        if let Some(accept) = self.accept.take() {
            // One that panicked lets nobody in either.
            let _ = accept.join();
        }
        for seat in self.shared.seats().iter() {
            seat.closing.store(true, Ordering::Release);
            seat.bell.ring();
        }
        self.shared.wait(deadline, |_| true)
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        // Connections of a stuck disk end when it is not; nothing of theirs is ours.
        let _ = self.stop(Instant::now());
    }
}

impl Shared {
    fn seats(&self) -> MutexGuard<'_, Vec<Arc<Seat>>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(
        &self,
        deadline: Instant,
        waited_for: impl Fn(&Arc<Seat>) -> bool,
    ) -> Result<(), NbdStillBusy> {
        let mut seats = self.seats();
        loop {
            let busy = seats.iter().filter(|seat| waited_for(seat)).count();
            let left = deadline.saturating_duration_since(Instant::now());
            if busy == 0 {
                return Ok(());
            }
            if left.is_zero() {
                return Err(NbdStillBusy(busy));
            }
            let waited = self.left.wait_timeout(seats, left);
            seats = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The accepting thread's life. The listeners are its own, and closed with it.
    fn let_in(self: &Arc<Shared>, listeners: &[OwnedFd]) {
        let mut retry = None;
        let mut warned = false;
        while !self.stopping.load(Ordering::Acquire) {
            let open = retry.is_none() && self.seats().len() < self.connections_max;
            wait_for_knocks(&self.bell, if open { listeners } else { &[] }, retry);
            self.bell.hush();
            if retry.is_some_and(|at| at > Instant::now()) {
                continue;
            }
            retry = None;
            for listener in listeners {
                match self.accept_all(listener) {
                    Ok(()) => {}
                    Err(error) => {
                        if !std::mem::replace(&mut warned, true) {
                            tracing::warn!("the NBD server cannot let a client in: {error}");
                        }
                        retry = Some(Instant::now() + RETRY);
                    }
                }
            }
            warned &= retry.is_some();
        }
    }

    fn accept_all(self: &Arc<Shared>, listener: &OwnedFd) -> io::Result<()> {
        while self.seats().len() < self.connections_max && !self.stopping.load(Ordering::Acquire) {
            match rustix::net::accept_with(listener, rustix::net::SocketFlags::CLOEXEC) {
                Ok(socket) => self.seat(socket)?,
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                // It was there and is gone (accept(2)).
                Err(rustix::io::Errno::CONNABORTED | rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn seat(self: &Arc<Shared>, socket: OwnedFd) -> io::Result<()> {
        // Replies are whole when they are sent; of no meaning to a unix socket.
        let _ = rustix::net::sockopt::set_tcp_nodelay(&socket, true);
        let seat = Arc::new(Seat {
            bell: Bell::new()?,
            closing: AtomicBool::new(false),
            export: Mutex::default(),
        });
        self.seats().push(seat.clone());
        let taken = Taken {
            shared: self.clone(),
            seat,
        };
        let thread = std::thread::Builder::new().name("nbd".to_owned());
        thread.spawn(move || taken.serve(socket)).map(drop)
    }
}

impl Taken {
    /// A connection's life.
    fn serve(&self, socket: OwnedFd) {
        let shared = &self.shared;
        let begun = Instant::now();
        let deadline = shared.handshake_max.and_then(|max| begun.checked_add(max));
        let bell = self.seat.bell.as_raw_fd();
        let line = Line::new(Transport::Plain(socket), deadline, bell);
        let terms = Terms {
            exports: &shared.exports,
            tls: shared.tls.as_ref(),
        };
        let agreed = match shake_hands(line, terms) {
            Ok(agreed) => agreed,
            Err(Gone::Aborted) => return,
            Err(gone) => return tracing::debug!("an NBD client is gone: {gone}"),
        };
        let export = agreed.export.clone();
        let mut served = self
            .seat
            .export
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *served = Some(export.clone());
        drop(served);
        let name = &export.options.name;
        let ring = Ring::new(export.options.engine.clone());
        let session = ring.and_then(|ring| {
            let (current, epochs) = (shared.current.clone(), shared.epochs.clone());
            let lane = Lane::new(ring, current, epochs, Mode::Fast);
            Session::new(agreed, self.seat.clone(), lane, shared.send_timeout)
        });
        match session {
            Ok(session) => session.run(),
            Err(error) => tracing::warn!("NBD export '{name}' cannot serve a client: {error}"),
        }
    }
}

/// Waits until somebody knocks, the bell rings or it is time to try again.
fn wait_for_knocks(bell: &Bell, listeners: &[OwnedFd], retry: Option<Instant>) {
    let entry = |fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    let mut fds = vec![entry(bell.as_raw_fd())];
    fds.extend(listeners.iter().map(|listener| entry(listener.as_raw_fd())));
    let timeout = retry.map(|at| at.saturating_duration_since(Instant::now()));
    // EINTR and ENOMEM are no reason to let nobody in: whoever knocks is looked for all the same.
    let _ = ring::sys::poll(&mut fds, timeout);
}
