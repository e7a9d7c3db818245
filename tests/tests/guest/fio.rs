//! fio in a real guest: mixed block sizes on four queues, verified in the guest and compared with the host's file.

use tests::daemon::{Daemon, Disk, Kind};
use tests::disk_file::DiskFile;
use tests::guest::{Guest, GuestSpec, QUEUES};

const LEN_BYTES: u64 = 128 << 20;
const REGION_BYTES: u64 = LEN_BYTES / QUEUES as u64;

/// One job per queue, each on its own quarter of the disk. Sizes are 512 B to 1 MiB, so most requests share pages with their neighbours.
fn mixed_write_and_verify(seed: u64) -> String {
    let sizes = "512/25:4k/25:7680/10:64k/20:100k/10:256k/5:1M/5";
    format!(
        "fio --name=mixed --filename=/dev/vda --direct=1 --ioengine=libaio --iodepth=32 \
         --numjobs={QUEUES} --size={REGION_BYTES} --offset_increment={REGION_BYTES} \
         --rw=randwrite --bssplit={sizes} --blockalign=512 --randseed={seed} \
         --verify=crc32c --do_verify=1 --verify_fatal=1 --eta=never --group_reporting --minimal"
    )
}

#[test]
fn fio_verifies_mixed_block_sizes_on_four_queues_and_the_file_agrees() {
    let seed = 0x5eed_0001;
    println!("seed {seed:#x}");
    let disk = DiskFile::sparse(LEN_BYTES).unwrap();
    let daemon = Daemon::serve_file(Kind::from_env(), &Disk::new(disk.path())).unwrap();
    let mut guest = Guest::boot(&GuestSpec::new().disk(daemon.socket(0))).unwrap();

    let queues = guest.check("ls /sys/block/vda/mq | wc -l").unwrap();
    assert_eq!(queues, QUEUES.to_string());
    guest.check(&mixed_write_and_verify(seed)).unwrap();
    // Each queue interrupts a processor of its own, so each of their lines must show a count other than 0.
    let busy = guest
        .check("grep -c ' [1-9][0-9]* .*virtio0-req' /proc/interrupts")
        .unwrap();
    let sums = guest.check("sha256sum /dev/vda").unwrap();

    guest.power_off().unwrap();
    daemon.stop().unwrap();
    assert_eq!(busy, QUEUES.to_string(), "queues that interrupted");
    assert!(!disk.is_zero(0, LEN_BYTES).unwrap());
    assert!(
        sums.starts_with(&disk.sha256(0, LEN_BYTES).unwrap()),
        "the guest read {sums}"
    );
}
