//! Fleecing: a guest writes while real NBD clients take the disk away as it was. The rule: the same graph, the same requests
//! and the same expectations for our daemon and for the real qemu-storage-daemon.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod history;
mod jobs;
mod live;
mod reader;
mod seeds;
mod writer;

use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use tests::client::blk::{IOERR, OK, Request};
use tests::client::guest::{Guest, Setup};
use tests::client::starter::{Disk, Kind, Node, Running};
use tests::operator::Operator;
use tests::qemu_img::{qemu_img, qemu_io};

const CLUSTER: u64 = 64 << 10;
const SIZE: u64 = 64 * CLUSTER;
const BOTH: [Kind; 2] = [Kind::Virtioblkd, Kind::QemuStorageDaemon];

/// A daemon with a guest's disk, a snapshot of it, and an NBD export of that.
struct Fleeced {
    daemon: Running,
    dir: tempfile::TempDir,
    was: Vec<u8>,
}

/// The target is `t`, on the file `f`.
const PLAIN: &str = "raw,node-name=t,file=f,discard=unmap";
/// Nothing can be written to it.
const BAD: &str =
    "blkdebug,node-name=t,image=f,inject-error.0.event=none,inject-error.0.iotype=write";

impl Fleeced {
    fn start(kind: Kind, target: &str, options: &str) -> Fleeced {
        let dir = tempfile::tempdir().unwrap();
        let was: Vec<u8> = (0..SIZE)
            .map(|at| (at / 512 * 7 + at % 251) as u8)
            .collect();
        fs::write(dir.path().join("disk"), &was).unwrap();
        fs::write(dir.path().join("target"), vec![0; SIZE as usize]).unwrap();
        let path = dir.path().display();
        let words = [
            format!("--nbd-server addr.type=unix,addr.path={path}/s"),
            format!("--blockdev file,node-name=d,filename={path}/disk,discard=unmap"),
            format!("--blockdev file,node-name=f,filename={path}/target,discard=unmap"),
            format!("--blockdev {target}"),
            format!("--blockdev copy-before-write,node-name=n0,file=d,target=t{options}"),
            "--blockdev snapshot-access,node-name=snapshot,file=n0,discard=unmap".into(),
            "--export nbd,id=nbd,node-name=snapshot,writable=on".into(),
        ];
        let words = words.iter().flat_map(|word| word.split(' '));
        let disk = Disk {
            arguments: words.map(str::to_owned).collect(),
            node: Node::Graph(Vec::new()),
            ..Disk::file(Path::new(""))
        };
        let daemon = Running::start(kind, &disk).unwrap();
        Fleeced { daemon, dir, was }
    }

    fn guest(&self) -> Guest {
        Guest::start(&self.daemon.socket, Setup::default()).unwrap()
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///snapshot?socket={}", self.path("s").display())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What `client` copies the snapshot to.
    fn taken(&self, client: Client) -> Vec<u8> {
        let (uri, to) = (self.uri(), self.path("taken"));
        match client {
            Client::QemuImg => {
                let to = to.to_str().unwrap();
                qemu_img(["convert", "-f", "raw", "-O", "raw", &uri, to]).unwrap();
            }
            Client::Nbdcopy => {
                let mut command = Command::new("timeout");
                command.args(["60", "nbdcopy", &uri]).arg(&to);
                assert!(command.stdin(Stdio::null()).status().unwrap().success());
            }
        }
        fs::read(to).unwrap()
    }
}

#[derive(Clone, Copy)]
enum Client {
    QemuImg,
    Nbdcopy,
}

fn block(nth: u64) -> Vec<u8> {
    (0..4096)
        .map(|at| (at as u64 * 13 + nth * 3 + 1) as u8)
        .collect()
}

#[test]
fn nbd_clients_take_the_disk_away_as_it_was_while_the_guest_writes() {
    for kind in BOTH {
        let fleeced = Fleeced::start(kind, PLAIN, "");
        let is_taken = AtomicBool::new(false);
        let mut now = fleeced.was.clone();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut guest = fleeced.guest();
                let mut nth: u64 = 0;
                // All over the disk, with and without what was copied before.
                while !is_taken.load(Ordering::SeqCst) || nth < 200 {
                    let at = nth * 37 % (SIZE / 4096) * 4096;
                    let request = Request::write(at / 512, block(nth));
                    assert_eq!(guest.run(0, &request).unwrap().status, OK, "{kind:?}");
                    now[at as usize..at as usize + 4096].copy_from_slice(&block(nth));
                    nth += 1;
                }
            });
            for client in [Client::QemuImg, Client::Nbdcopy, Client::QemuImg] {
                assert!(fleeced.taken(client) == fleeced.was, "{kind:?}");
            }
            is_taken.store(true, Ordering::SeqCst);
            writer.join().unwrap();
        });
        assert!(fleeced.taken(Client::Nbdcopy) == fleeced.was, "{kind:?}");
        let Fleeced {
            mut daemon, dir, ..
        } = fleeced;
        daemon.terminate().unwrap();
        assert!(
            fs::read(dir.path().join("disk")).unwrap() == now,
            "{kind:?}"
        );
    }
}

