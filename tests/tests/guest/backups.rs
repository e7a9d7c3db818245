//! `virtioblkd backup` of a guest's disk: a full one, twenty increments, and what comes after the daemon was killed.
//!
//! The rule: the guest says what its disk held, twice over. Of one part it prints the digest, having let it rest for the backup;
//! another it goes on writing, block by block with the time in each, so that a copy of it is of one instant or is found out.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tests::daemon::{Daemon, Kind};
use tests::guest::{Guest, GuestSpec};
use tests::qemu_img;

const MIB: u64 = 1 << 20;
const LEN_BYTES: u64 = 64 * MIB;
/// Written between backups; the guest prints the digest of it.
const RESTS_BYTES: u64 = 4 * MIB;
/// Written once, so that there is something that increments need not have.
const KEPT_AT: u64 = 24 * MIB;
const KEPT_BYTES: u64 = 8 * MIB;
/// Written all the time.
const STREAM_AT: u64 = 48 * MIB;
const STREAM_BYTES: u64 = MIB;
const BLOCK: usize = 4096;
const INCREMENTS: usize = 20;
const RELEASE_LIMIT: Duration = Duration::from_secs(10);

/// A daemon with the guest's disk. Its end is that of `kill -9`.
struct Stage<'a> {
    dir: &'a Path,
    daemon: Daemon,
}

