//! A read-only disk in a real guest. The rule: every way to write fails in the guest, and the host's file stays as it was.

use tests::daemon::{Daemon, Disk, Kind};
use tests::disk_file::DiskFile;
use tests::guest::{Guest, GuestSpec};

const LEN_BYTES: u64 = 16 << 20;

#[test]
fn read_only_disk_refuses_writes_and_stays_untouched() {
    let disk = DiskFile::patterned(LEN_BYTES, 1).unwrap();
    let before = disk.sha256(0, LEN_BYTES).unwrap();
    let daemon = Daemon::serve_file(Kind::from_env(), &Disk::read_only(disk.path())).unwrap();
    let mut guest = Guest::boot(&GuestSpec::new().disk(daemon.socket(0))).unwrap();

    assert_eq!(guest.check("cat /sys/block/vda/ro").unwrap(), "1");
    for write in [
        "dd if=/dev/urandom of=/dev/vda bs=4096 count=4 oflag=direct conv=notrunc",
        "dd if=/dev/urandom of=/dev/vda bs=4096 count=4 conv=notrunc,fsync",
        "mkfs.ext4 -F -q /dev/vda",
        "blkdiscard /dev/vda",
        "blkdiscard -z /dev/vda",
        // Allows what the driver forbade, where the kernel lets it; the daemon must refuse by itself.
        "blockdev --setrw /dev/vda && dd if=/dev/urandom of=/dev/vda bs=4096 count=4 oflag=direct",
    ] {
        let output = guest.run(write).unwrap();
        assert_ne!(output.exit_code, 0, "{write} succeeded: {}", output.text);
    }
    let seen = guest.check("sha256sum /dev/vda").unwrap();

    guest.power_off().unwrap();
    daemon.stop().unwrap();
    assert!(seen.starts_with(&before), "the guest read {seen}");
    assert_eq!(disk.sha256(0, LEN_BYTES).unwrap(), before);
}
