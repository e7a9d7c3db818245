//! A vhost-user-blk daemon under test: ours, or the real qemu-storage-daemon to hold the tests themselves against.
//!
//! The rule to know: `start` returns when the daemon says it is ready, and `stop` is the only good end:
//! a daemon that is merely dropped is killed.

use crate::qmp::Qmp;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Both daemons are ready in a twentieth of a second; this is for a machine that is busy.
const READY_LIMIT: Duration = Duration::from_secs(20);
/// Stopping drains and flushes first.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// How often the pid file of a daemon that cannot notify is looked for.
const PID_FILE_INTERVAL: Duration = Duration::from_millis(10);
/// The monitor's socket in the daemon's directory.
const MONITOR: &str = "qmp.sock";
/// `/proc/PID/stat` counts in these; Linux fixes USER_HZ at 100 on every architecture we build for.
const TICKS_PER_SECOND: u64 = 100;

/// Which program serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Ours.
    Virtioblkd,
    /// QEMU's, which has the same options for what the tests use.
    QemuStorageDaemon,
}

impl Kind {
    /// Ours, unless the environment says `TEST_DAEMON=qsd`.
    ///
    /// # Panics
    /// For any other value: a misspelt one must not pass as ours.
    pub fn from_env() -> Kind {
        match std::env::var("TEST_DAEMON").as_deref() {
            Ok("qsd") => Kind::QemuStorageDaemon,
            Ok("virtioblkd") | Err(_) => Kind::Virtioblkd,
            Ok(other) => panic!("TEST_DAEMON={other}: neither qsd nor virtioblkd"),
        }
    }

    /// The name to print.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Virtioblkd => "virtioblkd",
            Kind::QemuStorageDaemon => "qemu-storage-daemon",
        }
    }

    /// Where the program is.
    ///
    /// # Errors
    /// `NotFound` where it is not built.
    pub fn program(self) -> io::Result<PathBuf> {
        match self {
            Kind::Virtioblkd => find_virtioblkd(),
            Kind::QemuStorageDaemon => Ok(self.name().into()),
        }
    }
}

/// The binary `VIRTIOBLKD` names, else the newest build in the directory this program was built in.
fn find_virtioblkd() -> io::Result<PathBuf> {
    if let Some(path) = std::env::var_os("VIRTIOBLKD") {
        return Ok(path.into());
    }
    let executable = std::env::current_exe()?;
    let builds = executable.ancestors().flat_map(|a| {
        let build = |profile| a.join(profile).join("virtioblkd");
        ["debug", "release"].map(build)
    });
    let built = builds.filter_map(|p| Some((p.metadata().ok()?.modified().ok()?, p)));
    let message = "virtioblkd is not built: run cargo build -p backend, or set VIRTIOBLKD";
    let missing = || io::Error::new(io::ErrorKind::NotFound, message);
    built.max().map(|(_, path)| path).ok_or_else(missing)
}

/// May the guest write?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// It may.
    ReadWrite,
    /// It may not.
    ReadOnly,
}

/// What becomes of a discard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discard {
    /// Nothing.
    Ignore,
    /// The host's blocks are freed.
    Unmap,
}

/// How the daemon reaches the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// As the daemon likes, through the host's page cache.
    Default,
    /// A pool of threads, through the host's page cache.
    Threads,
    /// io_uring past the host's page cache: addresses, offsets and lengths must fit the disk's blocks, or be made to.
    DirectUring,
}

/// One raw disk to serve.
#[derive(Debug, Clone)]
pub struct Disk {
    /// The file behind it.
    pub file: PathBuf,
    /// May the guest write?
    pub access: Access,
    /// What becomes of a discard.
    pub discard: Discard,
    /// How the daemon reaches the file; only [`Daemon::serve`] can say it.
    pub engine: Engine,
    /// How many queues are on offer.
    pub queues: u16,
}

impl Disk {
    /// A writable disk with as many queues as the guest uses, that frees what is discarded.
    pub fn new(file: impl AsRef<Path>) -> Disk {
        Disk {
            file: file.as_ref().to_path_buf(),
            access: Access::ReadWrite,
            discard: Discard::Unmap,
            engine: Engine::Default,
            queues: crate::guest::QUEUES,
        }
    }

    /// The same, read-only.
    pub fn read_only(file: impl AsRef<Path>) -> Disk {
        let access = Access::ReadOnly;
        Disk {
            access,
            ..Disk::new(file)
        }
    }
}

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    kind: Kind,
    child: Child,
    pidfd: OwnedFd,
    sockets: Vec<PathBuf>,
    directory: TempDir,
}

