//! Peers that stop: an NBD server that takes what it is sent and never answers, an operator's client that never reads. Both are
//! real sockets.
//!
//! The rule: the guest of a disk that hangs waits, and a change of that disk gives up after five seconds; nodes that left are
//! waited for two. No other guest notices.

use super::{NULL, Stage, serves};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tests::client::blk::{OK, Request};
use tests::client::guest::{Guest, Setup};
use tests::client::patience;
use tests::daemon::Kind;

/// qemu-nbd, which can be stopped: the kernel goes on taking connections and requests for it.
struct Server {
    child: Child,
    socket: PathBuf,
}

impl Server {
    fn new(dir: &Path) -> Server {
        let (disk, socket) = (dir.join("remote"), dir.join("nbd.sock"));
        fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
        let child = Command::new("qemu-nbd")
            .args(["--persistent", "--shared=0", "-f", "raw", "-k"])
            .args([&socket, &disk])
            .stdout(Stdio::null())
            .spawn();
        let server = Server {
            child: child.unwrap(),
            socket,
        };
        let deadline = Instant::now() + patience();
        while !server.socket.exists() {
            assert!(Instant::now() < deadline, "qemu-nbd does not listen");
            std::thread::sleep(Duration::from_millis(2));
        }
        server
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn node(&self, name: &str) -> Value {
        let server = json!({"type": "unix", "path": self.socket});
        json!({"driver": "nbd", "node-name": name, "server": server})
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A guest that reads all the time, one request after the other.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    fn start(socket: PathBuf) -> Load {
        let (stop, done) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (stops, counts) = (stop.clone(), done.clone());
        let thread = std::thread::spawn(move || {
            let mut guest = Guest::start(&socket, Setup::default()).unwrap();
            while !stops.load(Ordering::Acquire) {
                serves(&mut guest);
                counts.fetch_add(1, Ordering::AcqRel);
            }
        });
        let thread = Some(thread);
        let load = Load { stop, done, thread };
        load.goes_on(1);
        load
    }

    fn done(&self) -> u64 {
        self.done.load(Ordering::Acquire)
    }

    /// So many requests end from now on.
    fn goes_on(&self, requests: u64) {
        let (before, deadline) = (self.done(), Instant::now() + patience());
        while self.done() < before + requests {
            assert!(Instant::now() < deadline, "the other guest is stalled");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Runs `work` and returns what came of it, how long it took, and how many requests ended meanwhile.
    fn beside<T>(&self, work: impl FnOnce() -> T) -> (T, Duration, u64) {
        let (before, begun) = (self.done(), Instant::now());
        let came = work();
        (came, begun.elapsed(), self.done() - before)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            assert!(thread.join().is_ok() || std::thread::panicking());
        }
    }
}

fn reopen(child: &str, name: &str) -> Value {
    json!({"options": [{"driver": "raw", "node-name": name, "file": child}]})
}

fn throttle(name: &str, child: &str) -> Value {
    json!({"driver": "throttle", "node-name": name, "throttle-group": "g", "file": child})
}

/// A disk that is on `n`, one that is on a server, a guest of each, and that server.
fn two_disks(dir: &Path) -> (Stage, Server, Load, Guest) {
    let server = Server::new(dir);
    let arguments = [&NULL[..], &["--object", "throttle-group,id=g"]].concat();
    let mut stage = Stage::new(Kind::Virtioblkd, &arguments);
    stage.qmp.succeed("blockdev-add", server.node("r"));
    for (id, name, child) in [("e", "near", "n"), ("h", "far", "r")] {
        let node = json!({"driver": "raw", "node-name": name, "file": child});
        stage.qmp.succeed("blockdev-add", node);
        let mut export = stage.export_with("node-name", json!(name));
        export["id"] = json!(id);
        export["addr"]["path"] = json!(stage.path(&format!("{id}.sock")));
        stage.qmp.succeed("block-export-add", export);
    }
    let load = Load::start(stage.path("e.sock"));
    let mut guest = Guest::start(&stage.path("h.sock"), Setup::default()).unwrap();
    serves(&mut guest);
    (stage, server, load, guest)
}

#[test]
fn a_server_that_hangs_keeps_no_other_guest_waiting_and_a_change_of_its_disk_gives_up() {
    let dir = tempfile::tempdir().unwrap();
    let (mut stage, server, load, mut guest) = two_disks(dir.path());
    server.signal(Signal::STOP);
    let pending = guest.add(0, &Request::read(0, 512));
    guest.submit(0);
    // A filter more on the other disk, and one less: what left is waited for, since the guest that waits began before.
    stage.qmp.succeed("blockdev-add", throttle("t", "n"));
    let insert = || stage.qmp.succeed("blockdev-reopen", reopen("t", "near"));
    let (_, took, _) = load.beside(insert);
    assert!(took < Duration::from_secs(4), "took {took:?}");
    load.goes_on(50);
    let remove = || {
        stage.qmp.succeed("blockdev-reopen", reopen("n", "near"));
        stage.qmp.succeed("blockdev-del", json!({"node-name": "t"}));
    };
    let (_, took, meanwhile) = load.beside(remove);
    assert!(took < Duration::from_secs(6), "took {took:?}");
    assert!(
        meanwhile > 100 || took < Duration::from_secs(1),
        "{meanwhile}"
    );
    // A change of the disk that hangs.
    stage.qmp.succeed("blockdev-add", throttle("u", "r"));
    let change = || stage.qmp.refusal("blockdev-reopen", reopen("u", "far"));
    let (why, took, meanwhile) = load.beside(change);
    assert_eq!(
        why,
        "Requests under way did not end in time; nothing was changed"
    );
    assert!(took > Duration::from_secs(4), "took {took:?}");
    assert!(took < Duration::from_secs(9), "took {took:?}");
    assert!(meanwhile > 500, "{meanwhile} requests in {took:?}");
    let graph = stage.qmp.succeed("x-debug-query-block-graph", json!({}));
    assert_eq!(graph["x-drains"]["timed-out"], 1, "{graph}");
    // It goes on where it was once the server does.
    assert!(guest.rings[0].pop().is_none(), "nobody answered that");
    server.signal(Signal::CONT);
    assert_eq!(guest.finish(0, pending).unwrap().status, OK);
    stage.qmp.succeed("blockdev-reopen", reopen("u", "far"));
    serves(&mut guest);
    load.goes_on(50);
    drop(load);
    stage.daemon.stop().unwrap();
}

#[test]
fn a_server_that_accepts_and_says_nothing_is_given_up_and_no_guest_notices() {
    let dir = tempfile::tempdir().unwrap();
    let (mut stage, server, load, mut guest) = two_disks(dir.path());
    server.signal(Signal::STOP);
    let mut node = server.node("s");
    node["open-timeout"] = json!(2);
    let open = || stage.qmp.refusal("blockdev-add", node);
    let (why, took, meanwhile) = load.beside(open);
    assert!(took > Duration::from_millis(1900), "took {took:?}: {why}");
    assert!(took < Duration::from_secs(6), "took {took:?}: {why}");
    assert!(meanwhile > 200, "{meanwhile} requests in {took:?}");
    server.signal(Signal::CONT);
    serves(&mut guest);
    stage.qmp.succeed("blockdev-add", server.node("s"));
    stage.qmp.succeed("blockdev-del", json!({"node-name": "s"}));
    drop(load);
    stage.daemon.stop().unwrap();
}

/// Asks for long answers until nobody takes the questions any more, and reads nothing. Says how much was sent.
fn never_reads(monitor: &Path) -> (UnixStream, usize) {
    let mut client = UnixStream::connect(monitor).unwrap();
    client
        .write_all(b"{\"execute\":\"qmp_capabilities\"}")
        .unwrap();
    client.set_nonblocking(true).unwrap();
    let question = b"{\"execute\":\"query-qmp-schema\"}\n";
    let (mut sent, mut full_since) = (0, None);
    let deadline = Instant::now() + patience();
    loop {
        assert!(Instant::now() < deadline, "{sent} bytes were taken");
        match client.write(question) {
            Ok(len) => (sent, full_since) = (sent + len, None),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let since: Instant = *full_since.get_or_insert_with(Instant::now);
                if since.elapsed() > Duration::from_millis(100) {
                    return (client, sent);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            // It was cut off.
            Err(_) => return (client, sent),
        }
    }
}

#[test]
fn a_monitor_client_that_never_reads_keeps_neither_guests_nor_others_waiting() {
    let deaf = "socket,id=deaf,path=DIR/deaf.sock,server=on,wait=off";
    let deaf = ["--chardev", deaf, "--monitor", "chardev=deaf"];
    let arguments = [&NULL[..], &deaf].concat();
    let mut stage = Stage::new(Kind::Virtioblkd, &arguments);
    let export = stage.export();
    stage.qmp.succeed("block-export-add", export);
    let load = Load::start(stage.path("e.sock"));
    let resident = resident_bytes(&stage);
    let ((mut client, sent), _, _) = load.beside(|| never_reads(&stage.path("deaf.sock")));
    load.goes_on(2000);
    // Events are for it as well; each of these commands makes one.
    for round in 0..300 {
        let mut export = stage.export();
        export["id"] = json!("other");
        export["addr"]["path"] = json!(stage.path("other.sock"));
        stage.qmp.succeed("block-export-add", export);
        stage
            .qmp
            .succeed("block-export-del", json!({"id": "other"}));
        assert_eq!(stage.qmp.events().len(), 1, "round {round}");
    }
    load.goes_on(2000);
    let grown = resident_bytes(&stage).saturating_sub(resident);
    assert!(grown < 64 << 20, "{grown} bytes for {sent} that were sent");
    drop(load);
    // Whatever it was sent is whole up to where it was cut off, if it was.
    client.set_nonblocking(true).unwrap();
    let mut first = [0; 17];
    client.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"{\"QMP\": {\"version");
    stage.daemon.stop().unwrap();
}

fn resident_bytes(stage: &Stage) -> u64 {
    let statm = fs::read_to_string(format!("/proc/{}/statm", stage.daemon.pid())).unwrap();
    let pages = statm.split_whitespace().nth(1).unwrap();
    pages.parse::<u64>().unwrap() * 4096
}
