//! `block_resize` of a disk in use: who is told, and what becomes of requests where the disk was.
//!
//! The rule: a front end is told by VHOST_USER_BACKEND_CONFIG_CHANGE_MSG if it gave a channel, and one that gave none, or does
//! not read it, is as safe; nobody reads or writes beyond the end, whatever the guest believes.

use super::Stage;
use serde_json::json;
use std::fs;
use std::io::{ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Instant;
use tests::client::blk::{IOERR, OK, Request, kind};
use tests::client::guest::{Guest, Pending};
use tests::client::patience;
use tests::client::wire::{VERSION_1, words32};
use tests::daemon::Kind;

const MIB: u64 = 1 << 20;
/// Sectors in a MiB.
const MIB_SECTORS: u64 = MIB / 512;
/// VHOST_USER_BACKEND_CONFIG_CHANGE_MSG.
const CONFIG_CHANGE: u32 = 2;

/// A disk of 8 MiB, and an export of it.
struct Disk {
    stage: Stage,
    path: PathBuf,
    top: &'static str,
    _dir: tempfile::TempDir,
}

impl Disk {
    /// Exported is the node `top`: `n`, or `d` where requests take a while.
    fn new(top: &'static str) -> Disk {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let file = fs::File::create(&path).unwrap();
        file.set_len(8 * MIB).unwrap();
        let node = format!("file,node-name=n,discard=unmap,filename={}", path.display());
        let delay = "x-delay,node-name=d,latency-ns=200000000,file=n";
        let blockdevs = ["--blockdev", &node, "--blockdev", delay];
        let mut stage = Stage::new(Kind::Virtioblkd, &blockdevs);
        let export = stage.export_with("node-name", json!(top));
        stage.qmp.succeed("block-export-add", export);
        Disk {
            stage,
            path,
            top,
            _dir: dir,
        }
    }

    fn resize(&mut self, mib: u64) {
        let size = json!({"node-name": self.top, "size": mib * MIB});
        self.stage.qmp.succeed("block_resize", size);
        assert_eq!(self.path.metadata().unwrap().len(), mib * MIB);
    }

    fn is_zero_from(&self, mib: u64) -> bool {
        let bytes = fs::read(&self.path).unwrap();
        bytes[(mib * MIB) as usize..].iter().all(|byte| *byte == 0)
    }
}

/// virtio 1.2, 5.2.4: the capacity, in sectors, comes first.
fn capacity(guest: &mut Guest) -> u64 {
    let config = guest.front.get_config(60).unwrap();
    u64::from_le_bytes(*config.first_chunk().unwrap())
}

fn status(guest: &mut Guest, request: &Request) -> u8 {
    guest.run(0, request).unwrap().status
}

fn write(sector: u64) -> Request {
    Request::write(sector, vec![0x5a; 4096])
}

/// One of each kind at that place.
fn each_kind(sector: u64) -> [Request; 4] {
    [
        Request::read(sector, 4096),
        write(sector),
        Request::segments(kind::WRITE_ZEROES, &[(sector, 8, 0)]),
        Request::segments(kind::DISCARD, &[(sector, 8, 0)]),
    ]
}

/// A guest that gave a channel, and its end of it.
fn guest_with_channel(disk: &Disk) -> (Guest, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(patience())).unwrap();
    let mut guest = disk.stage.guest();
    guest.front.set_backend_req_fd(theirs.as_raw_fd()).unwrap();
    // What comes after it was taken comes after its acknowledgement or any other answer.
    capacity(&mut guest);
    (guest, ours)
}

/// The message, without a flag that asks for an answer, and nothing behind it.
fn is_told(channel: &mut UnixStream) {
    let mut message = [0; 12];
    channel.read_exact(&mut message).unwrap();
    assert_eq!(message[..], words32(&[CONFIG_CHANGE, VERSION_1, 0]));
}

fn is_told_nothing(channel: &mut UnixStream) {
    channel.set_nonblocking(true).unwrap();
    let nothing = channel.read(&mut [0; 12]).map_err(|error| error.kind());
    assert_eq!(nothing, Err(ErrorKind::WouldBlock));
    channel.set_nonblocking(false).unwrap();
}

#[test]
fn a_front_end_with_a_channel_is_told_of_each_new_size_and_reads_it() {
    let mut disk = Disk::new("n");
    let (mut guest, mut channel) = guest_with_channel(&disk);
    assert_eq!(capacity(&mut guest), 8 * MIB_SECTORS);
    assert_eq!(status(&mut guest, &write(8 * MIB_SECTORS)), IOERR);
    disk.resize(16);
    is_told(&mut channel);
    assert_eq!(capacity(&mut guest), 16 * MIB_SECTORS);
    for request in each_kind(16 * MIB_SECTORS - 8) {
        assert_eq!(status(&mut guest, &request), OK, "kind {}", request.kind);
    }
    disk.resize(16);
    is_told_nothing(&mut channel);
    disk.resize(4);
    is_told(&mut channel);
    assert_eq!(capacity(&mut guest), 4 * MIB_SECTORS);
    is_told_nothing(&mut channel);
}