#[test]
fn what_the_client_discards_is_gone_for_it_and_for_no_guest() {
    for kind in BOTH {
        let fleeced = Fleeced::start(kind, PLAIN, "");
        let uri = fleeced.uri();
        let io = |command: &str| qemu_io(["-f", "raw", &uri, "-c", command]);
        let mut guest = fleeced.guest();
        let first = Request::write(CLUSTER / 512, block(1));
        assert_eq!(guest.run(0, &first).unwrap().status, OK);
        io("discard 64k 130k").unwrap();
        for gone in ["read 64k 4k", "read 191k 1k", "read 0 1M"] {
            let said = io(gone).unwrap_err().to_string();
            assert!(said.contains("Invalid argument"), "{kind:?} {gone}: {said}");
        }
        io("read 0 64k").unwrap();
        io("read 192k 64k").unwrap();
        let said = io("write 0 4k").unwrap_err().to_string();
        assert!(said.contains("Operation not supported"), "{kind:?}: {said}");
        let second = Request::write(2 * CLUSTER / 512, block(2));
        assert_eq!(guest.run(0, &second).unwrap().status, OK);
        for (at, nth) in [(CLUSTER, 1), (2 * CLUSTER, 2)] {
            let read = guest.run(0, &Request::read(at / 512, 4096)).unwrap();
            assert!(read.status == OK && read.data == block(nth), "{kind:?}");
        }
        let target = fs::read(fleeced.path("target")).unwrap();
        assert!(
            target.iter().all(|byte| *byte == 0),
            "{kind:?}: nothing is kept"
        );
    }
}

#[test]
fn a_copy_that_fails_breaks_the_guest_write_or_the_snapshot_as_was_asked() {
    for kind in BOTH {
        let fleeced = Fleeced::start(kind, BAD, "");
        let mut guest = fleeced.guest();
        let write = Request::write(8, block(1));
        assert_eq!(guest.run(0, &write).unwrap().status, IOERR, "{kind:?}");
        assert!(fleeced.taken(Client::QemuImg) == fleeced.was, "{kind:?}");
        let read = guest.run(0, &Request::read(8, 4096)).unwrap();
        assert!(read.data == fleeced.was[4096..8192], "{kind:?}");

        let fleeced = Fleeced::start(kind, BAD, ",on-cbw-error=break-snapshot");
        let mut guest = fleeced.guest();
        qemu_io(["-f", "raw", &fleeced.uri(), "-c", "read 0 1M"]).unwrap();
        assert_eq!(guest.run(0, &write).unwrap().status, OK, "{kind:?}");
        let read = qemu_io(["-f", "raw", &fleeced.uri(), "-c", "read 1M 4k"]);
        let said = read.unwrap_err().to_string();
        assert!(said.contains("Invalid argument"), "{kind:?}: {said}");
        let read = guest.run(0, &Request::read(8, 4096)).unwrap();
        assert!(read.data == block(1), "{kind:?}");
    }
}

#[test]
fn a_bitmap_says_what_the_snapshot_has_and_may_go_once_it_has() {
    for kind in BOTH {
        let dir = tempfile::tempdir().unwrap();
        let mut daemon = live::start(kind, dir.path());
        let path = |name: &str| dir.path().join(name).display().to_string();
        let mut monitor = Operator::connect(&dir.path().join("m")).unwrap();
        let mut guest = Guest::start(&daemon.socket, Setup::default()).unwrap();
        let mut write = |at: u64, nth: u64| {
            let done = guest.run(0, &Request::write(at / 512, block(nth))).unwrap();
            assert_eq!(done.status, OK, "{kind:?}");
        };
        let bitmap = json!({"node": "d", "name": "b"});
        monitor.ok("block-dirty-bitmap-add", bitmap.clone());
        // At the end of a cluster and in the middle of another.
        write(2 * CLUSTER - 4096, 1);
        write(5 * CLUSTER + 8192, 2);
        let was = fs::read(path("disk")).unwrap();
        let filter = json!({"driver": "copy-before-write", "node-name": "c", "file": "d", "target": "t", "bitmap": bitmap});
        monitor.ok("blockdev-add", filter);
        monitor.ok("block-dirty-bitmap-remove", bitmap);
        let reopened = json!({"driver": "raw", "node-name": "n0", "file": "c"});
        monitor.ok("blockdev-reopen", json!({"options": [reopened]}));
        let shown = json!({"driver": "snapshot-access", "node-name": "a", "file": "c"});
        monitor.ok("blockdev-add", shown);
        let export = json!({"id": "s", "type": "nbd", "node-name": "a", "name": "a"});
        monitor.ok("block-export-add", export);
        for at in 0..8 {
            write(at * CLUSTER + 12288, 10 + at);
        }
        let uri = format!("nbd+unix:///a?socket={}", path("s"));
        for at in 0..8 {
            let to = path("taken");
            let (from, len) = (at * CLUSTER, CLUSTER);
            let window = format!(
                "driver=raw,offset={from},size={len},file.driver=nbd,file.server.type=unix,file.server.path={},file.export=a",
                path("s")
            );
            let read = format!("read {from} {len}");
            let read = qemu_io(["-r", "-f", "raw", &uri, "-c", &read]);
            assert_eq!(read.is_ok(), at == 1 || at == 5, "{kind:?}: cluster {at}");
            if read.is_ok() {
                qemu_img(["convert", "--image-opts", &window, "-O", "raw", &to]).unwrap();
                let there = from as usize..(from + len) as usize;
                assert!(
                    fs::read(to).unwrap() == was[there],
                    "{kind:?}: cluster {at}"
                );
            }
        }
        daemon.terminate().unwrap();
        let target = fs::read(path("target")).unwrap();
        let copied = target.chunks(CLUSTER as usize).enumerate();
        for (at, bytes) in copied.filter(|(at, _)| *at != 1 && *at != 5) {
            assert!(
                bytes.iter().all(|byte| *byte == 0),
                "{kind:?}: cluster {at} was copied"
            );
        }
    }
}

