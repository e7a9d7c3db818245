//! Descriptors that clients pass, in sets, and nodes opened by them: the same answers as from QEMU, since qemu-storage-daemon
//! has no such commands.

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// A descriptor to be passed.
#[derive(Clone, Copy, Debug)]
enum Pass {
    Nothing,
    ReadOnly,
    ReadWrite,
    WriteOnly,
    /// Two: the first counts.
    Both,
}

struct Peer {
    child: Child,
    client: BufReader<UnixStream>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn connect(path: &Path) -> BufReader<UnixStream> {
    let until = Instant::now() + PATIENCE;
    let stream = loop {
        match UnixStream::connect(path) {
            Ok(stream) => break stream,
            Err(error) => assert!(Instant::now() < until, "no monitor: {error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    BufReader::new(stream)
}

impl Peer {
    fn start(mut command: Command, path: &Path) -> Peer {
        let child = command.stdin(Stdio::null()).spawn().expect("it starts");
        let mut peer = Peer {
            child,
            client: connect(path),
        };
        assert!(peer.next()["QMP"].is_object());
        let agreed = peer.send("qmp_capabilities", &json!({}), &[]);
        assert_eq!(agreed, json!({"return": {}}));
        peer
    }

    fn ours(dir: &Path) -> Peer {
        let path = dir.join("ours");
        let mut command = Command::new(env!("CARGO_BIN_EXE_virtioblkd"));
        let chardev = format!("socket,id=c,path={},server=on,wait=off", path.display());
        command.args(["--chardev", &chardev, "--monitor", "c"]);
        Peer::start(command, &path)
    }

    fn theirs(dir: &Path) -> Peer {
        let path = dir.join("theirs");
        let mut command = Command::new("qemu-system-x86_64");
        let chardev = format!("socket,id=c,path={},server=on,wait=off", path.display());
        command.args(["-M", "none", "-display", "none", "-nodefaults"]);
        command.args(["-chardev", &chardev, "-mon", "chardev=c,mode=control"]);
        Peer::start(command, &path)
    }

    fn next(&mut self) -> Value {
        let mut line = String::new();
        self.client.read_line(&mut line).expect("a line");
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line:?}: {e}"))
    }

    fn send(&mut self, name: &str, arguments: &Value, fds: &[OwnedFd]) -> Value {
        let text = json!({"execute": name, "arguments": arguments}).to_string();
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        }
        let slices = [IoSlice::new(text.as_bytes())];
        let sent = sendmsg(
            self.client.get_ref(),
            &slices,
            &mut control,
            SendFlags::empty(),
        );
        assert_eq!(sent, Ok(text.len()));
        self.next()
    }
}

fn fds(image: &Path, pass: Pass) -> Vec<OwnedFd> {
    let open = |read, write| -> OwnedFd {
        let mut how = OpenOptions::new();
        how.read(read)
            .write(write)
            .open(image)
            .expect("there")
            .into()
    };
    match pass {
        Pass::Nothing => Vec::new(),
        Pass::ReadOnly => vec![open(true, false)],
        Pass::ReadWrite => vec![open(true, true)],
        Pass::WriteOnly => vec![open(false, true)],
        Pass::Both => vec![open(true, true), open(true, false)],
    }
}

/// Numbers of descriptors are each process's own.
fn without_numbers(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let each = members
                .into_iter()
                .map(|(name, value)| match name.as_str() {
                    "fd" => (name, json!("N")),
                    _ => (name, without_numbers(value)),
                });
            Value::Object(each.collect())
        }
        Value::Array(elements) => elements.into_iter().map(without_numbers).collect(),
        other => other,
    }
}