impl Stage<'_> {
    fn new(dir: &Path) -> Stage<'_> {
        let (disk, socket) = (dir.join("disk.qcow2"), socket(dir));
        let node = format!(
            "driver=qcow2,node-name=disk,file.driver=file,file.filename={},x-bitmap-journal={}",
            disk.display(),
            dir.join("journal").display()
        );
        let export = format!(
            "type=vhost-user-blk,id=guest,node-name=disk,writable=on,addr.type=unix,addr.path={},num-queues=4",
            socket.display()
        );
        let words = ["--blockdev", &node, "--export", &export];
        let until = Instant::now() + RELEASE_LIMIT;
        loop {
            match Daemon::with_monitor(Kind::Virtioblkd, &words) {
                Ok(daemon) => return Stage { dir, daemon },
                // The kernel lets go of the files of a process that was killed, and of their locks, when it comes to it.
                Err(error) if error.to_string().contains("lock") && Instant::now() < until => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Backs up once more; says what kind it was.
    fn back_up(&self) -> String {
        let output = Command::new(Kind::Virtioblkd.program().unwrap())
            .args(["backup", "--node", "disk", "--qmp"])
            .arg(self.daemon.directory().join("qmp.sock"))
            .arg("--to")
            .arg(backups(self.dir))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{said}{output:?}");
        let (_, kind) = said.split_once('(').unwrap();
        kind.split_once(')').unwrap().0.to_owned()
    }
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("guest.sock")
}

fn backups(dir: &Path) -> PathBuf {
    dir.join("backups")
}

/// Begins the stream, and waits until there is one everywhere. Nothing is flushed: what a daemon that is killed had in memory of the
/// image's map, the next one takes up.
fn begin(guest: &mut Guest) {
    let (kept_mib, count) = (KEPT_AT / MIB, KEPT_BYTES / MIB);
    let blocks = STREAM_BYTES / BLOCK as u64;
    guest
        .check(&format!(
            "dd if=/dev/urandom of=/dev/vda bs=1M seek={kept_mib} count={count} oflag=direct conv=notrunc 2>/dev/null
             before=$(awk '{{ print $5 }}' /sys/block/vda/stat)
             fio --name=stream --filename=/dev/vda --direct=1 --ioengine=psync --rw=write --bs={BLOCK} \
                 --offset={STREAM_AT} --size={STREAM_BYTES} --time_based --runtime=900 --rate_iops=150 \
                 --verify=crc32c --do_verify=0 --eta=never --minimal >/tmp/stream.out 2>&1 &
             echo $! >/tmp/stream.pid
             until [ $(awk '{{ print $5 }}' /sys/block/vda/stat) -gt $((before + {blocks} + 100)) ]; do sleep 0.1; done"
        ))
        .unwrap();
}

/// Writes here and there in the part that will rest, and returns its digest.
fn write_and_rest(guest: &mut Guest, round: u64) -> String {
    let (count, blocks) = (RESTS_BYTES / MIB, RESTS_BYTES / BLOCK as u64);
    // The multiplier has no divisor in common with the number of blocks: rounds write different ones, and the same again.
    let printed = guest.check(&format!(
        "for nth in 0 1 2 3 4 5; do
             dd if=/dev/urandom of=/dev/vda bs={BLOCK} seek=$((({round} * 7 + nth) * 389 % ({blocks} - 3))) count=3 \
                oflag=direct conv=notrunc 2>/dev/null
         done
         kill -0 $(cat /tmp/stream.pid)
         dd if=/dev/vda bs=1M count={count} iflag=direct 2>/dev/null | sha256sum"
    ));
    first_word(&printed.unwrap())
}

fn first_word(text: &str) -> String {
    let mut words = text.split_whitespace();
    words.next().unwrap_or_default().to_owned()
}

fn restore(dir: &Path, number: usize) -> PathBuf {
    let image = dir.join("restored.raw");
    let _ = std::fs::remove_file(&image);
    let output = Command::new(Kind::Virtioblkd.program().unwrap())
        .args(["backup", "--restore"])
        .arg(backups(dir))
        .args(["--point", &number.to_string(), "--to"])
        .arg(&image)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    image
}

fn sha256_of_first(image: &[u8]) -> String {
    use std::io::Write;
    let mut sum = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = sum.stdin.take().unwrap();
    stdin.write_all(&image[..RESTS_BYTES as usize]).unwrap();
    drop(stdin);
    let output = sum.wait_with_output().unwrap();
    first_word(&String::from_utf8(output.stdout).unwrap())
}

/// When each block of the stream was written, by the headers that fio gives blocks it can verify (`struct verify_header`).
fn times(image: &[u8]) -> Vec<(u32, u32)> {
    const MAGIC: u16 = 0xacca;
    let stream = &image[STREAM_AT as usize..(STREAM_AT + STREAM_BYTES) as usize];
    let time = |(nth, block): (usize, &[u8])| {
        let word = |at: usize| u32::from_le_bytes(block[at..at + 4].try_into().unwrap());
        let offset = u64::from_le_bytes(block[16..24].try_into().unwrap());
        assert_eq!(u16::from_le_bytes([block[0], block[1]]), MAGIC, "{nth}");
        assert_eq!(offset, STREAM_AT + (nth * BLOCK) as u64);
        (word(24), word(28))
    };
    stream.chunks(BLOCK).enumerate().map(time).collect()
}

/// The blocks were written one after the other and round and round: up to some block they are of this round, and the others
/// are of the one before.
fn is_of_one_instant(times: &[(u32, u32)]) -> bool {
    let next = times.iter().cycle().skip(1);
    times
        .iter()
        .zip(next)
        .filter(|(one, next)| one >= next)
        .count()
        == 1
}

/// Every block of the stream is whole, says fio.
fn verify_stream(image: &Path) {
    let output = Command::new("fio")
        .arg(format!("--filename={}", image.display()))
        .args([
            "--name=stream",
            "--rw=read",
            "--verify=crc32c",
            "--eta=never",
            "--minimal",
        ])
        .args([
            format!("--offset={STREAM_AT}"),
            format!("--size={STREAM_BYTES}"),
        ])
        .arg(format!("--bs={BLOCK}"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_full_backup_and_increments_under_load_are_what_the_guest_saw_also_after_a_crash() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    qemu_img::create(&dir.join("disk.qcow2"), LEN_BYTES);
    let stage = Stage::new(dir);
    let spec = GuestSpec::new().disk(socket(dir)).reconnecting();
    let mut guest = Guest::boot(&spec).unwrap();
    begin(&mut guest);
    let mut expected: Vec<(String, String)> = Vec::new();
    let mut round = |stage: &Stage<'_>, kind: &str| {
        let digest = write_and_rest(&mut guest, expected.len() as u64);
        assert_eq!(stage.back_up(), kind, "backup {}", expected.len());
        expected.push((kind.to_owned(), digest));
    };
    round(&stage, "full");
    for _ in 0..INCREMENTS {
        round(&stage, "incremental");
    }
    // Killed under the stream, which waits for the next daemon. That has the record of changes from the journal: it is no less than
    // what was written, and the increment less than the whole.
    drop(stage);
    let stage = Stage::new(dir);
    round(&stage, "incremental");
    round(&stage, "incremental");
    guest.check("kill $(cat /tmp/stream.pid); sync").unwrap();
    guest.power_off().unwrap();
    assert_eq!(stage.daemon.stop().unwrap(), "");

    let digests = expected.iter().map(|(_, digest)| digest);
    let differing = digests.collect::<BTreeSet<_>>().len();
    assert_eq!(differing, expected.len());
    let mut last = Vec::new();
    let len = |number: usize, kind: &str| {
        let file = backups(dir).join(format!("{number:04}-{kind}.qcow2"));
        std::fs::metadata(file).unwrap().len()
    };
    for (number, (kind, digest)) in expected.iter().enumerate() {
        let path = restore(dir, number);
        let image = std::fs::read(&path).unwrap();
        assert_eq!(image.len() as u64, LEN_BYTES);
        assert_eq!(sha256_of_first(&image), *digest, "backup {number}");
        let times = times(&image);
        assert!(is_of_one_instant(&times), "backup {number}: {times:?}");
        verify_stream(&path);
        // Time goes on, and with it the disk.
        assert!(times.iter().max() > last.iter().max(), "backup {number}");
        last = times;
        if kind == "incremental" {
            assert!(len(number, kind) < len(0, "full"), "backup {number}");
        }
    }
}

#[test]
fn a_stream_of_two_instants_is_found_out() {
    let time = |at: u32| (at / 10, at % 10);
    let mut times: Vec<_> = (20..32).chain(8..20).map(time).collect();
    assert!(is_of_one_instant(&times));
    times.rotate_left(5);
    assert!(is_of_one_instant(&times));
    // One block was left out, or taken too late.
    for nth in [1, 2, 8, 20] {
        let mut torn = times.clone();
        torn[nth] = time(if torn[nth] < time(20) { 60 } else { 0 });
        assert!(!is_of_one_instant(&torn), "{nth}");
    }
}
