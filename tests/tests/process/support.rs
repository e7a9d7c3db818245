//! Starts the real program with any arguments, under any wrapper, and says when it is ready and how it ended.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tempfile::TempDir;
use tests::client::blk::Done;
use tests::client::guest::{Guest, Pending};
use tests::client::ring::readable;
use tests::client::starter::Kind;
use tests::client::{deadline, patience};

/// A directory for sockets and files of one test.
#[derive(Debug)]
pub struct Place(TempDir);

impl Place {
    pub fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    pub fn root(&self) -> &Path {
        self.0.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A file of zeroes.
    pub fn disk(&self, name: &str, len: u64) -> PathBuf {
        let path = self.path(name);
        File::create(&path).unwrap().set_len(len).unwrap();
        path
    }
}

/// `--export` for a node, on a socket.
pub fn export(id: &str, node: &str, socket: &Path, more: &str) -> Vec<String> {
    let socket = socket.display();
    let text = format!(
        "vhost-user-blk,id={id},node-name={node},addr.type=unix,addr.path={socket},writable=on{more}"
    );
    vec!["--export".into(), text]
}

/// `--blockdev` of a file.
pub fn file(node: &str, path: &Path, more: &str) -> Vec<String> {
    let text = format!("file,node-name={node},filename={}{more}", path.display());
    vec!["--blockdev".into(), text]
}

/// Words of a line.
pub fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

/// A program being prepared.
#[derive(Debug)]
pub struct Start {
    place: Place,
    kind: Kind,
    wrapper: Vec<String>,
    /// A descriptor that it finds as number 3.
    third: Option<OwnedFd>,
    arguments: Vec<String>,
    shell: &'static str,
}

impl Start {
    pub fn new(arguments: Vec<String>) -> Start {
        Start {
            place: Place::new(),
            kind: Kind::Virtioblkd,
            wrapper: Vec::new(),
            third: None,
            arguments,
            shell: "",
        }
    }

    pub fn kind(mut self, kind: Kind) -> Start {
        self.kind = kind;
        self
    }

    /// Started by this program, which becomes it or stays beside it.
    pub fn under(mut self, wrapper: &str) -> Start {
        self.wrapper = words(&wrapper.replace("DIR", self.place.root().to_str().unwrap()));
        self
    }

    /// With `fd` as descriptor 3, and assignments before it as a shell makes them (`$$` is its process id).
    pub fn with_third(mut self, fd: OwnedFd, assignments: &'static str) -> Start {
        self.third = Some(fd);
        self.shell = assignments;
        self
    }

    fn command(&mut self) -> Command {
        let mut words = self.wrapper.clone();
        words.push(self.kind.program().unwrap().display().to_string());
        words.extend(self.arguments.clone());
        if self.third.is_some() {
            let script = format!("exec 3<&0 </dev/null; {} exec \"$0\" \"$@\"", self.shell);
            words.splice(0..0, ["sh".into(), "-c".into(), script]);
        }
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).current_dir(self.place.root());
        command.stdout(Stdio::null());
        command.stdin(match self.third.take() {
            Some(fd) => Stdio::from(fd),
            None => Stdio::null(),
        });
        command.stderr(File::create(self.place.path("stderr")).unwrap());
        command
    }

    /// Starts it and waits for nothing.
    pub fn spawn(mut self) -> Process {
        let notify = UnixDatagram::bind(self.place.path("notify")).unwrap();
        let mut command = self.command();
        command.env("NOTIFY_SOCKET", self.place.path("notify"));
        let begun = Instant::now();
        let child = command.spawn().unwrap();
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        Process {
            child,
            pidfd,
            notify,
            begun,
            place: self.place,
        }
    }

    /// Starts it and waits until it says that it is ready.
    pub fn ready(self) -> Process {
        let process = self.spawn();
        process.wait_ready();
        process
    }

    /// Runs it to its end: the status, and what it said.
    pub fn run(self) -> (ExitStatus, String) {
        let mut process = self.spawn();
        let status = process.wait();
        (status, process.stderr())
    }
}

/// The program, running; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pidfd: OwnedFd,
    pub notify: UnixDatagram,
    pub begun: Instant,
    pub place: Place,
}

impl Process {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn wait_ready(&self) {
        let until = deadline();
        while !readable(&self.notify, std::time::Duration::from_millis(20)).unwrap() {
            let ended = readable(&self.pidfd, std::time::Duration::ZERO).unwrap();
            assert!(!ended, "ended before it was ready: {}", self.stderr());
            assert!(Instant::now() < until, "not ready: {}", self.stderr());
        }
        assert_eq!(self.notification().as_deref(), Some("READY=1"));
    }

    /// The same of one that may end instead.
    pub fn becomes_ready(&self) -> bool {
        let until = deadline();
        while !readable(&self.notify, std::time::Duration::from_millis(20)).unwrap() {
            if readable(&self.pidfd, std::time::Duration::ZERO).unwrap() {
                return false;
            }
            assert!(Instant::now() < until, "not ready: {}", self.stderr());
        }
        self.notification().as_deref() == Some("READY=1")
    }

    /// What it told the service manager, if anything.
    pub fn notification(&self) -> Option<String> {
        self.notify.set_nonblocking(true).unwrap();
        let mut message = [0; 256];
        let len = self.notify.recv(&mut message).ok()?;
        Some(String::from_utf8_lossy(&message[..len]).trim().to_owned())
    }

    pub fn stderr(&self) -> String {
        fs::read_to_string(self.place.path("stderr")).unwrap_or_default()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub fn alive(&self) -> bool {
        !readable(&self.pidfd, std::time::Duration::ZERO).unwrap()
    }

    /// Its exit status. Twice the usual patience: ending with a stuck disk is bounded by ten seconds.
    pub fn wait(&mut self) -> ExitStatus {
        let ended = readable(&self.pidfd, 2 * patience()).unwrap();
        assert!(ended, "it does not end: {}", self.stderr());
        self.child.wait().unwrap()
    }

    /// Ends it by SIGTERM, which must go well.
    pub fn stop(mut self) -> String {
        self.signal(Signal::TERM);
        let status = self.wait();
        assert!(status.success(), "{status}: {}", self.stderr());
        self.stderr()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only where it is gone already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until `holds`, and says what was waited for if it never does.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let until = deadline();
    while !holds() {
        assert!(Instant::now() < until, "never: {what}");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

/// Waits until the queue's thread has taken everything offered and listens again: with EVENT_IDX it then asks to be told
/// of the very next chain.
pub fn wait_taken(guest: &Guest, queue: usize, offered: u16) {
    let ring = &guest.rings[queue];
    let event = ring.place.used + 4 + 8 * u64::from(ring.size);
    until("all requests are taken", || {
        let bytes = guest.memory.read(event, 2);
        u16::from_le_bytes([bytes[0], bytes[1]]) == offered
    });
}

/// The completions that are there, without waiting.
pub fn completions(guest: &mut Guest, queue: usize, pending: &[Pending]) -> Vec<Option<Done>> {
    let mut done = vec![None; pending.len()];
    while let Some(used) = guest.rings[queue].pop() {
        let which = pending.iter().position(|p| u32::from(p.head) == used.id);
        let which = which.expect("a chain that was offered");
        done[which] = Some(guest.done(pending[which], used.len));
    }
    done
}

/// The pid of a process that is not our child, as something to wait for.
pub fn watch(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}
