//! One connection after its handshake: requests out, replies in, as far as the socket goes now.
//!
//! The rule: a reply is taken apart as it comes, each part checked against the request it answers before a byte of it is
//! stored. What no server may send ends the connection; nothing is allocated by a server's word.

use super::chunks::{take_small, tell};
use super::export::Export;
use super::link::{Call, Reply};
use super::slots::Slots;
use super::transport::Transport;
use crate::driver::nbd::wire::{
    Chunk, ChunkHead, ChunkKind, Command, Form, Hole, Malformed, SIMPLE_REPLY_BYTES,
    SIMPLE_REPLY_MAGIC, SimpleReply,
};
use ring::Errno;
use std::collections::VecDeque;
use std::io::{self, IoSlice};

/// Replies are buffered in this much; larger data goes straight where it belongs.
const INBOX_BYTES: usize = 64 << 10;
/// Texts of errors and lists of extents are no longer.
const SMALL_BYTES_MAX: u64 = 32 << 10;
/// Data still missing from which on a read from the socket goes straight into it.
const DIRECT_BYTES_MIN: usize = 8 << 10;
/// Requests handed to the socket in one call.
const SEND_MAX: usize = 16;
/// Reads from the socket in one go, so that a fast server cannot keep requests from being sent.
const RECEIVE_MAX: usize = 16;

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    /// It is gone.
    #[error(transparent)]
    Lost(#[from] io::Error),
    /// The server sent what no server may.
    #[error("protocol error: {0}")]
    Violation(String),
}

impl From<Malformed> for Broken {
    fn from(malformed: Malformed) -> Broken {
        Broken::Violation(malformed.to_string())
    }
}

pub(super) fn violation<T>(what: &str) -> Result<T, Broken> {
    Err(Broken::Violation(what.to_owned()))
}

/// What the next bytes are.
#[derive(Clone, Copy, Debug)]
enum Expect {
    /// The head of a reply or of a chunk.
    Head,
    /// The offset of a chunk's data.
    Offset { slot: usize, head: ChunkHead },
    /// Data, to byte `at` of what a read asked for.
    Data {
        slot: usize,
        at: usize,
        left: usize,
        chunk: Chunk,
    },
    /// The whole payload of a chunk without data.
    Small { slot: usize, head: ChunkHead },
}

/// A request whose head, and perhaps data, is to be sent.
#[derive(Clone, Copy, Debug)]
struct Outgoing {
    slot: usize,
    head: [u8; 32],
    head_bytes: usize,
}

/// A request's end.
pub(super) type End = (Call, Result<Reply, Errno>);

/// A connection.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) transport: Transport,
    pub(super) export: Export,
    /// The context of block status, if the server has it.
    pub(super) context: Option<u32>,
    outgoing: VecDeque<Outgoing>,
    /// Of the first of them, head and data together.
    sent_bytes: usize,
    inbox: Vec<u8>,
    /// What of the inbox is still to be looked at.
    start: usize,
    end: usize,
    expect: Expect,
}

impl Session {
    pub(super) fn new(transport: Transport, export: Export, context: Option<u32>) -> Session {
        Session {
            transport,
            export,
            context,
            outgoing: VecDeque::new(),
            sent_bytes: 0,
            inbox: vec![0; INBOX_BYTES],
            start: 0,
            end: 0,
            expect: Expect::Head,
        }
    }