impl Daemon {
    /// Serves the disks with the options both daemons share, `--blockdev` and `--export`; returns when it is ready.
    ///
    /// # Errors
    /// Where the program is missing, ends at once or is not ready in time; the message has what it said.
    pub fn serve(kind: Kind, disks: &[Disk]) -> io::Result<Daemon> {
        let directory = tempfile::tempdir()?;
        let sockets = socket_paths(&directory, disks.len());
        let mut arguments = Vec::new();
        for (index, (disk, socket)) in disks.iter().zip(&sockets).enumerate() {
            arguments.extend(storage_daemon_options(index, disk, socket));
        }
        Daemon::start(kind, &arguments, sockets, directory)
    }

    /// Serves one disk with our own short options, `--blk-file` and `--socket-path`; as [`Daemon::serve`] for QEMU's daemon, which lacks them.
    ///
    /// # Errors
    /// As [`Daemon::serve`].
    pub fn serve_file(kind: Kind, disk: &Disk) -> io::Result<Daemon> {
        if kind == Kind::QemuStorageDaemon {
            return Daemon::serve(kind, std::slice::from_ref(disk));
        }
        let directory = tempfile::tempdir()?;
        let sockets = socket_paths(&directory, 1);
        let mut arguments: Vec<OsString> = vec!["--blk-file".into(), (&disk.file).into()];
        arguments.extend(["--socket-path".into(), (&sockets[0]).into()]);
        if disk.access == Access::ReadOnly {
            arguments.push("--read-only".into());
        }
        Daemon::start(kind, &arguments, sockets, directory)
    }

    /// Serves the node `top` of the graph that `arguments` make: `--object` and `--blockdev`, as both daemons know them.
    ///
    /// # Errors
    /// As [`Daemon::serve`].
    pub fn serve_graph(kind: Kind, arguments: &[&str], top: &str) -> io::Result<Daemon> {
        let directory = tempfile::tempdir()?;
        let sockets = socket_paths(&directory, 1);
        let (socket, queues) = (sockets[0].display(), crate::guest::QUEUES);
        let export = format!(
            "type=vhost-user-blk,id=export0,node-name={top},addr.type=unix,addr.path={socket},writable=on,num-queues={queues}"
        );
        let mut arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        arguments.extend(["--export".into(), export.into()]);
        Daemon::start(kind, &arguments, sockets, directory)
    }

    /// Runs with a monitor and these arguments, in which `DIR` stands for a directory of its own; [`Daemon::qmp`] connects.
    ///
    /// # Errors
    /// As [`Daemon::serve`].
    pub fn with_monitor(kind: Kind, arguments: &[&str]) -> io::Result<Daemon> {
        let directory = tempfile::tempdir()?;
        let place = directory.path().display().to_string();
        let chardev = format!("socket,id=monitor,path={place}/{MONITOR},server=on,wait=off");
        let mut words: Vec<OsString> = vec!["--chardev".into(), chardev.into()];
        words.extend(["--monitor".into(), "chardev=monitor".into()]);
        words.extend(arguments.iter().map(|a| a.replace("DIR", &place).into()));
        Daemon::start(kind, &words, Vec::new(), directory)
    }

