//! Block status: extents of one context, as the payload of a chunk.

use super::{Malformed, Reader};

/// What an extent's status means in `base:allocation`.
pub mod state {
    /// No space is allocated.
    pub const HOLE: u64 = 1 << 0;
    /// Reads as zeroes.
    pub const ZERO: u64 = 1 << 1;
}

/// What an extent's status means in `qemu:dirty-bitmap:`.
pub mod dirty_state {
    /// It was written.
    pub const DIRTY: u64 = 1 << 0;
}

/// How extents are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentForm {
    /// NBD_REPLY_TYPE_BLOCK_STATUS: 32-bit lengths and flags.
    Narrow,
    /// NBD_REPLY_TYPE_BLOCK_STATUS_EXT: 64-bit ones, and a count before them.
    Wide,
}

/// A range of one status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes.
    pub len: u64,
    /// What the context says of it.
    pub flags: u64,
}

/// Payload of a status chunk: extents one after the other from the request's offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusChunk {
    /// Which context.
    pub context: u32,
    /// At least one.
    pub extents: Vec<Extent>,
}

impl StatusChunk {
    /// Length as bytes with so many extents.
    pub fn bytes(form: ExtentForm, extents: usize) -> usize {
        match form {
            ExtentForm::Narrow => 4 + extents * 8,
            ExtentForm::Wide => 8 + extents * 16,
        }
    }

    /// Appends it. In the narrow form lengths and flags are within 32 bits.
    pub fn encode(&self, form: ExtentForm, out: &mut Vec<u8>) {
        out.extend(self.context.to_be_bytes());
        if form == ExtentForm::Wide {
            out.extend((self.extents.len() as u32).to_be_bytes());
        }
        for extent in &self.extents {
            match form {
                ExtentForm::Narrow => {
                    out.extend((extent.len as u32).to_be_bytes());
                    out.extend((extent.flags as u32).to_be_bytes());
                }
                ExtentForm::Wide => {
                    out.extend(extent.len.to_be_bytes());
                    out.extend(extent.flags.to_be_bytes());
                }
            }
        }
    }

    /// Errors: a length that is none of such a payload, no extent, an extent without length. As much is allocated as
    /// `bytes` is long.
    pub fn decode(form: ExtentForm, bytes: &[u8]) -> Result<StatusChunk, Malformed> {
        let mut r = Reader(bytes);
        let context = r.u32()?;
        let width = match form {
            ExtentForm::Narrow => 8,
            ExtentForm::Wide => 16,
        };
        if form == ExtentForm::Wide && r.u32()? as usize != r.0.len() / width {
            return Err(Malformed::Length);
        }
        if r.0.is_empty() || !r.0.len().is_multiple_of(width) {
            return Err(Malformed::Length);
        }
        let mut extents = Vec::with_capacity(r.0.len() / width);
        while !r.0.is_empty() {
            let (len, flags) = match form {
                ExtentForm::Narrow => (u64::from(r.u32()?), u64::from(r.u32()?)),
                ExtentForm::Wide => (r.u64()?, r.u64()?),
            };
            if len == 0 {
                return Err(Malformed::Length);
            }
            extents.push(Extent { len, flags });
        }
        Ok(StatusChunk { context, extents })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_survive_their_bytes_and_every_cut_is_refused() {
        let chunk = StatusChunk {
            context: 1,
            extents: vec![
                Extent {
                    len: 4096,
                    flags: state::HOLE | state::ZERO,
                },
                Extent { len: 512, flags: 0 },
            ],
        };
        for form in [ExtentForm::Narrow, ExtentForm::Wide] {
            let mut bytes = Vec::new();
            chunk.encode(form, &mut bytes);
            assert_eq!(bytes.len(), StatusChunk::bytes(form, 2));
            assert_eq!(StatusChunk::decode(form, &bytes), Ok(chunk.clone()));
            for cut in 0..bytes.len() {
                let decoded = StatusChunk::decode(form, &bytes[..cut]);
                // A narrow chunk says nowhere how many extents it has.
                let whole = form == ExtentForm::Narrow && cut == StatusChunk::bytes(form, 1);
                assert_eq!(decoded.is_ok(), whole, "cut at {cut}");
            }
        }
    }

    #[test]
    fn an_extent_without_length_is_refused() {
        let bytes = [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        assert!(StatusChunk::decode(ExtentForm::Narrow, &bytes).is_err());
    }
}
