//! Option haggling: heads of options and of their replies, and the payloads of both.

use super::{
    ExportHead, Malformed, OPTION_MAGIC, OPTION_REPLY_MAGIC, Reader, expect_magic, put_string, text,
};

/// Length of an [`OptionHead`].
pub const OPTION_HEAD_BYTES: usize = 16;
/// Length of an [`OptionReplyHead`].
pub const OPTION_REPLY_HEAD_BYTES: usize = 20;

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionKind {
    /// Choose an export and end the handshake; cannot be refused but by closing.
    ExportName,
    /// End the connection.
    Abort,
    /// List exports.
    List,
    /// Encrypt from here on.
    StartTls,
    /// Tell of an export.
    Info,
    /// Tell of an export and end the handshake.
    Go,
    /// Replies may come in chunks.
    StructuredReply,
    /// List contexts of an export.
    ListMetaContext,
    /// Choose contexts for block status.
    SetMetaContext,
    /// Requests and replies have 64-bit lengths.
    ExtendedHeaders,
    /// One that nobody here knows.
    Other(u32),
}

impl OptionKind {
    /// By its number.
    pub fn from_number(number: u32) -> OptionKind {
        match number {
            1 => OptionKind::ExportName,
            2 => OptionKind::Abort,
            3 => OptionKind::List,
            5 => OptionKind::StartTls,
            6 => OptionKind::Info,
            7 => OptionKind::Go,
            8 => OptionKind::StructuredReply,
            9 => OptionKind::ListMetaContext,
            10 => OptionKind::SetMetaContext,
            11 => OptionKind::ExtendedHeaders,
            other => OptionKind::Other(other),
        }
    }

    /// Its number.
    pub fn number(self) -> u32 {
        match self {
            OptionKind::ExportName => 1,
            OptionKind::Abort => 2,
            OptionKind::List => 3,
            OptionKind::StartTls => 5,
            OptionKind::Info => 6,
            OptionKind::Go => 7,
            OptionKind::StructuredReply => 8,
            OptionKind::ListMetaContext => 9,
            OptionKind::SetMetaContext => 10,
            OptionKind::ExtendedHeaders => 11,
            OptionKind::Other(number) => number,
        }
    }
}

/// Before an option's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHead {
    /// Which option.
    pub kind: OptionKind,
    /// Length of the payload.
    pub len_bytes: u32,
}

impl OptionHead {
    /// As bytes.
    pub fn encode(self) -> [u8; OPTION_HEAD_BYTES] {
        let mut out = [0; OPTION_HEAD_BYTES];
        out[..8].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
        out[8..12].copy_from_slice(&self.kind.number().to_be_bytes());
        out[12..].copy_from_slice(&self.len_bytes.to_be_bytes());
        out
    }

    /// Errors: another magic.
    pub fn decode(bytes: &[u8; OPTION_HEAD_BYTES]) -> Result<OptionHead, Malformed> {
        let mut r = Reader(bytes);
        expect_magic(r.u64()?, OPTION_MAGIC)?;
        Ok(OptionHead {
            kind: OptionKind::from_number(r.u32()?),
            len_bytes: r.u32()?,
        })
    }
}

/// What a server answers to an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionReplyKind {
    /// Done.
    Ack,
    /// An export ([`Server`]).
    Server,
    /// Something about an export ([`Info`]).
    Info,
    /// A context ([`super::MetaReply`]).
    MetaContext,
    /// The server does not know the option.
    Unsupported,
    /// The server does not want to.
    Policy,
    /// The option makes no sense, or not now.
    Invalid,
    /// The machine cannot.
    Platform,
    /// Not without TLS.
    TlsRequired,
    /// No such export.
    Unknown,
    /// The server is going.
    Shutdown,
    /// Not to a client that does not ask for block sizes.
    BlockSizeRequired,
    /// Too long an option.
    TooBig,
    /// Not without extended headers.
    ExtendedHeadersRequired,
    /// One that nobody here knows; an error if bit 31 is set.
    Other(u32),
}

/// Set in replies that are errors; their payload is a text.
const ERROR: u32 = 1 << 31;

const REPLIES: [(u32, OptionReplyKind); 14] = [
    (1, OptionReplyKind::Ack),
    (2, OptionReplyKind::Server),
    (3, OptionReplyKind::Info),
    (4, OptionReplyKind::MetaContext),
    (ERROR | 1, OptionReplyKind::Unsupported),
    (ERROR | 2, OptionReplyKind::Policy),
    (ERROR | 3, OptionReplyKind::Invalid),
    (ERROR | 4, OptionReplyKind::Platform),
    (ERROR | 5, OptionReplyKind::TlsRequired),
    (ERROR | 6, OptionReplyKind::Unknown),
    (ERROR | 7, OptionReplyKind::Shutdown),
    (ERROR | 8, OptionReplyKind::BlockSizeRequired),
    (ERROR | 9, OptionReplyKind::TooBig),
    (ERROR | 10, OptionReplyKind::ExtendedHeadersRequired),
];

