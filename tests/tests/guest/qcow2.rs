//! A file system on a qcow2 overlay in a real guest, with copy-on-read and a throttle group between. The rule: the base
//! stays as it is to the byte, and the overlay is judged by QEMU's own tools.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tests::daemon::{Daemon, Kind};
use tests::disk_file::DiskFile;
use tests::guest::{Guest, GuestSpec};
use tests::qemu_img::qemu_img;

const MIB: u64 = 1 << 20;
const LEN_BYTES: u64 = 256 * MIB;
/// The file system has the first half; fio writes and verifies the next quarter.
const FIO_AT: u64 = 128 * MIB;
/// The guest reads this of what only the base has, and nothing behind it.
const READ_AT: u64 = 192 * MIB;
const READ_BYTES: u64 = 32 * MIB;
/// What the guest copies: fio's libraries, some 80 MB.
const TREE: &str = "/lib/x86_64-linux-gnu";
const SEED: u64 = 0x9c02;

/// Base and overlay, in the directory of the raw disk that the base was made of.
struct Images {
    raw: DiskFile,
    base: PathBuf,
    overlay: PathBuf,
}

impl Images {
    fn new() -> Images {
        println!("seed {SEED:#x}");
        let raw = DiskFile::patterned(LEN_BYTES, SEED).unwrap();
        let base = raw.path().with_file_name("base.qcow2");
        let overlay = raw.path().with_file_name("overlay.qcow2");
        let (from, to) = (raw.path().to_str().unwrap(), base.to_str().unwrap());
        qemu_img(["convert", "-f", "raw", "-O", "qcow2", from, to]).unwrap();
        let on = overlay.to_str().unwrap();
        qemu_img(["create", "-f", "qcow2", "-b", to, "-F", "qcow2", on]).unwrap();
        Images { raw, base, overlay }
    }

    fn serve(&self, kind: Kind) -> Daemon {
        let (base, overlay) = (self.base.display(), self.overlay.display());
        let arguments = [
            // Reached by fio now and then, and by nothing else.
            "--object",
            "throttle-group,id=group,limits.iops-total=2000,limits.iops-total-max=8000",
            "--blockdev",
            &format!("driver=file,node-name=base-file,filename={base},read-only=on"),
            "--blockdev",
            "driver=qcow2,node-name=base,file=base-file,read-only=on",
            "--blockdev",
            &format!("driver=file,node-name=file,filename={overlay},discard=unmap"),
            "--blockdev",
            "driver=qcow2,node-name=overlay,file=file,backing=base,discard=unmap",
            "--blockdev",
            "driver=copy-on-read,node-name=copying,file=overlay,discard=unmap",
            "--blockdev",
            "driver=throttle,node-name=top,throttle-group=group,file=copying,discard=unmap",
        ];
        Daemon::serve_graph(kind, &arguments, "top").unwrap()
    }
}

fn sha256_of(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    first_word(&String::from_utf8(output.stdout).unwrap())
}

fn first_word(text: &str) -> String {
    text.split_whitespace()
        .next()
        .unwrap_or_default()
        .to_owned()
}

/// The digest of a file inside an ext4 image, read by the tools of the host.
fn sha256_inside(image: &Path, file: &str) -> String {
    let mut debugfs = Command::new("/sbin/debugfs");
    debugfs.arg("-R").arg(format!("cat {file}")).arg(image);
    let content = debugfs.stderr(Stdio::null()).output().unwrap().stdout;
    assert!(!content.is_empty(), "{file} is empty in {image:?}");
    let mut sum = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    sum.stdin.take().unwrap().write_all(&content).unwrap();
    let output = sum.wait_with_output().unwrap();
    first_word(&String::from_utf8(output.stdout).unwrap())
}

/// How many of these bytes the overlay itself has, by qemu-img.
fn own_bytes(overlay: &Path, at: u64, len_bytes: u64) -> u64 {
    let (at, len_bytes) = (at.to_string(), len_bytes.to_string());
    let map = qemu_img([
        "map".as_ref(),
        "--output=json".as_ref(),
        "-s".as_ref(),
        at.as_ref(),
        "-l".as_ref(),
        len_bytes.as_ref(),
        overlay.as_os_str(),
    ]);
    let map: Value = serde_json::from_str(&map.unwrap()).unwrap();
    let own = map.as_array().unwrap().iter().filter(|e| e["depth"] == 0);
    own.map(|extent| extent["length"].as_u64().unwrap()).sum()
}

