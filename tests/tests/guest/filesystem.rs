//! A file system in a real guest: made, filled, mounted again, checked, trimmed; then checked once more on the host's file.

use std::process::Command;
use tests::daemon::{Daemon, Disk, Kind};
use tests::disk_file::DiskFile;
use tests::guest::{Guest, GuestSpec};

const LEN_BYTES: u64 = 256 << 20;
/// The tree the guest copies holds fio's libraries: some 80 MB in some hundred files.
const TREE: &str = "/lib/x86_64-linux-gnu";
/// What deleting that tree must give back at least; the rest is slack for metadata and for files that grow shorter.
const FREED_BYTES_MIN: u64 = 48 << 20;

#[test]
fn ext4_survives_copy_remount_and_fsck_and_fstrim_frees_host_blocks() {
    let disk = DiskFile::sparse(LEN_BYTES).unwrap();
    let daemon = Daemon::serve(Kind::from_env(), &[Disk::new(disk.path())]).unwrap();
    let mut guest = Guest::boot(&GuestSpec::new().disk(daemon.socket(0))).unwrap();

    let fill = format!(
        "mkfs.ext4 -q /dev/vda; mount -t ext4 /dev/vda /mnt
         cp -a {TREE} /mnt/first; cp -a {TREE} /mnt/second; umount /mnt"
    );
    guest.check(&fill).unwrap();
    let compare = format!(
        "echo 3 >/proc/sys/vm/drop_caches; mount -t ext4 /dev/vda /mnt
         diff -r {TREE} /mnt/first; diff -r {TREE} /mnt/second; umount /mnt; e2fsck -f -n /dev/vda"
    );
    guest.check(&compare).unwrap();
    let full = disk.allocated_bytes().unwrap();

    guest
        .check("mount -t ext4 /dev/vda /mnt; rm -r /mnt/first; sync; fstrim -v /mnt")
        .unwrap();
    let trimmed = disk.allocated_bytes().unwrap();
    let after_trim = format!(
        "umount /mnt; e2fsck -f -n /dev/vda; echo 3 >/proc/sys/vm/drop_caches
         mount -t ext4 -o ro /dev/vda /mnt; diff -r {TREE} /mnt/second; umount /mnt"
    );
    guest.check(&after_trim).unwrap();
    let sums = guest.check("sha256sum /dev/vda").unwrap();

    guest.power_off().unwrap();
    daemon.stop().unwrap();
    println!("host bytes: {full} full, {trimmed} trimmed");
    assert!(
        trimmed + FREED_BYTES_MIN <= full,
        "fstrim: {full} to {trimmed} bytes"
    );
    assert!(
        sums.starts_with(&disk.sha256(0, LEN_BYTES).unwrap()),
        "the guest read {sums}"
    );
    let check = Command::new("e2fsck")
        .arg("-fn")
        .arg(disk.path())
        .output()
        .unwrap();
    assert!(check.status.success(), "{check:?}");
}
