//! From a chain to what it asks for (virtio 1.2, 5.2.6), with every check a guest's request needs.
//!
//! The rule: any split of header, data and status over descriptors is legal (virtio 1.2, 2.7.4.1), so lengths are counted
//! in bytes, never in descriptors. The order of the checks is qemu-storage-daemon's.

use super::disk::Disk;
use super::reply::Status;
use super::{RANGE_SECTORS_MAX, RANGES_MAX, SECTOR_BYTES, TRANSFER_BYTES_MAX};
use crate::stats::Counted;
use blockgraph::{Kind, Span, Unmap};
use ring::seg;
use ring::vring::{Chain, Shape};
use virtio_bindings::virtio_blk as spec;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// `struct virtio_blk_req` before its data.
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Header {
    kind: U32,
    reserved: U32,
    sector: U64,
}

const HEADER_BYTES: usize = size_of::<Header>();

/// `struct virtio_blk_discard_write_zeroes`
#[derive(FromBytes, IntoBytes, Immutable, Clone, Copy)]
#[repr(C)]
struct RawRange {
    sector: U64,
    num_sectors: U32,
    flags: U32,
}

const RANGE_BYTES: usize = size_of::<RawRange>();

/// A legacy bit that old drivers set on any request and that asks nothing of us.
const TYPE_BARRIER: u32 = 0x8000_0000;

/// What a range request does to its ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeKind {
    /// VIRTIO_BLK_T_DISCARD
    Discard,
    /// VIRTIO_BLK_T_WRITE_ZEROES
    WriteZeroes,
}

impl RangeKind {
    /// As what it is counted: zeroes are written like other bytes.
    pub fn counted_as(self) -> Counted {
        match self {
            RangeKind::Discard => Counted::Unmap,
            RangeKind::WriteZeroes => Counted::Write,
        }
    }
}

/// One range of a discard or write-zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Which bytes.
    pub span: Span,
    /// May the space be given back? (Of write-zeroes.)
    pub unmap: Unmap,
}

/// What a chain asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Read the span into the chain's writable segments, which have been cut to the data.
    Read(Span),
    /// Write the span from the chain's readable segments, which have been cut to the data.
    Write(Span),
    /// Make everything durable.
    Flush,
    /// Put the disk's id into the writable segments, which have been cut to the data.
    Id,
    /// So many ranges were put into the list.
    Ranges(RangeKind),
    /// Nothing is to be done but to answer.
    Answer(Status),
    /// The same, to what would have been one of those that are counted.
    Refuse(Counted, Status),
}

/// Reads `chain` and cuts its segments to the data; ranges go to `ranges`. Never fails: what is malformed is answered.
pub fn parse(disk: &Disk, chain: &mut Chain, ranges: &mut Vec<Range>) -> Ask {
    let mut header = [0; HEADER_BYTES];
    if seg::load(&chain.readable, 0, &mut header) < HEADER_BYTES
        || chain.shape == Shape::ReadableAfterWritable
    {
        return Ask::Answer(Status::IoErr);
    }
    let header: Header = zerocopy::transmute!(header);
    let data_out_bytes = chain.readable_bytes - HEADER_BYTES as u64;
    let data_in_bytes = chain.writable_bytes.saturating_sub(1);
    match header.kind.get() & !TYPE_BARRIER {
        spec::VIRTIO_BLK_T_IN => {
            seg::cut_back(&mut chain.writable, 1);
            let span = transfer(disk, header.sector.get(), data_in_bytes);
            span.map_or_else(|status| Ask::Refuse(Counted::Read, status), Ask::Read)
        }
        spec::VIRTIO_BLK_T_OUT if !disk.writable => Ask::Refuse(Counted::Write, Status::IoErr),
        spec::VIRTIO_BLK_T_OUT => {
            seg::cut_front(&mut chain.readable, HEADER_BYTES);
            let span = transfer(disk, header.sector.get(), data_out_bytes);
            span.map_or_else(|status| Ask::Refuse(Counted::Write, status), Ask::Write)
        }
        spec::VIRTIO_BLK_T_FLUSH => Ask::Flush,
        spec::VIRTIO_BLK_T_GET_ID => {
            seg::cut_back(&mut chain.writable, 1);
            Ask::Id
        }
        spec::VIRTIO_BLK_T_DISCARD => read_ranges(disk, RangeKind::Discard, chain, ranges),
        spec::VIRTIO_BLK_T_WRITE_ZEROES => read_ranges(disk, RangeKind::WriteZeroes, chain, ranges),
        _ => Ask::Answer(Status::Unsupported),
    }
}

/// The span of a read or write, or the status that refuses it.
fn transfer(disk: &Disk, sector: u64, len_bytes: u64) -> Result<Span, Status> {
    if !len_bytes.is_multiple_of(SECTOR_BYTES) || len_bytes > TRANSFER_BYTES_MAX {
        return Err(Status::IoErr);
    }
    span(disk, sector, len_bytes / SECTOR_BYTES)
}

/// So many sectors from `sector`, if they lie on the disk and begin on a block.
fn span(disk: &Disk, sector: u64, sectors: u64) -> Result<Span, Status> {
    let all = disk.sectors();
    if sectors > all || sector > all - sectors {
        return Err(Status::IoErr);
    }
    let at = sector * SECTOR_BYTES;
    if !at.is_multiple_of(u64::from(disk.limits.logical_block_bytes)) {
        return Err(Status::IoErr);
    }
    Ok(Span {
        at,
        len: sectors * SECTOR_BYTES,
    })
}

fn read_ranges(disk: &Disk, kind: RangeKind, chain: &mut Chain, ranges: &mut Vec<Range>) -> Ask {
    let data_bytes = chain.readable_bytes - HEADER_BYTES as u64;
    let refuse = |status| Ask::Refuse(kind.counted_as(), status);
    if !disk.writable {
        return refuse(Status::IoErr);
    }
    if data_bytes == 0 || !data_bytes.is_multiple_of(RANGE_BYTES as u64) {
        return refuse(Status::IoErr);
    }
    let count = data_bytes / RANGE_BYTES as u64;
    if count > u64::from(RANGES_MAX) {
        return refuse(Status::Unsupported);
    }
    ranges.clear();
    for at in 0..count as usize {
        let mut raw = [0; RANGE_BYTES];
        seg::load(&chain.readable, HEADER_BYTES + at * RANGE_BYTES, &mut raw);
        match range(disk, kind, zerocopy::transmute!(raw)) {
            Ok(range) => ranges.push(range),
            Err(status) => return refuse(status),
        }
    }
    Ask::Ranges(kind)
}

fn range(disk: &Disk, kind: RangeKind, raw: RawRange) -> Result<Range, Status> {
    let (sectors, flags) = (raw.num_sectors.get(), raw.flags.get());
    if sectors > RANGE_SECTORS_MAX {
        return Err(Status::IoErr);
    }
    let span = span(disk, raw.sector.get(), u64::from(sectors))?;
    // virtio 1.2, 5.2.6.2: unknown flags, and unmap on a discard, must be answered with UNSUPP.
    let unmap = match (kind, flags) {
        (_, 0) => Unmap::Keep,
        (RangeKind::WriteZeroes, 1) => Unmap::Allow,
        _ => return Err(Status::Unsupported),
    };
    Ok(Range { span, unmap })
}

impl Range {
    /// What it asks of the graph.
    pub fn graph_kind(&self, kind: RangeKind, disk: &Disk) -> Kind {
        match kind {
            RangeKind::Discard => Kind::Discard,
            RangeKind::WriteZeroes => Kind::WriteZeroes(self.unmap, disk.durability()),
        }
    }
}
