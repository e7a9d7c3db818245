//! The rows of the table: which load, for whom, on which processors. What is asked is in a file for each subject.

mod filters;
mod idle;
mod images;
mod qcow2;
mod raw;
mod recorded;

pub(super) use filters::{FAR_GROUP, copied, four_filters};
pub use idle::{Idle, idle};
pub(super) use images::converted;
pub(super) use qcow2::{LONG_CHAIN, on_file, overlaid};
pub(super) use recorded::journaled;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::fio;
use super::load::{self, Direction, Load, Order, Waiting};
use super::process::{cpu_ns, pin_self, taskset};
use super::report::{Goal, Line, Row, Sample};
use crate::client::guest::{Guest, Setup};
use crate::client::pattern::pattern;
use crate::client::starter::{Disk, Kind, Node, Running};
use crate::client::trace::Trace;
use crate::qmp::Qmp;

/// Enough for a load that touches everything once.
const TOUCHING: Duration = Duration::from_millis(800);

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
        /// The image that is made anew before each round, if any.
        anew: Option<images::Empty>,
        /// What comes before anything is measured.
        first: Box<First>,
    },
    Fio {
        file: PathBuf,
    },
}

/// What comes before anything is measured, if anything does.
#[derive(Debug, Clone, Default)]
struct First {
    /// What the daemon is told once it runs.
    orders: Option<Orders>,
    /// What is done once.
    touches: Option<Load>,
}

/// Commands for a daemon, and where its monitor is to be.
#[derive(Debug, Clone)]
struct Orders {
    monitor: PathBuf,
    commands: Vec<(&'static str, Value)>,
}

impl Orders {
    fn give(&self) -> io::Result<()> {
        let mut monitor = Qmp::connect(&self.monitor)?;
        for (command, arguments) in &self.commands {
            let done = monitor.try_execute(command, arguments)?;
            done.map_err(|error| io::Error::other(format!("{command}: {error}")))?;
        }
        Ok(())
    }
}

/// One row before it is run.
#[derive(Debug)]
struct Plan {
    load: Load,
    contenders: Vec<Contender>,
    reference: usize,
    /// Processors of the generator and of the backend.
    cpus: Cpus,
    /// What the figures should be.
    goals: Vec<Goal>,
    /// Where images that were made for this row are, until it is over.
    _images: Option<TempDir>,
}

/// Who runs where.
#[derive(Debug, Clone, Copy)]
enum Cpus {
    /// Generator and backend share one.
    One,
    /// Each has one.
    Apart,
    /// Both share both.
    Both,
}

impl Cpus {
    fn generator(self) -> &'static [usize] {
        match self {
            Cpus::One => &[1],
            Cpus::Apart => &[0],
            Cpus::Both => &[0, 1],
        }
    }

    fn backend(self) -> &'static [usize] {
        match self {
            Cpus::One | Cpus::Apart => &[1],
            Cpus::Both => &[0, 1],
        }
    }
}

/// What rows are made from.
#[derive(Debug, Clone, Copy)]
struct Subject<'a> {
    /// A file that is neither sparse nor zero.
    file: &'a Path,
    file_bytes: u64,
}

/// A row by name; what it needs is made when it is its turn.
type Named = (&'static str, fn(&Subject<'_>) -> io::Result<Plan>);

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
    let file_bytes = effort.file_bytes;
    let subject = Subject { file, file_bytes };
    let rows = [raw::ROWS, qcow2::ROWS, filters::ROWS, recorded::ROWS].concat();
    for (name, plan) in rows {
        if name.contains(&effort.only) {
            each(&run_plan(name, &plan(&subject)?, effort)?);
        }
    }
    Ok(())
}

const DIRECT_URING: &str = "cache.direct=on,aio=io_uring";
const DIRECT_NATIVE: &str = "cache.direct=on,aio=native";

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
        anew: None,
        first: Box::default(),
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
        anew: None,
        first: Box::default(),
    }
}

impl Contender {
    /// The same, refused every write: several daemons may have one image.
    fn read_only(mut self) -> Contender {
        if let Contender::Backend { disk, .. } = &mut self {
            disk.read_only = true;
        }
        self
    }

    /// The same, on an image that is made anew before each round.
    fn anew(mut self, image: images::Empty) -> Contender {
        if let Contender::Backend { anew, .. } = &mut self {
            *anew = Some(image);
        }
        self
    }