    fn start(
        kind: Kind,
        arguments: &[OsString],
        sockets: Vec<PathBuf>,
        directory: TempDir,
    ) -> io::Result<Daemon> {
        let notify_path = directory.path().join("notify");
        let notify = UnixDatagram::bind(&notify_path)?;
        let program = kind.program()?;
        let mut command = Command::new(&program);
        command.args(arguments).env("NOTIFY_SOCKET", &notify_path);
        if kind == Kind::QemuStorageDaemon {
            command.arg("--pidfile").arg(pid_file(&directory));
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(log(&directory))?);
        let unstarted = |e: io::Error| {
            let message = format!("cannot start {}: {e}", program.display());
            io::Error::new(e.kind(), message)
        };
        let mut child = command.spawn().map_err(unstarted)?;
        let pidfd = match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(error) => {
                child.kill()?;
                return Err(error.into());
            }
        };
        let mut daemon = Daemon {
            kind,
            child,
            pidfd,
            sockets,
            directory,
        };
        daemon.wait_ready(&notify)?;
        Ok(daemon)
    }

    /// The socket of the disk with this index.
    ///
    /// # Panics
    /// Where there is no such disk.
    pub fn socket(&self, index: usize) -> &Path {
        &self.sockets[index]
    }

    /// A directory of its own, which goes with it.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A client of its monitor.
    ///
    /// # Errors
    /// As [`Qmp::connect`].
    pub fn qmp(&self) -> io::Result<Qmp> {
        Qmp::connect(&self.directory().join(MONITOR))
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to its standard error so far.
    pub fn stderr(&self) -> String {
        let bytes = fs::read(log(&self.directory)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The processor time it used so far, its own and the kernel's for it.
    ///
    /// # Errors
    /// Where `/proc` has no such process.
    pub fn cpu_time(&self) -> io::Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        // The name before the last parenthesis may hold anything; utime and stime are fields 14 and 15, so 11 and 12 behind it.
        let behind = stat.rsplit(')').next().unwrap_or_default();
        let fields = behind.split_whitespace().skip(11).take(2);
        let ticks: u64 = fields.filter_map(|f| f.parse::<u64>().ok()).sum();
        Ok(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
    }

    /// Asks it to end, by SIGTERM, and returns what it wrote to its standard error.
    ///
    /// # Errors
    /// `TimedOut` where it does not end; `Other` for an exit code other than 0.
    pub fn stop(mut self) -> io::Result<String> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        self.end("SIGTERM")
    }

    /// Waits for the end that `quit` asked for, and returns what it wrote to its standard error.
    ///
    /// # Errors
    /// As [`Daemon::stop`].
    pub fn ended(&mut self) -> io::Result<String> {
        self.end("quit")
    }

    fn end(&mut self, cause: &str) -> io::Result<String> {
        if !self.ended_within(STOP_LIMIT)? {
            return Err(self.failure(io::ErrorKind::TimedOut, &format!("ignored {cause}")));
        }
        let status = self.child.wait()?;
        if !status.success() {
            let what = format!("ended with {status} on {cause}");
            return Err(self.failure(io::ErrorKind::Other, &what));
        }
        Ok(self.stderr())
    }

    fn wait_ready(&mut self, notify: &UnixDatagram) -> io::Result<()> {
        let deadline = Instant::now() + READY_LIMIT;
        match self.kind {
            Kind::Virtioblkd => self.wait_notify(notify, deadline),
            Kind::QemuStorageDaemon => self.wait_pid_file(deadline),
        }
    }

    /// sd_notify(3): datagrams of assignments, one to a line.
    fn wait_notify(&mut self, notify: &UnixDatagram, deadline: Instant) -> io::Result<()> {
        let mut message = [0; 4096];
        loop {
            let left = timespec(deadline.saturating_duration_since(Instant::now()))?;
            let mut fds = [
                PollFd::new(notify, PollFlags::IN),
                PollFd::new(&self.pidfd, PollFlags::IN),
            ];
            if poll(&mut fds, Some(&left))? == 0 {
                return Err(self.failure(io::ErrorKind::TimedOut, "did not say READY=1"));
            }
            if fds[0].revents().is_empty() {
                return Err(self.failure(io::ErrorKind::Other, "ended before it was ready"));
            }
            let len = notify.recv(&mut message)?;
            if message[..len]
                .split(|&b| b == b'\n')
                .any(|line| line == b"READY=1")
            {
                return Ok(());
            }
        }
    }

    /// QEMU's daemon writes its pid file when all its options are carried out.
    fn wait_pid_file(&mut self, deadline: Instant) -> io::Result<()> {
        while !pid_file(&self.directory).exists() {
            if self.ended_within(PID_FILE_INTERVAL)? {
                return Err(self.failure(io::ErrorKind::Other, "ended before it was ready"));
            }
            if Instant::now() > deadline {
                return Err(self.failure(io::ErrorKind::TimedOut, "wrote no pid file"));
            }
        }
        Ok(())
    }

    fn ended_within(&self, limit: Duration) -> io::Result<bool> {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        Ok(poll(&mut fds, Some(&timespec(limit)?))? > 0)
    }

    fn failure(&self, kind: io::ErrorKind, what: &str) -> io::Error {
        let message = format!("{} {what}; it said:\n{}", self.kind.name(), self.stderr());
        io::Error::new(kind, message)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail only where it is gone already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn timespec(duration: Duration) -> io::Result<Timespec> {
    Timespec::try_from(duration).map_err(io::Error::other)
}

fn log(directory: &TempDir) -> PathBuf {
    directory.path().join("stderr")
}

fn pid_file(directory: &TempDir) -> PathBuf {
    directory.path().join("pid")
}

fn socket_paths(directory: &TempDir, count: usize) -> Vec<PathBuf> {
    let path = |index| directory.path().join(format!("disk{index}.sock"));
    (0..count).map(path).collect()
}

fn storage_daemon_options(index: usize, disk: &Disk, socket: &Path) -> [OsString; 4] {
    let file = disk.file.display();
    let queues = disk.queues;
    let read_only = if disk.access == Access::ReadOnly {
        "on"
    } else {
        "off"
    };
    let writable = if disk.access == Access::ReadOnly {
        "off"
    } else {
        "on"
    };
    let discard = if disk.discard == Discard::Unmap {
        "unmap"
    } else {
        "ignore"
    };
    let engine = match disk.engine {
        Engine::Default => "",
        Engine::Threads => ",aio=threads",
        Engine::DirectUring => ",aio=io_uring,cache.direct=on",
    };
    let node = format!(
        "driver=file,node-name=disk{index},filename={file},read-only={read_only},discard={discard}{engine}"
    );
    let export = format!(
        "type=vhost-user-blk,id=export{index},node-name=disk{index},addr.type=unix,addr.path={},writable={writable},num-queues={queues}",
        socket.display()
    );
    [
        "--blockdev".into(),
        node.into(),
        "--export".into(),
        export.into(),
    ]
}
