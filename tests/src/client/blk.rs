//! virtio-blk requests as a driver lays them out: two byte streams, cut into descriptors wherever one likes.
//!
//! A request is the device-readable stream (header, then payload) followed by the device-writable stream (data, then the
//! status byte). virtio 1.2, 2.7.4.1: the device makes no assumption about how either is cut.

use super::ring::Buffer;

/// Request types (virtio 1.2, 5.2.6) and two that a back end must refuse.
#[allow(missing_docs, reason = "the names are the specification's own")]
pub mod kind {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const SCSI_CMD: u32 = 2;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const GET_LIFETIME: u32 = 10;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
    pub const SECURE_ERASE: u32 = 14;
}

/// VIRTIO_BLK_S_OK.
pub const OK: u8 = 0;
/// VIRTIO_BLK_S_IOERR.
pub const IOERR: u8 = 1;
/// VIRTIO_BLK_S_UNSUPP.
pub const UNSUPP: u8 = 2;
/// What we put where the status goes, to see whether anybody wrote it.
pub const UNTOUCHED: u8 = 0xee;

/// Bytes of a request header.
pub const HEADER_BYTES: u32 = 16;
/// Bytes of a sector.
pub const SECTOR: u64 = 512;

/// Direct descriptors or an indirect table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Table {
    /// In the ring's own table.
    #[default]
    Direct,
    /// Behind one INDIRECT descriptor.
    Indirect,
    /// Some descriptors in the ring's table, the rest behind a last INDIRECT one: allowed by the specification.
    Mixed,
}

/// Where the streams lie in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Where {
    /// Anywhere in the high region.
    #[default]
    High,
    /// Across the border of the two low regions.
    Border,
}

/// How a request is laid out.
#[derive(Debug, Clone, Default)]
pub struct Layout {
    /// Offsets in the readable stream where descriptors end; twice the same makes an empty one. `None`: behind the header.
    pub out_cuts: Option<Vec<u32>>,
    /// The same for the writable stream. `None`: before the status byte.
    pub in_cuts: Option<Vec<u32>>,
    /// Direct or indirect.
    pub table: Table,
    /// Which memory.
    pub place: Where,
    /// Bytes of the readable stream the chain really holds, where that is not all of it.
    pub out_len: Option<u32>,
}

/// One request.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Type word.
    pub kind: u32,
    /// Sector word.
    pub sector: u64,
    /// Readable payload behind the header.
    pub payload: Vec<u8>,
    /// Writable bytes before the status byte.
    pub in_len: u32,
    /// How it is cut.
    pub layout: Layout,
}

impl Request {
    /// A read of `len` bytes.
    pub fn read(sector: u64, len: u32) -> Request {
        Request {
            kind: kind::IN,
            sector,
            in_len: len,
            ..Request::default()
        }
    }

    /// A write.
    pub fn write(sector: u64, payload: Vec<u8>) -> Request {
        Request {
            kind: kind::OUT,
            sector,
            payload,
            ..Request::default()
        }
    }

    /// A request of any type without data.
    pub fn bare(kind: u32) -> Request {
        Request {
            kind,
            ..Request::default()
        }
    }

    /// GET_ID into a buffer of `len` bytes.
    pub fn get_id(len: u32) -> Request {
        Request {
            kind: kind::GET_ID,
            in_len: len,
            ..Request::default()
        }
    }

    /// DISCARD or WRITE_ZEROES of `(sector, sectors, flags)` segments.
    pub fn segments(kind: u32, segments: &[(u64, u32, u32)]) -> Request {
        let mut payload = Vec::new();
        for (sector, sectors, flags) in segments {
            payload.extend(sector.to_le_bytes());
            payload.extend(sectors.to_le_bytes());
            payload.extend(flags.to_le_bytes());
        }
        Request {
            kind,
            payload,
            ..Request::default()
        }
    }

    /// The same request, laid out otherwise.
    pub fn laid(mut self, layout: Layout) -> Request {
        self.layout = layout;
        self
    }

    /// The readable stream.
    pub fn out_stream(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(16 + self.payload.len());
        bytes.extend(self.kind.to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
        bytes.extend(self.sector.to_le_bytes());
        bytes.extend(&self.payload);
        bytes
    }

    /// Bytes of the writable stream, the status byte included.
    pub fn in_bytes(&self) -> u32 {
        self.in_len + 1
    }

    /// The chain's buffers, with the streams at these guest addresses.
    pub fn buffers(&self, out_gpa: u64, in_gpa: u64) -> Vec<Buffer> {
        let out_bytes = self
            .layout
            .out_len
            .unwrap_or(HEADER_BYTES + self.payload.len() as u32);
        let behind_header = if self.payload.is_empty() {
            vec![]
        } else {
            vec![HEADER_BYTES]
        };
        let before_status = if self.in_len == 0 {
            vec![]
        } else {
            vec![self.in_len]
        };
        let mut buffers = cut(
            out_gpa,
            out_bytes,
            self.layout.out_cuts.as_ref().unwrap_or(&behind_header),
            false,
        );
        buffers.extend(cut(
            in_gpa,
            self.in_bytes(),
            self.layout.in_cuts.as_ref().unwrap_or(&before_status),
            true,
        ));
        buffers
    }
}

/// Cuts `len` bytes at `gpa` into buffers that end at `cuts`.
pub fn cut(gpa: u64, len: u32, cuts: &[u32], writable: bool) -> Vec<Buffer> {
    let mut start = 0;
    let mut buffers = Vec::with_capacity(cuts.len() + 1);
    for end in cuts.iter().copied().chain([len]) {
        buffers.push(Buffer {
            gpa: gpa + u64::from(start),
            len: end - start,
            writable,
        });
        start = end;
    }
    buffers
}

/// A completed request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// The status byte.
    pub status: u8,
    /// Bytes the device says it wrote.
    pub used_len: u32,
    /// The writable data.
    pub data: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_make_pieces_that_cover_everything_once() {
        let pieces = cut(100, 10, &[3, 3, 9], true);
        let shape: Vec<(u64, u32)> = pieces.iter().map(|p| (p.gpa, p.len)).collect();
        assert_eq!(shape, [(100, 3), (103, 0), (103, 6), (109, 1)]);
    }

    #[test]
    fn a_plain_read_is_header_data_and_status() {
        let buffers = Request::read(0, 512).buffers(0, 4096);
        let shape: Vec<(u32, bool)> = buffers.iter().map(|b| (b.len, b.writable)).collect();
        assert_eq!(shape, [(16, false), (512, true), (1, true)]);
    }
}
