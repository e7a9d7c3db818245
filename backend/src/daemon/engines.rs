//! Which queue threads an export's rings run on: teams by iothread and by what its files want of the kernel.

use crate::cli::{
    Aio, BlockdevOptions, ChildRef, DriverOptions, FileOptions, IothreadOptions,
    POLL_MAX_NS_DEFAULT,
};
use crate::process::error_text;
use crate::queue::{Team, WorkerOptions};
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
    iothreads: BTreeMap<String, IothreadOptions>,
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

    pub(super) fn has_iothread(&self, id: &str) -> bool {
        self.iothreads.contains_key(id)
    }

    /// Errors: the id is taken.
    pub(super) fn add_iothread(&mut self, options: IothreadOptions) -> Result<(), String> {
        let id = options.id.clone();
        if self.iothreads.contains_key(&id) {
            return Err(format!(
                "attempt to add duplicate property '{id}' to object (type 'container')"
            ));
        }
        self.iothreads.insert(id, options);
        Ok(())
    }

    /// The team of an iothread, or the one that has a thread per CPU. Errors: no such iothread.
    pub(super) fn team(&mut self, iothread: Option<&str>, wish: Wish) -> Result<Arc<Team>, String> {
        let key = (iothread.map(str::to_owned), wish);
        if let Some(team) = self.teams.get(&key) {
            return Ok(team.clone());
        }
        let (name, threads_max, poll_max_ns) = match iothread {
            Some(id) => {
                let options = self.iothreads.get(id);
                let options = options.ok_or_else(|| format!("iothread \"{id}\" not found"))?;
                (id.to_owned(), 1, options.poll_max_ns)
            }
            None => {
                let cpus = std::thread::available_parallelism().map_or(1, usize::from);
                ("queue".to_owned(), cpus, POLL_MAX_NS_DEFAULT)
            }
        };
        let options = WorkerOptions {
            current: self.current.clone(),
            epochs: self.epochs.clone(),
            engine: self.engine(wish),
            poll_max_ns,
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
