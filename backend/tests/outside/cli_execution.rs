//! Command lines that are well formed and fail in execution, given to us and to the real qemu-storage-daemon: the same bytes on stderr but for the
//! program's name, the same status.

use std::path::Path;
use std::process::{Command, Output, Stdio};

const QSD: &str = "qemu-storage-daemon";

/// `DIR` is a directory of its own with a file `disk` (1 MiB) and the images that `IMAGES` makes; arguments are separated by
/// spaces.
const LINES: &[&str] = &[
    "--blockdev null-co,node-name=a --blockdev null-co,node-name=a",
    "--blockdev raw,node-name=a,file.driver=null-co,file.node-name=a",
    "--blockdev raw,node-name=a,file=nope",
    "--blockdev raw,node-name=a,file=",
    "--blockdev file,node-name=a,filename=DIR/none",
    "--blockdev file,node-name=a,filename=DIR",
    "--blockdev file,node-name=a,filename=DIR/disk/x",
    "--blockdev host_device,node-name=a,filename=DIR/disk",
    "--blockdev host_device,node-name=a,filename=DIR/none",
    "--blockdev raw,node-name=a,file.driver=file,file.filename=DIR/none",
    "--blockdev raw,node-name=a,offset=2097152,file.driver=file,file.filename=DIR/disk",
    "--blockdev raw,node-name=a,offset=512,size=1048576,file.driver=file,file.filename=DIR/disk",
    "--blockdev null-co,node-name=a --blockdev nosuch",
    "--object iothread,id=i --object iothread,id=i",
    "--export vhost-user-blk,id=e,node-name=a,addr.type=unix,addr.path=DIR/s",
    "--blockdev null-co,node-name=a --export vhost-user-blk,id=e,node-name=,addr.type=unix,addr.path=DIR/s",
    "--blockdev null-co,node-name=a,read-only=on --export vhost-user-blk,id=e,node-name=a,addr.type=unix,addr.path=DIR/s,writable=on",
    "--blockdev file,node-name=a,read-only=on,filename=DIR/disk --export vhost-user-blk,id=e,node-name=a,addr.type=unix,addr.path=DIR/s,writable=on",
    "--blockdev null-co,node-name=a --export vhost-user-blk,id=e,node-name=a,iothread=i,addr.type=unix,addr.path=DIR/s",
    "--blockdev null-co,node-name=a --export vhost-user-blk,id=e,node-name=a,addr.type=unix,addr.path=DIR/none/s",
    "--blockdev null-co,node-name=a --export vhost-user-blk,id=e,node-name=a,addr.type=unix,addr.path=DIR/disk/s",
    "--blockdev null-co,node-name=a --export vhost-user-blk,id=e,node-name=a,addr.type=fd,addr.str=99",
    "--blockdev null-co,node-name=a --export vhost-user-blk,id=e,node-name=a,addr.type=fd,addr.str=0",
    "--blockdev null-co,node-name=a --export vhost-user-blk,id=e,node-name=a,addr.type=fd,addr.str=x",
    "--blockdev null-co,node-name=a --export vhost-user-blk,id=e,node-name=a,num-queues=0,addr.type=unix,addr.path=DIR/s",
    "--blockdev null-co,node-name=a --export vhost-user-blk,id=e,node-name=a,logical-block-size=1000,addr.type=unix,addr.path=DIR/s",
    "--blockdev null-co,node-name=a --export vhost-user-blk,id=e,node-name=a,allow-inactive=on,addr.type=unix,addr.path=DIR/s",
    "--blockdev null-co,node-name=a --export vhost-user-blk,id=e,node-name=a,addr.type=unix,addr.path=DIR/s --export vhost-user-blk,id=e,node-name=a,addr.type=unix,addr.path=DIR/t",
    "--blockdev qcow2,node-name=n,file.driver=file,file.filename=DIR/v3,cache-size=1000,l2-cache-size=500,refcount-cache-size=500",
    "--blockdev qcow2,node-name=n,file.driver=file,file.filename=DIR/v3,cache-size=-1",
    "--blockdev qcow2,node-name=n,file.driver=file,file.filename=DIR/v3,l2-cache-size=-1",
    "--blockdev qcow2,node-name=n,file.driver=file,file.filename=DIR/v3,cache-size=10,l2-cache-size=20",
    "--blockdev qcow2,node-name=n,file.driver=file,file.filename=DIR/v3,cache-size=10,refcount-cache-size=20",
    "--blockdev qcow2,node-name=n,file.driver=file,file.filename=DIR/v3,l2-cache-entry-size=100",
    "--blockdev qcow2,node-name=n,file.driver=file,file.filename=DIR/v3,l2-cache-entry-size=256",
    "--blockdev qcow2,node-name=n,file.driver=file,file.filename=DIR/v3,l2-cache-entry-size=513",
    "--blockdev qcow2,node-name=n,file.driver=file,file.filename=DIR/v3,l2-cache-entry-size=131072",
    "--blockdev qcow2,node-name=n,file.driver=file,file.filename=DIR/v3,l2-cache-entry-size=0",
    "--blockdev qcow2,node-name=n,file.driver=file,file.filename=DIR/v3,l2-cache-entry-size=-1",
    "--blockdev qcow2,node-name=n,file.driver=file,file.filename=DIR/v3,refcount-cache-size=9223372036854775807",
    "--blockdev qcow2,node-name=n,file.driver=file,file.filename=DIR/v3,cache-clean-interval=-1",
    "--blockdev qcow2,node-name=n,file.driver=file,file.filename=DIR/v3,cache-clean-interval=4294967296",
    "--blockdev qcow2,node-name=n,file.driver=file,file.filename=DIR/v3,backing=zz",
    "--blockdev qcow2,node-name=n,file.driver=file,file.filename=DIR/v3,backing.driver=file,backing.filename=DIR/none",
    "--blockdev qcow2,node-name=n,file.driver=file,file.filename=DIR/v3,data-file.driver=null-co",
    "--blockdev qcow2,node-name=n,file.driver=file,file.filename=DIR/v3,data-file=zz",
    "--blockdev qcow2,node-name=n,file.driver=file,file.filename=DIR/data,data-file=zz",
    "--blockdev qcow2,node-name=n,file.driver=file,file.filename=DIR/disk",
    "--blockdev qcow2,node-name=n,file.driver=file,file.filename=DIR/lostdata",
    "--blockdev qcow2,node-name=n,file.driver=file,file.filename=DIR/overlay-lost",
    "--blockdev qcow2,node-name=n,file.driver=file,file.filename=DIR/overlay-wrong",
    "--blockdev qcow2,node-name=n,file.driver=file,file.filename=DIR/overlay-lost,read-only=on",
    "--blockdev qcow2,node-name=n,file.driver=file,file.filename=DIR/overlay-other",
    "--nbd-server addr.type=unix,addr.path=DIR/s --blockdev driver=file,node-name=f,filename=DIR/overlay --blockdev driver=file,node-name=b,filename=DIR/v3 --blockdev driver=qcow2,node-name=q,file=b --blockdev driver=qcow2,node-name=o,file=f,backing=q --export type=nbd,id=e,node-name=f,writable=on",
    "--nbd-server addr.type=unix,addr.path=DIR/s --blockdev driver=file,node-name=f,filename=DIR/overlay --blockdev driver=file,node-name=b,filename=DIR/v3 --blockdev driver=qcow2,node-name=q,file=b --blockdev driver=qcow2,node-name=o,file=f,backing=q --export type=nbd,id=e,node-name=f",
    "--nbd-server addr.type=unix,addr.path=DIR/s --blockdev driver=file,node-name=f,filename=DIR/overlay --blockdev driver=file,node-name=b,filename=DIR/v3 --blockdev driver=qcow2,node-name=q,file=b --blockdev driver=qcow2,node-name=o,file=f,backing=q --export type=nbd,id=e,node-name=o,writable=on --export type=nbd,id=e2,node-name=f,writable=on",
    "--nbd-server addr.type=unix,addr.path=DIR/s --blockdev driver=file,node-name=f,filename=DIR/overlay --blockdev driver=file,node-name=b,filename=DIR/v3 --blockdev driver=qcow2,node-name=x,file=f,backing=b --blockdev driver=qcow2,node-name=y,file=f,backing=b",
    "--nbd-server addr.type=unix,addr.path=DIR/s --blockdev driver=file,node-name=f,filename=DIR/overlay --blockdev driver=file,node-name=b,filename=DIR/v3 --blockdev driver=qcow2,node-name=x,file=f,backing=b --export type=nbd,id=e,node-name=x --blockdev driver=raw,node-name=r,size=512,file=f",
    "--blockdev driver=file,node-name=f,filename=DIR/overlay,read-only=on --blockdev driver=qcow2,node-name=x,file=f",
    "--blockdev qcow2,node-name=n,file=zz",
    "--blockdev qcow2,node-name=n,file.driver=null-co",
    "--blockdev qcow2,node-name=n,file.driver=null-co,file.size=0",
    "--blockdev null-co,node-name=a --pidfile DIR/none/p",
    "--blockdev null-co,node-name=a --pidfile DIR",
    "--blockdev null-co,node-name=a --daemonize --pidfile DIR/none/p",
    "--daemonize --blockdev nosuch",
];

