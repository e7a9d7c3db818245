//! Starts a daemon whose node, export and surroundings a table chooses, and looks at its process from outside.
//!
//! Where [`crate::daemon`] serves the disks of guests, this knows null nodes, wrappers such as `taskset`, and /proc.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub use crate::daemon::Kind;

use super::deadline;

/// What the node is.
#[derive(Debug, Clone)]
pub enum Node {
    /// A regular file.
    File(PathBuf),
    /// null-co of so many bytes.
    Null(u64),
    /// Whatever these values of `--blockdev` say, children first; the last is named `n0`.
    Graph(Vec<String>),
}

/// A disk to export.
#[derive(Debug, Clone)]
pub struct Disk {
    /// What stores it.
    pub node: Node,
    /// Options of the file node, such as `cache.direct=on,aio=io_uring`; a graph says its own.
    pub file_options: &'static str,
    /// Options of the export, such as `logical-block-size=4096`.
    pub export_options: &'static str,
    /// Refuse writes.
    pub read_only: bool,
    /// Further arguments, such as `--object iothread,id=i0`.
    pub arguments: Vec<String>,
}

impl Disk {
    /// A writable disk on a file, through the page cache.
    pub fn file(path: &Path) -> Disk {
        Disk {
            node: Node::File(path.to_owned()),
            file_options: "discard=unmap",
            export_options: "",
            read_only: false,
            arguments: vec![],
        }
    }

    /// Arguments both daemons understand.
    fn arguments(&self, socket: &Path) -> Vec<String> {
        let with = |options: &str| {
            if options.is_empty() {
                String::new()
            } else {
                format!(",{options}")
            }
        };
        let (read_only, writable) = if self.read_only {
            ("on", "off")
        } else {
            ("off", "on")
        };
        let options = format!("read-only={read_only}{}", with(self.file_options));
        let nodes = match &self.node {
            Node::File(path) => {
                let path = path.display();
                vec![format!(
                    "driver=file,node-name=n0,filename={path},{options}"
                )]
            }
            Node::Null(size) => vec![format!("driver=null-co,node-name=n0,size={size},{options}")],
            Node::Graph(nodes) => nodes.clone(),
        };
        let mut arguments = self.arguments.clone();
        for node in nodes {
            arguments.extend(["--blockdev".into(), node]);
        }
        arguments.push("--export".into());
        arguments.push(format!(
            "type=vhost-user-blk,id=e0,node-name=n0,addr.type=unix,addr.path={},writable={writable}{}",
            socket.display(),
            with(self.export_options)
        ));
        arguments
    }
}

/// A daemon that runs; it is killed when this is dropped.
#[derive(Debug)]
pub struct Running {
    /// Its vhost-user-blk socket.
    pub socket: PathBuf,
    child: Child,
    log: PathBuf,
    _dir: TempDir,
}

impl Running {
    /// Starts a daemon for `disk` and waits until its socket is there.
    pub fn start(kind: Kind, disk: &Disk) -> io::Result<Running> {
        Running::start_under(&[], kind, disk)
    }

    /// The same under a wrapper such as `taskset -c 1`.
    pub fn start_under(wrapper: &[String], kind: Kind, disk: &Disk) -> io::Result<Running> {
        let dir = tempfile::tempdir()?;
        let socket = dir.path().join("disk.sock");
        let log = dir.path().join("log");
        let mut words: Vec<String> = wrapper.to_vec();
        words.push(kind.program()?.display().to_string());
        words.extend(disk.arguments(&socket));
        let child = Command::new(&words[0])
            .args(&words[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .map_err(|e| io::Error::new(e.kind(), format!("cannot start {}: {e}", words[0])))?;
        let mut running = Running {
            socket,
            child,
            log,
            _dir: dir,
        };
        running.wait_for_socket()?;
        Ok(running)
    }

    fn wait_for_socket(&mut self) -> io::Result<()> {
        let until = deadline();
        while !listens(&self.socket) {
            if let Some(status) = self.child.try_wait()? {
                return Err(io::Error::other(format!(
                    "the daemon ended with {status}: {}",
                    self.log()
                )));
            }
            if Instant::now() > until {
                return Err(io::Error::other(format!("no socket: {}", self.log())));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// What it wrote to standard error.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Open descriptors of the process.
    pub fn open_fds(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).map_or(0, Iterator::count)
    }

    /// Mappings of the process.
    pub fn mappings(&self) -> usize {
        fs::read_to_string(format!("/proc/{}/maps", self.pid()))
            .map_or(0, |maps| maps.lines().count())
    }

    /// Resident memory in KiB.
    pub fn rss_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
        line.and_then(|l| l.trim().trim_end_matches(" kB").parse().ok())
            .unwrap_or(0)
    }

    /// Sends SIGTERM and waits.
    pub fn terminate(&mut self) -> io::Result<std::process::ExitStatus> {
        // SAFETY: a plain system call on our own child, which is not reaped yet.
        unsafe { libc::kill(self.child.id() as i32, libc::SIGTERM) };
        let until = deadline();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > until {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "SIGTERM was ignored",
                ));
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Whether somebody listens there: a path alone may be bound and not listening yet, and a probe would be a front end.
fn listens(socket: &Path) -> bool {
    const ACCEPTS: &str = "00010000";
    let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let path = socket.display().to_string();
    table
        .lines()
        .any(|line| line.ends_with(&path) && line.split_whitespace().nth(3) == Some(ACCEPTS))
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
