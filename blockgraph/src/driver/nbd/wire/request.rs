//! Requests: what a client asks once the handshake is over.

use super::{EXTENDED_REQUEST_MAGIC, Malformed, REQUEST_MAGIC, Reader, expect_magic};

/// Length of a compact request's head.
pub const REQUEST_BYTES: usize = 28;
/// Length of an extended request's head.
pub const EXTENDED_REQUEST_BYTES: usize = 32;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Data, please.
    Read,
    /// Data follows.
    Write,
    /// Goodbye; no reply.
    Disconnect,
    /// Make what was written durable.
    Flush,
    /// No longer needed.
    Trim,
    /// Will be read soon.
    Cache,
    /// Make it zeroes.
    WriteZeroes,
    /// Tell about it.
    BlockStatus,
    /// One that nobody here knows.
    Other(u16),
}

impl Command {
    /// By its number.
    pub fn from_number(number: u16) -> Command {
        match number {
            0 => Command::Read,
            1 => Command::Write,
            2 => Command::Disconnect,
            3 => Command::Flush,
            4 => Command::Trim,
            5 => Command::Cache,
            6 => Command::WriteZeroes,
            7 => Command::BlockStatus,
            other => Command::Other(other),
        }
    }

    /// Its number.
    pub fn number(self) -> u16 {
        match self {
            Command::Read => 0,
            Command::Write => 1,
            Command::Disconnect => 2,
            Command::Flush => 3,
            Command::Trim => 4,
            Command::Cache => 5,
            Command::WriteZeroes => 6,
            Command::BlockStatus => 7,
            Command::Other(number) => number,
        }
    }
}

/// A command's flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommandFlags(pub u16);

impl CommandFlags {
    /// Durable before the reply.
    pub const FUA: u16 = 1 << 0;
    /// Zeroes that keep their space.
    pub const NO_HOLE: u16 = 1 << 1;
    /// A read's data in one piece.
    pub const DF: u16 = 1 << 2;
    /// One extent is enough.
    pub const REQ_ONE: u16 = 1 << 3;
    /// Zeroes only if that is faster than writing them.
    pub const FAST_ZERO: u16 = 1 << 4;
    /// The length is that of a payload (extended headers).
    pub const PAYLOAD_LEN: u16 = 1 << 5;

    /// Is that one set?
    pub fn has(self, flag: u16) -> bool {
        self.0 & flag != 0
    }

    /// Are any others set?
    pub fn beyond(self, known: u16) -> bool {
        self.0 & !known != 0
    }
}

/// A request's head; a write's data follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHead {
    /// How.
    pub flags: CommandFlags,
    /// What.
    pub command: Command,
    /// The client's name for it, repeated in the reply.
    pub cookie: u64,
    /// Where, in bytes.
    pub at: u64,
    /// How much, in bytes; in 32 bits in a compact request.
    pub len: u64,
}

impl RequestHead {
    /// As a compact request. Errors: a length beyond 32 bits.
    pub fn encode_compact(self) -> Result<[u8; REQUEST_BYTES], Malformed> {
        let len = u32::try_from(self.len).map_err(|_| Malformed::Length)?;
        let mut out = [0; REQUEST_BYTES];
        self.encode_common(REQUEST_MAGIC, &mut out);
        out[24..].copy_from_slice(&len.to_be_bytes());
        Ok(out)
    }

    /// As an extended request.
    pub fn encode_extended(self) -> [u8; EXTENDED_REQUEST_BYTES] {
        let mut out = [0; EXTENDED_REQUEST_BYTES];
        self.encode_common(EXTENDED_REQUEST_MAGIC, &mut out);
        out[24..].copy_from_slice(&self.len.to_be_bytes());
        out
    }