#[test]
fn nobody_gets_beyond_the_end_of_a_disk_that_was_shrunk() {
    let mut disk = Disk::new("n");
    // One that was told, and one that believes what it was told at the beginning.
    let mut guest = disk.stage.guest();
    for mib in 0..8 {
        assert_eq!(status(&mut guest, &write(mib * MIB_SECTORS)), OK);
    }
    disk.resize(4);
    let end = 4 * MIB_SECTORS;
    for sector in [end - 1, end, end + 1, 8 * MIB_SECTORS - 8, 8 * MIB_SECTORS] {
        for request in each_kind(sector) {
            let kind = request.kind;
            assert_eq!(
                status(&mut guest, &request),
                IOERR,
                "kind {kind} at {sector}"
            );
        }
    }
    assert_eq!(disk.path.metadata().unwrap().len(), 4 * MIB);
    let last = guest.run(0, &Request::read(end - 8, 4096)).unwrap();
    assert_eq!((last.status, last.data), (OK, vec![0; 4096]));
    disk.resize(8);
    assert!(disk.is_zero_from(4), "what was cut off does not come back");
    let kept = guest.run(0, &Request::read(3 * MIB_SECTORS, 4096)).unwrap();
    assert_eq!((kept.status, kept.data), (OK, vec![0x5a; 4096]));
}

/// What was under way is done on the disk that it was asked of, and cut off afterwards; what comes meanwhile is done or refused,
/// and what comes after that refused.
#[test]
fn requests_in_flight_across_a_shrink_end_and_leave_nothing_beyond_the_end() {
    let mut disk = Disk::new("d");
    let mut guest = disk.stage.guest();
    let under_way: Vec<Pending> = begin(&mut guest, 8);
    wait_until_taken(&guest);
    let size = json!({"execute": "block_resize", "arguments": {"node-name": "d", "size": 4 * MIB}});
    disk.stage.qmp.send(&size).unwrap();
    let meanwhile = begin(&mut guest, 8);
    let answer = disk.stage.qmp.read(Instant::now() + patience()).unwrap();
    assert_eq!(answer["return"], json!({}), "{answer}");
    let after = begin(&mut guest, 8);
    for _ in 0..24 {
        guest.rings[0].wait(Instant::now() + patience()).unwrap();
        guest.rings[0].pop().unwrap();
    }
    let status_of = |all: Vec<Pending>| all.into_iter().map(|one| guest.done(one, 0).status);
    assert!(status_of(under_way).all(|status| status == OK));
    assert!(status_of(meanwhile).all(|status| [OK, IOERR].contains(&status)));
    assert!(status_of(after).all(|status| status == IOERR));
    assert_eq!(disk.path.metadata().unwrap().len(), 4 * MIB);
    disk.resize(8);
    assert!(disk.is_zero_from(4));
}

/// Writes in the upper half of 8 MiB.
fn begin(guest: &mut Guest, count: u64) -> Vec<Pending> {
    let sectors = (0..count).map(|n| 4 * MIB_SECTORS + n * 8);
    let pending = sectors.map(|sector| guest.add(0, &write(sector))).collect();
    guest.submit(0);
    pending
}

/// With EVENT_IDX the queue asks to be told of the next chain once it has taken all that were offered.
fn wait_until_taken(guest: &Guest) {
    let ring = &guest.rings[0];
    let event = ring.place.used + 4 + 8 * u64::from(ring.size);
    let deadline = Instant::now() + patience();
    while guest.memory.read(event, 2) != [8, 0] {
        assert!(Instant::now() < deadline, "the requests are not taken");
        std::thread::yield_now();
    }
}

#[test]
fn a_front_end_without_a_channel_or_with_one_that_is_closed_or_full_is_safe() {
    let mut disk = Disk::new("n");
    let mut without = disk.stage.guest();
    disk.resize(6);
    assert_eq!(status(&mut without, &write(6 * MIB_SECTORS)), IOERR);
    assert_eq!(capacity(&mut without), 6 * MIB_SECTORS);
    drop(without);
    let (mut guest, channel) = guest_with_channel(&disk);
    drop(channel);
    disk.resize(7);
    disk.resize(5);
    assert_eq!(status(&mut guest, &write(5 * MIB_SECTORS)), IOERR);
    assert_eq!(status(&mut guest, &write(0)), OK);
    drop(guest);
    let (mut guest, mut full) = guest_with_channel(&disk);
    // A socket of the default size takes some 300 messages.
    for sectors in 1..1000 {
        let size = json!({"node-name": "n", "size": 5 * MIB + sectors * 512});
        disk.stage.qmp.succeed("block_resize", size);
    }
    assert_eq!(capacity(&mut guest), 5 * MIB_SECTORS + 999);
    assert_eq!(status(&mut guest, &write(0)), OK);
    full.set_nonblocking(true).unwrap();
    let mut messages = Vec::new();
    let ended = full
        .read_to_end(&mut messages)
        .map_err(|error| error.kind());
    assert_eq!(ended, Err(ErrorKind::WouldBlock), "it is open still");
    assert_eq!(messages.len() % 12, 0, "no message is cut");
    assert!(messages.len() < 999 * 12, "it was full");
    // And it is told again now that there is room.
    full.set_nonblocking(false).unwrap();
    disk.resize(8);
    is_told(&mut full);
}
