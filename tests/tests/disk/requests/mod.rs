//! The request table: what each virtio-blk request is answered, whoever asks and however it is laid out.
//!
//! Every row runs through our client in QEMU's and in cloud-hypervisor's order, through the `vhost` crate's front end and,
//! where its interface has words for it, through `virtio-driver`. After each row the disk is compared with a model.
#![allow(
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub,
    reason = "a test stops where it is surprised"
)]

mod rows;

use std::io;

use tests::client::blk::{Done, IOERR, OK, Request, Table, kind};
use tests::client::driver::Driver;
use tests::client::guest::{Client, Guest, Setup, TableOrder};
use tests::client::pattern::{Model, differ, pattern};
use tests::client::starter::{Disk, Kind, Running};

use rows::{DISK_BYTES, Qsd, Row, all_rows, row};

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
