//! The daemon is killed under a guest's load and started again: fio, which verifies all it wrote and flushes nothing, and the
//! kernel notice nothing.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::path::Path;
use std::time::{Duration, Instant};
use tests::daemon::{Daemon, Kind};
use tests::disk_file::DiskFile;
use tests::guest::{Guest, GuestSpec};
use tests::qemu_img;

const LEN_BYTES: u64 = 64 << 20;
/// The daemon is killed so often, or until the load ends.
const KILLS_MAX: usize = 8;
const KILLS_MIN: usize = 4;
const RELEASE_LIMIT: Duration = Duration::from_secs(10);

/// Two jobs with many requests in flight; each writes its part and reads it again, over and over.
const LOAD: &str = "(fio --name=load --filename=/dev/vda --direct=1 --ioengine=libaio --iodepth=32 --numjobs=2 \
    --offset_increment=32M --size=12M --rw=randwrite --bs=4k --loops=4 --verify=crc32c --verify_fatal=1 \
    --eta=never >/tmp/fio.out 2>&1; echo $? >/tmp/fio.rc) &
    until [ $(awk '{ print $7 }' /sys/block/vda/stat) -gt 4000 ]; do sleep 0.1; done";

fn daemon(disk: &Path, socket: &Path) -> Daemon {
    let node = format!(
        "driver=qcow2,node-name=disk,file.driver=file,file.filename={}",
        disk.display()
    );
    let export = format!(
        "type=vhost-user-blk,id=guest,node-name=disk,writable=on,addr.type=unix,addr.path={},num-queues=4",
        socket.display()
    );
    let words = ["--blockdev", &node, "--export", &export];
    let until = Instant::now() + RELEASE_LIMIT;
    loop {
        match Daemon::with_monitor(Kind::Virtioblkd, &words) {
            Ok(daemon) => return daemon,
            Err(error) if error.to_string().contains("lock") && Instant::now() < until => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Waits until the guest has done so many more requests, or its load is over; says which.
fn goes_on(guest: &mut Guest) -> bool {
    let printed = guest.check(
        "done_now() { awk '{ print $1 + $5 }' /sys/block/vda/stat; }
         goal=$(($(done_now) + 1500))
         until [ -e /tmp/fio.rc ] || [ $(done_now) -gt $goal ]; do sleep 0.1; done
         if [ -e /tmp/fio.rc ]; then echo over; else echo on; fi",
    );
    printed.unwrap().trim() == "on"
}

#[test]
fn a_guest_does_not_notice_that_its_daemon_was_killed() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("guest.sock");
    let disk = dir.path().join("disk.qcow2");
    qemu_img::create(&disk, LEN_BYTES);
    let mut current = daemon(&disk, &socket);
    let spec = GuestSpec::new().disk(&socket).reconnecting();
    let mut guest = Guest::boot(&spec).unwrap();
    guest.check(LOAD).unwrap();
    let mut kills = 0;
    while kills < KILLS_MAX && goes_on(&mut guest) {
        // As `kill -9`.
        drop(current);
        current = daemon(&disk, &socket);
        kills += 1;
    }
    println!("{kills} kills");
    assert!(kills >= KILLS_MIN);
    guest
        .check("until [ -e /tmp/fio.rc ]; do sleep 0.1; done; cat /tmp/fio.out; [ $(cat /tmp/fio.rc) = 0 ]")
        .unwrap();
    let told = guest.check("dmesg | grep -c -i 'I/O error' || true");
    assert_eq!(told.unwrap().trim(), "0");
    let read = guest
        .check("echo 3 >/proc/sys/vm/drop_caches; sha256sum /dev/vda >/tmp/sum; cat /tmp/sum")
        .unwrap();
    guest.power_off().unwrap();
    current.stop().unwrap();
    qemu_img::check(&disk);
    let raw = DiskFile::sparse(LEN_BYTES).unwrap();
    std::fs::write(raw.path(), qemu_img::flat(&disk)).unwrap();
    assert!(read.starts_with(&raw.sha256(0, LEN_BYTES).unwrap()));
}
