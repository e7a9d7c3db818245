//! Replies on their way to the client.
//!
//! The rule: the frame at the front must be gone, or shrink by [`PROGRESS_BYTES`], within the send timeout; a client that
//! reads more slowly than that is cut off.

use super::budget::Permit;
use super::pool::Lease;
use super::transport::Transport;
use ring::Mem;
use ring::stream::{PIECES_MAX, Piece};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Sent in one turn; whoever shares the thread has a turn then.
const TURN_BYTES: usize = 2 << 20;

/// What counts as progress of a frame that is not yet gone.
const PROGRESS_BYTES: usize = 64 << 10;

/// One piece of a reply: a head, and data after it.
#[derive(Debug)]
struct Frame {
    head: Vec<u8>,
    /// What of the data is not gone.
    body: Mem,
    /// The memory that the data is in, to be used again.
    memory: Mem,
    /// Given back when the frame is gone.
    _permit: Rc<Permit>,
}

impl Frame {
    fn len(&self) -> usize {
        self.head.len() + self.body.len()
    }
}

/// Replies that have not left.
#[derive(Debug)]
pub(super) struct Outbox {
    frames: VecDeque<Frame>,
    /// What of them has not left.
    bytes: usize,
    /// How much of the first frame's head is gone, and of nothing else.
    sent_bytes: usize,
    /// How much has gone since the clock was set.
    progress_bytes: usize,
    timeout: Duration,
    deadline: Option<Instant>,
}

/// How sending went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// All is gone.
    All,
    /// The socket takes no more for now.
    Some,
    /// It takes more, but that is enough for one turn.
    Enough,
}

impl Outbox {
    pub(super) fn new(timeout: Duration) -> Outbox {
        Outbox {
            frames: VecDeque::new(),
            bytes: 0,
            sent_bytes: 0,
            progress_bytes: 0,
            timeout,
            deadline: None,
        }
    }

    /// A frame without data.
    pub(super) fn push(&mut self, head: Vec<u8>, permit: &Rc<Permit>) {
        self.push_data(head, Lease::nothing(), permit);
    }

    /// A frame with data after its head.
    pub(super) fn push_data(&mut self, head: Vec<u8>, data: Lease, permit: &Rc<Permit>) {
        let frame = Frame {
            head,
            body: data.mem,
            memory: data.memory,
            _permit: permit.clone(),
        };
        self.bytes += frame.len();
        self.frames.push_back(frame);
    }

    /// How much has not left.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Is there nothing to send?
    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// By when the client must have read something.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Sends what the socket takes. `recycle` is given the data of frames that are gone. Errors: the connection is over,
    /// ETIMEDOUT among the reasons.
    pub(super) fn send(
        &mut self,
        transport: &mut Transport,
        mut recycle: impl FnMut(Mem),
    ) -> io::Result<Sent> {
        let mut sent = 0;
        while !self.is_empty() {
            if sent >= TURN_BYTES {
                return Ok(Sent::Enough);
            }
            match transport.send(self.pieces()) {
                Ok(len) => {
                    sent += len;
                    self.advance(len, &mut recycle);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return self.stuck(),
                Err(error) => return Err(error),
            }
        }
        match transport.flush() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.stuck(),
            Err(error) => Err(error),
            Ok(()) => {
                self.deadline = None;
                Ok(Sent::All)
            }
        }
    }

    fn pieces(&self) -> impl Iterator<Item = Piece<'_>> {
        let mut gone = self.sent_bytes;
        let frames = self.frames.iter().take(PIECES_MAX / 2);
        frames.flat_map(move |frame| {
            let gone = std::mem::take(&mut gone);
            [Piece::Bytes(&frame.head[gone..]), Piece::Mem(&frame.body)]
        })
    }

    /// That much more is gone.
    fn advance(&mut self, len: usize, recycle: &mut impl FnMut(Mem)) {
        self.progress_bytes += len;
        self.bytes -= len;
        let mut left = self.sent_bytes + len;
        while let Some(frame) = self.frames.front() {
            if left < frame.len() {
                break;
            }
            left -= frame.len();
            self.progress_bytes = PROGRESS_BYTES;
            if let Some(frame) = self.frames.pop_front() {
                drop(frame.body);
                recycle(frame.memory);
            }
        }
        self.sent_bytes = left;
        if let Some(frame) = self.frames.front_mut() {
            let head = frame.head.len();
            self.sent_bytes = left.min(head);
            frame.body = frame.body.slice(left - self.sent_bytes, usize::MAX);
        }
        if self.progress_bytes >= PROGRESS_BYTES {
            self.progress_bytes = 0;
            self.deadline = None;
        }
    }

    /// The socket takes no more: the clock runs.
    fn stuck(&mut self) -> io::Result<Sent> {
        let now = Instant::now();
        match self.deadline {
            Some(deadline) if deadline <= now => Err(io::ErrorKind::TimedOut.into()),
            Some(_) => Ok(Sent::Some),
            None => {
                self.deadline = now.checked_add(self.timeout);
                self.progress_bytes = 0;
                Ok(Sent::Some)
            }
        }
    }
}
