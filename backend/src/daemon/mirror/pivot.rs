//! What a job that followed a disk in use does to the graph at its end.
//!
//! The rule: the last of it is copied while guests' requests wait, and the target takes the source's place before they go on: no write
//! is lost, and none goes to both. A job that was told to end without that leaves the target as the source was at that instant.

use super::following::REST_BYTES_MAX;
use crate::daemon::commit::Grip;
use crate::daemon::executor::Daemon;
use crate::daemon::jobs::{Finish, WhenReady};
use crate::process::error_text;
use blockgraph::filter::write_blocking::WriteBlocking;
use blockgraph::graph::edit::Edit;
use blockgraph::graph::pause::Quiet;
use blockgraph::graph::{Access, Body};
use blockgraph::job::copy::{Bounds, Parts, Transfer, WorkSet};
use blockgraph::job::{Mirror, Mirrored};
use blockgraph::{Io, NodeId};
use ring::Errno;
use std::collections::BTreeSet;
use std::sync::Arc;

/// So often it is tried to come below that.
const PASSES_MAX: usize = 3;

/// Whose place the target takes.
#[derive(Debug)]
pub(in crate::daemon) enum Place {
    /// That of the source and of all layers down to it: it is the lowest of them.
    Chain,
    /// The source's, which stays as it is.
    Source,
    /// That of a node that the source filters, by name.
    Node(String),
}

/// How such a job copies what guests write (`MirrorCopyMode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum CopyMode {
    /// Later.
    #[default]
    Background,
    /// Before they are told.
    WriteBlocking,
}

impl CopyMode {
    fn name(self) -> &'static str {
        match self {
            CopyMode::Background => "background",
            CopyMode::WriteBlocking => "write-blocking",
        }
    }
}

/// What the job does to the graph.
#[derive(Debug)]
pub(in crate::daemon) struct Pivot {
    pub(in crate::daemon) grip: Grip,
    pub(in crate::daemon) transfer: Transfer,
    pub(in crate::daemon) work: Arc<WorkSet>,
    pub(in crate::daemon) place: Place,
    pub(in crate::daemon) mirrored: Arc<Mirrored>,
    /// The target takes a place; or else it is left behind as a copy.
    pub(in crate::daemon) pivots: bool,
}

impl Pivot {
    /// Copies what guests have written since, on this thread.
    fn copy_rest(&self, daemon: &mut Daemon) -> Result<(), String> {
        let graph = daemon.kept_graph();
        let (transfer, work) = (self.transfer, self.work.clone());
        // Guests may write to the target themselves, until they are held.
        let mirror = Mirror {
            transfer,
            mirrored: self.mirrored.clone(),
        };
        let rest = move |io: Io| async move { copy_all(&io, &mirror, &work).await };
        let copied = daemon.control.run(&graph, transfer.target, rest);
        let copied = copied.map_err(|error| error_text(&error))?;
        copied.map_err(|errno| error_text(&errno.into()))?;
        drop(graph);
        daemon.flush_node(transfer.target)
    }

    fn end(&self, daemon: &mut Daemon) -> Result<(), String> {
        for _ in 0..PASSES_MAX {
            if self.work.left_bytes() <= REST_BYTES_MAX {
                break;
            }
            self.copy_rest(daemon)?;
        }
        daemon.retry_leaving();
        let find = |name: &str| {
            let found = daemon.current.get().find(name);
            found.ok_or_else(|| format!("Node {name} is gone"))
        };
        let (filter, target) = (find(&self.grip.filter)?, find(&self.grip.base)?);
        let replaced = match &self.place {
            Place::Node(name) => find(name)?,
            Place::Chain | Place::Source => self.grip.source,
        };
        let access = daemon
            .current
            .get()
            .node(replaced)
            .map(|node| node.common().access);
        let touched = BTreeSet::from([filter, target, replaced]);
        let deadline = Daemon::drain_deadline();
        let quiet = Quiet::begin(&daemon.current, &touched, &mut daemon.control, deadline);
        let quiet = quiet.map_err(|error| error.to_string())?;
        self.copy_rest(daemon)?;
        let mut edit = Edit::begin(&daemon.current);
        self.change(&mut edit, filter, target, replaced)?;
        let done = edit.commit_in(quiet);
        let (graph, leaving) = done.map_err(|error| error.to_string())?;
        drop(graph);
        daemon.edited(leaving);
        // Nobody writes to what takes the place of a disk that nobody writes to.
        let is_mirror = !matches!(self.place, Place::Chain);
        if self.pivots && is_mirror && access == Some(Access::ReadOnly) {
            daemon.make_read_only(&self.grip.base);
        }
        Ok(())
    }