/// What `qemu-img create -q -u -f qcow2` is told to make there.
const IMAGES: &[&str] = &[
    "v3 1M",
    "-o compat=0.10 v2 1M",
    "-o data_file=DIR/data.raw data 1M",
    "-o data_file=DIR/lost.raw lostdata 1M",
    "-b v3 -F qcow2 overlay 1M",
    "-b none -F qcow2 overlay-lost 1M",
    "-b disk -F qcow2 overlay-wrong 1M",
    "-b DIR/overlay-lost -F qcow2 overlay-other 1M",
];

fn make(dir: &Path, line: &str) {
    let disk = std::fs::File::create(dir.join("disk")).expect("disk");
    disk.set_len(1 << 20).expect("disk");
    // Each takes its time, and most lines want none.
    let wanted = ["DIR/v", "DIR/overlay", "DIR/data", "DIR/lost"];
    let images = match wanted.iter().any(|image| line.contains(image)) {
        true => IMAGES,
        false => &[],
    };
    for image in images {
        let image = image.replace("DIR", dir.to_str().expect("UTF-8"));
        let mut create = Command::new("qemu-img");
        create.args(["create", "-q", "-u", "-f", "qcow2"]);
        let made = create.args(image.split(' ')).current_dir(dir).status();
        assert!(made.expect("qemu-img runs").success(), "{image}");
    }
    if !images.is_empty() {
        std::fs::remove_file(dir.join("lost.raw")).expect("removed");
    }
}

fn run(program: &str, line: &str) -> Output {
    let dir = tempfile::tempdir().expect("temporary directory");
    make(dir.path(), line);
    let dir_path = dir.path().to_str().expect("UTF-8");
    let line = line.replace("DIR", dir_path);
    let mut output = Command::new(program)
        .args(line.split(' '))
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    let stderr = stderr.replace(dir_path, "DIR");
    output.stderr = stderr.replace(QSD, "virtioblkd").into_bytes();
    output
}

#[test]
fn failures_in_execution_are_told_in_the_words_of_qemu_storage_daemon() {
    let mut differences = Vec::new();
    for line in LINES {
        let theirs = run(QSD, line);
        let ours = run(env!("CARGO_BIN_EXE_virtioblkd"), line);
        if (&theirs.stderr, theirs.status) != (&ours.stderr, ours.status) {
            let text = |output: &Output| {
                let stderr = String::from_utf8_lossy(&output.stderr);
                format!("{} {stderr}", output.status)
            };
            differences.push(format!(
                "{line}\n  QSD:  {}\n  ours: {}",
                text(&theirs),
                text(&ours)
            ));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
