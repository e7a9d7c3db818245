//! Two disks of one daemon in one guest, written at the same time: neither gets a byte of the other's.
//!
//! One goes through threads and the host's page cache, the other past it by io_uring, so both ways into a file run with a real guest.

use tests::daemon::{Daemon, Disk, Engine, Kind};
use tests::disk_file::DiskFile;
use tests::guest::{Guest, GuestSpec};

/// Of different sizes, so that the guest's names for them can be told apart.
const FIRST_BYTES: u64 = 32 << 20;
const SECOND_BYTES: u64 = 48 << 20;

/// Both jobs run at once; their blocks carry their own offset and seed.
const WRITE_BOTH: &str = "cat >/tmp/both.fio <<END
[global]
direct=1
ioengine=libaio
iodepth=16
rw=randwrite
bssplit=512/20:4k/40:7680/10:64k/20:256k/10
blockalign=512
verify=crc32c
do_verify=1
verify_fatal=1
[first]
filename=/dev/vda
verify_pattern=0x11111111
[second]
filename=/dev/vdb
verify_pattern=0x22222222
END
fio --eta=never --minimal /tmp/both.fio";

#[test]
fn two_disks_of_one_process_keep_their_bytes_apart() {
    let first = DiskFile::sparse(FIRST_BYTES).unwrap();
    let second = DiskFile::sparse(SECOND_BYTES).unwrap();
    let (mut threads, mut direct) = (Disk::new(first.path()), Disk::new(second.path()));
    threads.engine = Engine::Threads;
    direct.engine = Engine::DirectUring;
    let daemon = Daemon::serve(Kind::from_env(), &[threads, direct]).unwrap();
    let spec = GuestSpec::new()
        .disk(daemon.socket(0))
        .disk(daemon.socket(1));
    let mut guest = Guest::boot(&spec).unwrap();

    let sizes = guest
        .check("blockdev --getsize64 /dev/vda; blockdev --getsize64 /dev/vdb")
        .unwrap();
    assert_eq!(sizes, format!("{FIRST_BYTES}\n{SECOND_BYTES}"));
    guest.check(WRITE_BOTH).unwrap();
    let sums = guest
        .check("sha256sum /dev/vda; sha256sum /dev/vdb")
        .unwrap();

    guest.power_off().unwrap();
    daemon.stop().unwrap();
    let first_sum = first.sha256(0, FIRST_BYTES).unwrap();
    let second_sum = second.sha256(0, SECOND_BYTES).unwrap();
    assert_ne!(first_sum, second_sum);
    assert_eq!(
        sums,
        format!("{first_sum}  /dev/vda\n{second_sum}  /dev/vdb")
    );
}
