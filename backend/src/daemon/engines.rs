//! Which queue threads an export's rings run on: teams by iothread and by what its files want of the kernel.

use crate::cli::{
    Aio, BlockdevOptions, ChildRef, DriverOptions, FileOptions, IothreadOptions,
    POLL_MAX_NS_DEFAULT,
};
use crate::process::error_text;
use crate::queue::{Polling, Team, WorkerOptions};
use blockgraph::graph::Body;
use blockgraph::node::Engine;
use blockgraph::pin::Epochs;
use blockgraph::{Current, Graph, Mode, NodeId};
use ring::{Choice, Ring};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the files below an export want their I/O carried out by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wish {
    /// io_uring, or threads where it is refused.
    Best,
    /// `aio=io_uring` (or `native`, which io_uring serves): that or nothing.
    Uring,
    /// `aio=threads`
    Threads,
}

/// What the files below `node` want; the strictest counts.
pub(super) fn wish(graph: &Graph, node: NodeId) -> Wish {
    let mut wish = Wish::Best;
    let mut below = vec![node];
    while let Some(id) = below.pop() {
        let Some(node) = graph.node(id) else {
            continue;
        };
        below.extend(node.shape().edges().map(|edge| edge.child));
        if let Body::Driver(driver) = node.body() {
            wish = wish.max(match driver.engine() {
                Engine::Any => Wish::Best,
                Engine::Uring | Engine::Native => Wish::Uring,
                Engine::Threads => Wish::Threads,
            });
        }
    }
    wish
}

/// Files that insist on io_uring are refused where the kernel refuses it. Errors: in QSD's words.
pub(super) fn check_engines(options: &BlockdevOptions) -> Result<(), String> {
    let insists = |file: &FileOptions| matches!(file.aio, Some(Aio::IoUring | Aio::Native));
    if let DriverOptions::File(file) | DriverOptions::HostDevice(file) = &options.driver
        && insists(file)
    {
        Ring::new(Choice::Uring(None)).map_err(|error| {
            let why = error_text(&error);
            format!("Unable to use io_uring: failed to init linux io_uring ring: {why}")
        })?;
    }
    options.driver.children().try_for_each(|child| match child {
        ChildRef::Inline(child) => check_engines(child),
        ChildRef::Node(_) => Ok(()),
    })
}

/// All teams of the process.
#[derive(Debug)]
pub(super) struct Teams {
    current: Arc<Current>,
    epochs: Arc<Epochs>,
    /// How the threads of each may poll; changed while they run.
    iothreads: BTreeMap<String, Arc<Polling>>,
    teams: BTreeMap<(Option<String>, Wish), Arc<Team>>,
    warned: bool,
}

impl Teams {
    pub(super) fn new(current: Arc<Current>) -> Teams {
        Teams {
            current,
            epochs: Arc::default(),
            iothreads: BTreeMap::new(),
            teams: BTreeMap::new(),
            warned: false,
        }
    }

    pub(super) fn epochs(&self) -> &Arc<Epochs> {
        &self.epochs
    }

    /// How an iothread may poll, if there is one of that id.
    pub(super) fn iothread(&self, id: &str) -> Option<&Arc<Polling>> {
        self.iothreads.get(id)
    }

    /// Every iothread's id.
    pub(super) fn iothreads(&self) -> impl Iterator<Item = &str> {
        self.iothreads.keys().map(String::as_str)
    }

    /// The id is known to be free.
    pub(super) fn add_iothread(&mut self, options: IothreadOptions) {
        let polling = Polling::up_to(options.poll_max_ns);
        polling.set_grow(options.poll_grow);
        polling.set_shrink(options.poll_shrink);
        self.iothreads.insert(options.id, Arc::new(polling));
    }

    /// Ends the threads of an iothread that nobody uses.
    pub(super) fn remove_iothread(&mut self, id: &str) {
        self.iothreads.remove(id);
        self.teams
            .retain(|(iothread, _), _| iothread.as_deref() != Some(id));
    }

    /// The team of an iothread, or the one that has a thread per CPU. Errors: no such iothread.
    pub(super) fn team(&mut self, iothread: Option<&str>, wish: Wish) -> Result<Arc<Team>, String> {
        let key = (iothread.map(str::to_owned), wish);
        if let Some(team) = self.teams.get(&key) {
            return Ok(team.clone());
        }
        let (name, threads_max, polling) = match iothread {
            Some(id) => {
                let polling = self.iothreads.get(id);
                let polling = polling.ok_or_else(|| format!("iothread \"{id}\" not found"))?;
                (id.to_owned(), 1, polling.clone())
            }
            None => {
                let cpus = std::thread::available_parallelism().map_or(1, usize::from);
                let polling = Arc::new(Polling::up_to(POLL_MAX_NS_DEFAULT));
                ("queue".to_owned(), cpus, polling)
            }
        };
        let options = WorkerOptions {
            current: self.current.clone(),
            epochs: self.epochs.clone(),
            engine: self.engine(wish),
            polling,
            mode: Mode::Fast,
        };
        let team = Arc::new(Team::new(&name, threads_max, options));
        self.teams.insert(key, team.clone());
        Ok(team)
    }

    /// What carries the I/O of files out that want that.
    pub(super) fn engine(&mut self, wish: Wish) -> Choice {
        match wish {
            Wish::Uring => Choice::Uring(None),
            Wish::Threads => Choice::Threads,
            Wish::Best => match Ring::new(Choice::Uring(None)) {
                Ok(_) => Choice::Uring(None),
                Err(error) => {
                    if !std::mem::replace(&mut self.warned, true) {
                        tracing::warn!("io_uring is refused here ({error}): serving with threads");
                    }
                    Choice::Threads
                }
            },
        }
    }
}
