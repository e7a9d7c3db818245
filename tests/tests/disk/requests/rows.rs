//! The rows of the table.

use tests::client::blk::{HEADER_BYTES, IOERR, Layout, OK, Request, Table, UNSUPP, Where, kind};
use tests::client::pattern::pattern;

pub const DISK_BYTES: usize = 8 << 20;
const END: u64 = DISK_BYTES as u64 / 512;
const BARRIER: u32 = 0x8000_0000;

/// What the real qemu-storage-daemon does with a row.
#[derive(Clone, Copy, PartialEq)]
pub enum Qsd {
    Same,
    Answers(u8),
    /// It never answers, or hangs up.
    Never,
}

pub struct Row {
    pub name: &'static str,
    pub request: Request,
    pub status: u8,
    pub qsd: Qsd,
}

pub fn row(name: &'static str, request: Request, status: u8) -> Row {
    Row {
        name,
        request,
        status,
        qsd: Qsd::Same,
    }
}

impl Row {
    fn qsd(mut self, qsd: Qsd) -> Row {
        self.qsd = qsd;
        self
    }
}

fn cuts(out: &[u32], data: &[u32]) -> Layout {
    Layout {
        out_cuts: Some(out.to_vec()),
        in_cuts: Some(data.to_vec()),
        ..Layout::default()
    }
}

fn at(place: Where, table: Table) -> Layout {
    Layout {
        place,
        table,
        ..Layout::default()
    }
}

fn plain_rows() -> Vec<Row> {
    vec![
        row("read one sector", Request::read(3, 512), OK),
        row("read 64k", Request::read(8, 65536), OK),
        row("read 1M", Request::read(1, 1 << 20), OK),
        row("read the last sector", Request::read(END - 1, 512), OK),
        row("write one sector", Request::write(5, pattern(100, 512)), OK),
        row("write 64k", Request::write(77, pattern(101, 65536)), OK),
        row("write 1M", Request::write(1024, pattern(102, 1 << 20)), OK),
        row(
            "write the last sector",
            Request::write(END - 1, pattern(103, 512)),
            OK,
        ),
        row("flush", Request::bare(kind::FLUSH), OK),
        row(
            "flush with a sector",
            Request {
                sector: 99,
                ..Request::bare(kind::FLUSH)
            },
            OK,
        ),
        row(
            "read with the barrier bit",
            Request {
                kind: kind::IN | BARRIER,
                ..Request::read(3, 512)
            },
            OK,
        ),
        row(
            "write with the barrier bit",
            Request {
                kind: kind::OUT | BARRIER,
                ..Request::write(9, pattern(104, 512))
            },
            OK,
        ),
        row("read nothing", Request::read(3, 0), OK),
        row("read nothing at the end", Request::read(END, 0), OK),
        row("write nothing", Request::write(3, vec![]), OK),
        row("read 511 bytes", Request::read(3, 511), IOERR),
        row("read 513 bytes", Request::read(3, 513), IOERR),
        row("write 100 bytes", Request::write(3, pattern(1, 100)), IOERR),
        row("read across the end", Request::read(END - 1, 1024), IOERR),
        row(
            "write across the end",
            Request::write(END - 1, pattern(1, 1024)),
            IOERR,
        ),
        row("read behind the end", Request::read(END + 1, 512), IOERR),
        row(
            "write at the end",
            Request::write(END, pattern(1, 512)),
            IOERR,
        ),
        row("read at sector 2^55", Request::read(1 << 55, 512), IOERR),
        row("read at sector 2^63", Request::read(1 << 63, 512), IOERR),
        row(
            "write at sector 2^64 - 1",
            Request::write(u64::MAX, pattern(1, 512)),
            IOERR,
        ),
    ]
}

