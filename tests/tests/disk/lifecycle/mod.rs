//! The life-cycle table: what a VMM does to a running disk, and that it keeps serving and never writes behind a reply.
//!
//! Each case runs with our client in QEMU's and cloud-hypervisor's order and with the `vhost` crate's front end.
#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

mod drain;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::Duration;

use tests::client::blk::{OK, Request};
use tests::client::driver::Driver;
use tests::client::front::{GUEST_FEATURES, Habits, Speaker, feature, protocol};
use tests::client::guest::{Client, Guest, Setup, TableOrder};
use tests::client::patience;
use tests::client::pattern::{Model, differ, pattern};
use tests::client::ring::readable;
use tests::client::starter::{Disk, Kind, Running};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const DISK_BYTES: usize = 8 << 20;

type Case = (&'static str, fn(&Running, Client));

const CASES: [Case; 17] = [
    ("every feature we promise is offered", features_are_offered),
    ("a started ring reads and writes", started_ring_serves),
    (
        "a kick before SET_VRING_ENABLE is not lost",
        early_kick_is_not_lost,
    ),
    (
        "a ring that is disabled and enabled goes on",
        disabled_ring_goes_on,
    ),
    ("a stopped ring goes on where it was", stopped_ring_goes_on),
    ("a guest reboots five times", guest_reboots),
    ("RESET_DEVICE and a fresh start", reset_and_start),
    ("SET_MEM_TABLE while the ring runs", memory_table_changes),
    (
        "REM_MEM_REG and ADD_MEM_REG while the ring runs",
        memory_slots_change,
    ),
    (
        "the kick eventfd is replaced while the ring runs",
        kick_is_replaced,
    ),
    (
        "the call eventfd is replaced while the ring runs",
        call_is_replaced,
    ),
    (
        "the guest switches the write cache",
        write_cache_is_switched,
    ),
    (
        "a front end that leaves with requests in flight is forgotten",
        disconnect_in_flight,
    ),
    ("ten front ends one after another", ten_in_a_row),
    ("a second front end waits its turn", second_waits),
    ("every order of the memory table", every_table_order),
    (
        "a ring without PROTOCOL_FEATURES starts enabled",
        enabled_from_the_start,
    ),
];

fn qsd() -> bool {
    Kind::from_env() == Kind::QemuStorageDaemon
}

fn setup(client: Client) -> Setup {
    Setup {
        client,
        ..Setup::default()
    }
}

fn guest(daemon: &Running, client: Client) -> Guest {
    Guest::start(&daemon.socket, setup(client)).unwrap()
}

/// Writes and reads back through a queue, with data that has not been there before.
fn serves(guest: &mut Guest, salt: u64) {
    let bytes = pattern(salt, 8192);
    let sector = 16 + (salt % 64) * 16;
    assert_eq!(
        guest
            .run(0, &Request::write(sector, bytes.clone()))
            .unwrap()
            .status,
        OK
    );
    let read = guest.run(0, &Request::read(sector, 8192)).unwrap();
    assert_eq!(read.status, OK);
    differ(&read.data, &bytes).unwrap();
}

fn features_are_offered(daemon: &Running, client: Client) {
    let mut guest = guest(daemon, client);
    let ours = GUEST_FEATURES & !feature::RO;
    assert_eq!(
        guest.agreed.offered & ours,
        ours,
        "offered {:#x}",
        guest.agreed.offered
    );
    assert_eq!(guest.agreed.offered & feature::RO, 0);
    let mut wanted =
        protocol::MQ | protocol::CONFIG | protocol::REPLY_ACK | protocol::CONFIGURE_MEM_SLOTS;
    if !qsd() {
        wanted |= protocol::RESET_DEVICE | protocol::BACKEND_REQ | protocol::INFLIGHT_SHMFD;
        assert_eq!(guest.agreed.queues, 16);
    }
    assert_eq!(
        guest.agreed.protocol_offered & wanted,
        wanted,
        "protocol {:#x}",
        guest.agreed.protocol_offered
    );
    let config = guest.front.get_config(60).unwrap();
    let u32_at = |at: usize| u32::from_le_bytes(*config[at..].first_chunk().unwrap());
    assert_eq!(
        u64::from_le_bytes(*config.first_chunk().unwrap()),
        DISK_BYTES as u64 / 512,
        "capacity"
    );
    assert!(u32_at(12) >= 126, "seg_max {}", u32_at(12));
    assert_eq!(u32_at(20), 512, "blk_size");
    if !qsd() {
        assert_eq!(config[32], 1, "a writeback export says so");
        assert!(
            guest.agreed.offered & feature::SIZE_MAX == 0 || u32_at(8) >= 1 << 20,
            "size_max {}",
            u32_at(8)
        );
        assert!(u32_at(40) > 1, "several discard segments");
    }
    assert!(u32_at(36) > 0, "max_discard_sectors");
    assert!(u32_at(48) > 0, "max_write_zeroes_sectors");
}

fn started_ring_serves(daemon: &Running, client: Client) {
    serves(&mut guest(daemon, client), 1);
}

fn early_kick_is_not_lost(daemon: &Running, client: Client) {
    let mut guest = Guest::connect(&daemon.socket, setup(client)).unwrap();
    guest.announce_memory().unwrap();
    let pending = guest.add(0, &Request::read(0, 4096));
    guest.rings[0].publish();
    guest.rings[0].kick();
    guest.start_rings().unwrap();
    assert_eq!(guest.finish(0, pending).unwrap().status, OK);
}

fn disabled_ring_goes_on(daemon: &Running, client: Client) {
    let mut guest = guest(daemon, client);
    serves(&mut guest, 2);
    guest.front.set_vring_enable(0, 0).unwrap();
    // A message with a reply behind it: the ring is off when the reply is here, whoever sent what unacknowledged.
    guest.front.get_features().unwrap();
    let pending = guest.add(0, &Request::read(0, 4096));
    guest.rings[0].publish();
    guest.rings[0].kick();
    guest.front.set_vring_enable(0, 1).unwrap();
    assert_eq!(guest.finish(0, pending).unwrap().status, OK);
    serves(&mut guest, 3);
}

fn stopped_ring_goes_on(daemon: &Running, client: Client) {
    let mut guest = guest(daemon, client);
    for round in 0..10 {
        serves(&mut guest, 10 + round);
        let bases = guest.stop_rings().unwrap();
        assert_eq!(bases, [u32::from(guest.rings[0].last_used())]);
        guest.start_rings().unwrap();
    }
    serves(&mut guest, 20);
}

fn guest_reboots(daemon: &Running, client: Client) {
    let mut guest = guest(daemon, client);
    for boot in 0..5 {
        serves(&mut guest, 30 + boot);
        guest.stop_rings().unwrap();
        guest.rings[0].clear();
        guest.announce_memory().unwrap();
        guest.start_rings().unwrap();
    }
    serves(&mut guest, 40);
}

fn reset_and_start(daemon: &Running, client: Client) {
    let mut guest = guest(daemon, client);
    if guest.agreed.protocol & protocol::RESET_DEVICE == 0 {
        assert!(qsd(), "RESET_DEVICE is offered");
        return;
    }
    serves(&mut guest, 50);
    guest.front.reset_device().unwrap();
    guest.rings[0].clear();
    guest.announce_memory().unwrap();
    guest.start_rings().unwrap();
    serves(&mut guest, 51);
}

fn memory_table_changes(daemon: &Running, client: Client) {
    let mut guest = guest(daemon, client);
    let all = guest.memory.regions().to_vec();
    for round in 0..10 {
        serves(&mut guest, 60 + round);
        guest.front.set_mem_table(&[all[2], all[0]]).unwrap();
        serves(&mut guest, 70 + round);
        guest.front.set_mem_table(&all).unwrap();
    }
    border_crossing_read(&mut guest);
}

fn border_crossing_read(guest: &mut Guest) {
    use tests::client::blk::{Layout, Where};
    let request = Request::read(0, 65536).laid(Layout {
        place: Where::Border,
        ..Layout::default()
    });
    assert_eq!(guest.run(0, &request).unwrap().status, OK);
}

fn memory_slots_change(daemon: &Running, client: Client) {
    let mut guest = Guest::start(
        &daemon.socket,
        Setup {
            table: TableOrder::Slots,
            ..setup(client)
        },
    )
    .unwrap();
    let spare = guest.memory.regions()[1];
    for round in 0..10 {
        border_crossing_read(&mut guest);
        guest.front.rem_mem_reg(&spare).unwrap();
        serves(&mut guest, 80 + round);
        guest.front.add_mem_reg(&spare).unwrap();
    }
    border_crossing_read(&mut guest);
}

fn kick_is_replaced(daemon: &Running, client: Client) {
    let mut guest = guest(daemon, client);
    for round in 0..5 {
        serves(&mut guest, 90 + round);
        let fresh = EventFd::new(EFD_NONBLOCK).unwrap();
        guest.front.set_vring_kick(0, &fresh).unwrap();
        guest.front.get_features().unwrap();
        guest.rings[0].kick_fd = fresh;
    }
    serves(&mut guest, 99);
}

fn call_is_replaced(daemon: &Running, client: Client) {
    let mut guest = guest(daemon, client);
    for round in 0..5 {
        serves(&mut guest, 100 + round);
        let fresh = EventFd::new(EFD_NONBLOCK).unwrap();
        guest.front.set_vring_call(0, &fresh).unwrap();
        guest.front.get_features().unwrap();
        guest.rings[0].call_fd = fresh;
    }
    serves(&mut guest, 109);
}

fn write_cache_is_switched(daemon: &Running, client: Client) {
    const WCE: u32 = 32;
    let mut guest = guest(daemon, client);
    let flags = client.habits().config_flags();
    // The real one hangs up on flags 1.
    if qsd() && flags == 1 {
        return;
    }
    for on in [0u8, 1, 0, 1] {
        guest.front.set_config(WCE, flags, &[on]).unwrap();
        assert_eq!(guest.front.get_config(60).unwrap()[WCE as usize], on);
        serves(&mut guest, 110 + u64::from(on));
    }
}

fn disconnect_in_flight(daemon: &Running, client: Client) {
    for _ in 0..10 {
        let mut guest = guest(daemon, client);
        let requests: Vec<_> = (0..32)
            .map(|i| guest.add(0, &Request::read(i, 65536)))
            .collect();
        guest.submit(0);
        assert_eq!(requests.len(), 32);
    }
    serves(&mut guest(daemon, client), 120);
}

fn ten_in_a_row(daemon: &Running, client: Client) {
    (0..10).for_each(|i| serves(&mut guest(daemon, client), 130 + i));
}

fn second_waits(daemon: &Running, client: Client) {
    let mut first = guest(daemon, client);
    let socket = daemon.socket.clone();
    let second =
        thread::spawn(move || serves(&mut Guest::start(&socket, setup(client)).unwrap(), 141));
    serves(&mut first, 140);
    assert!(!second.is_finished(), "two front ends are served at once");
    serves(&mut first, 142);
    drop(first);
    second.join().unwrap();
}

fn every_table_order(daemon: &Running, client: Client) {
    for table in [TableOrder::Sorted, TableOrder::Unsorted, TableOrder::Slots] {
        let mut guest = Guest::start(
            &daemon.socket,
            Setup {
                table,
                ..setup(client)
            },
        )
        .unwrap();
        serves(&mut guest, 150);
        border_crossing_read(&mut guest);
    }
}

/// vhost-user, "Ring states": without the feature bit there is no SET_VRING_ENABLE, so a started ring is enabled.
fn enabled_from_the_start(daemon: &Running, client: Client) {
    if client != Client::Ours(Habits::Qemu) {
        return;
    }
    let mut guest = Guest::connect(&daemon.socket, setup(client)).unwrap();
    let bare = Speaker::connect(&daemon.socket, Habits::Qemu).unwrap();
    drop(std::mem::replace(&mut guest.front, Box::new(bare)));
    guest.front.set_owner().unwrap();
    guest.agreed.features &= !feature::PROTOCOL_FEATURES;
    guest.announce_memory().unwrap();
    guest.describe_ring(0).unwrap();
    serves(&mut guest, 160);
}

#[test]
fn the_life_cycle_table_holds_for_every_front_end() {
    let model = Model::new(DISK_BYTES).unwrap();
    let options = if qsd() { "num-queues=16" } else { "" };
    let disk = Disk {
        export_options: options,
        ..Disk::file(&model.path)
    };
    let mut daemon = Running::start(Kind::from_env(), &disk).unwrap();
    let mut failures = Vec::new();
    for client in Client::ALL {
        for (name, case) in CASES {
            let held = catch_unwind(AssertUnwindSafe(|| case(&daemon, client))).is_ok();
            if !held || !daemon.alive() {
                failures.push(format!(
                    "{client:?}: {name}{}",
                    if daemon.alive() {
                        ""
                    } else {
                        ", and the daemon died"
                    }
                ));
            }
            if !daemon.alive() {
                daemon = Running::start(Kind::from_env(), &disk).unwrap();
            }
        }
    }
    assert!(
        failures.is_empty(),
        "{} cases failed:\n{}\n{}",
        failures.len(),
        failures.join("\n"),
        daemon.log()
    );
}

#[test]
fn virtio_driver_connects_again_and_again() {
    let model = Model::new(DISK_BYTES).unwrap();
    let daemon = Running::start(Kind::from_env(), &Disk::file(&model.path)).unwrap();
    for round in 0..5 {
        let mut driver = Driver::connect(&daemon.socket).unwrap();
        let bytes = pattern(round, 4096);
        assert_eq!(
            driver
                .run(&Request::write(8, bytes.clone()))
                .unwrap()
                .unwrap()
                .status,
            OK
        );
        differ(
            &driver.run(&Request::read(8, 4096)).unwrap().unwrap().data,
            &bytes,
        )
        .unwrap();
    }
}

#[test]
fn the_waiting_front_end_hears_nothing_before_its_turn() {
    let model = Model::new(DISK_BYTES).unwrap();
    let daemon = Running::start(Kind::from_env(), &Disk::file(&model.path)).unwrap();
    let mut first = guest(&daemon, Client::ALL[0]);
    let waiting = Speaker::connect(&daemon.socket, Habits::Qemu).unwrap();
    waiting
        .wire
        .send(tests::client::wire::req::GET_FEATURES, 0, &[], &[])
        .unwrap();
    serves(&mut first, 1);
    assert!(
        !readable(&waiting.wire, Duration::from_millis(50)).unwrap(),
        "it was answered out of turn"
    );
    drop(first);
    assert!(
        readable(&waiting.wire, patience()).unwrap(),
        "it was never answered"
    );
    assert_eq!(
        waiting.wire.recv().unwrap().request,
        tests::client::wire::req::GET_FEATURES
    );
}
