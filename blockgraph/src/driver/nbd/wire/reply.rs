//! Replies: simple ones, and chunks of structured and extended ones.

use super::{
    CHUNK_MAGIC, EXTENDED_CHUNK_MAGIC, Form, Malformed, Reader, SIMPLE_REPLY_MAGIC, expect_magic,
    text,
};

/// Length of a simple reply's head.
pub const SIMPLE_REPLY_BYTES: usize = 16;
/// Length of a structured chunk's head.
pub const CHUNK_HEAD_BYTES: usize = 20;
/// Length of an extended chunk's head.
pub const EXTENDED_CHUNK_HEAD_BYTES: usize = 32;
/// The longest text of an error.
pub const ERROR_TEXT_BYTES_MAX: usize = super::STRING_BYTES_MAX;

/// The protocol's own error numbers, which are Linux's for x86.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NbdError {
    /// Not permitted (also: the export is read-only).
    Perm,
    /// Input or output error.
    Io,
    /// Out of memory.
    NoMem,
    /// Makes no sense.
    Inval,
    /// No space left.
    NoSpc,
    /// Too large for one piece.
    Overflow,
    /// Not supported.
    NotSup,
    /// The server is going.
    Shutdown,
}

impl NbdError {
    /// Its number on the wire.
    pub fn number(self) -> u32 {
        match self {
            NbdError::Perm => 1,
            NbdError::Io => 5,
            NbdError::NoMem => 12,
            NbdError::Inval => 22,
            NbdError::NoSpc => 28,
            NbdError::Overflow => 75,
            NbdError::NotSup => 95,
            NbdError::Shutdown => 108,
        }
    }

    /// By its number; "SHOULD treat an unexpected error value as if it had been NBD_EINVAL". `None` for 0.
    pub fn from_number(number: u32) -> Option<NbdError> {
        Some(match number {
            0 => return None,
            1 => NbdError::Perm,
            5 => NbdError::Io,
            12 => NbdError::NoMem,
            28 => NbdError::NoSpc,
            75 => NbdError::Overflow,
            95 => NbdError::NotSup,
            108 => NbdError::Shutdown,
            _ => NbdError::Inval,
        })
    }

    /// What a client is told of a system's error (as QEMU tells it).
    pub fn from_errno(errno: i32) -> NbdError {
        match errno {
            libc::EPERM | libc::EROFS => NbdError::Perm,
            libc::EIO => NbdError::Io,
            libc::ENOMEM => NbdError::NoMem,
            libc::EFBIG | libc::ENOSPC | libc::EDQUOT => NbdError::NoSpc,
            libc::EOVERFLOW => NbdError::Overflow,
            libc::EOPNOTSUPP => NbdError::NotSup,
            libc::ESHUTDOWN => NbdError::Shutdown,
            _ => NbdError::Inval,
        }
    }

    /// The system's name for it.
    pub fn to_errno(self) -> i32 {
        match self {
            NbdError::Perm => libc::EPERM,
            NbdError::Io => libc::EIO,
            NbdError::NoMem => libc::ENOMEM,
            NbdError::Inval => libc::EINVAL,
            NbdError::NoSpc => libc::ENOSPC,
            NbdError::Overflow => libc::EOVERFLOW,
            NbdError::NotSup => libc::EOPNOTSUPP,
            NbdError::Shutdown => libc::ESHUTDOWN,
        }
    }
}

/// A simple reply; a read's data follows it if there was no error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimpleReply {
    /// What went wrong, if anything.
    pub error: Option<NbdError>,
    /// The request's.
    pub cookie: u64,
}

impl SimpleReply {
    /// As bytes.
    pub fn encode(self) -> [u8; SIMPLE_REPLY_BYTES] {
        let error = self.error.map_or(0, NbdError::number);
        let mut out = [0; SIMPLE_REPLY_BYTES];
        out[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        out[4..8].copy_from_slice(&error.to_be_bytes());
        out[8..].copy_from_slice(&self.cookie.to_be_bytes());
        out
    }

    /// Errors: another magic.
    pub fn decode(bytes: &[u8; SIMPLE_REPLY_BYTES]) -> Result<SimpleReply, Malformed> {
        let mut r = Reader(bytes);
        expect_magic(u64::from(r.u32()?), u64::from(SIMPLE_REPLY_MAGIC))?;
        Ok(SimpleReply {
            error: NbdError::from_number(r.u32()?),
            cookie: r.u64()?,
        })
    }
}

/// What a chunk brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkKind {
    /// Nothing.
    None,
    /// Data, after its offset.
    Data,
    /// An offset and a length of zeroes.
    Hole,
    /// Extents with 32-bit lengths.
    Status,
    /// Extents with 64-bit lengths.
    StatusExtended,
    /// An error and a text.
    Error,
    /// An error, a text and an offset.
    ErrorOffset,
    /// One that nobody here knows; an error if bit 15 is set.
    Other(u16),
}

