//! Getting a connection: once, for as long as `open-timeout` says, or in the background while requests wait.
//!
//! The rule: an attempt ends by its deadline and when it is told to stop; only the system's own name look-up does not
//! listen, and nobody waits for that one.

use super::address::Server;
use super::error::ClientError;
use super::handshake::{Wish, shake};
use super::patient::{Patience, Patient};
use super::session::Session;
use super::transport::{Transport, wait_for};
use ring::Bell;
use rustix::event::{PollFd, PollFlags};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long connecting and the handshake may take.
const ATTEMPT: Duration = Duration::from_secs(30);
/// Between attempts, at first; then twice as long each time.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// And never longer.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Whom to call and what to ask for.
#[derive(Clone, Debug)]
pub(super) struct Number {
    pub(super) server: Server,
    pub(super) wish: Wish,
}

/// Pauses between attempts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff(Duration);

impl Backoff {
    pub(super) const NEW: Backoff = Backoff(PAUSE_MIN);

    /// The pause to make now; the next will be longer.
    pub(super) fn next(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).min(PAUSE_MAX);
        pause
    }
}

impl Number {
    /// One attempt. Errors: whatever can be wrong with a server.
    pub(super) fn dial(&self, stop: &Bell, deadline: Instant) -> Result<Session, ClientError> {
        let deadline = deadline.min(Instant::now() + ATTEMPT);
        let socket = self.server.connect(stop, deadline)?;
        let patient = Patient {
            transport: Transport::new(socket),
            patience: Patience {
                stop: stop.clone(),
                deadline,
            },
        };
        shake(patient, &self.wish)
    }

    /// Attempts until one succeeds or `timeout` is over; with a timeout of zero there is one. Errors: the last attempt's.
    pub(super) fn dial_for(&self, timeout: Duration) -> Result<Session, ClientError> {
        let stop = Bell::new().map_err(ClientError::System)?;
        if timeout.is_zero() {
            return self.dial(&stop, Instant::now() + ATTEMPT);
        }
        let deadline = Instant::now() + timeout;
        let mut backoff = Backoff::NEW;
        loop {
            let error = match self.dial(&stop, deadline) {
                Ok(session) => return Ok(session),
                Err(error) => error,
            };
            let pause = backoff.next();
            if Instant::now() + pause >= deadline || !self.server.can_reconnect() {
                return Err(error);
            }
            std::thread::sleep(pause);
        }
    }
}

/// An attempt in the background.
#[derive(Debug)]
pub(super) struct Attempt {
    stop: Bell,
    result: Arc<Mutex<Option<Result<Session, ClientError>>>>,
}

impl Attempt {
    /// Begins one; `done` rings at its end. Errors: no thread, no descriptor.
    pub(super) fn begin(number: &Number, done: &Bell) -> std::io::Result<Attempt> {
        let attempt = Attempt {
            stop: Bell::new()?,
            result: Arc::default(),
        };
        let (number, stop, done) = (number.clone(), attempt.stop.clone(), done.clone());
        let to = attempt.result.clone();
        let run = move || {
            let result = number.dial(&stop, Instant::now() + ATTEMPT);
            *to.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
            done.ring();
        };
        let name = String::from("nbd-connect");
        std::thread::Builder::new().name(name).spawn(run)?;
        Ok(attempt)
    }

    /// Its result, once it has one.
    pub(super) fn take(&self) -> Option<Result<Session, ClientError>> {
        let mut result = self.result.lock().unwrap_or_else(PoisonError::into_inner);
        result.take()
    }
}

impl Drop for Attempt {
    /// Nobody wants it any more.
    fn drop(&mut self) {
        self.stop.ring();
    }
}

/// Sleeps until `bell` rings or `deadline`. Errors: poll(2)'s.
pub(super) fn doze(bell: &Bell, deadline: Option<Instant>) -> std::io::Result<()> {
    let mut fds = [PollFd::new(bell, PollFlags::IN)];
    wait_for(&mut fds, deadline).map(|_| ())
}
