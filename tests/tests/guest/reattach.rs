//! One daemon outlives its guests: a reset of the machine under load, its end, and another QEMU on the same socket.

use tests::daemon::{Daemon, Disk, Kind};
use tests::disk_file::DiskFile;
use tests::guest::{Guest, GuestSpec};

const MIB: u64 = 1 << 20;
const LEN_BYTES: u64 = 64 * MIB;
/// What is written first and must be there ever after.
const KEPT_BYTES: u64 = 16 * MIB;

/// Writes the kept part and prints its digest as the guest reads it back from the disk.
const WRITE: &str =
    "dd if=/dev/urandom of=/dev/vda bs=1M count=16 oflag=direct conv=notrunc,fsync 2>/dev/null";
const READ: &str = "echo 3 >/proc/sys/vm/drop_caches; head -c 16777216 /dev/vda | sha256sum";

/// Keeps the rest of the disk busy while the guest goes down; returns once requests are on their way.
const LOAD: &str = "fio --name=load --filename=/dev/vda --direct=1 --ioengine=libaio --iodepth=32 --numjobs=4 \
    --rw=randwrite --bs=4k --offset=16M --size=48M --time_based --runtime=600 --eta=never >/dev/null 2>&1 &
    before=$(awk '{ print $7 }' /sys/block/vda/stat)
    until [ $(awk '{ print $7 }' /sys/block/vda/stat) -gt $((before + 4000)) ]; do sleep 0.1; done";

#[test]
fn reset_under_load_and_a_second_qemu_find_what_was_written() {
    let disk = DiskFile::sparse(LEN_BYTES).unwrap();
    let daemon = Daemon::serve_file(Kind::from_env(), &Disk::new(disk.path())).unwrap();
    let spec = GuestSpec::new().disk(daemon.socket(0));

    let mut guest = Guest::boot(&spec).unwrap();
    guest.check(WRITE).unwrap();
    let written = guest.check(READ).unwrap();
    guest.check(LOAD).unwrap();
    guest.reboot().unwrap();
    assert_eq!(guest.check(READ).unwrap(), written, "after the reset");
    guest.check(LOAD).unwrap();
    // As a crash of the machine: QEMU is killed with requests in flight.
    drop(guest);

    let mut guest = Guest::boot(&spec).unwrap();
    assert_eq!(guest.check(READ).unwrap(), written, "from the second QEMU");
    guest
        .check("echo -n again | dd of=/dev/vda bs=512 seek=8 conv=notrunc,fsync 2>/dev/null")
        .unwrap();
    let changed = guest.check(READ).unwrap();
    let all = guest.check("sha256sum /dev/vda").unwrap();
    guest.power_off().unwrap();

    daemon.stop().unwrap();
    assert_ne!(changed, written);
    assert!(
        changed.starts_with(&disk.sha256(0, KEPT_BYTES).unwrap()),
        "the guest read {changed}"
    );
    assert!(
        all.starts_with(&disk.sha256(0, LEN_BYTES).unwrap()),
        "the guest read {all}"
    );
}
