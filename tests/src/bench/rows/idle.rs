//! What a daemon costs before anybody asks it anything.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::super::load::{self, Direction};
use super::super::process::{cpu_ns, pin_self, wake_ups};
use super::{Contender, DIRECT_URING, Effort, ours, qsd, random_4k};
use crate::client::guest::{Guest, Setup};
use crate::client::starter::{Node, Running};

/// What one daemon costs.
#[derive(Debug)]
pub struct Idle {
    /// Who.
    pub name: &'static str,
    /// From starting the process to a listening socket, milliseconds, round by round.
    pub ready_ms: Vec<f64>,
    /// Resident memory in KiB with one guest connected and idle.
    pub rss_kib: u64,
    /// Wake-ups per second with one guest connected and idle.
    pub wake_ups_per_second: f64,
    /// Processor nanoseconds per second, likewise.
    pub cpu_ns_per_second: f64,
}

/// Measures both daemons doing nothing.
pub fn idle(effort: &Effort, file: &Path) -> io::Result<Vec<Idle>> {
    pin_self(&[0, 1])?;
    let node = || Node::File(file.to_owned());
    let pair = [
        ours("virtioblkd", node(), DIRECT_URING, 1),
        qsd("QSD io_uring", node(), DIRECT_URING, 1),
    ];
    pair.iter()
        .map(|contender| idle_of(contender, effort))
        .collect()
}

fn idle_of(contender: &Contender, effort: &Effort) -> io::Result<Idle> {
    let Contender::Backend {
        name, kind, disk, ..
    } = contender
    else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut ready_ms = Vec::new();
    for _ in 0..effort.rounds {
        let begun = Instant::now();
        drop(Running::start(*kind, disk)?);
        ready_ms.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    let daemon = Running::start(*kind, disk)?;
    let mut guest = Guest::start(&daemon.socket, Setup::default())?;
    load::run(
        &mut guest,
        random_4k(8, Direction::Read, effort.file_bytes),
        Duration::from_millis(100),
    )?;
    std::thread::sleep(Duration::from_millis(500));
    let (cpu, wakes) = (cpu_ns(daemon.pid()), wake_ups(daemon.pid()));
    let watched = Duration::from_secs(2);
    std::thread::sleep(watched);
    Ok(Idle {
        name,
        ready_ms,
        rss_kib: daemon.rss_kib(),
        wake_ups_per_second: (wake_ups(daemon.pid()) - wakes) as f64 / watched.as_secs_f64(),
        cpu_ns_per_second: (cpu_ns(daemon.pid()) - cpu) as f64 / watched.as_secs_f64(),
    })
}
