//! NBD: a whole disk read one block after the other by nbdcopy, from our export and from qemu-nbd's.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::median;
use super::process::{cpu_ns_of_ended_too, taskset};
use super::rows::Effort;
use crate::client::deadline;
use crate::client::starter::Kind;

/// nbdcopy here, the server there.
const CLIENT_CPU: usize = 0;
const SERVER_CPU: usize = 1;
const NAME: &str = "NBD sequential read by nbdcopy, two CPUs";

/// What one server brought, round by round.
#[derive(Debug)]
pub struct Line {
    /// Who, and of what.
    pub name: &'static str,
    /// MB (10^6 bytes) per second.
    pub mb_per_second: Vec<f64>,
    /// Processor milliseconds of the server per GB (10^9 bytes).
    pub cpu_ms_per_gb: Vec<f64>,
}

/// A server and how it is started, up to its socket.
struct Server {
    name: &'static str,
    words: fn(image: &Path, socket: &Path) -> io::Result<Vec<OsString>>,
    format: Format,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Raw,
    Qcow2,
}

const SERVERS: [Server; 4] = [
    Server {
        name: "virtioblkd, raw",
        words: |image, socket| ours(image, socket, "raw"),
        format: Format::Raw,
    },
    Server {
        name: "qemu-nbd, raw",
        words: |image, socket| Ok(qemu_nbd(image, socket, "raw")),
        format: Format::Raw,
    },
    Server {
        name: "virtioblkd, qcow2",
        words: |image, socket| ours(image, socket, "qcow2"),
        format: Format::Qcow2,
    },
    Server {
        name: "qemu-nbd, qcow2",
        words: |image, socket| Ok(qemu_nbd(image, socket, "qcow2")),
        format: Format::Qcow2,
    },
];

fn ours(image: &Path, socket: &Path, format: &str) -> io::Result<Vec<OsString>> {
    let (image, socket) = (image.display(), socket.display());
    let words = [
        Kind::Virtioblkd.program()?.display().to_string(),
        "--blockdev".into(),
        format!("driver=file,node-name=f0,filename={image},read-only=on"),
        "--blockdev".into(),
        format!("driver={format},node-name=n0,file=f0,read-only=on"),
        "--nbd-server".into(),
        format!("addr.type=unix,addr.path={socket}"),
        "--export".into(),
        "type=nbd,id=e0,node-name=n0,name=".into(),
    ];
    Ok(words.into_iter().map(OsString::from).collect())
}

fn qemu_nbd(image: &Path, socket: &Path, format: &str) -> Vec<OsString> {
    let words = ["qemu-nbd", "-r", "-t", "-f", format, "-k"].map(OsString::from);
    words
        .into_iter()
        .chain([socket.into(), image.into()])
        .collect()
}

/// A server that runs; it is killed when this is dropped.
struct Running {
    child: Child,
    socket: PathBuf,
    _dir: TempDir,
}

impl Running {
    fn start(server: &Server, image: &Path) -> io::Result<Running> {
        let dir = TempDir::new()?;
        let (socket, log) = (dir.path().join("nbd.sock"), dir.path().join("log"));
        let pin = taskset(&[SERVER_CPU]);
        let child = Command::new(&pin[0])
            .args(&pin[1..])
            .args((server.words)(image, &socket)?)
            .stdin(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()?;
        let mut running = Running {
            child,
            socket,
            _dir: dir,
        };
        let until = deadline();
        while !running.socket.exists() {
            if Instant::now() > until || running.child.try_wait()?.is_some() {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                return Err(io::Error::other(format!(
                    "{}: no socket: {said}",
                    server.name
                )));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(running)
    }

    /// Reads the whole disk once; answers how long it took, and the server's processor time.
    fn copy(&self) -> io::Result<(Duration, u64)> {
        let pin = taskset(&[CLIENT_CPU]);
        let before = cpu_ns_of_ended_too(self.child.id())?;
        let begun = Instant::now();
        let output = Command::new(&pin[0])
            .args(&pin[1..])
            .arg("nbdcopy")
            .arg(format!("nbd+unix:///?socket={}", self.socket.display()))
            .arg("null:")
            .output()?;
        let took = begun.elapsed();
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(io::Error::other(format!("nbdcopy: {said}")));
        }
        // Ours ends a connection's thread when nbdcopy has gone, which may be after that.
        let used = cpu_ns_of_ended_too(self.child.id())? - before;
        Ok((took, used))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only where it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Measures every server on `raw` or on a qcow2 image of the same bytes, in turn; nothing if this row was not asked for.
pub fn run(effort: &Effort, raw: &Path) -> io::Result<Vec<Line>> {
    if !NAME.contains(&effort.only) {
        return Ok(Vec::new());
    }
    let dir = TempDir::new()?;
    let qcow2 = dir.path().join("disk.qcow2");
    super::rows::converted(raw, &qcow2)?;
    let mut lines = Vec::new();
    for server in &SERVERS {
        let image = match server.format {
            Format::Raw => raw,
            Format::Qcow2 => &qcow2,
        };
        let line = Line {
            name: server.name,
            mb_per_second: Vec::new(),
            cpu_ms_per_gb: Vec::new(),
        };
        lines.push((Running::start(server, image)?, line));
    }
    // The first round only warms up.
    for round in 0..=effort.rounds {
        for (running, line) in &mut lines {
            let (took, cpu) = running.copy()?;
            if round > 0 {
                let bytes = effort.file_bytes as f64;
                line.mb_per_second.push(bytes / 1e6 / took.as_secs_f64());
                line.cpu_ms_per_gb.push(cpu as f64 / 1e6 / (bytes / 1e9));
            }
        }
    }
    Ok(lines.into_iter().map(|(_, line)| line).collect())
}

/// A table of its own: bytes per second are no requests per second.
pub fn render(lines: &[Line]) -> String {
    let mut text = format!(
        "| {NAME} | MB/s | x qemu-nbd | server CPU ms/GB | x qemu-nbd |\n|---|---|---|---|---|\n"
    );
    for pair in lines.chunks(2) {
        for line in pair {
            let ratio = |of: fn(&Line) -> &Vec<f64>| {
                let ratios = of(line).iter().zip(of(&pair[pair.len() - 1]));
                median(
                    &ratios
                        .map(|(a, b)| a / b.max(f64::MIN_POSITIVE))
                        .collect::<Vec<_>>(),
                )
            };
            text += &format!(
                "| {} | {:.0} | {:.2} | {:.0} | {:.2} |\n",
                line.name,
                median(&line.mb_per_second),
                ratio(|line| &line.mb_per_second),
                median(&line.cpu_ms_per_gb),
                ratio(|line| &line.cpu_ms_per_gb),
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pair_is_compared_with_its_own_second() {
        let line = |name, mb: f64| Line {
            name,
            mb_per_second: vec![mb],
            cpu_ms_per_gb: vec![100.0],
        };
        let text = render(&[
            line("a", 30.0),
            line("b", 10.0),
            line("c", 5.0),
            line("d", 10.0),
        ]);
        assert!(text.contains("| a | 30 | 3.00 | 100 | 1.00 |"), "{text}");
        assert!(text.contains("| c | 5 | 0.50 | 100 | 1.00 |"), "{text}");
    }
}
