//! One client of a monitor: its bytes in and out, and what is held of it meanwhile.
//!
//! The rule: what a client sends and does not read is bounded. Nothing more is read of it while commands wait for their turn or
//! answers for room; events it does not read cut it off.

use super::commands;
use super::hub::{Pretty, Request, SessionId};
use super::session::{Next, Overtaking, Session, greeting};
use crate::chardev::{AfterInput, Port};
use crate::json::{self, Layout, Nul, Reader, Rules};
use serde_json::Value;
use std::io::{self, ErrorKind};
use std::os::fd::{OwnedFd, RawFd};

/// Commands that wait for their turn once a client may send them out of band (QEMU: 8).
const REQUESTS_MAX: usize = 8;
/// Waiting commands of that many bytes are enough, however few they are.
const REQUEST_BYTES_MAX: usize = 1 << 20;
/// Events that a client may leave unread before it is cut off.
const EVENT_BYTES_MAX: usize = 4 << 20;
/// Above this, nothing more is read of a client that does not read.
const UNREAD_BYTES_PAUSE: usize = 1 << 20;
/// Read at once; then others have their turn.
const READ_BYTES: usize = 16 << 10;
/// Nesting of what is read (QEMU: 1024).
const DEPTH_MAX: usize = 1024;

/// The client is gone, or has to go.
#[derive(Debug)]
pub(super) struct Gone(pub(super) String);

impl From<io::Error> for Gone {
    fn from(error: io::Error) -> Gone {
        Gone(error.to_string())
    }
}

/// One client.
#[derive(Debug)]
pub(super) struct Client {
    id: SessionId,
    port: Box<dyn Port>,
    layout: Layout,
    session: Session,
    reader: Reader,
    input: Input,
    waiting: Waiting,
    unread: Unread,
}

/// What came and was not looked at yet.
#[derive(Debug, Default)]
struct Input {
    bytes: Vec<u8>,
    /// Looked at.
    used: usize,
    /// Of the message that is being read.
    message_bytes: usize,
    /// The descriptors that came last, for the command they came with.
    fds: Vec<OwnedFd>,
    /// Nothing more comes.
    ended: bool,
}

/// Commands that wait for their turn.
#[derive(Debug, Default)]
struct Waiting {
    requests: usize,
    bytes: usize,
}

/// Answers and events on their way.
#[derive(Debug, Default)]
struct Unread {
    bytes: Vec<u8>,
    /// Written.
    used: usize,
    /// How many of those left are of events, at most.
    event_bytes: usize,
}

impl Unread {
    fn is_empty(&self) -> bool {
        self.used == self.bytes.len()
    }

    fn len(&self) -> usize {
        self.bytes.len() - self.used
    }

    fn written(&mut self, count: usize) {
        self.used += count;
        // No more of it can be of events than there is.
        self.event_bytes = self.event_bytes.min(self.len());
    }

    fn push(&mut self, message: &Value, layout: Layout) -> usize {
        if self.is_empty() {
            *self = Unread::default();
        } else if self.used > self.bytes.len() / 2 {
            self.bytes.drain(..self.used);
            self.used = 0;
        }
        let before = self.bytes.len();
        json::write(message, layout, &mut self.bytes);
        self.bytes.extend(b"\r\n");
        self.bytes.len() - before
    }
}

impl Client {
    pub(super) fn new(id: SessionId, port: Box<dyn Port>, pretty: Pretty) -> Client {
        let rules = Rules {
            depth_max: DEPTH_MAX,
            nul: Nul::Kept,
        };
        let mut client = Client {
            id,
            port,
            layout: match pretty {
                Pretty::No => Layout::Compact,
                Pretty::Yes => Layout::Pretty,
            },
            session: Session::new(),
            reader: Reader::new(rules),
            input: Input::default(),
            waiting: Waiting::default(),
            unread: Unread::default(),
        };
        let polled = client.port.read_fd().or(client.port.write_fd());
        client.send(&greeting(match polled {
            Some(_) => Overtaking::Offered,
            None => Overtaking::Impossible,
        }));
        client
    }

    pub(super) fn id(&self) -> SessionId {
        self.id
    }

    pub(super) fn has_unread(&self) -> bool {
        !self.unread.is_empty()
    }

    fn is_paused(&self) -> bool {
        let requests_max = match self.session.pipelines() {
            true => REQUESTS_MAX,
            // As QEMU: whoever cannot overtake waits for the answer.
            false => 1,
        };
        self.waiting.requests >= requests_max
            || self.waiting.bytes >= REQUEST_BYTES_MAX
            || self.unread.len() >= UNREAD_BYTES_PAUSE
    }