const CHUNK_KINDS: [(u16, ChunkKind); 7] = [
    (0, ChunkKind::None),
    (1, ChunkKind::Data),
    (2, ChunkKind::Hole),
    (5, ChunkKind::Status),
    (6, ChunkKind::StatusExtended),
    (ERROR | 1, ChunkKind::Error),
    (ERROR | 2, ChunkKind::ErrorOffset),
];

/// Set in kinds that are errors.
const ERROR: u16 = 1 << 15;
/// The last chunk of a reply.
const FLAG_DONE: u16 = 1 << 0;

impl ChunkKind {
    /// By its number.
    pub fn from_number(number: u16) -> ChunkKind {
        let known = CHUNK_KINDS.iter().find(|(known, _)| *known == number);
        known.map_or(ChunkKind::Other(number), |(_, kind)| *kind)
    }

    /// Its number.
    pub fn number(self) -> u16 {
        if let ChunkKind::Other(number) = self {
            return number;
        }
        let known = CHUNK_KINDS.iter().find(|(_, kind)| *kind == self);
        known.map_or(0, |(number, _)| *number)
    }

    /// Does it say that something went wrong?
    pub fn is_error(self) -> bool {
        self.number() & ERROR != 0
    }
}

/// Is it the last chunk of its reply?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// Others follow.
    More,
    /// The last.
    Last,
}

/// A chunk's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkHead {
    /// The last one?
    pub chunk: Chunk,
    /// What it brings.
    pub kind: ChunkKind,
    /// The request's.
    pub cookie: u64,
    /// The request's offset; 0 in a structured chunk, which does not say it.
    pub at: u64,
    /// Length of the payload, in bytes.
    pub len: u64,
}

impl ChunkHead {
    /// How long a head of that form is; simple replies have no chunks.
    pub fn bytes(form: Form) -> usize {
        match form {
            Form::Extended => EXTENDED_CHUNK_HEAD_BYTES,
            Form::Simple | Form::Structured => CHUNK_HEAD_BYTES,
        }
    }

    /// Appends it in that form (extended, or structured).
    pub fn encode(self, form: Form, out: &mut Vec<u8>) {
        let magic = match form {
            Form::Extended => EXTENDED_CHUNK_MAGIC,
            Form::Simple | Form::Structured => CHUNK_MAGIC,
        };
        let flags = match self.chunk {
            Chunk::Last => FLAG_DONE,
            Chunk::More => 0,
        };
        out.extend(magic.to_be_bytes());
        out.extend(flags.to_be_bytes());
        out.extend(self.kind.number().to_be_bytes());
        out.extend(self.cookie.to_be_bytes());
        if form == Form::Extended {
            out.extend(self.at.to_be_bytes());
            out.extend(self.len.to_be_bytes());
        } else {
            // No server makes a chunk beyond 32 bits for a client of compact requests.
            out.extend(u32::try_from(self.len).unwrap_or(u32::MAX).to_be_bytes());
        }
    }

    /// Errors: another magic, too short.
    pub fn decode(form: Form, bytes: &[u8]) -> Result<ChunkHead, Malformed> {
        let mut r = Reader(bytes);
        let magic = match form {
            Form::Extended => EXTENDED_CHUNK_MAGIC,
            Form::Simple | Form::Structured => CHUNK_MAGIC,
        };
        expect_magic(u64::from(r.u32()?), u64::from(magic))?;
        let chunk = match r.u16()? & FLAG_DONE {
            0 => Chunk::More,
            _ => Chunk::Last,
        };
        let kind = ChunkKind::from_number(r.u16()?);
        let cookie = r.u64()?;
        let (at, len) = match form {
            Form::Extended => (r.u64()?, r.u64()?),
            Form::Simple | Form::Structured => (0, u64::from(r.u32()?)),
        };
        Ok(ChunkHead {
            chunk,
            kind,
            cookie,
            at,
            len,
        })
    }
}

/// Payload of NBD_REPLY_TYPE_OFFSET_HOLE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hole {
    /// Where.
    pub at: u64,
    /// How many zeroes.
    pub len: u32,
}

