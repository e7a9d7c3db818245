//! The rows of the table: which load, for whom, on which processors.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::fio;
use super::load::{self, Direction, Load, Order, Waiting};
use super::process::{cpu_ns, pin_self, taskset, wake_ups};
use super::report::{Line, Row, Sample};
use crate::client::guest::{Guest, Setup};
use crate::client::pattern::pattern;
use crate::client::starter::{Disk, Kind, Node, Running};
use crate::client::trace::Trace;

/// How much to measure.
#[derive(Debug, Clone)]
pub struct Effort {
    /// Rounds of every row.
    pub rounds: usize,
    /// How long a contender runs in a round.
    pub round: Duration,
    /// Bytes of the test file.
    pub file_bytes: u64,
    /// Only rows whose name contains this.
    pub only: String,
}

/// Somebody who serves a load.
#[derive(Debug, Clone)]
enum Contender {
    Backend {
        name: &'static str,
        kind: Kind,
        disk: Disk,
        queues: u16,
    },
    Fio {
        file: PathBuf,
    },
}

/// One row before it is run.
#[derive(Debug)]
struct Plan {
    name: &'static str,
    load: Load,
    contenders: Vec<Contender>,
    reference: usize,
    /// Processors of the generator and of the backend.
    cpus: (Vec<usize>, Vec<usize>),
}

/// Writes a file that is neither sparse nor zero.
pub fn filled_file(dir: &Path, len: u64) -> io::Result<PathBuf> {
    let path = dir.join("bench.raw");
    let mut file = File::create(&path)?;
    let chunk = pattern(1, 1 << 20);
    (0..len >> 20).try_for_each(|_| file.write_all(&chunk))?;
    file.sync_all()?;
    Ok(path)
}

/// Runs every row and hands each over as soon as it is done.
pub fn run_all(effort: &Effort, file: &Path, mut each: impl FnMut(&Row)) -> io::Result<()> {
    for plan in plans(file, effort.file_bytes) {
        if plan.name.contains(&effort.only) {
            each(&run_plan(&plan, effort)?);
        }
    }
    Ok(())
}

const DIRECT_URING: &str = "cache.direct=on,aio=io_uring";
const DIRECT_NATIVE: &str = "cache.direct=on,aio=native";
const NULL_BYTES: u64 = 1 << 40;

fn ours(name: &'static str, node: Node, file_options: &'static str, queues: u16) -> Contender {
    let disk = Disk {
        node,
        file_options,
        export_options: "",
        read_only: false,
        arguments: vec![],
    };
    Contender::Backend {
        name,
        kind: Kind::Virtioblkd,
        disk,
        queues,
    }
}

/// QSD as fast as it goes: its export on a thread of its own.
fn qsd(name: &'static str, node: Node, file_options: &'static str, queues: u16) -> Contender {
    let export_options = if queues == 1 {
        "iothread=t0"
    } else {
        "iothread=t0,num-queues=4"
    };
    let arguments = vec!["--object".into(), "iothread,id=t0".into()];
    let disk = Disk {
        node,
        file_options,
        export_options,
        read_only: false,
        arguments,
    };
    Contender::Backend {
        name,
        kind: Kind::QemuStorageDaemon,
        disk,
        queues,
    }
}

fn random_4k(depth: u16, direction: Direction, disk_bytes: u64) -> Load {
    Load {
        block_bytes: 4096,
        depth,
        direction,
        order: Order::Random,
        waiting: Waiting::Block,
        disk_bytes,
    }
}

fn plans(file: &Path, file_bytes: u64) -> Vec<Plan> {
    let null = || Node::Null(NULL_BYTES);
    let disk = || Node::File(file.to_owned());
    let nulls = || vec![ours("virtioblkd", null(), "", 1), qsd("QSD", null(), "", 1)];
    let direct = || {
        vec![
            ours("virtioblkd", disk(), DIRECT_URING, 1),
            qsd("QSD io_uring", disk(), DIRECT_URING, 1),
            qsd("QSD native", disk(), DIRECT_NATIVE, 1),
            Contender::Fio {
                file: file.to_owned(),
            },
        ]
    };
    let four = |node: &dyn Fn() -> Node, qsd_options| {
        vec![
            ours("virtioblkd, 4 queues", node(), "", 4),
            qsd("QSD, 4 queues", node(), qsd_options, 4),
            ours("virtioblkd, 1 queue", node(), "", 1),
        ]
    };
    let (read, write) = (Direction::Read, Direction::Write);
    let sequential = |block_bytes, depth| Load {
        block_bytes,
        depth,
        order: Order::Sequential,
        ..random_4k(0, read, file_bytes)
    };
    let plan = |name, load, contenders, cpus: (&[usize], &[usize])| Plan {
        name,
        load,
        contenders,
        reference: 1,
        cpus: (cpus.0.to_vec(), cpus.1.to_vec()),
    };
    let (one, apart, both): (_, _, (&[usize], &[usize])) = (
        (&[1][..], &[1][..]),
        (&[0][..], &[1][..]),
        (&[0, 1], &[0, 1]),
    );
    vec![
        plan(
            "null 4k QD64, one CPU",
            random_4k(64, read, NULL_BYTES),
            nulls(),
            one,
        ),
        plan(
            "null 4k QD64, polled, two CPUs",
            Load {
                waiting: Waiting::Poll,
                ..random_4k(64, read, NULL_BYTES)
            },
            nulls(),
            apart,
        ),
        plan(
            "direct 4k randread QD64, one CPU",
            random_4k(64, read, file_bytes),
            direct(),
            one,
        ),
        plan(
            "direct 4k randwrite QD64, one CPU",
            random_4k(64, write, file_bytes),
            direct(),
            one,
        ),
        plan(
            "direct 4k randread QD1, two CPUs",
            random_4k(1, read, file_bytes),
            direct(),
            apart,
        ),
        plan(
            "null 4k QD64 per queue, two CPUs",
            random_4k(64, read, NULL_BYTES),
            four(&null, ""),
            both,
        ),
        plan(
            "page cache 4k QD32 per queue, two CPUs",
            random_4k(32, read, file_bytes),
            four(&disk, "aio=io_uring"),
            both,
        ),
        plan(
            "page cache 4k QD32, one CPU",
            random_4k(32, read, file_bytes),
            vec![
                ours("virtioblkd", disk(), "", 1),
                qsd("QSD", disk(), "aio=io_uring", 1),
            ],
            one,
        ),
        plan(
            "direct 64k sequential read QD16, two CPUs",
            sequential(65536, 16),
            direct(),
            apart,
        ),
        plan(
            "direct 1M sequential read QD8, two CPUs",
            sequential(1 << 20, 8),
            direct(),
            apart,
        ),
    ]
}

