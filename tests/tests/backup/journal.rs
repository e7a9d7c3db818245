//! Bitmaps beside a disk whose daemon is killed while a guest writes on four queues: nothing that was written is missed.
//!
//! The rule: the guest's n-th write has n in it, so a block that is on the disk tells whether it was written after an instant.
//! What is on the disk and was written after a bitmap was added, or cleared, has to be dirty in it.

use super::{DISK_BYTES as BACKED_UP_BYTES, RELEASE_LIMIT, Stage, Writer, restored, text};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tests::client::blk::{OK, Request, kind};
use tests::client::guest::{Guest, Setup};
use tests::daemon::{Daemon, Kind};
use tests::qemu_img;

const DISK_BYTES: u64 = 64 << 20;
const BLOCK: u64 = 4096;
const QUEUES: usize = 4;
/// The guest keeps to so many blocks.
const BLOCKS: u64 = 2048;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Raw,
    Qcow2,
}

/// A disk, its journal and its bitmaps, each with the last write that it need not know of.
struct Disk {
    dir: tempfile::TempDir,
    format: Format,
    bitmaps: Vec<(&'static str, u64)>,
}

impl Disk {
    fn new(format: Format) -> Disk {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("disk");
        match format {
            Format::Raw => {
                let file = std::fs::File::create(&image).unwrap();
                file.set_len(DISK_BYTES).unwrap();
            }
            Format::Qcow2 => {
                qemu_img::create(&image, DISK_BYTES);
            }
        }
        Disk {
            dir,
            format,
            bitmaps: Vec::new(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The kernel lets go of the files of a process that was killed, and of their locks, when it comes to it.
    fn serve(&self) -> Daemon {
        let node = format!(
            "driver={},node-name=disk,file.driver=file,file.node-name=f,file.filename={},x-bitmap-journal={}",
            self.driver(),
            self.path("disk").display(),
            self.path("journal").display()
        );
        let export = format!(
            "type=vhost-user-blk,id=guest,node-name=disk,writable=on,addr.type=unix,addr.path=DIR/guest.sock,num-queues={QUEUES}"
        );
        let words = ["--blockdev", &node, "--export", &export];
        let until = Instant::now() + RELEASE_LIMIT;
        loop {
            match Daemon::with_monitor(Kind::Virtioblkd, &words) {
                Ok(daemon) => return daemon,
                Err(error) if error.to_string().contains("lock") && Instant::now() < until => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Opens the node anew.
    fn reopen(&self, daemon: &Daemon, read_only: bool) {
        let options = json!({
            "driver": self.driver(), "node-name": "disk", "file": "f", "read-only": read_only,
            "x-bitmap-journal": self.path("journal"),
        });
        let mut qmp = daemon.qmp().unwrap();
        qmp.succeed("blockdev-reopen", json!({"options": [options]}));
    }

    fn driver(&self) -> &'static str {
        match self.format {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        }
    }

    /// What a query shows of it.
    fn shown(&self, daemon: &Daemon) -> Value {
        let mut qmp = daemon.qmp().unwrap();
        let nodes = qmp.succeed("query-named-block-nodes", json!({}));
        let mut nodes = nodes.as_array().unwrap().iter();
        nodes
            .find(|node| node["node-name"] == "disk")
            .unwrap()
            .clone()
    }

    fn sha256(&self, daemon: &Daemon) -> Vec<Value> {
        let mut qmp = daemon.qmp().unwrap();
        let names = self.bitmaps.iter().map(|(name, _)| name);
        names
            .map(|name| {
                let bitmap = json!({"node": "disk", "name": name});
                qmp.succeed("x-debug-block-dirty-bitmap-sha256", bitmap)
            })
            .collect()
    }

    /// Looks at what a daemon shows of the disk over NBD. Says how much is dirty in each bitmap.
    fn check(&self, daemon: &Daemon, what: &str) -> Vec<u64> {
        let socket = daemon.directory().join("nbd.sock");
        let mut qmp = daemon.qmp().unwrap();
        let names: Vec<&str> = self.bitmaps.iter().map(|(name, _)| *name).collect();
        let at = json!({"type": "unix", "data": {"path": &socket}});
        qmp.succeed("nbd-server-start", json!({"addr": at}));
        let export = json!({
            "type": "nbd", "id": "nbd", "node-name": "disk", "writable": true, "bitmaps": names,
        });
        qmp.succeed("block-export-add", export);
        let uri = format!("nbd+unix:///disk?socket={}", socket.display());
        let copy = self.path("copy");
        text(
            &Command::new("nbdcopy")
                .arg(&uri)
                .arg(&copy)
                .output()
                .unwrap(),
        );
        let disk = std::fs::read(copy).unwrap();
        let mut counts = Vec::new();
        for (name, last_unknown) in &self.bitmaps {
            let dirty = dirty_blocks(&uri, name);
            for (block, bytes) in disk.chunks(BLOCK as usize).enumerate() {
                let missed = last_write(bytes) > *last_unknown && !dirty[block];
                assert!(!missed, "{what}: {name} misses block {block}");
            }
            counts.push(dirty.iter().filter(|dirty| **dirty).count() as u64 * BLOCK);
        }
        qmp.succeed("nbd-server-stop", json!({}));
        counts
    }
}

/// The highest number in a block: a write that was cut short is one too.
fn last_write(bytes: &[u8]) -> u64 {
    let words = bytes.chunks_exact(8);
    let numbers = words.map(|word| u64::from_le_bytes(word.try_into().unwrap()));
    numbers.max().unwrap()
}

fn dirty_blocks(uri: &str, name: &str) -> Vec<bool> {
    let map = format!("--map=qemu:dirty-bitmap:{name}");
    let output = Command::new("nbdinfo").args(["--json", &map, uri]).output();
    let extents: Value = serde_json::from_str(&text(&output.unwrap())).unwrap();
    let mut dirty = vec![false; (DISK_BYTES / BLOCK) as usize];
    for extent in extents.as_array().unwrap() {
        let number = |name: &str| extent[name].as_u64().unwrap();
        let (at, len) = (number("offset"), number("length"));
        let blocks = (at / BLOCK) as usize..((at + len) / BLOCK) as usize;
        dirty[blocks].fill(number("type") == 1);
    }
    dirty
}

/// How far a guest is.
#[derive(Default)]
struct Progress {
    /// The last write that was begun.
    begun: AtomicU64,
    ended: AtomicU64,
    killed: AtomicBool,
}

impl Progress {
    fn await_ended(&self, count: u64) {
        while self.ended.load(Ordering::SeqCst) < count {
            std::thread::yield_now();
        }
    }
}

/// Writes on all queues, one request on each at a time, until the daemon is gone.
fn write_until_killed(socket: &Path, seed: u64, progress: &Progress) {
    let setup = Setup {
        queues: QUEUES as u16,
        ..Setup::default()
    };
    let mut guest = Guest::start(socket, setup).unwrap();
    loop {
        let mut pending = Vec::new();
        for queue in 0..QUEUES {
            let n = progress.begun.fetch_add(1, Ordering::SeqCst) + 1;
            let block = (n ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            // No two of a round are the same.
            let block = block % (BLOCKS / QUEUES as u64) * QUEUES as u64 + queue as u64;
            let payload = n.to_le_bytes().repeat(BLOCK as usize / 8);
            let write = Request::write(block * BLOCK / 512, payload);
            pending.push(guest.add(queue, &write));
            guest.submit(queue);
        }
        for (queue, pending) in pending.into_iter().enumerate() {
            loop {
                let until = Instant::now() + Duration::from_millis(100);
                match guest.finish_until(queue, pending, until) {
                    Ok(done) => {
                        assert_eq!(done.status, OK);
                        break;
                    }
                    Err(_) if progress.killed.load(Ordering::SeqCst) => return,
                    Err(_) => {}
                }
            }
            progress.ended.fetch_add(1, Ordering::SeqCst);
        }
    }
}

fn run(format: Format, seed: u64) -> Vec<u64> {
    let mut disk = Disk::new(format);
    let progress = Progress::default();
    // Where in its work the guest is when something happens.
    let after = |nth: u64| 40 + (seed * 97 + nth * 331) % 400;
    std::thread::scope(|scope| {
        let daemon = disk.serve();
        let socket = daemon.directory().join("guest.sock");
        let progress = &progress;
        scope.spawn(move || write_until_killed(&socket, seed, progress));
        let mut qmp = daemon.qmp().unwrap();
        let begun = || progress.begun.load(Ordering::SeqCst);
        let mut ended = after(0);
        progress.await_ended(ended);
        let add = |name: &str| json!({"node": "disk", "name": name, "persistent": true, "granularity": 4096});
        qmp.succeed("block-dirty-bitmap-add", add("a"));
        disk.bitmaps.push(("a", begun()));
        ended += after(1);
        progress.await_ended(ended);
        if seed % 3 == 1 {
            qmp.succeed(
                "block-dirty-bitmap-clear",
                json!({"node": "disk", "name": "a"}),
            );
            disk.bitmaps[0].1 = begun();
        }
        if seed % 3 == 2 {
            let actions = json!([
                {"type": "block-dirty-bitmap-clear", "data": {"node": "disk", "name": "a"}},
                {"type": "block-dirty-bitmap-add", "data": add("b")},
            ]);
            qmp.succeed("transaction", json!({"actions": actions}));
            let now = begun();
            disk.bitmaps[0].1 = now;
            disk.bitmaps.push(("b", now));
        }
        ended += after(2);
        progress.await_ended(ended);
        drop(qmp);
        // As by `kill -9`.
        drop(daemon);
        progress.killed.store(true, Ordering::SeqCst);
    });
    let what = format!("{format:?} seed {seed}");
    let daemon = disk.serve();
    let counts = disk.check(&daemon, &what);
    let said = disk.sha256(&daemon);
    let log = daemon.stop().unwrap();
    assert!(log.is_empty(), "{what}: {log}");
    // An orderly end adds nothing.
    let daemon = disk.serve();
    assert_eq!(disk.sha256(&daemon), said, "{what}");
    daemon.stop().unwrap();
    if format == Format::Qcow2 {
        // A crash leaves leaks at worst.
        let image = disk.path("disk");
        let output = Command::new("qemu-img").arg("check").arg(&image).output();
        let code = output.unwrap().status.code();
        assert!(matches!(code, Some(0 | 3)), "{what}: {code:?}");
    }
    counts
}

#[test]
fn a_killed_daemon_leaves_bitmaps_that_miss_nothing_the_guest_wrote() {
    for format in [Format::Raw, Format::Qcow2] {
        for seed in 0..12 {
            println!("{format:?} seed {seed}");
            for dirty_bytes in run(format, seed) {
                // What the guest never came near is clean: a journal covers at most so many regions ahead of a write.
                let most = BLOCKS * BLOCK + (64 << 16);
                assert!((1..=most).contains(&dirty_bytes), "{dirty_bytes}");
            }
        }
    }
}

/// Without a journal the bitmaps of a daemon that was killed cannot be used; and one that does not know of the journal may write
/// the disk in between: that is found out.
#[test]
fn a_disk_that_was_written_without_its_journal_has_bitmaps_that_nobody_relies_on() {
    let mut disk = Disk::new(Format::Raw);
    let daemon = disk.serve();
    let mut qmp = daemon.qmp().unwrap();
    let bitmap = json!({"node": "disk", "name": "a", "persistent": true});
    qmp.succeed("block-dirty-bitmap-add", bitmap);
    disk.bitmaps.push(("a", 0));
    drop(qmp);
    assert_eq!(daemon.stop().unwrap(), "");
    let image = disk.path("disk");
    let image = image.to_str().unwrap();
    let write = ["-c", "write -P 7 1M 64k", "-f", "raw", image];
    text(&Command::new("qemu-io").args(write).output().unwrap());
    let daemon = disk.serve();
    let mut qmp = daemon.qmp().unwrap();
    let nodes = qmp.succeed("query-named-block-nodes", json!({}));
    let nodes = nodes.as_array().unwrap();
    let node = nodes
        .iter()
        .find(|node| node["node-name"] == "disk")
        .unwrap();
    assert_eq!(node["dirty-bitmaps"][0]["inconsistent"], true, "{node:#}");
    assert_eq!(node["x-bitmap-journal"]["state"], "kept", "{node:#}");
    qmp.succeed(
        "block-dirty-bitmap-remove",
        json!({"node": "disk", "name": "a"}),
    );
    drop(qmp);
    let log = daemon.stop().unwrap();
    assert!(log.contains("the disk was written without it"), "{log}");
}

fn write_once(daemon: &Daemon, block: u64) {
    let socket = daemon.directory().join("guest.sock");
    let mut guest = Guest::start(&socket, Setup::default()).unwrap();
    let write = Request::write(block * BLOCK / 512, vec![7; BLOCK as usize]);
    assert_eq!(guest.run(0, &write).unwrap().status, OK);
}

#[test]
fn a_disk_that_is_read_only_for_a_while_has_its_bitmaps_through_a_crash_and_others_writes_are_found_out()
 {
    for format in [Format::Raw, Format::Qcow2] {
        let mut disk = Disk::new(format);
        let daemon = disk.serve();
        let bitmap = json!({"node": "disk", "name": "a", "persistent": true});
        daemon
            .qmp()
            .unwrap()
            .succeed("block-dirty-bitmap-add", bitmap);
        disk.bitmaps.push(("a", 0));
        write_once(&daemon, 100);
        let said = disk.sha256(&daemon);
        daemon
            .qmp()
            .unwrap()
            .succeed("block-export-del", json!({"id": "guest", "mode": "hard"}));
        disk.reopen(&daemon, true);
        assert_eq!(disk.shown(&daemon)["x-bitmap-journal"]["state"], "at-rest");
        assert_eq!(disk.sha256(&daemon), said, "{format:?}");
        drop(daemon);

        // It was killed while it was read-only; and again after it was writable.
        let daemon = disk.serve();
        assert_eq!(disk.sha256(&daemon), said, "{format:?}");
        daemon
            .qmp()
            .unwrap()
            .succeed("block-export-del", json!({"id": "guest", "mode": "hard"}));
        disk.reopen(&daemon, true);
        disk.reopen(&daemon, false);
        // And once more as it is: an image gets another body then, and keeps its journal.
        disk.reopen(&daemon, false);
        let socket = daemon.directory().join("guest.sock");
        let export = json!({
            "type": "vhost-user-blk", "id": "guest", "node-name": "disk", "writable": true,
            "addr": {"type": "unix", "path": socket},
        });
        daemon.qmp().unwrap().succeed("block-export-add", export);
        write_once(&daemon, 9000);
        let node = disk.shown(&daemon);
        assert_eq!(node["x-bitmap-journal"]["state"], "kept", "{node:#}");
        assert_eq!(node["dirty-bitmaps"][0]["recording"], true, "{node:#}");
        drop(daemon);
        let daemon = disk.serve();
        write_once(&daemon, 5000);
        drop(daemon);

        let daemon = disk.serve();
        let counts = disk.check(&daemon, "after all");
        // What was written last is dirty by its region.
        assert_eq!(counts, [3 * (64 << 10)], "{format:?}");
        daemon
            .qmp()
            .unwrap()
            .succeed("block-export-del", json!({"id": "guest", "mode": "hard"}));
        disk.reopen(&daemon, true);
        if format == Format::Raw {
            let now = std::time::SystemTime::now();
            let image = std::fs::File::options()
                .write(true)
                .open(disk.path("disk"))
                .unwrap();
            std::os::unix::fs::FileExt::write_at(&image, &[1; 4096], 0).unwrap();
            image.set_modified(now).unwrap();
            disk.reopen(&daemon, false);
            let node = disk.shown(&daemon);
            assert_eq!(node["dirty-bitmaps"][0]["inconsistent"], true, "{node:#}");
        }
        daemon.stop().unwrap();
    }
}

/// With a journal the chain goes on after the daemon was killed, without one it begins anew.
#[test]
fn the_backup_after_a_killed_daemon_is_an_increment_where_there_is_a_journal() {
    let cases = [
        ("raw", true, "incremental"),
        ("qcow2", true, "incremental"),
        ("qcow2", false, "full"),
    ];
    for (format, journaled, expected) in cases {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("disk");
        let size = BACKED_UP_BYTES.to_string();
        let create = ["create", "-q", "-f", format, image.to_str().unwrap(), &size];
        text(&Command::new("qemu-img").args(create).output().unwrap());
        let mut options = format!("driver={format}");
        if journaled {
            let journal = dir.path().join("journal");
            options += &format!(",x-bitmap-journal={}", journal.display());
        }
        let serve = || Stage::with(Kind::Virtioblkd, dir.path(), &options, &image);
        let mut next = 1;
        for (number, kind) in ["full", expected, "incremental"].into_iter().enumerate() {
            let stage = serve();
            let socket = stage.daemon.directory().join("guest.sock");
            let writer = Writer::start(socket.clone(), next);
            writer.await_write(next + 100);
            let said = stage.back_up(&[]);
            assert!(said.contains(&format!("({kind})")), "{options}: {said}");
            writer.await_write(writer.done() + 100);
            next = writer.stop() + 1;
            let mut guest = Guest::start(&socket, Setup::default()).unwrap();
            assert_eq!(
                guest.run(0, &Request::bare(kind::FLUSH)).unwrap().status,
                OK
            );
            let backups = stage.backups();
            // As by `kill -9` for the first time, in an orderly way after that.
            match number {
                0 => drop(stage),
                _ => assert_eq!(stage.daemon.stop().unwrap(), "", "{options}"),
            }
            assert!(restored(&backups, number) < next, "{options}");
        }
    }
}

/// A disk of zeroes looks like a journal that was never written.
#[test]
fn what_is_no_journal_is_never_written_to() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    for name in ["disk", "other"] {
        let file = std::fs::File::create(path(name)).unwrap();
        file.set_len(1 << 20).unwrap();
    }
    std::fs::write(path("text"), "a list of things\n").unwrap();
    let node = |journal: &str| {
        format!(
            "driver=raw,node-name=disk,file.driver=file,file.filename={},x-bitmap-journal={journal}",
            path("disk")
        )
    };
    for name in ["disk", "other", "text"] {
        let before = std::fs::read(path(name)).unwrap();
        let node = node(&path(name));
        let refused = Daemon::with_monitor(Kind::Virtioblkd, &["--blockdev", &node]);
        let said = refused.unwrap_err().to_string();
        assert!(said.contains("is not a bitmap journal"), "{said}");
        assert!(std::fs::read(path(name)).unwrap() == before, "{name}");
    }
    let nowhere = node(&path("nowhere/journal"));
    let refused = Daemon::with_monitor(Kind::Virtioblkd, &["--blockdev", &nowhere]);
    let said = refused.unwrap_err().to_string();
    assert!(said.contains("No such file or directory"), "{said}");
    let good = node(&path("journal"));
    let first = Daemon::with_monitor(Kind::Virtioblkd, &["--blockdev", &good]).unwrap();
    let also = good.replace("/disk,", "/other,");
    let refused = Daemon::with_monitor(Kind::Virtioblkd, &["--blockdev", &also]);
    let said = refused.unwrap_err().to_string();
    assert!(said.contains("in use by another node or process"), "{said}");
    assert_eq!(first.stop().unwrap(), "");
    // It is of another disk, and has no bitmaps of that: nothing to doubt.
    let second = Daemon::with_monitor(Kind::Virtioblkd, &["--blockdev", &also]).unwrap();
    assert_eq!(second.stop().unwrap(), "");
}

/// What was written before a bitmap was cleared counts until the epoch ends, which is long before its time then.
#[test]
fn a_command_ends_the_epoch_before_it() {
    for format in [Format::Raw, Format::Qcow2] {
        let mut disk = Disk::new(format);
        let daemon = disk.serve();
        let bitmap = json!({"node": "disk", "name": "a", "persistent": true});
        daemon
            .qmp()
            .unwrap()
            .succeed("block-dirty-bitmap-add", bitmap);
        write_once(&daemon, 100);
        assert_eq!(disk.shown(&daemon)["x-bitmap-journal"]["regions"], 1);
        let bitmap = json!({"node": "disk", "name": "a"});
        daemon
            .qmp()
            .unwrap()
            .succeed("block-dirty-bitmap-clear", bitmap);
        // An epoch by itself lasts for three times as long.
        let until = Instant::now() + RELEASE_LIMIT;
        while disk.shown(&daemon)["x-bitmap-journal"]["regions"] != 0 {
            assert!(Instant::now() < until, "{format:?}");
        }
        write_once(&daemon, 9000);
        drop(daemon);
        disk.bitmaps.push(("a", u64::MAX));
        let daemon = disk.serve();
        assert_eq!(disk.check(&daemon, "after all"), [64 << 10], "{format:?}");
        daemon.stop().unwrap();
    }
}