    /// Has it something to send?
    pub(super) fn wants_send(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Queues the request of a slot. Errors: none that its maker could make.
    pub(super) fn enqueue(&mut self, slots: &mut Slots, slot: usize) -> Result<(), Broken> {
        let Some(in_flight) = slots.get(slot) else {
            return Ok(());
        };
        let mut request = in_flight.head();
        let mut head = [0; 32];
        let head_bytes = match self.export.form {
            Form::Extended => {
                if request.command == Command::Write {
                    // "If extended headers ... NBD_CMD_WRITE MUST set NBD_CMD_FLAG_PAYLOAD_LEN".
                    request.flags.0 |= crate::driver::nbd::wire::CommandFlags::PAYLOAD_LEN;
                }
                head = request.encode_extended();
                head.len()
            }
            Form::Simple | Form::Structured => {
                let bytes = request.encode_compact()?;
                head[..bytes.len()].copy_from_slice(&bytes);
                bytes.len()
            }
        };
        self.outgoing.push_back(Outgoing {
            slot,
            head,
            head_bytes,
        });
        Ok(())
    }

    /// Sends what can be sent now. Errors: the connection is lost.
    pub(super) fn send(&mut self, slots: &mut Slots) -> Result<(), Broken> {
        self.transport.push()?;
        while !self.outgoing.is_empty() {
            let sent = {
                let mut parts = [IoSlice::new(&[]); 2 * SEND_MAX];
                let mut skip = self.sent_bytes;
                let pairs = parts.chunks_exact_mut(2).zip(&self.outgoing);
                for (pair, outgoing) in pairs {
                    let head = outgoing.head.get(..outgoing.head_bytes).unwrap_or_default();
                    let data = slots.peek(outgoing.slot).map(|s| &s.call.payload[..]);
                    let data = data.unwrap_or_default();
                    for (part, bytes) in pair.iter_mut().zip([head, data]) {
                        let skipped = skip.min(bytes.len());
                        skip -= skipped;
                        *part = IoSlice::new(&bytes[skipped..]);
                    }
                }
                self.transport.send(&parts)?
            };
            if sent == 0 {
                return Ok(());
            }
            self.advance(slots, sent);
        }
        Ok(())
    }

    fn advance(&mut self, slots: &mut Slots, sent: usize) {
        self.sent_bytes += sent;
        while let Some(first) = self.outgoing.front() {
            let slot = slots.get(first.slot);
            let data_bytes = slot.as_ref().map_or(0, |slot| slot.call.payload.len());
            let whole = first.head_bytes + data_bytes;
            if self.sent_bytes < whole {
                return;
            }
            self.sent_bytes -= whole;
            if let Some(slot) = slot {
                slot.sent = true;
            }
            self.outgoing.pop_front();
        }
    }

    /// Receives what there is now, and returns false once there is nothing more; what was answered goes to `ends`.
    /// Errors: the connection is lost, or the server sent what no server may.
    pub(super) fn receive(
        &mut self,
        slots: &mut Slots,
        ends: &mut Vec<End>,
    ) -> Result<bool, Broken> {
        for _ in 0..RECEIVE_MAX {
            if !self.receive_once(slots)? {
                return Ok(false);
            }
            while self.parse(slots, ends)? {}
        }
        Ok(true)
    }

    fn receive_once(&mut self, slots: &mut Slots) -> Result<bool, Broken> {
        if let Expect::Data {
            slot,
            at,
            left,
            chunk,
        } = self.expect
            && self.start == self.end
            && left >= DIRECT_BYTES_MIN
        {
            let data = slots.get(slot).and_then(|s| s.data.get_mut(at..at + left));
            let Some(data) = data else {
                return violation("data that nobody asked for");
            };
            let Some(len) = self.transport.recv(data)? else {
                return Ok(false);
            };
            self.expect = Expect::Data {
                slot,
                at: at + len,
                left: left - len,
                chunk,
            };
            return Ok(true);
        }
        self.inbox.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        match self.transport.recv(&mut self.inbox[self.end..])? {
            None => Ok(false),
            Some(len) => {
                self.end += len;
                Ok(true)
            }
        }
    }

    fn buffered(&self) -> &[u8] {
        &self.inbox[self.start..self.end]
    }

    /// Takes the next part of a reply out of the inbox; false if it is not all there.
    fn parse(&mut self, slots: &mut Slots, ends: &mut Vec<End>) -> Result<bool, Broken> {
        match self.expect {
            Expect::Head => self.parse_head(slots, ends),
            Expect::Offset { slot, head } => self.parse_offset(slots, slot, head),
            Expect::Data { .. } => self.parse_data(slots, ends),
            Expect::Small { slot, head } => {
                let len = head.len as usize;
                if self.buffered().len() < len {
                    return Ok(false);
                }
                let payload = &self.inbox[self.start..self.start + len];
                take_small(slots, slot, head, payload, self.context)?;
                self.start += len;
                self.end_chunk(slots, slot, head.chunk, ends)?;
                Ok(true)
            }
        }
    }

    fn parse_head(&mut self, slots: &mut Slots, ends: &mut Vec<End>) -> Result<bool, Broken> {
        let Some(magic) = self.buffered().first_chunk::<4>() else {
            return Ok(false);
        };
        let simple = u32::from_be_bytes(*magic) == SIMPLE_REPLY_MAGIC;
        // "all replies MUST be structured" once extended headers are negotiated: then that magic is a wrong one.
        if simple && self.export.form != Form::Extended {
            let Some(bytes) = self.buffered().first_chunk::<SIMPLE_REPLY_BYTES>() else {
                return Ok(false);
            };
            let reply = SimpleReply::decode(bytes)?;
            self.start += SIMPLE_REPLY_BYTES;
            self.begin_simple(slots, reply, ends)?;
            return Ok(true);
        }
        if self.export.form == Form::Simple {
            return violation("a reply of another form than was agreed on");
        }
        let Some(bytes) = self.buffered().get(..ChunkHead::bytes(self.export.form)) else {
            return Ok(false);
        };
        let head = ChunkHead::decode(self.export.form, bytes)?;
        self.start += ChunkHead::bytes(self.export.form);
        self.begin_chunk(slots, head, ends)?;
        Ok(true)
    }

    fn begin_simple(
        &mut self,
        slots: &mut Slots,
        reply: SimpleReply,
        ends: &mut Vec<End>,
    ) -> Result<(), Broken> {
        let Some((slot, in_flight)) = slots.find(reply.cookie) else {
            return violation("a reply to no request");
        };
        let command = in_flight.call.ask.command;
        // "the server MUST use a structured reply" to reads once these were agreed on; status has no other.
        if command == Command::BlockStatus
            || (command == Command::Read && self.export.form == Form::Structured)
        {
            return violation("a simple reply where chunks are expected");
        }
        in_flight.error = reply.error.map(|error| Errno(error.to_errno()));
        if command == Command::Read && reply.error.is_none() {
            in_flight.told_bytes = in_flight.call.ask.len;
            self.expect = Expect::Data {
                slot,
                at: 0,
                left: in_flight.data.len(),
                chunk: Chunk::Last,
            };
            return Ok(());
        }
        self.end_chunk(slots, slot, Chunk::Last, ends)
    }

    fn begin_chunk(
        &mut self,
        slots: &mut Slots,
        head: ChunkHead,
        ends: &mut Vec<End>,
    ) -> Result<(), Broken> {
        let Some((slot, in_flight)) = slots.find(head.cookie) else {
            return violation("a chunk of a reply to no request");
        };
        let command = in_flight.call.ask.command;
        match head.kind {
            // "MUST always be used with an NBD_REPLY_FLAG_DONE bit ... The payload length MUST be zero".
            ChunkKind::None if head.len == 0 && head.chunk == Chunk::Last => {
                return self.end_chunk(slots, slot, head.chunk, ends);
            }
            ChunkKind::Data if command == Command::Read && head.len > 8 => {
                if head.len - 8 > in_flight.call.ask.len {
                    return violation("more data than was asked for");
                }
                self.expect = Expect::Offset { slot, head };
            }
            ChunkKind::Hole if command == Command::Read && head.len == Hole::BYTES as u64 => {
                self.expect = Expect::Small { slot, head };
            }
            ChunkKind::Status | ChunkKind::StatusExtended
                if command == Command::BlockStatus && head.len <= SMALL_BYTES_MAX =>
            {
                self.expect = Expect::Small { slot, head };
            }
            kind if kind.is_error() && head.len <= SMALL_BYTES_MAX => {
                self.expect = Expect::Small { slot, head };
            }
            _ => return violation("a chunk that does not belong to the request"),
        }
        Ok(())
    }

    fn parse_offset(
        &mut self,
        slots: &mut Slots,
        slot: usize,
        head: ChunkHead,
    ) -> Result<bool, Broken> {
        let Some(bytes) = self.buffered().first_chunk::<8>() else {
            return Ok(false);
        };
        let at = u64::from_be_bytes(*bytes);
        self.start += 8;
        let len = head.len - 8;
        let Some(from) = tell(slots, slot, at, len) else {
            return violation("data beyond what was asked for");
        };
        self.expect = Expect::Data {
            slot,
            at: from,
            left: len as usize,
            chunk: head.chunk,
        };
        Ok(true)
    }

    fn parse_data(&mut self, slots: &mut Slots, ends: &mut Vec<End>) -> Result<bool, Broken> {
        let Expect::Data {
            slot,
            at,
            left,
            chunk,
        } = self.expect
        else {
            return Ok(false);
        };
        let len = left.min(self.end - self.start);
        if left > 0 && len == 0 {
            return Ok(false);
        }
        let to = slots.get(slot).and_then(|s| s.data.get_mut(at..at + len));
        let Some(to) = to else {
            return violation("data that nobody asked for");
        };
        to.copy_from_slice(&self.inbox[self.start..self.start + len]);
        self.start += len;
        if len == left {
            self.end_chunk(slots, slot, chunk, ends)?;
        } else {
            self.expect = Expect::Data {
                slot,
                at: at + len,
                left: left - len,
                chunk,
            };
        }
        Ok(true)
    }

    fn end_chunk(
        &mut self,
        slots: &mut Slots,
        slot: usize,
        chunk: Chunk,
        ends: &mut Vec<End>,
    ) -> Result<(), Broken> {
        self.expect = Expect::Head;
        if chunk == Chunk::More {
            return Ok(());
        }
        let Some(in_flight) = slots.remove(slot) else {
            return Ok(());
        };
        let (call, result) = in_flight.into_result();
        match result {
            Ok(result) => {
                ends.push((call, result));
                Ok(())
            }
            Err(what) => {
                ends.push((call, Err(Errno::IO)));
                violation(what)
            }
        }
    }
}
