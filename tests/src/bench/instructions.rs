//! Instructions per request in user space, by callgrind on fixed numbers of requests: repeatable where time is not.
//!
//! The rule: io_uring is refused to the daemon here. valgrind 3.19 holds its only lock while a thread sleeps in
//! io_uring_enter, so that every other thread stands still; on the thread pool everything above the engine is the same.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::json;
use tempfile::TempDir;

use super::load::{self, Direction, Load, Order, Waiting};
use super::rows::filled_file;
use crate::client::guest::{Guest, Setup};
use crate::client::starter::{Disk, Kind, Node, Running};
use crate::qmp::Qmp;

const DEPTH: u16 = 32;
const FEW: u32 = 100;
const MANY: u32 = 600;
const RUNS: usize = 3;
/// Bitmaps that record, where there are any.
const BITMAPS: usize = 8;
/// What is asked for lies in the beginning of the disk.
const DISK_BYTES: u64 = 1 << 20;

/// First argument of ourselves as a wrapper: see [`super::process::exec_without_io_uring`].
pub const REFUSE_IO_URING: &str = "--refuse-io-uring";

/// What is measured.
pub const SUBJECTS: [&str; 11] = [
    "null",
    "page-cache",
    "page-cache-write",
    "copied-write",
    "bitmaps-write",
    "journal-write",
    "qcow2",
    "qcow2-write",
    "chain-1",
    "chain-16",
    "filters",
];

/// A disk and what is asked of it.
struct Subject {
    node: Node,
    direction: Direction,
    read_only: bool,
    arguments: Vec<String>,
    bitmaps: usize,
    _images: Option<TempDir>,
}

impl Subject {
    fn by_name(name: &str, file: &Path) -> io::Result<Subject> {
        let plain = |node| Subject {
            node,
            direction: Direction::Read,
            read_only: false,
            arguments: Vec::new(),
            bitmaps: 0,
            _images: None,
        };
        let dir = TempDir::new()?;
        let image = dir.path().join("disk.qcow2");
        let on_qcow2 = || -> io::Result<Subject> {
            super::rows::converted(file, &image)?;
            Ok(plain(super::rows::on_file(&image, "", "")))
        };
        let chain = |overlays| -> io::Result<Subject> {
            let node = super::rows::overlaid(file, dir.path(), overlays)?;
            Ok(Subject {
                read_only: true,
                ..plain(node)
            })
        };
        let subject = match name {
            "null" => plain(Node::Null(1 << 30)),
            "page-cache" => plain(Node::File(file.to_owned())),
            // Others read what is in `file`.
            "page-cache-write" => plain(Node::File(filled_file(dir.path(), DISK_BYTES)?)).writing(),
            "copied-write" => {
                let file = filled_file(dir.path(), DISK_BYTES)?;
                plain(super::rows::copied(&file, DISK_BYTES, "")).writing()
            }
            "bitmaps-write" => Subject {
                bitmaps: BITMAPS,
                ..plain(Node::File(filled_file(dir.path(), DISK_BYTES)?)).writing()
            },
            "journal-write" => {
                let file = filled_file(dir.path(), DISK_BYTES)?;
                let node = super::rows::journaled(&file, "");
                Subject {
                    bitmaps: 1,
                    ..plain(node).writing()
                }
            }
            "qcow2" => on_qcow2()?,
            "qcow2-write" => on_qcow2()?.writing(),
            "chain-1" => chain(1)?,
            "chain-16" => chain(super::rows::LONG_CHAIN)?,
            "filters" => Subject {
                node: super::rows::four_filters(&image),
                arguments: vec!["--object".into(), super::rows::FAR_GROUP.into()],
                ..on_qcow2()?
            },
            _ => return Err(io::Error::other(format!("no subject {name:?}"))),
        };
        Ok(Subject {
            _images: Some(dir),
            ..subject
        })
    }

    fn writing(self) -> Subject {
        Subject {
            direction: Direction::Write,
            ..self
        }
    }
}

