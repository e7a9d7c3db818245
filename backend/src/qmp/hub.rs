//! Where the monitors' thread and the control thread meet: requests one way, answers and events the other.
//!
//! The rule: nobody waits here. Each side has a bell that the other rings.

use super::events::EventKind;
use super::session::Todo;
use super::thread;
use crate::chardev::Chardev;
use crate::qapi::{self, Type};
use ring::Bell;
use serde_json::{Map, Value, json};
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

/// Touched only as far as it is used.
const STACK_BYTES: usize = 8 << 20;

/// Are answers broken into lines for people?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pretty {
    /// One line each.
    No,
    /// Indented.
    Yes,
}

/// What a monitor is made with.
#[derive(Clone, Copy, Debug)]
pub struct MonitorOptions {
    /// `pretty=`
    pub pretty: Pretty,
}

/// Names one conversation; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionId(pub(super) u64);

/// Something a client wants, waiting for its turn.
#[derive(Debug)]
pub struct Request {
    /// Whose.
    pub session: SessionId,
    /// What.
    pub todo: Todo,
    /// Descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

/// What the control thread has for the monitors' thread.
#[derive(Debug)]
pub(super) enum Outgoing {
    /// A new monitor.
    Monitor(Chardev, MonitorOptions),
    /// An answer.
    Answer(SessionId, Value),
    /// For everybody who has negotiated.
    Event(Value),
    /// Send what is left, for a moment, and end.
    Exit,
}

/// The meeting place.
#[derive(Debug)]
pub struct Hub {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
pub(super) struct Shared {
    requests: Mutex<VecDeque<Request>>,
    outgoing: Mutex<Vec<Outgoing>>,
    /// Rings when something came in.
    pub(super) control: Bell,
    /// Rings when there is something for the monitors' thread.
    pub(super) monitors: Bell,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn push(&self, request: Request) {
        lock(&self.requests).push_back(request);
        self.control.ring();
    }

    pub(super) fn take_outgoing(&self) -> Vec<Outgoing> {
        std::mem::take(&mut lock(&self.outgoing))
    }

    fn send(&self, outgoing: Outgoing) {
        lock(&self.outgoing).push(outgoing);
        self.monitors.ring();
    }
}

impl Hub {
    /// Begins, without monitors. Errors: out of descriptors or threads.
    pub fn start() -> io::Result<Hub> {
        let shared = Arc::new(Shared {
            requests: Mutex::default(),
            outgoing: Mutex::default(),
            control: Bell::new()?,
            monitors: Bell::new()?,
        });
        let its = shared.clone();
        let thread = std::thread::Builder::new().name("monitor".to_owned());
        // What is read may be nested a thousand deep, and is written and dropped by recursion.
        let thread = thread.stack_size(STACK_BYTES);
        let thread = thread.spawn(move || thread::run(&its))?;
        Ok(Hub {
            shared,
            thread: Some(thread),
        })
    }

    /// Adds a monitor on a character device.
    pub fn add(&self, chardev: Chardev, options: MonitorOptions) {
        self.shared.send(Outgoing::Monitor(chardev, options));
    }

    /// Rings when [`Hub::next`] has something.
    pub fn bell(&self) -> &Bell {
        &self.shared.control
    }

    /// The next request of any client.
    pub fn next(&self) -> Option<Request> {
        lock(&self.shared.requests).pop_front()
    }

    /// Answers a request; nobody hears it if the client is gone.
    pub fn answer(&self, session: SessionId, answer: Value) {
        self.shared.send(Outgoing::Answer(session, answer));
    }

    /// Tells every client that has negotiated.
    pub fn event(&self, kind: &EventKind, data: Value) {
        debug_assert_eq!(qapi::check(&data, Type::Object(kind.data)), Ok(()));
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default();
        let mut event = Map::new();
        let timestamp = json!({"seconds": now.as_secs(), "microseconds": now.subsec_micros()});
        event.insert("timestamp".into(), timestamp);
        event.insert("event".into(), kind.name.into());
        if data != json!({}) {
            event.insert("data".into(), data);
        }
        self.shared.send(Outgoing::Event(Value::Object(event)));
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.shared.send(Outgoing::Exit);
        if let Some(thread) = self.thread.take() {
            // One that panicked has ended too.
            let _ = thread.join();
        }
    }
}
