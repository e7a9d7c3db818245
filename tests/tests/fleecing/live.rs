//! Snapshots of a disk that is in use: the filter comes and goes by `blockdev-reopen` while a guest writes on four queues.

use super::history::{History, stamps_of};
use super::writer::{SIZE, Stops, Writer};
use super::{BOTH, Kind};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tests::client::starter::{Disk, Node, Running};
use tests::operator::Operator;
use tests::qemu_img::qemu_img;

const ROUNDS: usize = 6;
const SEED: u64 = 7;
/// The guest has done so much before each change.
const REQUESTS_BETWEEN: u64 = 300;

fn raw(node: &str, file: &str) -> Value {
    json!({"driver": "raw", "node-name": node, "file": file})
}

pub(super) fn start(kind: Kind, dir: &Path) -> Running {
    for file in ["disk", "target"] {
        fs::write(dir.join(file), vec![0; SIZE as usize]).unwrap();
    }
    let path = dir.display();
    let words = [
        format!("--chardev socket,id=m,path={path}/m,server=on,wait=off"),
        "--monitor m".into(),
        format!("--nbd-server addr.type=unix,addr.path={path}/s"),
        format!("--blockdev file,node-name=d,filename={path}/disk"),
        format!("--blockdev file,node-name=t,filename={path}/target"),
        "--blockdev raw,node-name=n0,file=d".into(),
    ];
    let words = words.iter().flat_map(|word| word.split(' '));
    let disk = Disk {
        arguments: words.map(str::to_owned).collect(),
        node: Node::Graph(Vec::new()),
        export_options: "num-queues=4",
        ..Disk::file(Path::new(""))
    };
    Running::start(kind, &disk).unwrap()
}

/// Puts the filter in, takes the snapshot away twice, and takes the filter out. Returns the snapshot.
fn snapshot(monitor: &mut Operator, dir: &Path) -> Vec<u8> {
    let reopen = |file: &str| json!({"options": [raw("n0", file)]});
    let add = |monitor: &mut Operator, node: Value| monitor.ok("blockdev-add", node);
    let filter =
        json!({"driver": "copy-before-write", "node-name": "c", "file": "d", "target": "t"});
    add(monitor, filter);
    monitor.ok("blockdev-reopen", reopen("c"));
    let shown = json!({"driver": "snapshot-access", "node-name": "a", "file": "c"});
    add(monitor, shown);
    let export = json!({"id": "s", "type": "nbd", "node-name": "a", "name": "a"});
    monitor.ok("block-export-add", export);
    let taken = [take(dir), take(dir)];
    monitor.ok("block-export-del", json!({"id": "s", "mode": "hard"}));
    let deleted = |event: &Value| event["event"] == "BLOCK_EXPORT_DELETED";
    while !monitor.events.iter().any(deleted) {
        monitor.ok("query-version", json!({}));
    }
    monitor.events.clear();
    monitor.ok("blockdev-del", json!({"node-name": "a"}));
    monitor.ok("blockdev-reopen", reopen("d"));
    monitor.ok("blockdev-del", json!({"node-name": "c"}));
    let [first, second] = taken;
    assert!(first == second, "the snapshot changed");
    first
}

fn take(dir: &Path) -> Vec<u8> {
    let (uri, to) = (
        format!("nbd+unix:///a?socket={}", dir.join("s").display()),
        dir.join("taken"),
    );
    let words = ["convert", "-f", "raw", "-O", "raw", &uri];
    qemu_img(words.iter().copied().chain(to.to_str())).unwrap();
    fs::read(to).unwrap()
}

/// Takes snapshots while the writer writes; stops it after the last.
fn race(kind: Kind, dir: &Path, ended: &AtomicU64, writer: Writer<'_>) -> (Vec<Vec<u8>>, History) {
    let mut monitor = Operator::connect(&dir.join("m")).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| writer.run(&stop));
        let stops = Stops(&stop);
        let mut one = || {
            let enough = ended.load(Ordering::SeqCst) + REQUESTS_BETWEEN;
            while ended.load(Ordering::SeqCst) < enough {
                assert!(!writing.is_finished(), "{kind:?}: the guest gave up");
                std::thread::yield_now();
            }
            snapshot(&mut monitor, dir)
        };
        let snapshots = (0..ROUNDS).map(|_| one()).collect();
        drop(stops);
        (snapshots, writing.join().unwrap())
    })
}

#[test]
fn a_snapshot_of_a_disk_in_use_is_of_one_instant_and_no_write_is_lost_as_its_filter_comes_and_goes()
{
    println!("seed {SEED}");
    for kind in BOTH {
        let dir = tempfile::tempdir().unwrap();
        let mut daemon = start(kind, dir.path());
        let ended = AtomicU64::new(0);
        let writer = Writer::start(&daemon.socket, SEED, &ended);
        let (snapshots, history) = race(kind, dir.path(), &ended, writer);
        for (round, snapshot) in snapshots.iter().enumerate() {
            let checked = history.check(&stamps_of(snapshot), None);
            assert_eq!(checked, Ok(()), "{kind:?}, snapshot {round}");
        }
        assert_eq!(history.failed, []);
        let requests = ended.load(Ordering::SeqCst);
        println!("{kind:?}: {ROUNDS} snapshots under {requests} requests");
        daemon.terminate().unwrap();
        let disk = fs::read(dir.path().join("disk")).unwrap();
        assert!(history.is_last(&disk), "{kind:?}");
    }
}
