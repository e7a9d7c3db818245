//! Jobs that copy a disk while a guest uses it: how fast the job is, and what is left for the guest, ours beside
//! qemu-storage-daemon's.
//!
//! The rule: a daemon is started anew for each round, on the same source and with an empty target, and both sides go past the
//! page cache, which would remember the round before.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::load::{self, Direction, Load, Order, Waiting};
use super::median;
use super::process::{pin_self, taskset};
use super::rows::{Effort, filled_file};
use crate::client::guest::{Guest, Setup};
use crate::client::starter::{Disk, Kind, Node, Running};
use crate::qmp::Qmp;

const GUEST_CPU: usize = 0;
const DAEMON_CPU: usize = 1;
/// The image is so many times as large as the files of the other rows: 4 GiB, and 1 GiB in short.
const TIMES_AS_LARGE: u64 = 4;
/// The guest's load is measured in slices, so that it can end when the job does.
const SLICE: Duration = Duration::from_millis(50);
/// Before and after a job nothing is counted.
const JOB_LIMIT: Duration = Duration::from_secs(600);

/// A kind of job.
struct Subject {
    name: &'static str,
    command: &'static str,
    arguments: fn() -> Value,
    /// The event that says that all is copied.
    copied: &'static str,
}

const SUBJECTS: [Subject; 2] = [
    Subject {
        name: "backup under a guest's 4k randrw QD8",
        command: "blockdev-backup",
        arguments: || json!({"job-id": "j", "device": "n0", "target": "t", "sync": "full"}),
        copied: "BLOCK_JOB_COMPLETED",
    },
    Subject {
        name: "mirror under a guest's 4k randrw QD8",
        command: "blockdev-mirror",
        arguments: || json!({"job-id": "j", "device": "n0", "target": "t", "sync": "full"}),
        copied: "BLOCK_JOB_READY",
    },
];

/// What one daemon brought, round by round.
#[derive(Debug)]
pub struct Line {
    /// Who.
    pub name: &'static str,
    /// Of the job, in MB (10^6 bytes) per second.
    pub mb_per_second: Vec<f64>,
    /// The guest's while the job ran.
    pub iops: Vec<f64>,
}

/// One kind of job for both daemons.
#[derive(Debug)]
pub struct Row {
    /// What was asked.
    pub name: &'static str,
    /// Ours, and then theirs; ours is empty where ours has no such job.
    pub lines: [Line; 2],
}

const CONTENDERS: [(&str, Kind); 2] = [
    ("virtioblkd", Kind::Virtioblkd),
    ("QSD", Kind::QemuStorageDaemon),
];

/// Source and target.
struct Files {
    dir: TempDir,
    source: PathBuf,
    bytes: u64,
}

impl Files {
    fn target(&self) -> PathBuf {
        self.dir.path().join("target")
    }

    fn monitor(&self) -> PathBuf {
        self.dir.path().join("monitor")
    }