    /// The same, told something once it runs.
    fn told(mut self, told: Orders) -> Contender {
        if let Contender::Backend { disk, first, .. } = &mut self {
            let path = told.monitor.display();
            let socket = format!("socket,id=m,path={path},server=on,wait=off");
            let words = ["--chardev", &socket, "--monitor", "m"].map(str::to_owned);
            disk.arguments.extend(words);
            first.orders = Some(told);
        }
        self
    }

    /// The same, of which this load is run once before anything is measured.
    fn touched(mut self, load: Load) -> Contender {
        if let Contender::Backend { first, .. } = &mut self {
            first.touches = Some(load);
        }
        self
    }

    /// The same, with one more object in the daemon.
    fn object(mut self, object: &str) -> Contender {
        if let Contender::Backend { disk, .. } = &mut self {
            disk.arguments.extend(["--object".into(), object.into()]);
        }
        self
    }

    fn name(&self) -> &'static str {
        match self {
            Contender::Fio { .. } => "fio io_uring on the file",
            Contender::Backend { name, .. } => name,
        }
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
        stride_bytes: 4096,
    }
}

/// A contender that is running.
enum Entrant {
    Backend { daemon: Running, guest: Box<Guest> },
    Fio(PathBuf),
}

fn enter(contender: &Contender, plan: &Plan) -> io::Result<Entrant> {
    match contender {
        Contender::Fio { file } => Ok(Entrant::Fio(file.clone())),
        Contender::Backend {
            kind,
            disk,
            queues,
            anew,
            first,
            ..
        } => {
            if let Some(image) = anew {
                image.make()?;
            }
            let daemon = Running::start_under(&taskset(plan.cpus.backend()), *kind, disk)?;
            if let Some(orders) = &first.orders {
                orders.give()?;
            }
            let ring_size = plan.load.depth.max(2).next_power_of_two();
            let data_bytes = plan.load.memory_bytes(*queues);
            let setup = Setup {
                queues: *queues,
                ring_size,
                data_bytes,
                ..Setup::default()
            };
            let mut guest = Guest::start(&daemon.socket, setup)?;
            if let Some(load) = first.touches {
                load::run(&mut guest, load, TOUCHING)?;
            }
            let guest = Box::new(guest);
            Ok(Entrant::Backend { daemon, guest })
        }
    }
}

/// A contender's place in a row: it runs between rounds too, unless it begins anew.
struct Lane<'a> {
    plan: &'a Plan,
    contender: &'a Contender,
    running: Option<Entrant>,
    line: Line,
}

impl Lane<'_> {
    fn entrant(&mut self) -> io::Result<&mut Entrant> {
        let begins_anew = matches!(self.contender, Contender::Backend { anew: Some(_), .. });
        let running = self.running.take().filter(|_| !begins_anew);
        let running = match running {
            Some(running) => running,
            None => enter(self.contender, self.plan)?,
        };
        Ok(self.running.insert(running))
    }
}

fn run_plan(name: &'static str, plan: &Plan, effort: &Effort) -> io::Result<Row> {
    pin_self(plan.cpus.generator())?;
    let lane = |contender: &'_ Contender| Line {
        name: contender.name().to_owned(),
        samples: vec![],
        enters: None,
    };
    let lanes = plan.contenders.iter().map(|contender| Lane {
        plan,
        contender,
        running: None,
        line: lane(contender),
    });
    let mut lanes: Vec<Lane<'_>> = lanes.collect();
    // A round that is not counted warms caches, pages and polling up.
    for round in 0..=effort.rounds {
        for lane in &mut lanes {
            let duration = if round == 0 {
                effort.round / 4
            } else {
                effort.round
            };
            let sample = measure(lane.entrant()?, plan, duration)?;
            if round > 0 {
                lane.line.samples.push(sample);
            }
        }
    }
    for lane in &mut lanes {
        lane.line.enters = count_enters(lane.entrant()?, plan)?;
    }
    Ok(Row {
        name: name.into(),
        lines: lanes.into_iter().map(|lane| lane.line).collect(),
        reference: plan.reference,
        goals: plan.goals.clone(),
    })
}

fn measure(entrant: &mut Entrant, plan: &Plan, duration: Duration) -> io::Result<Sample> {
    let (daemon, guest) = match entrant {
        Entrant::Fio(file) => return fio::run(file, plan.load, plan.cpus.backend(), duration),
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