#[test]
fn sets_are_kept_and_opened_as_in_qemu() {
    let dir = tempfile::tempdir().expect("a directory");
    let image = dir.path().join("image");
    std::fs::write(&image, vec![0; 1 << 20]).expect("written");
    let node = |name: &str, set: &str| json!({"driver": "file", "node-name": name, "filename": format!("/dev/fdset/{set}")});
    let with = |mut node: Value, name: &str, value: Value| {
        node[name] = value;
        node
    };
    let script = [
        ("query-fdsets", json!({}), Pass::Nothing),
        ("add-fd", json!({}), Pass::Nothing),
        ("add-fd", json!({}), Pass::ReadWrite),
        ("add-fd", json!({"opaque": "hi"}), Pass::ReadOnly),
        (
            "add-fd",
            json!({"fdset-id": 0, "opaque": "ro"}),
            Pass::ReadOnly,
        ),
        (
            "add-fd",
            json!({"fdset-id": 7, "opaque": ""}),
            Pass::ReadOnly,
        ),
        ("add-fd", json!({"fdset-id": -1}), Pass::ReadOnly),
        ("add-fd", json!({"fdset-id": "x"}), Pass::ReadOnly),
        ("add-fd", json!({"fdset-id": 9}), Pass::Both),
        ("add-fd", json!({}), Pass::ReadWrite),
        // Came with a command that has no use for it.
        ("query-version-not", json!({}), Pass::ReadOnly),
        ("query-fdsets", json!({}), Pass::Nothing),
        ("remove-fd", json!({"fdset-id": 55}), Pass::Nothing),
        (
            "remove-fd",
            json!({"fdset-id": 9, "fd": 99999}),
            Pass::Nothing,
        ),
        ("remove-fd", json!({"fdset-id": 9}), Pass::Nothing),
        ("remove-fd", json!({"fdset-id": 9}), Pass::Nothing),
        ("remove-fd", json!({}), Pass::Nothing),
        ("blockdev-add", node("a", "99"), Pass::Nothing),
        ("blockdev-add", node("a", "x"), Pass::Nothing),
        ("blockdev-add", node("a", ""), Pass::Nothing),
        ("blockdev-add", node("a", "3x"), Pass::Nothing),
        ("blockdev-add", node("a", "-3"), Pass::Nothing),
        ("blockdev-add", node("a", "7"), Pass::Nothing),
        (
            "blockdev-add",
            with(node("b", "7"), "read-only", true.into()),
            Pass::Nothing,
        ),
        (
            "blockdev-add",
            with(node("b2", "7"), "auto-read-only", true.into()),
            Pass::Nothing,
        ),
        ("blockdev-add", node("r", "0"), Pass::Nothing),
        (
            "blockdev-add",
            with(node("r2", "1"), "read-only", true.into()),
            Pass::Nothing,
        ),
        (
            "blockdev-add",
            with(node("d", "0"), "cache", json!({"direct": true})),
            Pass::Nothing,
        ),
        (
            "blockdev-add",
            with(node("h", "0"), "driver", "host_device".into()),
            Pass::Nothing,
        ),
        ("add-fd", json!({"fdset-id": 3}), Pass::WriteOnly),
        ("blockdev-add", node("w", "3"), Pass::Nothing),
        ("query-fdsets", json!({}), Pass::Nothing),
        ("blockdev-del", json!({"node-name": "r"}), Pass::Nothing),
        ("query-fdsets", json!({}), Pass::Nothing),
    ];
    let [mut ours, mut theirs] = [Peer::ours(dir.path()), Peer::theirs(dir.path())];
    for (name, arguments, pass) in script {
        let [ours, theirs] = [&mut ours, &mut theirs]
            .map(|peer| without_numbers(peer.send(name, &arguments, &fds(&image, pass))));
        assert_eq!(ours, theirs, "{name} {arguments} {pass:?}");
    }
}

#[test]
fn descriptors_are_kept_when_their_client_leaves_and_belong_to_the_command_they_came_with() {
    let dir = tempfile::tempdir().expect("a directory");
    let image = dir.path().join("image");
    std::fs::write(&image, vec![0; 1 << 20]).expect("written");
    let mut peer = Peer::ours(dir.path());
    // The first was sent without: it does not get the second's.
    let text = b"{\"execute\":\"query-version\"}";
    std::io::Write::write_all(peer.client.get_mut(), text).expect("it listens");
    let added = peer.send(
        "add-fd",
        &json!({"fdset-id": 5}),
        &fds(&image, Pass::ReadWrite),
    );
    assert!(added["return"]["qemu"].is_object());
    assert_eq!(peer.next()["return"]["fdset-id"], 5);
    peer.client = connect(&dir.path().join("ours"));
    assert!(peer.next()["QMP"].is_object());
    peer.send("qmp_capabilities", &json!({}), &[]);
    let sets = peer.send("query-fdsets", &json!({}), &[]);
    assert_eq!(sets["return"][0]["fdset-id"], 5);
    let node = json!({"driver": "file", "node-name": "n", "filename": "/dev/fdset/5"});
    assert_eq!(peer.send("blockdev-add", &node, &[]), json!({"return": {}}));
}

fn busy_ticks(peer: &Peer) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", peer.child.id())).expect("alive");
    let after_name = stat.rsplit_once(')').expect("a name").1;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<u64>().expect("a number");
    ticks(11) + ticks(12)
}

#[test]
fn a_monitor_that_cannot_let_anybody_in_does_not_spin_and_does_once_it_can() {
    let dir = tempfile::tempdir().expect("a directory");
    let image = dir.path().join("image");
    std::fs::write(&image, vec![0; 4096]).expect("written");
    let (first, second) = (dir.path().join("1"), dir.path().join("2"));
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "ulimit -n 64; exec \"$0\" \"$@\"",
        env!("CARGO_BIN_EXE_virtioblkd"),
    ]);
    for (id, path) in [("a", &first), ("b", &second)] {
        let chardev = format!("socket,id={id},path={},server=on,wait=off", path.display());
        command.args(["--chardev", &chardev, "--monitor", id]);
    }
    let mut peer = Peer::start(command, &first);
    // Until there are none left: the kernel then delivers none with the command.
    let mut add = || {
        let fds = fds(&image, Pass::ReadOnly);
        peer.send("add-fd", &json!({"fdset-id": 1}), &fds)
    };
    let added = (0..64).take_while(|_| add()["return"].is_object()).count();
    assert!((1..64).contains(&added), "{added} added");
    let mut waiting = connect(&second);
    let before = busy_ticks(&peer);
    std::thread::sleep(Duration::from_secs(1));
    let busy = busy_ticks(&peer) - before;
    assert!(busy < 20, "{busy} ticks in a second");
    assert_eq!(
        peer.send("remove-fd", &json!({"fdset-id": 1}), &[]),
        json!({"return": {}})
    );
    let mut line = String::new();
    waiting.read_line(&mut line).expect("a greeting");
    assert!(line.starts_with("{\"QMP\""), "{line}");
}
