//! Either program, running, with a monitor to talk to.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    Ours,
    Theirs,
}

impl Program {
    pub(crate) fn path(self) -> &'static str {
        match self {
            Program::Ours => env!("CARGO_BIN_EXE_virtioblkd"),
            Program::Theirs => "qemu-storage-daemon",
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Program::Ours => "virtioblkd",
            Program::Theirs => "qemu-storage-daemon",
        }
    }
}

pub(crate) fn eventually(mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "not in {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What can be talked over.
pub(crate) trait Wire: Read + Write + Send {
    fn quiet_after(&self, time: Duration);
}

impl Wire for UnixStream {
    fn quiet_after(&self, time: Duration) {
        self.set_read_timeout(Some(time)).expect("a timeout");
    }
}

impl Wire for TcpStream {
    fn quiet_after(&self, time: Duration) {
        self.set_read_timeout(Some(time)).expect("a timeout");
    }
}

/// One end of a conversation.
pub(crate) struct Client(BufReader<Box<dyn Wire>>);

impl Client {
    pub(crate) fn new(wire: impl Wire + 'static) -> Client {
        wire.quiet_after(PATIENCE);
        Client(BufReader::new(Box::new(wire)))
    }

    pub(crate) fn next(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("a line");
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line:?}: {e}"))
    }

    pub(crate) fn command(&mut self, name: &str, arguments: Value) -> Value {
        let command = json!({"execute": name, "arguments": arguments}).to_string();
        self.0
            .get_mut()
            .write_all(command.as_bytes())
            .expect("it listens");
        self.next()
    }

    /// For a moment, is there anything to read?
    pub(crate) fn has_something(&mut self) -> bool {
        self.0.get_ref().quiet_after(Duration::from_millis(100));
        let has = self.0.fill_buf().is_ok();
        self.0.get_ref().quiet_after(PATIENCE);
        has
    }
}

/// What a child prints.
pub(crate) struct Lines<R>(BufReader<R>);

impl<R: Read> Lines<R> {
    pub(crate) fn new(from: R) -> Lines<R> {
        Lines(BufReader::new(from))
    }

    pub(crate) fn next(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("a line");
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line:?}: {e}"))
    }
}

pub(crate) fn spawn(program: Program, args: &[&str]) -> Child {
    let mut command = Command::new(program.path());
    let command = command.args(args).stdin(Stdio::null());
    command.stderr(Stdio::piped()).spawn().expect("it starts")
}

pub(crate) fn spawn_piped(program: Program, args: &[&str]) -> Child {
    let mut command = Command::new(program.path());
    let command = command.args(args).stdin(Stdio::piped());
    command.stdout(Stdio::piped()).spawn().expect("it starts")
}

pub(crate) fn first_line_of_stderr(child: &mut Child) -> String {
    let mut line = String::new();
    let stderr = child.stderr.take().expect("piped");
    let mut stderr = BufReader::new(stderr);
    stderr.read_line(&mut line).expect("a line");
    // Whoever closes its end may be told so when it writes.
    child.stderr = Some(stderr.into_inner());
    line.trim_end().to_owned()
}

pub(crate) fn terminate(child: &Child) {
    let pid = child.id().to_string();
    let killed = Command::new("kill").arg(&pid).status().expect("kill");
    assert!(killed.success());
}

/// A daemon; killed when dropped.
pub(crate) struct Daemon {
    child: Child,
    client: Option<Client>,
    dir: tempfile::TempDir,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Daemon {
    pub(crate) fn start(program: Program, args: &[String]) -> Daemon {
        Daemon::launch(program, Command::new(program.path()), args)
    }

    /// With something open as descriptor 3.
    pub(crate) fn start_with_fd_3(program: Program, args: &[String], fd: OwnedFd) -> Daemon {
        let mut shell = Command::new("sh");
        shell.args(["-c", "exec \"$0\" \"$@\" 3<&0 </dev/null", program.path()]);
        shell.stdin(fd);
        Daemon::launch(program, shell, args)
    }

    fn launch(program: Program, mut command: Command, args: &[String]) -> Daemon {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("monitor");
        let chardev = format!("socket,id=c,path={},server=on,wait=off", path.display());
        command.args(["--chardev", &chardev, "--monitor", "chardev=c"]);
        let child = command.args(args).spawn().expect("it starts");
        let mut daemon = Daemon {
            child,
            client: None,
            dir,
        };
        let mut client = Client::new(daemon.connect());
        assert!(client.next()["QMP"].is_object());
        let mut agreed = client.command("qmp_capabilities", json!({}));
        // Now and then, theirs greets whoever comes early twice.
        if program == Program::Theirs && agreed["QMP"].is_object() {
            agreed = client.next();
        }
        assert_eq!(agreed["return"], json!({}));
        daemon.client = Some(client);
        daemon
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn connect(&self) -> UnixStream {
        let mut stream = None;
        eventually(|| {
            stream = UnixStream::connect(self.dir.path().join("monitor")).ok();
            stream.is_some()
        });
        stream.expect("connected")
    }

    pub(crate) fn command(&mut self, name: &str, arguments: Value) -> Value {
        self.client
            .as_mut()
            .expect("connected")
            .command(name, arguments)
    }

    pub(crate) fn hang_up(&mut self) {
        self.client = None;
    }

    pub(crate) fn quit(&mut self) {
        assert_eq!(self.command("quit", json!({}))["return"], json!({}));
        assert!(self.child.wait().expect("it ends").success());
    }
}