    /// What to poll for its requests, if they are wanted.
    pub(super) fn wants_to_read(&self) -> Option<RawFd> {
        let wanted = !self.input.ended && !self.is_paused();
        self.port.read_fd().filter(|_| wanted)
    }

    /// What to poll for room.
    pub(super) fn wants_to_write(&self) -> Option<RawFd> {
        self.port.write_fd().filter(|_| self.has_unread())
    }

    /// Its next requests, as far as they are here. `is_ready` says whether there may be something to read. Errors: it is gone.
    pub(super) fn turn(&mut self, is_ready: bool) -> Result<Vec<Request>, Gone> {
        let mut requests = Vec::new();
        self.go_on(&mut requests)?;
        if is_ready && self.wants_to_read().is_some() {
            self.read()?;
            self.go_on(&mut requests)?;
        }
        let answered = self.input.bytes.is_empty() && self.waiting.requests == 0;
        let over = self.port.after_input() == AfterInput::Over;
        match self.input.ended && answered && requests.is_empty() && over {
            true => Err(Gone("it closed the connection".into())),
            false => Ok(requests),
        }
    }

    /// Looks at what is here and writes what there is to say, until one of the two has to wait.
    fn go_on(&mut self, requests: &mut Vec<Request>) -> Result<(), Gone> {
        loop {
            self.parse(requests);
            self.write()?;
            // What was written may have been what it was paused for.
            if self.is_paused() || self.input.bytes.is_empty() {
                return Ok(());
            }
        }
    }

    fn read(&mut self) -> Result<(), Gone> {
        let mut bytes = [0; READ_BYTES];
        let mut fds = Vec::new();
        match self.port.read(&mut bytes, &mut fds) {
            Ok(0) => self.input.ended = true,
            Ok(count) => self.input.bytes.extend(&bytes[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
        if !fds.is_empty() {
            // Those that came before and that nobody wanted are closed.
            self.input.fds = fds;
        }
        Ok(())
    }

    fn parse(&mut self, requests: &mut Vec<Request>) {
        while !self.is_paused()
            && let Some(byte) = self.input.bytes.get(self.input.used).copied()
        {
            let step = self.reader.step(byte);
            if !step.again {
                self.input.used += 1;
                self.input.message_bytes += 1;
            }
            if let Some(message) = step.message {
                let next = self.session.receive(message);
                requests.extend(self.proceed(next));
                self.input.message_bytes = 0;
            }
        }
        if self.input.used == self.input.bytes.len() {
            self.input.bytes.clear();
            self.input.used = 0;
        }
    }

    fn proceed(&mut self, next: Next) -> Option<Request> {
        match next {
            Next::Answer(answer) => {
                self.send(&answer);
                None
            }
            Next::Execute(todo) => {
                self.waiting.requests += 1;
                self.waiting.bytes += self.input.message_bytes;
                let name = todo.call.as_ref().map(|(name, _)| name.as_str());
                let fds = match name.is_ok_and(commands::takes_descriptors) {
                    true => std::mem::take(&mut self.input.fds),
                    false => Vec::new(),
                };
                Some(Request {
                    session: self.id,
                    todo,
                    fds,
                })
            }
        }
    }

    /// One of its requests is answered.
    pub(super) fn answered(&mut self, answer: &Value) {
        self.waiting.requests = self.waiting.requests.saturating_sub(1);
        if self.waiting.requests == 0 {
            self.waiting.bytes = 0;
        }
        self.send(answer);
    }

    /// Something happened. Errors: it has left too much unread.
    pub(super) fn hear(&mut self, event: &Value) -> Result<(), Gone> {
        if !self.session.hears_events() {
            return Ok(());
        }
        let bytes = self.unread.push(event, self.layout);
        self.unread.event_bytes += bytes;
        match self.unread.event_bytes {
            0..EVENT_BYTES_MAX => Ok(()),
            unread => Err(Gone(format!("it left {unread} bytes of events unread"))),
        }
    }

    fn send(&mut self, message: &Value) {
        self.unread.push(message, self.layout);
    }

    /// Writes what there is room for. Errors: it is gone.
    pub(super) fn write(&mut self) -> Result<(), Gone> {
        while !self.unread.is_empty() {
            match self.port.write(&self.unread.bytes[self.unread.used..]) {
                Ok(count) => self.unread.written(count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.unread = Unread::default();
        Ok(())
    }
}