    fn start(&self, kind: Kind) -> io::Result<Running> {
        for gone in [self.target(), self.monitor()] {
            match fs::remove_file(gone) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        File::create(self.target())?.set_len(self.bytes)?;
        let mut arguments: Vec<String> = Vec::new();
        let mut add = |words: [&str; 2]| arguments.extend(words.map(str::to_owned));
        let socket = self.monitor();
        let socket = format!("socket,id=m,path={},server=on,wait=off", socket.display());
        add(["--chardev", &socket]);
        add(["--monitor", "m"]);
        // The kernel may hold the locks of the daemon before a little longer.
        let node = |name: &str, path: &Path| {
            let path = path.display();
            format!(
                "driver=file,node-name={name},filename={path},locking=off,cache.direct=on,aio=io_uring"
            )
        };
        let disk = Disk {
            node: Node::Graph(vec![node("t", &self.target()), node("n0", &self.source)]),
            // On the main thread: QSD 10.0.2 hangs or ends where a job begins on the disk of a busy export with an iothread.
            arguments,
            ..Disk::file(Path::new(""))
        };
        Running::start_under(&taskset(&[DAEMON_CPU]), kind, &disk)
    }
}

fn load(direction: Direction, bytes: u64) -> Load {
    Load {
        block_bytes: 4096,
        depth: 8,
        direction,
        order: Order::Random,
        waiting: Waiting::Block,
        disk_bytes: bytes,
        stride_bytes: 4096,
    }
}

/// Reads and writes by turns until told to stop; requests per second.
fn work(guest: &mut Guest, bytes: u64, stop: &AtomicBool) -> io::Result<f64> {
    let (mut requests, mut seconds) = (0, 0.0);
    for direction in [Direction::Read, Direction::Write].into_iter().cycle() {
        let outcome = load::run(guest, load(direction, bytes), SLICE)?;
        requests += outcome.requests;
        seconds += outcome.seconds;
        if stop.load(Ordering::Relaxed) {
            break;
        }
    }
    Ok(requests as f64 / seconds)
}

/// Stops whoever looks, whatever comes of the job.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// How long a job took; `None` where there is none of that kind.
fn job(monitor: &mut Qmp, subject: &Subject) -> io::Result<Option<Duration>> {
    let begun = Instant::now();
    let started = monitor.try_execute(subject.command, &(subject.arguments)())?;
    match started {
        Err(error) if error["class"] == "CommandNotFound" => return Ok(None),
        Err(error) => return Err(io::Error::other(format!("{}: {error}", subject.command))),
        Ok(_) => {}
    }
    let deadline = begun + JOB_LIMIT;
    let ended = |event: &Value| event["event"] == subject.copied;
    let mut came: Vec<Value> = monitor.events();
    while !came.iter().any(ended) {
        came = vec![monitor.read(deadline)?];
        if let Some(error) = came[0]["data"].get("error") {
            return Err(io::Error::other(format!("{}: {error}", subject.command)));
        }
    }
    Ok(Some(begun.elapsed()))
}

/// One round: MB per second, and the guest's requests per second.
fn measure(files: &Files, subject: &Subject, kind: Kind) -> io::Result<Option<(f64, f64)>> {
    let mut daemon = files.start(kind)?;
    let mut monitor = Qmp::connect(&files.monitor())?;
    let setup = Setup {
        ring_size: 16,
        data_bytes: load(Direction::Read, files.bytes).memory_bytes(1),
        ..Setup::default()
    };
    let mut guest = Guest::start(&daemon.socket, setup)?;
    let stop = AtomicBool::new(false);
    let (took, iops) = thread::scope(|scope| -> io::Result<_> {
        let working = scope.spawn(|| work(&mut guest, files.bytes, &stop));
        let stops = Stops(&stop);
        let took = job(&mut monitor, subject);
        drop(stops);
        let iops = working.join();
        Ok((
            took?,
            iops.map_err(|_| io::Error::other("the guest panicked"))??,
        ))
    })?;
    drop(guest);
    drop(monitor);
    daemon.terminate()?;
    Ok(took.map(|took| (files.bytes as f64 / 1e6 / took.as_secs_f64(), iops)))
}

/// Measures both daemons in turn; nothing of what was not asked for.
pub fn run(effort: &Effort) -> io::Result<Vec<Row>> {
    let asked = SUBJECTS.iter().filter(|s| s.name.contains(&effort.only));
    let asked: Vec<&Subject> = asked.collect();
    if asked.is_empty() {
        return Ok(Vec::new());
    }
    pin_self(&[GUEST_CPU])?;
    let dir = TempDir::new()?;
    let bytes = effort.file_bytes * TIMES_AS_LARGE;
    let source = filled_file(dir.path(), bytes)?;
    let files = Files { dir, source, bytes };
    asked.into_iter().map(|s| row(&files, s, effort)).collect()
}

fn row(files: &Files, subject: &Subject, effort: &Effort) -> io::Result<Row> {
    let mut lines = CONTENDERS.map(|(name, _)| Line {
        name,
        mb_per_second: Vec::new(),
        iops: Vec::new(),
    });
    // The first round only warms up.
    for round in 0..=effort.rounds {
        for (line, (_, kind)) in lines.iter_mut().zip(CONTENDERS) {
            let measured = measure(files, subject, kind)?;
            if let (Some((mb_per_second, iops)), 1..) = (measured, round) {
                line.mb_per_second.push(mb_per_second);
                line.iops.push(iops);
            }
        }
    }
    let name = subject.name;
    Ok(Row { name, lines })
}

/// A table of its own for each kind of job, and whether both are what they should be: at least as much as theirs.
pub fn render(rows: &[Row]) -> String {
    let mut text = String::new();
    for Row { name, lines } in rows {
        text +=
            &format!("\n| {name} | MB/s | x QSD | guest's IOPS | x QSD |\n|---|---|---|---|---|\n");
        for line in lines {
            let ratio = |of: fn(&Line) -> &Vec<f64>| {
                let pairs = of(line).iter().zip(of(&lines[1]));
                let ratios = pairs.map(|(a, b)| a / b.max(f64::MIN_POSITIVE));
                median(&ratios.collect::<Vec<_>>())
            };
            if line.mb_per_second.is_empty() {
                text += &format!("| {} | no such job | | | |\n", line.name);
                continue;
            }
            text += &format!(
                "| {} | {:.0} | {:.2} | {:.0} | {:.2} |\n",
                line.name,
                median(&line.mb_per_second),
                ratio(|line| &line.mb_per_second),
                median(&line.iops),
                ratio(|line| &line.iops),
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_compared_with_theirs_and_what_is_missing_says_so() {
        let line = |name, figures: &[f64]| Line {
            name,
            mb_per_second: figures.to_vec(),
            iops: figures.iter().map(|figure| figure * 10.0).collect(),
        };
        let row = |ours: &[f64]| Row {
            name: "a job",
            lines: [line("a", ours), line("b", &[1.0, 10.0, 100.0])],
        };
        let text = render(&[row(&[2.0, 20.0, 200.0])]);
        assert!(text.contains("| a | 20 | 2.00 | 200 | 2.00 |"), "{text}");
        let text = render(&[row(&[])]);
        assert!(text.contains("| a | no such job | | | |"), "{text}");
        assert!(text.contains("| b | 10 | 1.00 | 100 | 1.00 |"), "{text}");
    }
}
