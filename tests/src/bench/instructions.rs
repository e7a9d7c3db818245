//! Instructions per request in user space, by callgrind on fixed numbers of requests: repeatable where time is not.
//!
//! The rule: io_uring is refused to the daemon here. valgrind 3.19 holds its only lock while a thread sleeps in
//! io_uring_enter, so that every other thread stands still; on the thread pool everything above the engine is the same.

use std::fs;
use std::io;
use std::path::Path;

use tempfile::TempDir;

use super::load::{self, Direction, Load, Order, Waiting};
use crate::client::guest::{Guest, Setup};
use crate::client::starter::{Disk, Kind, Node, Running};

const DEPTH: u16 = 32;
const FEW: u32 = 100;
const MANY: u32 = 600;
const RUNS: usize = 3;

/// First argument of ourselves as a wrapper: see [`super::process::exec_without_io_uring`].
pub const REFUSE_IO_URING: &str = "--refuse-io-uring";

/// What is measured.
pub const SUBJECTS: [&str; 5] = ["null", "page-cache", "qcow2", "qcow2-write", "filters"];

/// A disk and what is asked of it.
struct Subject {
    node: Node,
    direction: Direction,
    arguments: Vec<String>,
    _images: Option<TempDir>,
}

impl Subject {
    fn by_name(name: &str, file: &Path) -> io::Result<Subject> {
        let plain = |node| Subject {
            node,
            direction: Direction::Read,
            arguments: Vec::new(),
            _images: None,
        };
        if name == "null" {
            return Ok(plain(Node::Null(1 << 30)));
        }
        if name == "page-cache" {
            return Ok(plain(Node::File(file.to_owned())));
        }
        let dir = TempDir::new()?;
        let image = dir.path().join("disk.qcow2");
        super::rows::converted(file, &image)?;
        let subject = match name {
            "filters" => Subject {
                arguments: vec!["--object".into(), super::rows::FAR_GROUP.into()],
                ..plain(super::rows::four_filters(&image))
            },
            "qcow2-write" => Subject {
                direction: Direction::Write,
                ..plain(super::rows::on_file(&image, "", ""))
            },
            _ => plain(super::rows::on_file(&image, "", "")),
        };
        Ok(Subject {
            _images: Some(dir),
            ..subject
        })
    }
}

/// Instructions per 4k request of one subject, bursts of 32, with polling off. Two runs of different length cancel what
/// starting and stopping costs.
pub fn per_request(subject: &str, file: &Path) -> io::Result<f64> {
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
    let disk = Disk {
        node: subject.node.clone(),
        file_options: "",
        export_options: "iothread=t0",
        read_only: false,
        arguments,
    };
    let mut daemon = Running::start_under(&wrapper, Kind::Virtioblkd, &disk)?;
    let load = Load {
        block_bytes: 4096,
        depth: DEPTH,
        direction: subject.direction,
        order: Order::Sequential,
        waiting: Waiting::Block,
        disk_bytes: 1 << 20,
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

fn total(profile: &str) -> io::Result<u64> {
    let line = profile.lines().find_map(|l| {
        l.strip_prefix("totals:")
            .or_else(|| l.strip_prefix("summary:"))
    });
    let total = line.and_then(|l| l.trim().parse().ok());
    total.ok_or_else(|| io::Error::other("callgrind left no totals"))
}
