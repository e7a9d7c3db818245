//! A socket that connects by itself, and again when that fails or the other end is gone (`reconnect-ms`).
//!
//! The rule: names are looked up and connections made on a thread of their own, which may wait as long as it has to.

use super::shown::Name;
use super::socket::{Delayed, Stream};
use ring::Bell;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// Connects; the error is for people.
pub type Connect = Arc<dyn Fn() -> Result<OwnedFd, String> + Send + Sync>;

/// Where connecting is.
#[derive(Debug)]
enum State {
    /// Not before then.
    Pausing(Instant),
    Connecting(Receiver<Result<OwnedFd, String>>),
}

/// What a [`Dialer`] is made with.
pub struct DialerOptions {
    /// For messages.
    pub id: String,
    /// How.
    pub connect: Connect,
    /// What it is called.
    pub name: Name,
    /// Of the connection.
    pub delay: Delayed,
    /// Between the end of one and the beginning of the next.
    pub pause: Duration,
}

impl fmt::Debug for DialerOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DialerOptions")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// Connects again and again.
#[derive(Debug)]
pub struct Dialer {
    options: DialerOptions,
    /// Rings when connecting came to something.
    bell: Bell,
    state: State,
    /// That it fails is said once, not at every try.
    complained: bool,
}

impl Dialer {
    /// One that begins at once. Errors: out of descriptors.
    pub fn new(options: DialerOptions) -> io::Result<Dialer> {
        Ok(Dialer {
            options,
            bell: Bell::new()?,
            state: State::Pausing(Instant::now()),
            complained: false,
        })
    }

    /// What to poll.
    pub fn fd(&self) -> RawFd {
        self.bell.as_raw_fd()
    }

    /// When to look again without being woken.
    pub fn due(&self) -> Option<Instant> {
        match self.state {
            State::Pausing(until) => Some(until),
            State::Connecting(_) => None,
        }
    }

    /// The connection, once there is one. Errors: WouldBlock until then; out of threads.
    pub fn connection(&mut self) -> io::Result<Stream> {
        self.bell.hush();
        match &self.state {
            State::Pausing(until) if Instant::now() < *until => {}
            State::Pausing(_) => self.state = State::Connecting(self.start()?),
            State::Connecting(answer) => match answer.try_recv() {
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => self.pause(),
                Ok(Ok(socket)) => return self.connected(socket),
                Ok(Err(why)) => {
                    self.complain(&why);
                    self.pause();
                }
            },
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn connected(&mut self, socket: OwnedFd) -> io::Result<Stream> {
        self.complained = false;
        self.pause();
        Stream::new(socket, self.options.name.clone(), self.options.delay)
    }

    /// Nobody asks as long as the connection lasts, so the pause begins when it is asked for the next.
    fn pause(&mut self) {
        let now = Instant::now();
        let until = now.checked_add(self.options.pause);
        // Longer than the clock goes is never.
        let never = now + Duration::from_secs(1 << 32);
        self.state = State::Pausing(until.unwrap_or(never));
    }

    /// Somebody was connected and is gone.
    pub fn restart(&mut self) {
        self.pause();
    }

    fn complain(&mut self, why: &str) {
        if !self.complained {
            let id = &self.options.id;
            tracing::warn!("Unable to connect character device {id}: {why}");
        }
        self.complained = true;
    }

    fn start(&self) -> io::Result<Receiver<Result<OwnedFd, String>>> {
        let (connect, bell) = (self.options.connect.clone(), self.bell.clone());
        let (send, receive): (SyncSender<_>, _) = sync_channel(1);
        let thread = thread::Builder::new().name("dialer".to_owned());
        thread.spawn(move || {
            // Whoever asked may be gone by now.
            let _ = send.send(connect());
            bell.ring();
        })?;
        Ok(receive)
    }
}