impl Hole {
    /// Length as bytes.
    pub const BYTES: usize = 12;

    /// As bytes.
    pub fn encode(self) -> [u8; Self::BYTES] {
        let mut out = [0; Self::BYTES];
        out[..8].copy_from_slice(&self.at.to_be_bytes());
        out[8..].copy_from_slice(&self.len.to_be_bytes());
        out
    }

    /// Errors: another length.
    pub fn decode(bytes: &[u8]) -> Result<Hole, Malformed> {
        let mut r = Reader(bytes);
        let hole = Hole {
            at: r.u64()?,
            len: r.u32()?,
        };
        r.end()?;
        Ok(hole)
    }
}

/// Payload of an error chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorChunk<'a> {
    /// What went wrong.
    pub error: NbdError,
    /// In words.
    pub text: &'a str,
    /// Where, if the kind has an offset.
    pub at: Option<u64>,
}

impl<'a> ErrorChunk<'a> {
    /// Appends it; a text longer than [`ERROR_TEXT_BYTES_MAX`] is cut.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut len = self.text.len().min(ERROR_TEXT_BYTES_MAX);
        while !self.text.is_char_boundary(len) {
            len -= 1;
        }
        out.extend(self.error.number().to_be_bytes());
        out.extend((len as u16).to_be_bytes());
        out.extend(&self.text.as_bytes()[..len]);
        if let Some(at) = self.at {
            out.extend(at.to_be_bytes());
        }
    }

    /// Errors: a length that does not fit, a text that is too long or no UTF-8, an error that is none.
    pub fn decode(kind: ChunkKind, bytes: &'a [u8]) -> Result<ErrorChunk<'a>, Malformed> {
        let mut r = Reader(bytes);
        let error = NbdError::from_number(r.u32()?).ok_or(Malformed::Length)?;
        let len = usize::from(r.u16()?);
        let text = text(r.bytes(len)?)?;
        let at = match kind {
            ChunkKind::ErrorOffset => Some(r.u64()?),
            _ => None,
        };
        // "If the client does not recognize the error type, it may ignore what follows the text".
        if matches!(kind, ChunkKind::Error | ChunkKind::ErrorOffset) {
            r.end()?;
        }
        Ok(ErrorChunk { error, text, at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_and_chunks_survive_their_bytes() {
        let reply = SimpleReply {
            error: Some(NbdError::NoSpc),
            cookie: 9,
        };
        assert_eq!(SimpleReply::decode(&reply.encode()), Ok(reply));
        for form in [Form::Structured, Form::Extended] {
            let head = ChunkHead {
                chunk: Chunk::Last,
                kind: ChunkKind::Data,
                cookie: 5,
                at: if form == Form::Extended { 1 << 40 } else { 0 },
                len: 4104,
            };
            let mut bytes = Vec::new();
            head.encode(form, &mut bytes);
            assert_eq!(bytes.len(), ChunkHead::bytes(form));
            assert_eq!(ChunkHead::decode(form, &bytes), Ok(head));
            for cut in 0..bytes.len() {
                assert!(ChunkHead::decode(form, &bytes[..cut]).is_err());
            }
        }
    }

    #[test]
    fn an_error_says_what_and_where() {
        for (kind, at) in [(ChunkKind::Error, None), (ChunkKind::ErrorOffset, Some(7))] {
            let error = ErrorChunk {
                error: NbdError::Io,
                text: "disk \u{2620}",
                at,
            };
            let mut bytes = Vec::new();
            error.encode(&mut bytes);
            assert_eq!(ErrorChunk::decode(kind, &bytes), Ok(error));
            for cut in 0..bytes.len() {
                assert!(ErrorChunk::decode(kind, &bytes[..cut]).is_err());
            }
        }
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let text = "\u{e9}".repeat(ERROR_TEXT_BYTES_MAX);
        let mut bytes = Vec::new();
        let chunk = ErrorChunk {
            error: NbdError::Inval,
            text: &text[..],
            at: None,
        };
        chunk.encode(&mut bytes);
        let cut = ErrorChunk::decode(ChunkKind::Error, &bytes).expect("well formed");
        assert_eq!(cut.text.len(), ERROR_TEXT_BYTES_MAX);
    }

    #[test]
    fn every_error_survives_both_ways() {
        for number in 0..200 {
            let Some(error) = NbdError::from_number(number) else {
                continue;
            };
            assert_eq!(NbdError::from_number(error.number()), Some(error));
            assert_eq!(NbdError::from_errno(error.to_errno()), error);
        }
    }
}
