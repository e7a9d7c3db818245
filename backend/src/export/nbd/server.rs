//! The server: a thread that lets clients in, and a thread for each of them; for its handshake only, where the export has
//! an iothread.
//!
//! The rule: whoever stops a server or takes an export away waits for the disk at most, never for a client.

use super::exports::{Export, Exports, NbdExportOptions, Runs};
use super::handshake::{Terms, shake_hands};
use super::line::{Gone, Line};
use super::seat::{Seats, Taken};
use super::session::Session;
use super::transport::Transport;
use crate::queue::{Arrival, run_alone};
use blockgraph::map::LANE_STACK_BYTES;
use blockgraph::pin::Epochs;
use blockgraph::{Current, Lane, Mode};
use ring::{Bell, Ring};
use rustls::ServerConfig;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long nobody is let in after that failed: out of descriptors is not mended by trying again at once.
const RETRY: Duration = Duration::from_millis(250);

/// How much a unix socket takes before its client has read it.
const UNIX_BUFFER_BYTES: usize = 1 << 20;

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
    /// One for each connection.
    seats: Arc<Seats>,
}

impl NbdServer {
    /// Lets clients in from now on. Errors: out of descriptors or threads.
    pub fn start(options: NbdServerOptions) -> io::Result<NbdServer> {
        let listeners = options.listeners;
        for listener in &listeners {
            ring::sock::set_nonblocking(listener.as_fd())?;
        }
        let bell = Bell::new()?;
        let shared = Arc::new(Shared {
            exports: Exports::default(),
            tls: options.tls,
            connections_max: options.connections_max.unwrap_or(usize::MAX),
            handshake_max: options.handshake_max,
            send_timeout: options.send_timeout,
            current: options.current,
            epochs: options.epochs,
            seats: Arc::new(Seats::new(bell.clone())),
            bell,
            stopping: AtomicBool::new(false),
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

    /// How many clients an export has; those that still shake hands are nobody's yet.
    pub fn clients_of(&self, name: &str) -> usize {
        let Some(export) = self.shared.exports.find(name.as_bytes()) else {
            return 0;
        };
        self.shared.seats.count(|seat| seat.serves(&export))
    }

    /// Takes an export away and tells its clients; `None` if there is none.
    pub fn take_away(&self, name: &str) -> Option<Removed> {
        let export = self.shared.exports.remove(name)?;
        self.shared.seats.ring(|seat| seat.serves(&export));
        Some(Removed(export))
    }

    /// Takes an export away and waits until its connections have ended. Errors: a disk is stuck; they end when it is not.
    pub fn remove(&self, name: &str, deadline: Instant) -> Result<(), NbdStillBusy> {
        let Some(Removed(export)) = self.take_away(name) else {
            return Ok(());
        };
        let seats = &self.shared.seats;
        end_of(seats.wait(deadline, |seat| seat.serves(&export)))
    }

    /// How many clients there are.
    pub fn connections(&self) -> usize {
        self.shared.seats.len()
    }

    /// Lets nobody in any more, ends every connection, and waits for what is in flight. Errors: a disk is stuck.
    pub fn stop(&mut self, deadline: Instant) -> Result<(), NbdStillBusy> {
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.bell.ring();
        if let Some(accept) = self.accept.take() {
            // One that panicked lets nobody in either.
            let _ = accept.join();
        }
        self.shared.seats.close();
        end_of(self.shared.seats.wait(deadline, |_| true))
    }
}

/// An export that was taken away.
#[derive(Debug)]
pub struct Removed(Arc<Export>);

impl Removed {
    /// Does no connection serve it, and none that shakes hands mean to?
    pub fn is_gone(&self) -> bool {
        // Sessions let it go before their seats.
        Arc::strong_count(&self.0) == 1
    }
}

fn end_of(busy: usize) -> Result<(), NbdStillBusy> {
    match busy {
        0 => Ok(()),
        busy => Err(NbdStillBusy(busy)),
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        // Connections of a stuck disk end when it is not; nothing of theirs is ours.
        let _ = self.stop(Instant::now());
    }
}

impl Shared {
    /// The accepting thread's life. The listeners are its own, and closed with it.
    fn let_in(self: &Arc<Shared>, listeners: &[OwnedFd]) {
        let mut retry = None;
        let mut warned = false;
        while !self.stopping.load(Ordering::Acquire) {
            let open = retry.is_none() && self.seats.len() < self.connections_max;
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
        while self.seats.len() < self.connections_max && !self.stopping.load(Ordering::Acquire) {
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
        tune(&socket);
        let seat = self.seats.take()?;
        let its = self.clone();
        let thread = std::thread::Builder::new().name("nbd".to_owned());
        let thread = thread.stack_size(LANE_STACK_BYTES);
        thread.spawn(move || its.serve(seat, socket)).map(drop)
    }

    /// A connection's life, or its handshake, where the rest is lived elsewhere.
    fn serve(&self, seat: Taken, socket: OwnedFd) {
        let begun = Instant::now();
        let deadline = self.handshake_max.and_then(|max| begun.checked_add(max));
        let bell = seat.bell().as_raw_fd();
        let line = Line::new(Transport::Plain(socket), deadline, bell);
        let terms = Terms {
            exports: &self.exports,
            tls: self.tls.as_ref(),
        };
        let agreed = match shake_hands(line, terms) {
            Ok(agreed) => agreed,
            Err(Gone::Aborted) => return,
            Err(gone) => return tracing::debug!("an NBD client is gone: {gone}"),
        };
        seat.sit_down(agreed.export.clone());
        let send_timeout = self.send_timeout;
        // Whoever waits for a seat to be left may close files then: where the ring is this connection's own, that goes first,
        // and so does the export.
        let seat = Arc::new(seat);
        let export = agreed.export.clone();
        let its = seat.clone();
        let arrival = Arrival::new(move |token| {
            Ok(Box::new(Session::new(agreed, its, send_timeout, token)?))
        });
        let served = match &export.options.runs {
            Runs::Alone(engine) => Ring::new(engine.clone()).and_then(|ring| {
                let (current, epochs) = (self.current.clone(), self.epochs.clone());
                run_alone(arrival, Lane::new(ring, current, epochs, Mode::Fast))
            }),
            Runs::On(team) => match team.upgrade() {
                Some(team) => team.host(arrival),
                None => Err(io::Error::other("its iothread is gone")),
            },
        };
        if let Err(error) = served {
            let name = &export.options.name;
            tracing::warn!("NBD export '{name}' cannot serve a client: {error}");
        }
    }
}

/// What makes a connection fast; what the kernel refuses is done without.
fn tune(socket: &OwnedFd) {
    use rustix::net::{AddressFamily, sockopt};
    if sockopt::socket_domain(socket) == Ok(AddressFamily::UNIX) {
        // TCP finds its buffers' size by itself; a unix socket's is that of one reply of 200 KiB, after which each end waits
        // for the other. Beyond net.core.wmem_max only the privileged may go.
        if sockopt::set_socket_send_buffer_size_force(socket, UNIX_BUFFER_BYTES).is_err() {
            let _ = sockopt::set_socket_send_buffer_size(socket, UNIX_BUFFER_BYTES);
        }
    } else {
        // Replies are whole when they are sent.
        let _ = sockopt::set_tcp_nodelay(socket, true);
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
