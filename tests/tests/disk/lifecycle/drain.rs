//! Stopping with requests in flight, on a disk that holds each of them for a while: nothing is written behind a reply.

use std::thread;
use std::time::Duration;

use tests::client::blk::{Done, OK, Request, UNTOUCHED};
use tests::client::deadline;
use tests::client::front::Habits;
use tests::client::guest::{Client, Guest, Pending, Setup, TableOrder};
use tests::client::starter::{Disk, Kind, Node, Running};

use super::{guest, qsd, setup};

/// How long the slow disk holds a request.
const LATENCY: Duration = Duration::from_millis(50);

/// A disk that holds every request for [`LATENCY`], so that requests are in flight for certain.
fn slow_disk() -> Running {
    let disk = Disk {
        node: Node::Null(1 << 30),
        file_options: "latency-ns=50000000",
        ..Disk::file("".as_ref())
    };
    Running::start(Kind::from_env(), &disk).unwrap()
}

/// Puts 32 reads in flight.
fn load(guest: &mut Guest) -> Vec<Pending> {
    let pending = (0..32)
        .map(|i| guest.add(0, &Request::read(i * 8, 4096)))
        .collect();
    guest.submit(0);
    pending
}

/// What the requests look like in guest memory now.
fn snapshot(guest: &Guest, pending: &[Pending]) -> (u16, Vec<Done>) {
    (
        guest.rings[0].used_idx(),
        pending.iter().map(|p| guest.done(*p, 0)).collect(),
    )
}

/// Waits longer than any request may still be under way, and says whether memory stayed as it was.
fn nothing_is_written_behind(guest: &Guest, pending: &[Pending]) {
    let before = snapshot(guest, pending);
    thread::sleep(LATENCY * 3);
    assert_eq!(
        snapshot(guest, pending),
        before,
        "guest memory was written behind the reply"
    );
    let answered = before.1.iter().filter(|d| d.status != UNTOUCHED).count();
    assert_eq!(
        answered,
        usize::from(before.0),
        "statuses and used index disagree"
    );
}

#[test]
fn get_vring_base_waits_for_requests_in_flight_and_the_rest_runs_after_a_restart() {
    if qsd() {
        return eprintln!("qemu-storage-daemon does not drain before its reply");
    }
    let daemon = slow_disk();
    for client in Client::ALL {
        let mut guest = guest(&daemon, client);
        let mut pending = load(&mut guest);
        let bases = guest.stop_rings().unwrap();
        nothing_is_written_behind(&guest, &pending);
        assert_eq!(
            bases,
            [u32::from(guest.rings[0].used_idx())],
            "{client:?}: base and used index"
        );
        let mut finished = 0;
        while let Some(used) = guest.rings[0].pop() {
            pending.retain(|p| u32::from(p.head) != used.id);
            finished += 1;
        }
        guest.start_rings().unwrap();
        guest.rings[0].kick();
        while !pending.is_empty() {
            guest.rings[0].wait(deadline()).unwrap();
            let used = guest.rings[0].pop().unwrap();
            pending.retain(|p| u32::from(p.head) != used.id);
            finished += 1;
        }
        assert_eq!(finished, 32, "{client:?}: every request once");
    }
}

#[test]
fn reset_device_writes_nothing_behind_its_reply() {
    if qsd() {
        return eprintln!("qemu-storage-daemon has no RESET_DEVICE");
    }
    let daemon = slow_disk();
    for client in [Client::Ours(Habits::CloudHypervisor), Client::VhostCrate] {
        let mut guest = guest(&daemon, client);
        let pending = load(&mut guest);
        guest.front.reset_device().unwrap();
        nothing_is_written_behind(&guest, &pending);
    }
}

#[test]
fn a_removed_region_is_not_written_behind_the_reply() {
    if qsd() {
        return eprintln!("qemu-storage-daemon may die of this");
    }
    let daemon = slow_disk();
    for client in [Client::Ours(Habits::CloudHypervisor), Client::VhostCrate] {
        let mut guest = Guest::start(
            &daemon.socket,
            Setup {
                table: TableOrder::Slots,
                ..setup(client)
            },
        )
        .unwrap();
        let pending = load(&mut guest);
        let data = guest.memory.regions()[2];
        guest.front.rem_mem_reg(&data).unwrap();
        let before: Vec<Done> = pending.iter().map(|p| guest.done(*p, 0)).collect();
        thread::sleep(LATENCY * 3);
        let after: Vec<Done> = pending.iter().map(|p| guest.done(*p, 0)).collect();
        assert!(
            before == after,
            "{client:?}: the removed region was written"
        );
    }
}

#[test]
fn a_front_end_that_vanished_is_not_written_to_and_the_next_is_served_at_once() {
    let daemon = slow_disk();
    let mut first = guest(&daemon, Client::ALL[0]);
    load(&mut first);
    let Guest { memory, front, .. } = first;
    drop(front);
    let mut next = guest(&daemon, Client::ALL[0]);
    let before = memory.read(tests::client::memory::HIGH, 1 << 20);
    assert_eq!(next.run(0, &Request::read(0, 4096)).unwrap().status, OK);
    thread::sleep(LATENCY * 3);
    assert!(memory.read(tests::client::memory::HIGH, 1 << 20) == before);
}