/// A contender that is running.
enum Entrant {
    Backend { daemon: Running, guest: Guest },
    Fio(PathBuf),
}

fn enter(contender: &Contender, plan: &Plan) -> io::Result<(String, Entrant)> {
    match contender {
        Contender::Fio { file } => Ok((
            "fio io_uring on the file".into(),
            Entrant::Fio(file.clone()),
        )),
        Contender::Backend {
            name,
            kind,
            disk,
            queues,
        } => {
            let daemon = Running::start_under(&taskset(&plan.cpus.1), *kind, disk)?;
            let ring_size = plan.load.depth.max(2).next_power_of_two();
            let data_bytes = plan.load.memory_bytes(*queues);
            let setup = Setup {
                queues: *queues,
                ring_size,
                data_bytes,
                ..Setup::default()
            };
            let guest = Guest::start(&daemon.socket, setup)?;
            Ok(((*name).to_owned(), Entrant::Backend { daemon, guest }))
        }
    }
}

fn run_plan(plan: &Plan, effort: &Effort) -> io::Result<Row> {
    pin_self(&plan.cpus.0)?;
    let mut entrants = Vec::new();
    for contender in &plan.contenders {
        let (name, entrant) = enter(contender, plan)?;
        entrants.push((
            entrant,
            Line {
                name,
                samples: vec![],
                enters: None,
            },
        ));
    }
    // A round that is not counted warms caches, pages and polling up.
    for round in 0..=effort.rounds {
        for (entrant, line) in &mut entrants {
            let duration = if round == 0 {
                effort.round / 4
            } else {
                effort.round
            };
            let sample = measure(entrant, plan, duration)?;
            if round > 0 {
                line.samples.push(sample);
            }
        }
    }
    for (entrant, line) in &mut entrants {
        line.enters = count_enters(entrant, plan)?;
    }
    let lines = entrants.into_iter().map(|(_, line)| line).collect();
    Ok(Row {
        name: plan.name.into(),
        lines,
        reference: plan.reference,
    })
}

fn measure(entrant: &mut Entrant, plan: &Plan, duration: Duration) -> io::Result<Sample> {
    let (daemon, guest) = match entrant {
        Entrant::Fio(file) => return fio::run(file, plan.load, &plan.cpus.1, duration),
        Entrant::Backend { daemon, guest } => (daemon, guest),
    };
    let before = cpu_ns(daemon.pid());
    let outcome = load::run(guest, plan.load, duration)?;
    let cpu = cpu_ns(daemon.pid()) - before;
    let requests = outcome.requests.max(1) as f64;
    Ok(Sample {
        iops: outcome.iops(),
        p50_us: outcome.percentile_us(50),
        p99_us: outcome.percentile_us(99),
        cpu_ns: cpu as f64 / requests,
        notifications: Some(outcome.notifications as f64 / requests),
    })
}

fn count_enters(entrant: &mut Entrant, plan: &Plan) -> io::Result<Option<f64>> {
    let Entrant::Backend { daemon, guest } = entrant else {
        return Ok(None);
    };
    let trace = Trace::attach(daemon.pid(), &["io_uring_enter", "io_submit"])?;
    let outcome = load::run(guest, plan.load, Duration::from_millis(300))?;
    Ok(Some(
        trace.finish()?.len() as f64 / outcome.requests.max(1) as f64,
    ))
}

/// What a daemon costs before anybody asks it anything.
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

/// What machine this is.
pub fn machine() -> String {
    let model = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = model
        .lines()
        .find_map(|l| l.strip_prefix("model name"))
        .unwrap_or("");
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "{cpus} CPUs,{}, Linux {}",
        model.trim_start_matches([':', ' ', '\t']),
        kernel.trim()
    )
}
