//! Requests off the wire: heads, and payloads straight into the memory they are written from.
//!
//! The rule: nothing is read that there is no room for; what the client sent beyond that waits in its own socket.

use super::transport::Transport;
use blockgraph::driver::nbd::wire::{
    EXTENDED_REQUEST_BYTES, EXTENDED_REQUEST_MAGIC, Form, Malformed, REQUEST_BYTES, REQUEST_MAGIC,
    RequestHead,
};
use ring::Mem;
use std::io;

/// Small things are received in bites of this size.
const BITE_BYTES: usize = 16 << 10;

/// Bytes that came and were not used yet.
#[derive(Debug)]
pub(super) struct Input {
    bytes: Vec<u8>,
    from: usize,
    to: usize,
    form: Form,
}

/// What became of waiting for bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Came<T> {
    /// It is here.
    Here(T),
    /// Not yet: poll the socket.
    NotYet,
    /// The client is done sending.
    End,
}

/// A head, or what is wrong with it.
pub(super) type Head = Result<RequestHead, (RequestHead, u32)>;

impl Input {
    pub(super) fn new(form: Form) -> Input {
        Input {
            bytes: vec![0; BITE_BYTES],
            from: 0,
            to: 0,
            form,
        }
    }

    /// The next request's head, which stays where it is; a wrong magic number comes with what would have been the head.
    pub(super) fn head(&mut self, transport: &mut Transport) -> io::Result<Came<Head>> {
        let len = match self.form {
            Form::Extended => EXTENDED_REQUEST_BYTES,
            Form::Simple | Form::Structured => REQUEST_BYTES,
        };
        while self.to - self.from < len {
            match self.bite(transport)? {
                Came::Here(()) => {}
                Came::NotYet => return Ok(Came::NotYet),
                Came::End => return Ok(Came::End),
            }
        }
        Ok(Came::Here(self.decode(len)))
    }

    /// The head was taken.
    pub(super) fn take_head(&mut self) {
        self.from += match self.form {
            Form::Extended => EXTENDED_REQUEST_BYTES,
            Form::Simple | Form::Structured => REQUEST_BYTES,
        };
    }

    fn decode(&self, len: usize) -> Head {
        let mut extended = [0; EXTENDED_REQUEST_BYTES];
        extended[..len].copy_from_slice(&self.bytes[self.from..self.from + len]);
        let decoded = decode(self.form, &extended);
        decoded.map_err(|_| {
            let [a, b, c, d, ..] = extended;
            let magic = match self.form {
                Form::Extended => EXTENDED_REQUEST_MAGIC,
                Form::Simple | Form::Structured => REQUEST_MAGIC,
            };
            extended[..4].copy_from_slice(&magic.to_be_bytes());
            let head = decode(self.form, &extended).unwrap_or(NOBODYS);
            (head, u32::from_be_bytes([a, b, c, d]))
        })
    }

    /// Fills `to` from byte `at`; returns how far it is filled.
    pub(super) fn payload(
        &mut self,
        transport: &mut Transport,
        to: &Mem,
        at: usize,
    ) -> io::Result<Came<usize>> {
        let stored = to.store(at, &self.bytes[self.from..self.to]);
        self.from += stored;
        let mut at = at + stored;
        while at < to.len() {
            match transport.receive_mem(&to.slice(at, usize::MAX)) {
                Ok(0) => return Ok(Came::End),
                Ok(len) => at += len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(Came::Here(at))
    }

    /// Throws bytes away, at most `len`; returns how many.
    pub(super) fn skip(
        &mut self,
        transport: &mut Transport,
        len: usize,
    ) -> io::Result<Came<usize>> {
        if self.from == self.to && len > 0 {
            match self.bite(transport)? {
                Came::Here(()) => {}
                Came::NotYet => return Ok(Came::NotYet),
                Came::End => return Ok(Came::End),
            }
        }
        let skipped = len.min(self.to - self.from);
        self.from += skipped;
        Ok(Came::Here(skipped))
    }

    fn bite(&mut self, transport: &mut Transport) -> io::Result<Came<()>> {
        self.bytes.copy_within(self.from..self.to, 0);
        self.to -= self.from;
        self.from = 0;
        match transport.receive(&mut self.bytes[self.to..]) {
            Ok(0) => Ok(Came::End),
            Ok(len) => {
                self.to += len;
                Ok(Came::Here(()))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Came::NotYet),
            Err(error) => Err(error),
        }
    }
}

/// Stands for a head that cannot be read at all.
const NOBODYS: RequestHead = RequestHead {
    flags: blockgraph::driver::nbd::wire::CommandFlags(0),
    command: blockgraph::driver::nbd::wire::Command::Disconnect,
    cookie: 0,
    at: 0,
    len: 0,
};

fn decode(form: Form, bytes: &[u8; EXTENDED_REQUEST_BYTES]) -> Result<RequestHead, Malformed> {
    match form {
        Form::Extended => RequestHead::decode_extended(bytes),
        Form::Simple | Form::Structured => {
            let compact = bytes.first_chunk().ok_or(Malformed::Length)?;
            RequestHead::decode_compact(compact)
        }
    }
}