fn fill(guest: &mut Guest) {
    let (fs_mib, fio_len) = (FIO_AT / MIB, READ_AT - FIO_AT);
    guest
        .check(&format!(
            "mkfs.ext4 -q -F /dev/vda {fs_mib}M; mount -t ext4 /dev/vda /mnt
             cp -a {TREE} /mnt/tree; head -c 5000000 /dev/urandom >/mnt/kept; head -c 9000000 /dev/urandom >/mnt/gone
             sync; rm /mnt/gone; sync; fstrim /mnt; umount /mnt"
        ))
        .unwrap();
    guest
        .check(&format!(
            "fio --name=mixed --filename=/dev/vda --direct=1 --ioengine=libaio --iodepth=32 --offset={FIO_AT} --size={fio_len} \
             --io_size=24M --rw=randwrite --bssplit=512/25:4k/25:7680/10:64k/20:100k/10:256k/10 --blockalign=512 --randseed={SEED} \
             --verify=crc32c --do_verify=1 --verify_fatal=1 --eta=never --minimal"
        ))
        .unwrap();
}

#[test]
fn a_file_system_on_an_overlay_with_copy_on_read_is_whole_and_the_base_is_untouched() {
    let images = Images::new();
    let base_before = sha256_of(&images.base);
    let daemon = images.serve(Kind::from_env());
    let mut guest = Guest::boot(&GuestSpec::new().disk(daemon.socket(0))).unwrap();

    fill(&mut guest);
    let (skip, count) = (READ_AT / MIB, READ_BYTES / MIB);
    let read_only_there = guest
        .check(&format!(
            "dd if=/dev/vda bs=1M skip={skip} count={count} iflag=direct 2>/dev/null | sha256sum"
        ))
        .unwrap();
    let kept = guest
        .check(&format!(
            "echo 3 >/proc/sys/vm/drop_caches; mount -t ext4 -o ro /dev/vda /mnt
             diff -r {TREE} /mnt/tree; sha256sum /mnt/kept; umount /mnt; e2fsck -f -n /dev/vda >/dev/null"
        ))
        .unwrap();
    let written = guest
        .check(&format!(
            "dd if=/dev/vda bs=1M count={skip} iflag=direct 2>/dev/null | sha256sum"
        ))
        .unwrap();
    guest.power_off().unwrap();
    daemon.stop().unwrap();

    assert_eq!(sha256_of(&images.base), base_before, "the base");
    let overlay = images.overlay.to_str().unwrap();
    qemu_img(["check", "-f", "qcow2", overlay]).unwrap();
    let out = DiskFile::sparse(0).unwrap();
    let raw = out.path().to_str().unwrap();
    qemu_img(["convert", "-f", "qcow2", "-O", "raw", overlay, raw]).unwrap();
    assert_eq!(first_word(&written), out.sha256(0, READ_AT).unwrap());
    assert_eq!(first_word(&kept), sha256_inside(out.path(), "/kept"));
    let mut check = Command::new("/sbin/e2fsck");
    let check = check.arg("-fn").arg(out.path()).output().unwrap();
    assert!(check.status.success(), "{check:?}");

    let (raw, at) = (&images.raw, READ_AT);
    let of_base = raw.sha256(at, READ_BYTES).unwrap();
    assert_eq!(first_word(&read_only_there), of_base);
    assert_eq!(
        out.sha256(at, LEN_BYTES - at).unwrap(),
        raw.sha256(at, LEN_BYTES - at).unwrap()
    );
    let own = |at, len| own_bytes(&images.overlay, at, len);
    assert_eq!(own(at, READ_BYTES), READ_BYTES, "what was read is copied");
    let rest = at + READ_BYTES;
    assert_eq!(own(rest, LEN_BYTES - rest), 0, "what was not read is not");
}
