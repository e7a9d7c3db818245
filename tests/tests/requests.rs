//! The request table: what each virtio-blk request is answered, whoever asks and however it is laid out.
//!
//! Every row runs through our client in QEMU's and in cloud-hypervisor's order, through the `vhost` crate's front end and,
//! where its interface has words for it, through `virtio-driver`. After each row the disk is compared with a model.
#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

use std::io;

use tests::client::blk::{
    Done, HEADER_BYTES, IOERR, Layout, OK, Request, Table, UNSUPP, Where, kind,
};
use tests::client::driver::Driver;
use tests::client::guest::{Client, Guest, Setup, TableOrder};
use tests::client::pattern::{Model, differ, pattern};
use tests::client::starter::{Disk, Kind, Running};

const DISK_BYTES: usize = 8 << 20;
const END: u64 = DISK_BYTES as u64 / 512;
const BARRIER: u32 = 0x8000_0000;

/// What the real qemu-storage-daemon does with a row.
#[derive(Clone, Copy, PartialEq)]
enum Qsd {
    Same,
    Answers(u8),
    /// It never answers, or hangs up.
    Never,
}

struct Row {
    name: &'static str,
    request: Request,
    status: u8,
    qsd: Qsd,
}

fn row(name: &'static str, request: Request, status: u8) -> Row {
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

fn all_rows() -> Vec<Row> {
    [plain_rows(), other_types(), segment_rows(), layout_rows()]
        .into_iter()
        .flatten()
        .collect()
}

/// Somebody who can run requests; `None` where a request cannot be said.
trait Asks {
    fn ask(&mut self, request: &Request) -> Option<io::Result<Done>>;
}

impl Asks for Guest {
    fn ask(&mut self, request: &Request) -> Option<io::Result<Done>> {
        Some(self.run(0, request))
    }
}

impl Asks for Driver {
    fn ask(&mut self, request: &Request) -> Option<io::Result<Done>> {
        self.run(request)
    }
}

/// Why a row failed: the answer was wrong, or the connection is of no more use.
enum Fault {
    Wrong(String),
    Lost(String),
}

impl From<String> for Fault {
    fn from(what: String) -> Fault {
        Fault::Wrong(what)
    }
}

/// Runs one row; how many requests it could say (0 or 1), or what went wrong.
fn check_row(
    row: &Row,
    client: &mut dyn Asks,
    model: &mut Model,
    qsd: bool,
) -> Result<usize, Fault> {
    let status = match row.qsd {
        Qsd::Answers(status) if qsd => status,
        Qsd::Never if qsd => return Ok(0),
        _ => row.status,
    };
    let Some(answer) = client.ask(&row.request) else {
        return Ok(0);
    };
    let done = answer.map_err(|e| Fault::Lost(e.to_string()))?;
    if done.status != status {
        return Err(format!("status {}, wanted {status}", done.status).into());
    }
    let writable = row.request.in_bytes();
    let least = if status == OK && row.request.kind == kind::IN {
        writable
    } else {
        1
    };
    if done.used_len < least || done.used_len > writable {
        return Err(format!("used.len {} of {writable} writable bytes", done.used_len).into());
    }
    if status == OK && row.request.kind == kind::IN && row.request.in_len > 0 {
        differ(&done.data, model.at(row.request.sector, done.data.len()))?;
    }
    if row.request.kind == kind::GET_ID {
        check_id(&done.data, qsd)?;
    }
    model.apply(&row.request, status);
    model.check_file()?;
    Ok(1)
}

/// The export id, ended by a NUL where there is room, cut where there is none.
fn check_id(data: &[u8], qsd: bool) -> Result<(), String> {
    let id: &[u8] = if qsd { b"vhost_user_blk\0" } else { b"e0\0" };
    let len = id.len().min(data.len());
    differ(&data[..len], &id[..len])
}

/// Runs rows through a client and says how many it could express.
fn run_rows(
    rows: &[Row],
    client: &mut dyn Asks,
    model: &mut Model,
    daemon: &Running,
    who: &str,
) -> usize {
    let qsd = Kind::from_env() == Kind::QemuStorageDaemon;
    let mut said = 0;
    let mut failures = Vec::new();
    for row in rows {
        match check_row(row, client, model, qsd) {
            Ok(n) => said += n,
            Err(Fault::Wrong(what)) => failures.push(format!("{who}: {}: {what}", row.name)),
            Err(Fault::Lost(what)) => {
                failures.push(format!("{who}: {}: {what}; no row after it ran", row.name));
                break;
            }
        }
    }
    assert!(
        failures.is_empty(),
        "{} of {} rows failed:\n{}\n{}",
        failures.len(),
        rows.len(),
        failures.join("\n"),
        daemon.log()
    );
    said
}

fn start(disk: &Disk) -> Running {
    Running::start(Kind::from_env(), disk).unwrap()
}

fn setup(client: Client) -> Setup {
    let table = match client {
        Client::Ours(tests::client::front::Habits::Qemu) => TableOrder::Sorted,
        Client::Ours(_) => TableOrder::Unsorted,
        Client::VhostCrate => TableOrder::Slots,
    };
    Setup {
        client,
        table,
        ring_size: 256,
        ..Setup::default()
    }
}

fn table_through(client: Client) {
    let mut model = Model::new(DISK_BYTES).unwrap();
    let daemon = start(&Disk::file(&model.path));
    let mut guest = Guest::start(&daemon.socket, setup(client)).unwrap();
    let said = run_rows(
        &all_rows(),
        &mut guest,
        &mut model,
        &daemon,
        &format!("{client:?}"),
    );
    assert!(said >= 70, "only {said} rows ran");
}

#[test]
fn the_request_table_holds_for_our_client_with_the_habits_of_qemu() {
    table_through(Client::ALL[0]);
}

#[test]
fn the_request_table_holds_for_our_client_with_the_habits_of_cloud_hypervisor() {
    table_through(Client::ALL[1]);
}

#[test]
fn the_request_table_holds_for_the_front_end_of_the_vhost_crate() {
    table_through(Client::ALL[2]);
}

#[test]
fn the_request_table_holds_for_virtio_driver() {
    let mut model = Model::new(DISK_BYTES).unwrap();
    let daemon = start(&Disk::file(&model.path));
    let mut driver = Driver::connect(&daemon.socket).unwrap();
    let said = run_rows(
        &all_rows(),
        &mut driver,
        &mut model,
        &daemon,
        "virtio-driver",
    );
    assert!(said >= 30, "only {said} rows ran");
}

#[test]
fn the_request_table_holds_without_event_idx_and_indirect() {
    use tests::client::front::{GUEST_FEATURES, feature};
    let mut model = Model::new(DISK_BYTES).unwrap();
    let daemon = start(&Disk::file(&model.path));
    let features = GUEST_FEATURES & !(feature::EVENT_IDX | feature::INDIRECT_DESC);
    let mut guest = Guest::start(
        &daemon.socket,
        Setup {
            features,
            ..setup(Client::ALL[0])
        },
    )
    .unwrap();
    let rows: Vec<Row> = all_rows()
        .into_iter()
        .filter(|r| r.request.layout.table == Table::Direct)
        .collect();
    run_rows(&rows, &mut guest, &mut model, &daemon, "no event idx");
}

#[test]
fn the_request_table_holds_with_direct_io() {
    let mut model = Model::new(DISK_BYTES).unwrap();
    let disk = Disk {
        file_options: "discard=unmap,cache.direct=on",
        ..Disk::file(&model.path)
    };
    let daemon = start(&disk);
    let mut guest = Guest::start(&daemon.socket, setup(Client::ALL[0])).unwrap();
    run_rows(&all_rows(), &mut guest, &mut model, &daemon, "direct");
}

#[test]
fn a_read_only_disk_refuses_every_change_and_is_untouched() {
    let mut model = Model::new(DISK_BYTES).unwrap();
    let before = model.bytes.clone();
    let daemon = start(&Disk {
        read_only: true,
        file_options: "",
        ..Disk::file(&model.path)
    });
    let rows = [
        row("read", Request::read(3, 4096), OK),
        row("flush", Request::bare(kind::FLUSH), OK),
        row("get id", Request::get_id(20), OK),
        row("write", Request::write(3, pattern(1, 512)), IOERR),
        row(
            "discard",
            Request::segments(kind::DISCARD, &[(0, 8, 0)]),
            IOERR,
        ),
        row(
            "write zeroes",
            Request::segments(kind::WRITE_ZEROES, &[(0, 8, 0)]),
            IOERR,
        ),
    ];
    for client in Client::ALL {
        let mut guest = Guest::start(&daemon.socket, setup(client)).unwrap();
        assert_ne!(guest.agreed.offered & tests::client::front::feature::RO, 0);
        run_rows(
            &rows,
            &mut guest,
            &mut model,
            &daemon,
            &format!("{client:?}"),
        );
    }
    assert_eq!(model.bytes, before);
}

#[test]
fn only_the_start_is_checked_against_a_logical_block_of_4096() {
    let mut model = Model::new(DISK_BYTES).unwrap();
    let daemon = start(&Disk {
        export_options: "logical-block-size=4096",
        ..Disk::file(&model.path)
    });
    let rows = [
        row("read a block", Request::read(8, 4096), OK),
        row("read a sector at 0", Request::read(0, 512), OK),
        row(
            "write a sector at a block",
            Request::write(16, pattern(1, 512)),
            OK,
        ),
        row("read at sector 1", Request::read(1, 4096), IOERR),
        row(
            "write at sector 7",
            Request::write(7, pattern(1, 4096)),
            IOERR,
        ),
        row(
            "discard at sector 1",
            Request::segments(kind::DISCARD, &[(1, 8, 0)]),
            IOERR,
        ),
        row(
            "discard one sector at a block",
            Request::segments(kind::DISCARD, &[(24, 1, 0)]),
            OK,
        ),
        row(
            "write zeroes at sector 1",
            Request::segments(kind::WRITE_ZEROES, &[(1, 8, 0)]),
            IOERR,
        ),
    ];
    let mut guest = Guest::start(&daemon.socket, setup(Client::ALL[0])).unwrap();
    run_rows(&rows, &mut guest, &mut model, &daemon, "4096");
}

#[test]
fn four_queues_with_a_hundred_requests_in_one_kick_each_answer_every_one_once() {
    let mut model = Model::new(DISK_BYTES).unwrap();
    let disk = Disk {
        export_options: "num-queues=4",
        ..Disk::file(&model.path)
    };
    let daemon = start(&disk);
    let mut guest = Guest::start(
        &daemon.socket,
        Setup {
            queues: 4,
            ring_size: 512,
            ..setup(Client::ALL[0])
        },
    )
    .unwrap();
    for round in 0..20u64 {
        for queue in 0..4usize {
            let sector = |i: u64| (queue as u64 * 100 + i) * 8;
            let writes: Vec<_> = (0..100)
                .map(|i| Request::write(sector(i), pattern(round << 16 | i, 4096)))
                .collect();
            let done = guest.run_batch(queue, &writes).unwrap();
            assert!(
                done.iter().all(|d| d.status == OK && d.used_len == 1),
                "round {round} queue {queue}: {done:?}"
            );
            writes.iter().for_each(|w| model.apply(w, OK));
            let reads: Vec<_> = (0..100).map(|i| Request::read(sector(i), 4096)).collect();
            for (i, done) in guest.run_batch(queue, &reads).unwrap().iter().enumerate() {
                assert_eq!(done.status, OK);
                differ(&done.data, model.at(sector(i as u64), 4096)).unwrap();
            }
        }
    }
    model.check_file().unwrap();
}