impl OptionReplyKind {
    /// By its number.
    pub fn from_number(number: u32) -> OptionReplyKind {
        let known = REPLIES.iter().find(|(known, _)| *known == number);
        known.map_or(OptionReplyKind::Other(number), |(_, kind)| *kind)
    }

    /// Its number.
    pub fn number(self) -> u32 {
        if let OptionReplyKind::Other(number) = self {
            return number;
        }
        let known = REPLIES.iter().find(|(_, kind)| *kind == self);
        known.map_or(0, |(number, _)| *number)
    }

    /// Does it refuse the option?
    pub fn is_error(self) -> bool {
        self.number() & ERROR != 0
    }
}

/// Before the payload of a reply to an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionReplyHead {
    /// The option that is answered.
    pub option: OptionKind,
    /// How.
    pub kind: OptionReplyKind,
    /// Length of the payload.
    pub len_bytes: u32,
}

impl OptionReplyHead {
    /// As bytes.
    pub fn encode(self) -> [u8; OPTION_REPLY_HEAD_BYTES] {
        let mut out = [0; OPTION_REPLY_HEAD_BYTES];
        out[..8].copy_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
        out[8..12].copy_from_slice(&self.option.number().to_be_bytes());
        out[12..16].copy_from_slice(&self.kind.number().to_be_bytes());
        out[16..].copy_from_slice(&self.len_bytes.to_be_bytes());
        out
    }

    /// Errors: another magic.
    pub fn decode(bytes: &[u8; OPTION_REPLY_HEAD_BYTES]) -> Result<OptionReplyHead, Malformed> {
        let mut r = Reader(bytes);
        expect_magic(r.u64()?, OPTION_REPLY_MAGIC)?;
        Ok(OptionReplyHead {
            option: OptionKind::from_number(r.u32()?),
            kind: OptionReplyKind::from_number(r.u32()?),
            len_bytes: r.u32()?,
        })
    }
}

/// Payload of NBD_REP_SERVER: an export's name, and a text for people (QEMU sends its description).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server<'a> {
    /// The export's name.
    pub name: &'a str,
    /// What else there is to say.
    pub details: &'a str,
}

impl<'a> Server<'a> {
    /// Appends it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_string(out, self.name);
        out.extend(self.details.as_bytes());
    }

    /// Errors: a length that does not fit, a string that is too long or no UTF-8.
    pub fn decode(bytes: &'a [u8]) -> Result<Server<'a>, Malformed> {
        let mut r = Reader(bytes);
        let name = r.string()?;
        let details = text(r.0)?;
        Ok(Server { name, details })
    }
}

/// What can be told of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InfoKind {
    /// Size and flags; always told.
    Export,
    /// Its name.
    Name,
    /// Its description.
    Description,
    /// Which transfers suit it.
    BlockSize,
    /// One that nobody here knows.
    Other(u16),
}

impl InfoKind {
    /// By its number.
    pub fn from_number(number: u16) -> InfoKind {
        match number {
            0 => InfoKind::Export,
            1 => InfoKind::Name,
            2 => InfoKind::Description,
            3 => InfoKind::BlockSize,
            other => InfoKind::Other(other),
        }
    }

    /// Its number.
    pub fn number(self) -> u16 {
        match self {
            InfoKind::Export => 0,
            InfoKind::Name => 1,
            InfoKind::Description => 2,
            InfoKind::BlockSize => 3,
            InfoKind::Other(number) => number,
        }
    }
}

/// Payload of NBD_OPT_INFO and NBD_OPT_GO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choose<'a> {
    /// Which export; empty is the default one.
    pub name: &'a str,
    /// What the client wants to know.
    pub wanted: Vec<InfoKind>,
}

impl<'a> Choose<'a> {
    /// Appends it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_string(out, self.name);
        out.extend((self.wanted.len() as u16).to_be_bytes());
        for kind in &self.wanted {
            out.extend(kind.number().to_be_bytes());
        }
    }

    /// Errors: a length that does not fit, a string that is too long or no UTF-8. As much is allocated as `bytes` is long.
    pub fn decode(bytes: &'a [u8]) -> Result<Choose<'a>, Malformed> {
        let mut r = Reader(bytes);
        let name = r.string()?;
        let count = usize::from(r.u16()?);
        if r.0.len() != count * 2 {
            return Err(Malformed::Length);
        }
        let mut wanted = Vec::with_capacity(count);
        for _ in 0..count {
            wanted.push(InfoKind::from_number(r.u16()?));
        }
        Ok(Choose { name, wanted })
    }
}

