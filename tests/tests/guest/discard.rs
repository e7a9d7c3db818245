//! Discard and write-zeroes in a real guest. The rule: what the guest reads as zero is zero in the host's file, and the neighbours keep every byte.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use tests::daemon::{Daemon, Disk, Kind};
use tests::disk_file::DiskFile;
use tests::guest::{Guest, GuestSpec};

const MIB: u64 = 1 << 20;
const LEN_BYTES: u64 = 64 * MIB;

/// A part of the disk the guest asks to be dropped or zeroed.
struct Region {
    at: u64,
    len_bytes: u64,
}

impl Region {
    fn end(&self) -> u64 {
        self.at + self.len_bytes
    }
}

/// Whole blocks of the host.
const DISCARDED: Region = Region {
    at: 8 * MIB,
    len_bytes: 8 * MIB,
};
/// Begins and ends inside blocks of the host.
const DISCARDED_ODD: Region = Region {
    at: 20 * MIB + 512,
    len_bytes: 3 * MIB + 1536,
};
const ZEROED: Region = Region {
    at: 32 * MIB,
    len_bytes: 8 * MIB,
};
const ZEROED_ODD: Region = Region {
    at: 44 * MIB + 1536,
    len_bytes: 5 * MIB + 512,
};
const ALL: [Region; 4] = [DISCARDED, DISCARDED_ODD, ZEROED, ZEROED_ODD];

/// The digests of everything between the regions, in order.
fn neighbours(disk: &DiskFile) -> Vec<String> {
    let starts = [0].into_iter().chain(ALL.iter().map(Region::end));
    let ends = ALL.iter().map(|r| r.at).chain([LEN_BYTES]);
    starts
        .zip(ends)
        .map(|(from, to)| disk.sha256(from, to - from).unwrap())
        .collect()
}

#[test]
fn discarded_and_zeroed_regions_read_zero_on_both_sides_and_neighbours_stay() {
    let disk = DiskFile::patterned(LEN_BYTES, 2).unwrap();
    let before = neighbours(&disk);
    let full = disk.allocated_bytes().unwrap();
    let daemon = Daemon::serve(Kind::from_env(), &[Disk::new(disk.path())]).unwrap();
    let mut guest = Guest::boot(&GuestSpec::new().disk(daemon.socket(0))).unwrap();

    for (option, region) in [
        ("", &DISCARDED),
        ("", &DISCARDED_ODD),
        ("-z", &ZEROED),
        ("-z", &ZEROED_ODD),
    ] {
        let (at, len_bytes) = (region.at, region.len_bytes);
        guest
            .check(&format!(
                "blkdiscard {option} -o {at} -l {len_bytes} /dev/vda"
            ))
            .unwrap();
    }
    let mut seen = Vec::new();
    for region in &ALL {
        let (skip, count) = (region.at / 512, region.len_bytes / 512);
        let not_zero = format!(
            "dd if=/dev/vda bs=512 skip={skip} count={count} 2>/dev/null | tr -d '\\000' | wc -c"
        );
        seen.push(guest.check(&not_zero).unwrap());
    }
    let sums = guest.check("sha256sum /dev/vda").unwrap();

    guest.power_off().unwrap();
    daemon.stop().unwrap();
    assert_eq!(seen, ["0"; 4], "bytes not zero, per region, in the guest");
    for region in &ALL {
        assert!(
            disk.is_zero(region.at, region.len_bytes).unwrap(),
            "on the host at {}",
            region.at
        );
    }
    assert_eq!(neighbours(&disk), before);
    assert!(
        sums.starts_with(&disk.sha256(0, LEN_BYTES).unwrap()),
        "the guest read {sums}"
    );
    let left = disk.allocated_bytes().unwrap();
    assert!(
        left + DISCARDED.len_bytes <= full,
        "discard: {full} to {left} bytes"
    );
}
