//! `virtioblkd backup` against daemons with a guest that writes all the time.
//!
//! The rule: the guest's n-th write has n in it, one at a time, so a disk that was restored tells of which instant it is, and
//! the writes up to then say what every byte of it has to be.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod journal;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tests::client::blk::{OK, Request};
use tests::client::guest::{Guest, Setup};
use tests::daemon::{Daemon, Kind};
use tests::qemu_img;

const SECTOR: usize = 512;
const DISK_BYTES: usize = 24 << 20;
const WRITE_BYTES: usize = 2048;
const RELEASE_LIMIT: Duration = Duration::from_secs(10);

/// A daemon with one disk, served to a guest.
struct Stage {
    dir: PathBuf,
    daemon: Daemon,
}

impl Stage {
    fn new(kind: Kind, dir: &Path) -> Stage {
        let image = dir.join("disk.qcow2");
        if !image.exists() {
            qemu_img::create(&image, DISK_BYTES as u64);
        }
        Stage::with(kind, dir, "driver=qcow2", &image)
    }

    /// With a disk in that file, as `options` say.
    fn with(kind: Kind, dir: &Path, options: &str, image: &Path) -> Stage {
        let blockdev = format!(
            "{options},node-name=disk,file.driver=file,file.filename={}",
            image.display()
        );
        let export = "type=vhost-user-blk,id=guest,node-name=disk,writable=on,addr.type=unix,addr.path=DIR/guest.sock";
        let words = ["--blockdev", &blockdev, "--export", export];
        let until = Instant::now() + RELEASE_LIMIT;
        loop {
            match Daemon::with_monitor(kind, &words) {
                Ok(daemon) => {
                    let dir = dir.to_owned();
                    return Stage { dir, daemon };
                }
                // The kernel lets go of the files of a process that was killed, and of their locks, when it comes to it.
                Err(error) if error.to_string().contains("lock") && Instant::now() < until => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn backups(&self) -> PathBuf {
        self.dir.join("backups")
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new(Kind::Virtioblkd.program().unwrap());
        command
            .args(["backup", "--node", "disk", "--qmp"])
            .arg(self.daemon.directory().join("qmp.sock"))
            .arg("--to")
            .arg(self.backups())
            .args(more)
            .stdin(Stdio::null());
        command
    }

    fn back_up(&self, more: &[&str]) -> String {
        text(&self.command(more).output().unwrap())
    }

    /// Nothing of a backup is in the daemon or in the directories.
    fn assert_clean(&self, bitmaps: usize) {
        let mut qmp = self.daemon.qmp().unwrap();
        let nodes = qmp.succeed("query-named-block-nodes", serde_json::json!({"flat": true}));
        let disk = nodes
            .as_array()
            .unwrap()
            .iter()
            .find(|n| n["node-name"] == "disk");
        let kept = disk.unwrap()["dirty-bitmaps"]
            .as_array()
            .map_or(0, Vec::len);
        assert_eq!(kept, bitmaps, "{nodes:#}");
        assert_eq!(nodes.as_array().unwrap().len(), 2, "{nodes:#}");
        let none = serde_json::json!([]);
        assert_eq!(qmp.succeed("query-jobs", serde_json::json!({})), none);
        let exports = qmp.succeed("query-block-exports", serde_json::json!({}));
        assert_eq!(exports.as_array().unwrap().len(), 1, "{exports:#}");
        let refused = qmp.execute("nbd-server-stop", serde_json::json!({}));
        assert!(refused.is_err(), "a server was left running");
        let names = std::fs::read_dir(self.backups()).unwrap();
        let names: Vec<String> = names
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != ".lock" && name != "backups.json" && !name.ends_with(".qcow2"))
            .collect();
        assert_eq!(names, Vec::<String>::new());
    }
}

fn text(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{errors}");
    said + &errors
}

/// Where the n-th write goes.
fn sector_of(n: u64) -> u64 {
    let mut x = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^= x >> 29;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 32;
    x % ((DISK_BYTES - WRITE_BYTES) / SECTOR) as u64
}

fn payload(n: u64) -> Vec<u8> {
    n.to_le_bytes().repeat(WRITE_BYTES / 8)
}

/// A guest that writes until it is told to end; says how many writes it did.
struct Writer {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Begins with write `from`.
    fn start(socket: PathBuf, from: u64) -> Writer {
        let (stop, done) = (
            Arc::<AtomicBool>::default(),
            Arc::new(AtomicU64::new(from - 1)),
        );
        let (stops, counts) = (stop.clone(), done.clone());
        let thread = std::thread::spawn(move || {
            let mut guest = Guest::start(&socket, Setup::default()).unwrap();
            let mut n = from;
            while !stops.load(Ordering::Acquire) {
                let write = Request::write(sector_of(n), payload(n));
                let done = guest.run(0, &write).unwrap();
                assert_eq!(done.status, OK, "write {n}");
                counts.store(n, Ordering::Release);
                n += 1;
            }
        });
        Writer {
            stop,
            done,
            thread: Some(thread),
        }
    }

    fn done(&self) -> u64 {
        self.done.load(Ordering::Acquire)
    }

    fn await_write(&self, n: u64) {
        while self.done() < n {
            assert!(!self.thread.as_ref().unwrap().is_finished());
            std::thread::yield_now();
        }
    }

    fn stop(mut self) -> u64 {
        self.stop.store(true, Ordering::Release);
        self.thread.take().unwrap().join().unwrap();
        self.done()
    }
}

/// A disk after the first `n` writes.
fn disk_after(n: u64) -> Vec<u8> {
    let mut disk = vec![0; DISK_BYTES];
    for n in 1..=n {
        let at = sector_of(n) as usize * SECTOR;
        disk[at..at + WRITE_BYTES].copy_from_slice(&payload(n));
    }
    disk
}

/// Restores a backup, and says after which write it was taken. It is the disk of that instant in every byte.
fn restored(backups: &Path, number: usize) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("restored.raw");
    let output = Command::new(Kind::Virtioblkd.program().unwrap())
        .args(["backup", "--restore"])
        .arg(backups)
        .args(["--point", &number.to_string(), "--to"])
        .arg(&image)
        .output();
    text(&output.unwrap());
    let disk = std::fs::read(&image).unwrap();
    let words = disk
        .chunks_exact(8)
        .map(|word| u64::from_le_bytes(word.try_into().unwrap()));
    let last = words.max().unwrap();
    let differs = disk_after(last).iter().zip(&disk).position(|(a, b)| a != b);
    assert_eq!(differs, None, "backup {number}, taken after write {last}");
    last
}

fn kinds() -> [Kind; 2] {
    [Kind::QemuStorageDaemon, Kind::Virtioblkd]
}

#[test]
fn every_backup_under_load_is_the_disk_of_one_instant() {
    for kind in kinds() {
        let dir = tempfile::tempdir().unwrap();
        let stage = Stage::new(kind, dir.path());
        let writer = Writer::start(stage.daemon.directory().join("guest.sock"), 1);
        writer.await_write(500);
        let mut instants = Vec::new();
        for number in 0..6 {
            let (began, said) = (writer.done(), stage.back_up(&[]));
            instants.push((began, writer.done()));
            let kind = if number == 0 { "full" } else { "incremental" };
            assert!(said.contains(&format!("({kind})")), "{said}");
        }
        writer.stop();
        stage.assert_clean(1);
        for (number, (began, ended)) in instants.into_iter().enumerate() {
            let taken = restored(&stage.backups(), number);
            assert!(
                (began..=ended + 1).contains(&taken),
                "{began} {taken} {ended}"
            );
        }
        let files = std::fs::read_dir(stage.backups()).unwrap();
        for file in files.map(|file| file.unwrap().path()) {
            if file.extension().is_some_and(|e| e == "qcow2") {
                qemu_img::check(&file);
            }
        }
        let log = stage.daemon.stop().unwrap();
        assert_eq!(log, "");
    }
}

/// A backup that is cut off, by a signal it takes or by one it does not, loses nothing: the next has all changes.
#[test]
fn a_backup_that_is_cut_off_leaves_nothing_behind_and_the_next_has_every_change() {
    for kind in kinds() {
        let dir = tempfile::tempdir().unwrap();
        let stage = Stage::new(kind, dir.path());
        let writer = Writer::start(stage.daemon.directory().join("guest.sock"), 1);
        writer.await_write(500);
        stage.back_up(&[]);
        for (round, signal) in ["TERM", "KILL", "INT", "KILL"].into_iter().enumerate() {
            writer.await_write(writer.done() + 300);
            let cut = stage
                .command(&[])
                .stderr(Stdio::piped())
                .stdout(Stdio::null())
                .spawn();
            cut_off(cut.unwrap(), signal, &stage.backups());
            if signal != "KILL" {
                stage.assert_clean(1);
            }
            writer.await_write(writer.done() + 300);
            let said = stage.back_up(&[]);
            assert!(said.contains("(incremental)"), "{said}");
            stage.assert_clean(1);
            let began = writer.done();
            assert!(restored(&stage.backups(), round + 1) <= began + 1);
        }
        writer.stop();
        stage.daemon.stop().unwrap();
    }
}

/// Ends a backup once it has begun to copy.
fn cut_off(mut backup: Child, signal: &str, backups: &Path) {
    let copies = || {
        let mut files = std::fs::read_dir(backups).unwrap();
        files.any(|file| {
            file.unwrap()
                .path()
                .extension()
                .is_some_and(|e| e == "part")
        })
    };
    while !copies() && backup.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    let pid = backup.id().to_string();
    // It may have been quicker.
    let _ = Command::new("kill").args(["-s", signal, &pid]).status();
    let output = backup.wait_with_output().unwrap();
    if !output.status.success() && signal != "KILL" {
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("interrupted; nothing was kept"), "{said}");
    }
}