/// The last line of what a daemon says of these nodes and no more; it is not to get further.
fn refusal(kind: Kind, nodes: &[&str]) -> String {
    let mut command = Command::new("timeout");
    command.arg("20").arg(kind.program().unwrap());
    for node in nodes.iter().chain(&["nosuch,node-name=end"]) {
        let option = if node.starts_with("nbd,") {
            "--export"
        } else {
            "--blockdev"
        };
        command.args([option, node]);
    }
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{kind:?} {nodes:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    let last = said.lines().last().unwrap();
    last.replace("qemu-storage-daemon", "virtioblkd")
}

#[test]
fn wrong_filters_are_refused_in_the_words_of_qemu_storage_daemon() {
    const SOURCE: &str = "null-co,node-name=s,size=1048576,read-zeroes=on";
    const TARGET: &str = "null-co,node-name=t,size=1048576,read-zeroes=on";
    const CBW: &str = "copy-before-write,node-name=c,file=s,target=t";
    const SNAPSHOT: &str = "snapshot-access,node-name=a,file=c";
    let with = |options: &str| format!("{CBW}{options}");
    let debug = |image: &str, perms: &str| format!("blkdebug,node-name=d,image={image},{perms}");
    let cases: Vec<Vec<String>> = vec![
        vec![with("")],
        vec![with(",min-cluster-size=0")],
        vec![with(",min-cluster-size=3")],
        vec![with(",min-cluster-size=65537")],
        vec![with(",min-cluster-size=2G"), SNAPSHOT.into()],
        vec![with(",min-cluster-size=8E")],
        vec!["copy-before-write,node-name=c,file=s,target=nix".into()],
        vec!["copy-before-write,node-name=c,file=nix,target=nix2".into()],
        vec![
            "copy-before-write,node-name=c,file=s,target=s".into(),
            SNAPSHOT.into(),
        ],
        vec![with(",read-only=on"), SNAPSHOT.into()],
        vec![SNAPSHOT.into()],
        vec!["snapshot-access,node-name=a,file=s".into()],
        vec![
            with(""),
            SNAPSHOT.into(),
            "snapshot-access,node-name=b,file=a".into(),
        ],
        // Who may do what beside it, before it is used and after.
        vec![with(""), debug("s", "take-child-perms.0=write")],
        vec![
            with(""),
            SNAPSHOT.into(),
            debug("s", "take-child-perms.0=write"),
        ],
        vec![
            with(""),
            debug("s", "take-child-perms.0=write"),
            SNAPSHOT.into(),
        ],
        vec![
            with(""),
            SNAPSHOT.into(),
            debug("s", "take-child-perms.0=resize"),
        ],
        vec![
            with(""),
            SNAPSHOT.into(),
            debug("s", "take-child-perms.0=write-unchanged"),
        ],
        vec![
            with(""),
            debug("s", "unshare-child-perms.0=consistent-read"),
        ],
        vec![
            with(""),
            SNAPSHOT.into(),
            debug("s", "unshare-child-perms.0=consistent-read"),
        ],
        vec![
            with(""),
            SNAPSHOT.into(),
            debug("c", "unshare-child-perms.0=consistent-read"),
        ],
        vec![with(""), debug("t", "unshare-child-perms.0=write")],
        vec![with(""), debug("t", "take-child-perms.0=write")],
        vec![with(""), debug("t", "take-child-perms.0=resize")],
    ];
    for case in cases {
        let nodes: Vec<&str> = [SOURCE, TARGET]
            .into_iter()
            .chain(case.iter().map(String::as_str))
            .collect();
        let (theirs, ours) = (refusal(BOTH[1], &nodes), refusal(BOTH[0], &nodes));
        assert_eq!(ours, theirs, "{nodes:?}");
    }
}