    fn change(
        &self,
        edit: &mut Edit,
        filter: NodeId,
        target: NodeId,
        replaced: NodeId,
    ) -> Result<(), String> {
        if !self.pivots {
            let removed = edit.remove_filter(filter);
            return removed.map(drop).map_err(|error| error.to_string());
        }
        if let Place::Chain = self.place {
            let replaced = edit.replace(filter, target);
            return replaced.map(drop).map_err(|error| error.to_string());
        }
        // What is wrong goes to the log, as in QSD.
        let refused = |why: String| {
            tracing::error!("{why}");
            error_text(&Errno::PERM.into())
        };
        if !edit.graph().reads_as(self.grip.source, replaced) {
            return Err(refused(format!(
                "Can no longer replace '{}' by '{}', because it can no longer be guaranteed that doing so would not lead to \
                 an abrupt change of visible data",
                self.replaced_name(edit),
                self.grip.base
            )));
        }
        let placed = edit.take_place(replaced, target);
        placed.map_err(|error| refused(error.to_string()))?;
        let removed = edit.remove_filter(filter);
        removed
            .map(drop)
            .map_err(|error| refused(error.to_string()))
    }

    fn replaced_name<'a>(&'a self, edit: &'a Edit) -> &'a str {
        match &self.place {
            Place::Node(name) => name,
            Place::Chain | Place::Source => {
                let source = edit.graph().node(self.grip.source);
                source.map_or("", |node| node.name())
            }
        }
    }

    fn has_guests_wait(&self, daemon: &mut Daemon) -> Result<(), String> {
        let graph = daemon.kept_graph();
        let filter = graph.find(&self.grip.filter);
        let filter = filter.ok_or_else(|| format!("Node {} is gone", self.grip.filter))?;
        let below = graph.info(filter).ok_or("No medium")?;
        drop(graph);
        let body = WriteBlocking::new(below, self.mirrored.clone());
        let mut edit = Edit::begin(&daemon.current);
        edit.replace_body(filter, Body::Driver(Arc::new(body)));
        daemon.commit_quiet(edit, &[filter])?;
        self.mirrored.set_blocking();
        Ok(())
    }
}

/// Copies once what is left, from the disk's beginning to its end: all of it, where nobody adds to it.
async fn copy_all(io: &Io, mirror: &Mirror, work: &WorkSet) -> Result<(), Errno> {
    let mut at = 0;
    while let Some(span) = work.next(at, Bounds::default().chunk_bytes) {
        at = span.end();
        work.remove(span);
        if let Err(failure) = mirror.copy(io, span).await {
            work.add(span);
            return Err(failure.errno);
        }
    }
    Ok(())
}

impl Finish for Pivot {
    fn prepare(&mut self, daemon: &mut Daemon) -> Result<(), String> {
        self.grip.attachments.clear();
        self.end(daemon)?;
        if !self.pivots {
            daemon.restore_access(&mut self.grip);
        }
        Ok(())
    }

    fn abort(&mut self, daemon: &mut Daemon) {
        self.mirrored.give_up();
        daemon.let_go_of_all(&mut self.grip);
    }

    fn when_ready(&self) -> WhenReady {
        WhenReady::Completes
    }

    fn give_up(&mut self) {
        self.pivots = false;
    }

    fn hurry(&self, daemon: &Daemon) {
        // The layers of a commit are left alone, as in QEMU.
        if let Place::Chain = self.place {
            return;
        }
        let graph = daemon.current.get();
        for node in graph.parents_first(self.transfer.target) {
            if let Some(Body::Driver(driver)) = graph.node(node).map(|node| node.body()) {
                driver.hurry();
            }
        }
    }

    /// Exports name the place where they are, and two places cannot become one: the job stays ready, for when one of the exports
    /// is gone.
    fn may_complete(&self, daemon: &Daemon) -> Result<(), String> {
        let graph = daemon.current.get();
        let replaced = match &self.place {
            Place::Node(name) => match graph.find(name) {
                Some(node) => Some(node),
                None => return Err(format!("Node name '{name}' not found")),
            },
            Place::Chain | Place::Source => graph.find(&self.grip.filter),
        };
        let is_shown = |node: Option<NodeId>| {
            let mut exports = daemon.exports.iter();
            node.is_some_and(|node| exports.any(|export| export.node() == node))
        };
        match self.pivots && is_shown(replaced) && is_shown(graph.find(&self.grip.base)) {
            true => Err(format!("Node {} is in use", self.grip.base)),
            false => Ok(()),
        }
    }

    fn is_synced(&self) -> bool {
        self.mirrored.is_synced()
    }

    fn change(&mut self, daemon: &mut Daemon, mode: CopyMode) -> Result<(), String> {
        match (&self.place, self.mirrored.is_blocking(), mode) {
            (Place::Chain, ..) => Err("Job type does not support change".to_owned()),
            (_, false, CopyMode::WriteBlocking) => self.has_guests_wait(daemon),
            (_, true, CopyMode::WriteBlocking) | (_, false, CopyMode::Background) => Ok(()),
            (_, true, CopyMode::Background) => {
                let mode = mode.name();
                Err(format!("Change to copy mode '{mode}' is not implemented"))
            }
        }
    }
}