    fn encode_common(self, magic: u32, out: &mut [u8]) {
        out[..4].copy_from_slice(&magic.to_be_bytes());
        out[4..6].copy_from_slice(&self.flags.0.to_be_bytes());
        out[6..8].copy_from_slice(&self.command.number().to_be_bytes());
        out[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        out[16..24].copy_from_slice(&self.at.to_be_bytes());
    }

    /// Errors: another magic.
    pub fn decode_compact(bytes: &[u8; REQUEST_BYTES]) -> Result<RequestHead, Malformed> {
        let mut r = Reader(bytes);
        let mut head = Self::decode_common(&mut r, REQUEST_MAGIC)?;
        head.len = u64::from(r.u32()?);
        Ok(head)
    }

    /// Errors: another magic.
    pub fn decode_extended(bytes: &[u8; EXTENDED_REQUEST_BYTES]) -> Result<RequestHead, Malformed> {
        let mut r = Reader(bytes);
        let mut head = Self::decode_common(&mut r, EXTENDED_REQUEST_MAGIC)?;
        head.len = r.u64()?;
        Ok(head)
    }

    fn decode_common(r: &mut Reader<'_>, magic: u32) -> Result<RequestHead, Malformed> {
        expect_magic(u64::from(r.u32()?), u64::from(magic))?;
        Ok(RequestHead {
            flags: CommandFlags(r.u16()?),
            command: Command::from_number(r.u16()?),
            cookie: r.u64()?,
            at: r.u64()?,
            len: 0,
        })
    }
}

/// Payload of an extended NBD_CMD_BLOCK_STATUS: how much, and of which contexts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusPayload {
    /// Length of the range, in bytes.
    pub len: u64,
    /// Ids of contexts.
    pub contexts: Vec<u32>,
}

impl StatusPayload {
    /// Appends it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.len.to_be_bytes());
        for id in &self.contexts {
            out.extend(id.to_be_bytes());
        }
    }

    /// Errors: a length that is none of such a payload. As much is allocated as `bytes` is long.
    pub fn decode(bytes: &[u8]) -> Result<StatusPayload, Malformed> {
        let mut r = Reader(bytes);
        let len = r.u64()?;
        let mut contexts = Vec::with_capacity(r.0.len() / 4);
        while !r.0.is_empty() {
            contexts.push(r.u32()?);
        }
        Ok(StatusPayload { len, contexts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: RequestHead = RequestHead {
        flags: CommandFlags(CommandFlags::FUA | CommandFlags::DF),
        command: Command::WriteZeroes,
        cookie: 0x1122_3344_5566_7788,
        at: 1 << 40,
        len: 4096,
    };

    #[test]
    fn both_forms_survive_their_bytes_and_refuse_each_other() {
        let compact = HEAD.encode_compact().expect("short enough");
        assert_eq!(RequestHead::decode_compact(&compact), Ok(HEAD));
        let long = RequestHead {
            len: 1 << 33,
            ..HEAD
        };
        let extended = long.encode_extended();
        assert_eq!(RequestHead::decode_extended(&extended), Ok(long));
        assert_eq!(long.encode_compact(), Err(Malformed::Length));
        let mut mixed = [0; REQUEST_BYTES];
        mixed.copy_from_slice(&extended[..REQUEST_BYTES]);
        assert!(RequestHead::decode_compact(&mixed).is_err());
    }

    #[test]
    fn every_number_of_a_command_survives() {
        for number in (0..20).chain([u16::MAX]) {
            assert_eq!(Command::from_number(number).number(), number);
        }
    }

    #[test]
    fn a_status_payload_has_whole_ids() {
        let payload = StatusPayload {
            len: 1 << 35,
            contexts: vec![0, 1],
        };
        let mut bytes = Vec::new();
        payload.encode(&mut bytes);
        assert_eq!(StatusPayload::decode(&bytes), Ok(payload));
        assert!(StatusPayload::decode(&bytes[..7]).is_err());
        assert!(StatusPayload::decode(&bytes[..11]).is_err());
    }
}