fn other_types() -> Vec<Row> {
    let unknown = [
        (kind::SCSI_CMD, "scsi command"),
        (3, "type 3"),
        (5, "type 5"),
        (kind::SECURE_ERASE, "secure erase"),
    ];
    let more = [
        (kind::GET_LIFETIME, "get lifetime"),
        (16, "zone append"),
        (0xff, "type 255"),
        (0x7fff_fffe, "a huge type"),
    ];
    let mut rows: Vec<Row> = unknown
        .iter()
        .chain(&more)
        .map(|&(kind, name)| {
            row(
                name,
                Request {
                    in_len: 512,
                    ..Request::bare(kind)
                },
                UNSUPP,
            )
        })
        .collect();
    rows.push(row("get id", Request::get_id(20), OK));
    rows.push(row("get id into 8 bytes", Request::get_id(8), OK));
    rows.push(row("get id into nothing", Request::get_id(0), OK));
    rows.push(row("get id into 512 bytes", Request::get_id(512), OK));
    rows
}

fn segment_rows() -> Vec<Row> {
    let discard = |segments: &[(u64, u32, u32)]| Request::segments(kind::DISCARD, segments);
    let zero = |segments: &[(u64, u32, u32)]| Request::segments(kind::WRITE_ZEROES, segments);
    let short = |kind| Request {
        payload: vec![0; 8],
        ..Request::bare(kind)
    };
    vec![
        row("discard 1M", discard(&[(2048, 2048, 0)]), OK),
        row("discard one sector", discard(&[(4101, 1, 0)]), OK),
        row("discard nothing", discard(&[(5, 0, 0)]), OK),
        row("discard with the unmap flag", discard(&[(5, 8, 1)]), UNSUPP),
        row(
            "discard with an unknown flag",
            discard(&[(5, 8, 2)]),
            UNSUPP,
        ),
        row("discard across the end", discard(&[(END - 1, 2, 0)]), IOERR),
        row("discard at sector 2^63", discard(&[(1 << 63, 8, 0)]), IOERR),
        row(
            "discard 2^32 - 1 sectors",
            discard(&[(0, u32::MAX, 0)]),
            IOERR,
        ),
        row("discard of half a segment", short(kind::DISCARD), IOERR),
        row("write zeroes 1M", zero(&[(6144, 2048, 0)]), OK),
        row("write zeroes 3 sectors", zero(&[(4097, 3, 0)]), OK),
        row("write zeroes and unmap", zero(&[(8192, 256, 1)]), OK),
        row(
            "write zeroes with an unknown flag",
            zero(&[(5, 8, 4)]),
            UNSUPP,
        ),
        row(
            "write zeroes with an unknown flag behind the end",
            zero(&[(END, 8, 4)]),
            IOERR,
        ),
        row(
            "write zeroes across the end",
            zero(&[(END - 1, 2, 0)]),
            IOERR,
        ),
        row(
            "write zeroes of half a segment",
            short(kind::WRITE_ZEROES),
            IOERR,
        ),
        row(
            "discard without a segment",
            Request::bare(kind::DISCARD),
            IOERR,
        ),
        row(
            "discard two segments",
            discard(&[(9000, 8, 0), (9100, 16, 0)]),
            OK,
        )
        .qsd(Qsd::Answers(UNSUPP)),
        row(
            "write zeroes of three segments",
            zero(&[(9200, 8, 0), (9300, 1, 1), (9400, 64, 0)]),
            OK,
        )
        .qsd(Qsd::Answers(UNSUPP)),
        row(
            "discard of a segment and a half",
            Request {
                payload: vec![0; 24],
                ..Request::bare(kind::DISCARD)
            },
            IOERR,
        )
        .qsd(Qsd::Answers(UNSUPP)),
    ]
}