/// Measures all subjects and tells of each in their order. A valgrind runs on one processor, so there are as many as processors.
pub fn each(file: &Path, mut tell: impl FnMut(&str, f64)) -> io::Result<()> {
    let next = AtomicUsize::new(0);
    let measure = || {
        let mut counts = Vec::new();
        while let Some(subject) = SUBJECTS.get(next.fetch_add(1, Ordering::Relaxed)) {
            counts.push((*subject, per_request(subject, file)?));
        }
        Ok(counts)
    };
    let processors = thread::available_parallelism()?.get();
    let counts: io::Result<Vec<Vec<_>>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..processors).map(|_| scope.spawn(measure)).collect();
        let ended = workers.into_iter().map(|worker| worker.join());
        let panicked = |_| io::Error::other("a measuring thread panicked");
        ended.map(|counts| counts.map_err(panicked)?).collect()
    });
    let counts: HashMap<&str, f64> = counts?.into_iter().flatten().collect();
    SUBJECTS
        .iter()
        .for_each(|subject| tell(subject, counts[subject]));
    Ok(())
}

/// Instructions per 4k request of one subject, bursts of 32, with polling off. Two runs of different length cancel what
/// starting and stopping costs.
fn per_request(subject: &str, file: &Path) -> io::Result<f64> {
    let subject = Subject::by_name(subject, file)?;
    // How the pool's threads meet varies a little; the least is what the work itself takes.
    let least = |bursts| -> io::Result<u64> {
        let runs: Vec<u64> = (0..RUNS)
            .map(|_| collect(&subject, bursts))
            .collect::<io::Result<_>>()?;
        Ok(runs.into_iter().min().unwrap_or(0))
    };
    let (few, many) = (least(FEW)?, least(MANY)?);
    Ok(many.saturating_sub(few) as f64 / (f64::from(MANY - FEW) * f64::from(DEPTH)))
}

fn collect(subject: &Subject, bursts: u32) -> io::Result<u64> {
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("callgrind.out");
    let us = std::env::current_exe()?.display().to_string();
    let out_option = format!("--callgrind-out-file={}", out.display());
    let wrapper = [
        us,
        REFUSE_IO_URING.into(),
        "valgrind".into(),
        "--tool=callgrind".into(),
        out_option,
    ];
    // Polling would count instructions by the clock.
    let mut arguments = vec!["--object".into(), "iothread,id=t0,poll-max-ns=0".into()];
    arguments.extend(subject.arguments.iter().cloned());
    let monitor = dir.path().join("monitor");
    if subject.bitmaps > 0 {
        let path = monitor.display();
        let socket = format!("socket,id=m,path={path},server=on,wait=off");
        arguments.extend(["--chardev".into(), socket, "--monitor".into(), "m".into()]);
    }
    let disk = Disk {
        node: subject.node.clone(),
        file_options: "",
        export_options: "iothread=t0",
        read_only: subject.read_only,
        arguments,
    };
    let mut daemon = Running::start_under(&wrapper, Kind::Virtioblkd, &disk)?;
    if subject.bitmaps > 0 {
        add_bitmaps(&monitor, subject.bitmaps)?;
    }
    let load = Load {
        block_bytes: 4096,
        depth: DEPTH,
        direction: subject.direction,
        order: Order::Sequential,
        waiting: Waiting::Block,
        disk_bytes: DISK_BYTES,
        stride_bytes: 4096,
    };
    let setup = Setup {
        ring_size: 64,
        data_bytes: load.memory_bytes(1),
        ..Setup::default()
    };
    let mut guest = Guest::start(&daemon.socket, setup)?;
    load::run_bursts(&mut guest, load, bursts)?;
    drop(guest);
    daemon.terminate()?;
    total(&fs::read_to_string(out)?)
}

/// Over the daemon's monitor: bitmaps of the exported node.
fn add_bitmaps(monitor: &Path, count: usize) -> io::Result<()> {
    let mut monitor = Qmp::connect(monitor)?;
    for number in 0..count {
        let arguments = json!({"node": "n0", "name": format!("b{number}")});
        let added = monitor.try_execute("block-dirty-bitmap-add", &arguments)?;
        added.map_err(|error| io::Error::other(error.to_string()))?;
    }
    Ok(())
}

fn total(profile: &str) -> io::Result<u64> {
    let line = profile.lines().find_map(|l| {
        l.strip_prefix("totals:")
            .or_else(|| l.strip_prefix("summary:"))
    });
    let total = line.and_then(|l| l.trim().parse().ok());
    total.ok_or_else(|| io::Error::other("callgrind left no totals"))
}
