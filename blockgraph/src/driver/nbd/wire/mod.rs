//! The NBD protocol as bytes (<https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>), for both ends.
//!
//! The rule: nothing here does I/O or allocates by a peer's word. Fixed parts are arrays of their very length; what
//! varies is decoded from a slice whose length the caller has bounded.

mod handshake;
mod meta;
mod options;
mod reply;
mod request;
mod status;

pub use handshake::{
    EXPORT_NAME_ZEROES_BYTES, ExportHead, GREETING_BYTES, Greeting, HandshakeFlags, OLDSTYLE_MAGIC,
    client_flags,
};
pub use meta::{CONTEXT_ALLOCATION, CONTEXT_BITMAP, CONTEXT_DEPTH, MetaQuery, MetaReply};
pub use options::{
    BlockSizes, Choose, Info, InfoKind, OPTION_HEAD_BYTES, OPTION_REPLY_HEAD_BYTES, OptionHead,
    OptionKind, OptionReplyHead, OptionReplyKind, Server,
};
pub use reply::{
    CHUNK_HEAD_BYTES, Chunk, ChunkHead, ChunkKind, ERROR_TEXT_BYTES_MAX, EXTENDED_CHUNK_HEAD_BYTES,
    ErrorChunk, Hole, NbdError, SIMPLE_REPLY_BYTES, SimpleReply,
};
pub use request::{
    Command, CommandFlags, EXTENDED_REQUEST_BYTES, REQUEST_BYTES, RequestHead, StatusPayload,
};
pub use status::{Extent, ExtentForm, StatusChunk, dirty_state, state};

/// "NBDMAGIC", the first bytes of a server.
pub const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// "IHAVEOPT", before fixed newstyle options.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Before each reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Before each compact request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Before each simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Before each chunk of a structured reply.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;
/// Before each extended request.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// Before each chunk of an extended reply.
pub const EXTENDED_CHUNK_MAGIC: u32 = 0x6e8a_278c;

/// No name, description or context is longer ("Values": strings, 4096 bytes).
pub const STRING_BYTES_MAX: usize = 4096;

/// The peer sent what no peer may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not the magic number that belongs here.
    #[error("bad magic {0:#x}")]
    Magic(u64),
    /// A length that does not fit what it is the length of.
    #[error("bad length")]
    Length,
    /// A string that is too long or no UTF-8.
    #[error("bad string")]
    String,
}

/// How requests and replies look once the handshake is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    /// Compact requests, simple replies.
    Simple,
    /// Compact requests, structured replies where they are of use.
    Structured,
    /// Extended requests and replies, 64-bit lengths.
    Extended,
}

/// Reads big-endian values off the front of a slice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn bytes(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self.0.split_at_checked(len).ok_or(Malformed::Length)?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(Malformed::Length)?;
        self.0 = tail;
        Ok(*head)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string with its length in 32 bits before it.
    pub(crate) fn string(&mut self) -> Result<&'a str, Malformed> {
        let len = self.u32()? as usize;
        let bytes = self.bytes(len)?;
        text(bytes)
    }

    /// Nothing may be left.
    pub(crate) fn end(self) -> Result<(), Malformed> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Malformed::Length)
        }
    }
}

/// A string of the protocol.
pub(crate) fn text(bytes: &[u8]) -> Result<&str, Malformed> {
    if bytes.len() > STRING_BYTES_MAX {
        return Err(Malformed::String);
    }
    std::str::from_utf8(bytes).map_err(|_| Malformed::String)
}

/// Appends a string with its length in 32 bits before it.
pub(crate) fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u32).to_be_bytes());
    out.extend(text.as_bytes());
}

fn expect_magic(found: u64, wanted: u64) -> Result<(), Malformed> {
    if found == wanted {
        Ok(())
    } else {
        Err(Malformed::Magic(found))
    }
}