fn layout_rows() -> Vec<Row> {
    let each: Vec<u32> = (1..16).collect();
    let sectors: Vec<u32> = (1..=8).map(|i| i * 512).collect();
    let crooked: Vec<u32> = (0..40).map(|i| i * 97 + 13).collect();
    let many = |n: u32, unit: u32| (1..=n).map(|i| i * unit).collect::<Vec<_>>();
    let read = |sector, len, layout| Request::read(sector, len).laid(layout);
    let write = |sector, salt, len, layout| Request::write(sector, pattern(salt, len)).laid(layout);
    vec![
        row(
            "header in sixteen pieces",
            read(40, 4096, cuts(&each, &[4096])),
            OK,
        ),
        row(
            "header in two pieces, data in sectors",
            read(41, 4096, cuts(&[7], &sectors)),
            OK,
        ),
        row(
            "status behind the data in one descriptor",
            read(42, 4096, cuts(&[], &[])),
            OK,
        ),
        row(
            "status shares the last data descriptor",
            read(43, 4096, cuts(&[], &[100])),
            OK,
        ),
        row(
            "read data in crooked pieces",
            read(44, 4096, cuts(&[], &crooked)),
            OK,
        ),
        row(
            "header and data in one descriptor",
            write(45, 200, 4096, cuts(&[], &[])),
            OK,
        ),
        row(
            "header bleeds into the data",
            write(46, 201, 4096, cuts(&[20], &[])),
            OK,
        ),
        row(
            "write data in crooked pieces",
            write(47, 202, 4096, cuts(&crooked[1..], &[])),
            OK,
        ),
        row(
            "discard segment split in two",
            Request::segments(kind::DISCARD, &[(48, 1, 0)]).laid(cuts(&[16, 21], &[])),
            OK,
        ),
        row(
            "flush with a header in two pieces",
            Request::bare(kind::FLUSH).laid(cuts(&[8], &[])),
            OK,
        ),
        row(
            "a chain of 128 data descriptors",
            read(50, 65536, cuts(&[], &many(128, 512))),
            OK,
        ),
        row(
            "a chain of 200 data descriptors",
            write(60, 203, 102_400, cuts(&many(200, 512), &[])),
            OK,
        ),
        row(
            "indirect read",
            read(300, 65536, at(Where::High, Table::Indirect)),
            OK,
        ),
        row(
            "indirect write",
            write(301, 204, 65536, at(Where::High, Table::Indirect)),
            OK,
        ),
        row(
            "indirect chain of 200 descriptors",
            read(
                310,
                102_400,
                Layout {
                    table: Table::Indirect,
                    ..cuts(&[], &many(200, 512))
                },
            ),
            OK,
        ),
        row(
            "a direct descriptor, then an indirect table",
            read(311, 4096, at(Where::High, Table::Mixed)),
            OK,
        )
        .qsd(Qsd::Never),
        row(
            "read across two regions",
            read(320, 65536, at(Where::Border, Table::Direct)),
            OK,
        ),
        row(
            "write across two regions",
            write(321, 205, 65536, at(Where::Border, Table::Direct)),
            OK,
        ),
        row(
            "header across two regions",
            Request::bare(kind::FLUSH).laid(Layout {
                place: Where::Border,
                ..cuts(&[], &[])
            }),
            OK,
        ),
        row(
            "header across two regions, with data",
            write(322, 206, 512, at(Where::Border, Table::Indirect)),
            OK,
        )
        // It counts pieces of memory where it should count descriptors, and sees a loop.
        .qsd(Qsd::Never),
        row(
            "a header of eight bytes",
            Request::bare(kind::FLUSH).laid(Layout::default()).short(),
            IOERR,
        )
        .qsd(Qsd::Never),
    ]
}

/// Cuts a request's readable stream short of a header.
trait Short {
    fn short(self) -> Self;
}

impl Short for Request {
    fn short(mut self) -> Request {
        self.layout.out_len = Some(HEADER_BYTES / 2);
        self
    }
}

pub fn all_rows() -> Vec<Row> {
    [plain_rows(), other_types(), segment_rows(), layout_rows()]
        .into_iter()
        .flatten()
        .collect()
}
