//! The monitors' thread: lets clients in, reads what they want, writes what they are told.
//!
//! The rule: it blocks in one place, waiting for descriptors. What it holds of each client is bounded (`client.rs`).

use super::client::{Client, Gone};
use super::hub::{MonitorOptions, Outgoing, SessionId, Shared};
use crate::chardev::{Chardev, Port};
use serde_json::Value;
use std::collections::HashSet;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

/// How long the last answers may take at the end.
const GOODBYE: Duration = Duration::from_millis(500);
/// How long nobody is let in after that failed: out of descriptors is not mended by trying again at once.
const RETRY: Duration = Duration::from_millis(250);

/// Runs until told to exit.
pub(super) fn run(shared: &Shared) {
    let mut monitors = Monitors {
        shared,
        monitors: Vec::new(),
        sessions: 0,
        goodbye: None,
    };
    while !monitors.is_over() {
        let ready = monitors.wait();
        shared.monitors.hush();
        for outgoing in shared.take_outgoing() {
            monitors.obey(outgoing);
        }
        monitors.go_on(&ready);
    }
}

struct Monitors<'a> {
    shared: &'a Shared,
    monitors: Vec<Monitor>,
    sessions: u64,
    /// When to end at the latest, once that was asked for.
    goodbye: Option<Instant>,
}

/// A monitor, and whoever is connected to it.
struct Monitor {
    chardev: Chardev,
    options: MonitorOptions,
    client: Option<Client>,
    /// Nobody is let in before.
    retry: Option<Instant>,
    /// That nobody can be let in is said once, not at every try.
    complained: bool,
}

/// What has something to read, room to write, or an end.
struct Ready(HashSet<RawFd>);

impl Ready {
    fn has(&self, fd: Option<RawFd>) -> bool {
        fd.is_some_and(|fd| self.0.contains(&fd))
    }
}

impl Monitors<'_> {
    fn is_over(&self) -> bool {
        let unread = |monitor: &Monitor| monitor.client.as_ref().is_some_and(Client::has_unread);
        self.goodbye
            .is_some_and(|end| Instant::now() >= end || !self.monitors.iter().any(unread))
    }

    fn wait(&self) -> Ready {
        let mut fds = vec![pollfd(self.shared.monitors.as_raw_fd(), libc::POLLIN)];
        for monitor in &self.monitors {
            monitor.add_to(&mut fds);
        }
        let due = self.monitors.iter().filter_map(Monitor::due);
        let until = due.chain(self.goodbye).min();
        let timeout = until.map(|at| at.saturating_duration_since(Instant::now()));
        // Interrupted is as good as nothing to do.
        let _ = ring::sys::poll(&mut fds, timeout);
        let ready = fds.iter().filter(|fd| fd.revents != 0).map(|fd| fd.fd);
        Ready(ready.collect())
    }

    fn obey(&mut self, outgoing: Outgoing) {
        match outgoing {
            Outgoing::Monitor(chardev, options) => self.monitors.push(Monitor {
                chardev,
                options,
                client: None,
                retry: None,
                complained: false,
            }),
            Outgoing::Answer(session, answer) => self.answer(session, &answer),
            Outgoing::Event(event) => {
                for monitor in &mut self.monitors {
                    monitor.hear(&event);
                }
            }
            Outgoing::Exit => self.goodbye = Some(Instant::now() + GOODBYE),
        }
    }

    fn answer(&mut self, session: SessionId, answer: &Value) {
        let mut clients = self.monitors.iter_mut().filter_map(|m| m.client.as_mut());
        if let Some(client) = clients.find(|client| client.id() == session) {
            client.answered(answer);
        }
    }

    /// Lets in, reads and writes wherever that does not wait.
    fn go_on(&mut self, ready: &Ready) {
        let leaving = self.goodbye.is_some();
        for monitor in &mut self.monitors {
            if leaving {
                monitor.take_leave();
                continue;
            }
            if let Some(port) = monitor.knock(ready) {
                self.sessions += 1;
                let id = SessionId(self.sessions);
                let client = Client::new(id, port, monitor.options.pretty);
                monitor.client = Some(client);
            }
            monitor.turn(ready, self.shared);
        }
    }
}

impl Monitor {
    fn add_to(&self, fds: &mut Vec<libc::pollfd>) {
        match &self.client {
            None if self.retry.is_none() => {
                let doors = self.chardev.fds();
                fds.extend(doors.into_iter().map(|fd| pollfd(fd, libc::POLLIN)));
            }
            None => {}
            Some(client) => {
                let reads = client.wants_to_read();
                fds.extend(reads.map(|fd| pollfd(fd, libc::POLLIN)));
                let writes = client.wants_to_write();
                fds.extend(writes.map(|fd| pollfd(fd, libc::POLLOUT)));
            }
        }
    }

    /// When to look for somebody to let in without being woken.
    fn due(&self) -> Option<Instant> {
        match &self.client {
            Some(_) => None,
            None => self.retry.or_else(|| self.chardev.due()),
        }
    }

    /// Whoever waits to be let in, if there is room.
    fn knock(&mut self, ready: &Ready) -> Option<Box<dyn Port>> {
        let now = Instant::now();
        if self.client.is_some() || self.retry.is_some_and(|at| now < at) {
            return None;
        }
        let is_due = self.due().is_some_and(|at| at <= now);
        self.retry = None;
        // One that cannot be polled is there or is not; asking costs nothing.
        let doors = self.chardev.fds();
        if !is_due && !doors.is_empty() && !doors.iter().any(|fd| ready.has(Some(*fd))) {
            return None;
        }
        match self.chardev.let_in() {
            Ok(port) => {
                self.complained = false;
                Some(port)
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => None,
            Err(error) => {
                if !self.complained {
                    tracing::warn!("a monitor cannot let a client in: {error}");
                }
                self.complained = true;
                self.retry = Some(now + RETRY);
                None
            }
        }
    }

    /// Reads what its client wants and writes what it is told.
    fn turn(&mut self, ready: &Ready, shared: &Shared) {
        let Some(client) = &mut self.client else {
            return;
        };
        let is_ready = ready.has(client.wants_to_read());
        match client.turn(is_ready) {
            Ok(requests) => requests.into_iter().for_each(|r| shared.push(r)),
            Err(gone) => self.end(&gone),
        }
    }

    /// Writes the last answers.
    fn take_leave(&mut self) {
        if let Some(client) = &mut self.client
            && let Err(gone) = client.write()
        {
            self.end(&gone);
        }
    }

    fn hear(&mut self, event: &Value) {
        if let Some(client) = &mut self.client
            && let Err(gone) = client.hear(event)
        {
            tracing::warn!("a monitor's client is cut off: {}", gone.0);
            self.end(&gone);
        }
    }

    fn end(&mut self, Gone(why): &Gone) {
        tracing::info!("a monitor's client is gone: {why}");
        self.client = None;
        self.chardev.ended();
    }
}

fn pollfd(fd: RawFd, events: i16) -> libc::pollfd {
    libc::pollfd {
        fd,
        events,
        revents: 0,
    }
}