#[test]
fn a_daemon_that_was_restarted_goes_on_with_its_chain() {
    for kind in kinds() {
        let dir = tempfile::tempdir().unwrap();
        let mut next = 1;
        for round in 0..3 {
            let stage = Stage::new(kind, dir.path());
            let writer = Writer::start(stage.daemon.directory().join("guest.sock"), next);
            writer.await_write(next + 400);
            let said = stage.back_up(&[]);
            next = writer.stop() + 1;
            let kind = if round == 0 { "full" } else { "incremental" };
            assert!(said.contains(&format!("({kind})")), "{said}");
            let backups = stage.backups();
            stage.daemon.stop().unwrap();
            assert!(restored(&backups, round) < next);
        }
    }
}

#[test]
fn a_backup_that_was_changed_since_is_not_restored() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::new(kinds()[0], dir.path());
    stage.back_up(&[]);
    let file = stage.backups().join("0000-full.qcow2");
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let to = dir.path().join("restored.raw");
    let output = Command::new(Kind::Virtioblkd.program().unwrap())
        .args(["backup", "--restore"])
        .arg(stage.backups())
        .arg("--to")
        .arg(&to)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains("is not what it was when it was made"),
        "{said}"
    );
    assert!(!to.exists());
    stage.daemon.stop().unwrap();
}