/// Which transfers suit an export, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    /// Offsets and lengths are multiples of this.
    pub minimum_bytes: u32,
    /// Transfers of this size are efficient.
    pub preferred_bytes: u32,
    /// No request has a payload longer than this.
    pub maximum_bytes: u32,
}

/// Payload of NBD_REP_INFO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Info<'a> {
    /// Size and flags.
    Export(ExportHead),
    /// Its name.
    Name(&'a str),
    /// Its description.
    Description(&'a str),
    /// Which transfers suit it.
    BlockSize(BlockSizes),
    /// One that nobody here knows; to be ignored.
    Other(u16),
}

impl<'a> Info<'a> {
    /// Appends it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut kind = |kind: InfoKind| out.extend(kind.number().to_be_bytes());
        match self {
            Info::Export(head) => {
                kind(InfoKind::Export);
                out.extend(head.encode());
            }
            Info::Name(name) => {
                kind(InfoKind::Name);
                out.extend(name.as_bytes());
            }
            Info::Description(description) => {
                kind(InfoKind::Description);
                out.extend(description.as_bytes());
            }
            Info::BlockSize(sizes) => {
                kind(InfoKind::BlockSize);
                out.extend(sizes.minimum_bytes.to_be_bytes());
                out.extend(sizes.preferred_bytes.to_be_bytes());
                out.extend(sizes.maximum_bytes.to_be_bytes());
            }
            Info::Other(number) => out.extend(number.to_be_bytes()),
        }
    }

    /// Errors: a payload that is not as long as its kind, a string that is too long or no UTF-8.
    pub fn decode(bytes: &'a [u8]) -> Result<Info<'a>, Malformed> {
        let mut r = Reader(bytes);
        let info = match InfoKind::from_number(r.u16()?) {
            InfoKind::Export => Info::Export(ExportHead {
                size_bytes: r.u64()?,
                flags: r.u16()?,
            }),
            InfoKind::BlockSize => Info::BlockSize(BlockSizes {
                minimum_bytes: r.u32()?,
                preferred_bytes: r.u32()?,
                maximum_bytes: r.u32()?,
            }),
            InfoKind::Name => return Ok(Info::Name(text(r.0)?)),
            InfoKind::Description => return Ok(Info::Description(text(r.0)?)),
            InfoKind::Other(number) => return Ok(Info::Other(number)),
        };
        r.end()?;
        Ok(info)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_an_option_and_a_reply_survives() {
        for number in (0..20).chain([ERROR, u32::MAX]) {
            assert_eq!(OptionKind::from_number(number).number(), number);
            for number in [number, number | ERROR] {
                assert_eq!(OptionReplyKind::from_number(number).number(), number);
            }
        }
        assert!(OptionReplyKind::Policy.is_error() && !OptionReplyKind::Ack.is_error());
    }

    #[test]
    fn heads_survive_their_bytes_and_refuse_other_magic() {
        let head = OptionHead {
            kind: OptionKind::Go,
            len_bytes: 77,
        };
        assert_eq!(OptionHead::decode(&head.encode()), Ok(head));
        let reply = OptionReplyHead {
            option: OptionKind::Go,
            kind: OptionReplyKind::Unknown,
            len_bytes: 5,
        };
        let mut bytes = reply.encode();
        assert_eq!(OptionReplyHead::decode(&bytes), Ok(reply));
        bytes[0] ^= 1;
        assert!(OptionReplyHead::decode(&bytes).is_err());
    }

    #[test]
    fn payloads_survive_and_refuse_every_cut() {
        let choose = Choose {
            name: "a\u{e9}",
            wanted: vec![InfoKind::BlockSize, InfoKind::Other(9)],
        };
        let mut bytes = Vec::new();
        choose.encode(&mut bytes);
        assert_eq!(Choose::decode(&bytes), Ok(choose));
        for cut in 0..bytes.len() {
            assert!(Choose::decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        bytes.push(0);
        assert!(Choose::decode(&bytes).is_err(), "one byte more");
        let sizes = BlockSizes {
            minimum_bytes: 1,
            preferred_bytes: 4096,
            maximum_bytes: 1 << 25,
        };
        for info in [
            Info::BlockSize(sizes),
            Info::Name("x"),
            Info::Description(""),
            Info::Other(300),
        ] {
            let mut bytes = Vec::new();
            info.encode(&mut bytes);
            assert_eq!(Info::decode(&bytes), Ok(info));
        }
    }
}
