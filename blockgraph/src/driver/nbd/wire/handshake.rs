//! The first bytes of a connection: the server's greeting, the client's flags, and what ends the handshake the old way.

use super::{INIT_MAGIC, Malformed, OPTION_MAGIC, Reader, expect_magic};

/// Length of a [`Greeting`].
pub const GREETING_BYTES: usize = 18;
/// What an oldstyle server sends where a newstyle one sends [`OPTION_MAGIC`].
pub const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
/// Zeroes after an [`ExportHead`], unless both ends agreed on none.
pub const EXPORT_NAME_ZEROES_BYTES: usize = 124;

/// The server's handshake flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandshakeFlags(pub u16);

impl HandshakeFlags {
    /// Options get replies.
    pub const FIXED_NEWSTYLE: u16 = 1 << 0;
    /// No zeroes after an export's head.
    pub const NO_ZEROES: u16 = 1 << 1;

    /// Is that one set?
    pub fn has(self, flag: u16) -> bool {
        self.0 & flag != 0
    }
}

/// The client's flags: the same bits as the server's, in 32.
pub mod client_flags {
    /// Options get replies.
    pub const FIXED_NEWSTYLE: u32 = 1 << 0;
    /// No zeroes after an export's head.
    pub const NO_ZEROES: u32 = 1 << 1;
    /// All there are.
    pub const KNOWN: u32 = FIXED_NEWSTYLE | NO_ZEROES;
}

/// The first bytes of a newstyle server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// What it can do.
    pub flags: HandshakeFlags,
}

impl Greeting {
    /// As bytes.
    pub fn encode(self) -> [u8; GREETING_BYTES] {
        let mut out = [0; GREETING_BYTES];
        out[..8].copy_from_slice(&INIT_MAGIC.to_be_bytes());
        out[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
        out[16..].copy_from_slice(&self.flags.0.to_be_bytes());
        out
    }

    /// Errors: another magic; an oldstyle server's is [`OLDSTYLE_MAGIC`].
    pub fn decode(bytes: &[u8; GREETING_BYTES]) -> Result<Greeting, Malformed> {
        let mut r = Reader(bytes);
        expect_magic(r.u64()?, INIT_MAGIC)?;
        expect_magic(r.u64()?, OPTION_MAGIC)?;
        let flags = HandshakeFlags(r.u16()?);
        Ok(Greeting { flags })
    }
}

/// Size and transmission flags of an export: the answer to NBD_OPT_EXPORT_NAME, and the payload of NBD_INFO_EXPORT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportHead {
    /// Size in bytes.
    pub size_bytes: u64,
    /// Transmission flags.
    pub flags: u16,
}

impl ExportHead {
    /// Flags are meaningful; always set.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// Writes fail.
    pub const READ_ONLY: u16 = 1 << 1;
    /// NBD_CMD_FLUSH works.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// NBD_CMD_FLAG_FUA works.
    pub const SEND_FUA: u16 = 1 << 3;
    /// The export is slow to seek.
    pub const ROTATIONAL: u16 = 1 << 4;
    /// NBD_CMD_TRIM works.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// NBD_CMD_WRITE_ZEROES works.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// NBD_CMD_FLAG_DF works.
    pub const SEND_DF: u16 = 1 << 7;
    /// A flush on one connection covers what any other was told is written.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// NBD_CMD_CACHE works.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// NBD_CMD_FLAG_FAST_ZERO works.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
    /// NBD_CMD_BLOCK_STATUS takes a payload.
    pub const BLOCK_STAT_PAYLOAD: u16 = 1 << 12;

    /// Length as bytes.
    pub const BYTES: usize = 10;

    /// As bytes.
    pub fn encode(self) -> [u8; Self::BYTES] {
        let mut out = [0; Self::BYTES];
        out[..8].copy_from_slice(&self.size_bytes.to_be_bytes());
        out[8..].copy_from_slice(&self.flags.to_be_bytes());
        out
    }

    /// From bytes; every value is possible.
    pub fn decode(bytes: &[u8; Self::BYTES]) -> ExportHead {
        let [a, b, c, d, e, f, g, h, i, j] = *bytes;
        ExportHead {
            size_bytes: u64::from_be_bytes([a, b, c, d, e, f, g, h]),
            flags: u16::from_be_bytes([i, j]),
        }
    }

    /// Is that flag set?
    pub fn has(self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_is_what_the_protocol_says() {
        let greeting = Greeting {
            flags: HandshakeFlags(3),
        };
        let bytes = greeting.encode();
        assert_eq!(&bytes, b"NBDMAGICIHAVEOPT\0\x03");
        assert_eq!(Greeting::decode(&bytes), Ok(greeting));
        let mut old = bytes;
        old[8..16].copy_from_slice(&OLDSTYLE_MAGIC.to_be_bytes());
        assert_eq!(
            Greeting::decode(&old),
            Err(Malformed::Magic(OLDSTYLE_MAGIC))
        );
    }

    #[test]
    fn an_export_head_survives_its_bytes() {
        let head = ExportHead {
            size_bytes: 0x0102_0304_0506_0708,
            flags: 0x090a,
        };
        assert_eq!(head.encode(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        assert_eq!(ExportHead::decode(&head.encode()), head);
    }
}
