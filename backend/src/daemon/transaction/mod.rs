//! `transaction`: several changes at one instant, or none of them.
//!
//! The rule: nothing is under way on the nodes that are named while the actions are done, one after the other, each on what those
//! before it left. If one fails, those before it are undone, the last first; else they are all committed, which cannot fail.

mod bitmaps;
mod jobs;
mod layers;

use super::backup::{BackupWanted, DriveWanted};
use super::edits::DRAIN;
use super::executor::Daemon;
use super::jobs::Group;
use super::snapshot::SnapshotSync;
use blockgraph::NodeId;
use blockgraph::bitmap::{BitmapName, NewBitmap, Source};
use blockgraph::graph::pause::Quiet;
use std::collections::BTreeSet;
use std::time::Instant;

/// What can be done in a transaction.
#[derive(Debug)]
pub(crate) enum Action {
    /// Fails.
    Abort,
    /// `block-dirty-bitmap-add`
    AddBitmap {
        /// Whose.
        node: String,
        /// Which.
        new: NewBitmap,
    },
    /// `block-dirty-bitmap-remove`
    RemoveBitmap(BitmapName),
    /// `block-dirty-bitmap-clear`
    ClearBitmap(BitmapName),
    /// `block-dirty-bitmap-enable`
    EnableBitmap(BitmapName),
    /// `block-dirty-bitmap-disable`
    DisableBitmap(BitmapName),
    /// `block-dirty-bitmap-merge`
    MergeBitmaps {
        /// Into which.
        target: BitmapName,
        /// What.
        sources: Vec<Source>,
    },
    /// `blockdev-backup`
    Backup(Box<BackupWanted>),
    /// `drive-backup`
    DriveBackup(Box<DriveWanted>),
    /// `blockdev-snapshot-internal-sync`
    InternalSnapshot {
        /// Whose content is kept.
        device: String,
        /// As what.
        name: String,
    },
    /// `blockdev-snapshot`
    Snapshot {
        /// What gets an overlay.
        node: String,
        /// The overlay.
        overlay: String,
    },
    /// `blockdev-snapshot-sync`
    SnapshotSync(SnapshotSync),
}

/// How the jobs of a transaction end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Completion {
    /// Each for itself.
    Individual,
    /// As one.
    Grouped,
}

/// An action that is done, and may be undone.
trait Step: std::fmt::Debug {
    /// It is to stay. Says which job it has started.
    fn commit(self: Box<Self>, daemon: &mut Daemon) -> Option<String>;

    /// It never was.
    fn abort(self: Box<Self>, daemon: &mut Daemon);
}

type Done = Result<Box<dyn Step>, String>;

impl Action {
    fn name(&self) -> &'static str {
        match self {
            Action::Abort => "abort",
            Action::AddBitmap { .. } => "block-dirty-bitmap-add",
            Action::RemoveBitmap(_) => "block-dirty-bitmap-remove",
            Action::ClearBitmap(_) => "block-dirty-bitmap-clear",
            Action::EnableBitmap(_) => "block-dirty-bitmap-enable",
            Action::DisableBitmap(_) => "block-dirty-bitmap-disable",
            Action::MergeBitmaps { .. } => "block-dirty-bitmap-merge",
            Action::Backup(_) => "blockdev-backup",
            Action::DriveBackup(_) => "drive-backup",
            Action::InternalSnapshot { .. } => "blockdev-snapshot-internal-sync",
            Action::Snapshot { .. } => "blockdev-snapshot",
            Action::SnapshotSync(_) => "blockdev-snapshot-sync",
        }
    }

    /// The node whose bitmaps it changes.
    fn changes(&self) -> Option<String> {
        match self {
            Action::AddBitmap { node, .. } => Some(node.clone()),
            Action::RemoveBitmap(bitmap)
            | Action::ClearBitmap(bitmap)
            | Action::EnableBitmap(bitmap)
            | Action::DisableBitmap(bitmap) => Some(bitmap.node.clone()),
            Action::MergeBitmaps { target, .. } => Some(target.node.clone()),
            _ => None,
        }
    }

    /// The nodes it names.
    fn nodes(&self) -> Vec<&str> {
        match self {
            Action::Abort => Vec::new(),
            Action::AddBitmap { node, .. } => vec![node],
            Action::RemoveBitmap(bitmap)
            | Action::ClearBitmap(bitmap)
            | Action::EnableBitmap(bitmap)
            | Action::DisableBitmap(bitmap) => vec![&bitmap.node],
            Action::MergeBitmaps { target, sources } => {
                let sources = sources.iter().filter_map(|source| source.node.as_deref());
                sources.chain([&target.node[..]]).collect()
            }
            Action::Backup(backup) => vec![&backup.device, &backup.target],
            Action::DriveBackup(wanted) => vec![&wanted.backup.device],
            Action::InternalSnapshot { device, .. } => vec![device],
            Action::Snapshot { node, overlay } => vec![node, overlay],
            Action::SnapshotSync(snapshot) => snapshot.node_name.as_deref().into_iter().collect(),
        }
    }
}

impl Daemon {
    /// Does all of `actions`, or nothing. Errors: in QSD's words.
    pub(crate) fn transaction(
        &mut self,
        actions: Vec<Action>,
        completion: Completion,
    ) -> Result<(), String> {
        self.retry_leaving();
        check_completion(&actions, completion)?;
        let group = match completion {
            Completion::Individual => None,
            Completion::Grouped => Some(self.new_job_group()),
        };
        let quiet = self.hold_nodes_of(&actions)?;
        let changed: BTreeSet<String> = actions.iter().filter_map(Action::changes).collect();
        let done = self.do_all(actions, group);
        let done = done.and_then(|done| self.store_all(&changed, done));
        let started: Vec<String> = match done {
            Ok(done) => {
                let mut done = done.into_iter().rev();
                let started: Vec<_> = done.by_ref().filter_map(|step| step.commit(self)).collect();
                // Bitmaps that were to be removed are gone only now.
                self.store_again(&changed);
                started
            }
            Err(error) => {
                drop(quiet);
                return Err(error);
            }
        };
        drop(quiet);
        for job in started {
            self.release_made_job(&job);
        }
        Ok(())
    }

    /// Nothing is under way on what is named.
    fn hold_nodes_of(&mut self, actions: &[Action]) -> Result<Option<Quiet>, String> {
        let graph = self.current.get();
        let names = actions.iter().flat_map(Action::nodes);
        // Who is not there is told by the action.
        let touched: BTreeSet<NodeId> = names.filter_map(|name| graph.find(name)).collect();
        drop(graph);
        if touched.is_empty() {
            return Ok(None);
        }
        let deadline = Instant::now() + DRAIN;
        let quiet = Quiet::begin(&self.current, &touched, &mut self.control, deadline);
        quiet.map(Some).map_err(|error| error.to_string())
    }

    fn do_all(
        &mut self,
        actions: Vec<Action>,
        group: Option<Group>,
    ) -> Result<Vec<Box<dyn Step>>, String> {
        let mut done = Vec::new();
        for action in actions {
            match self.do_one(action, group) {
                Ok(step) => done.push(step),
                Err(error) => {
                    for step in done.into_iter().rev() {
                        step.abort(self);
                    }
                    return Err(error);
                }
            }
        }
        Ok(done)
    }

    /// Has the journals of nodes say what their bitmaps say after all of it, or undoes it.
    fn store_all(
        &mut self,
        nodes: &BTreeSet<String>,
        done: Vec<Box<dyn Step>>,
    ) -> Result<Vec<Box<dyn Step>>, String> {
        for node in nodes {
            if let Err(error) = self.bitmaps().store(node) {
                done.into_iter().rev().for_each(|step| step.abort(self));
                self.store_again(nodes);
                return Err(error.to_string());
            }
        }
        Ok(done)
    }

    /// As well as can be: a crash brings back more than there is, and no less.
    fn store_again(&mut self, nodes: &BTreeSet<String>) {
        for node in nodes {
            if let Err(error) = self.bitmaps().store(node) {
                tracing::warn!("node '{node}': {error}");
            }
        }
    }

    fn do_one(&mut self, action: Action, group: Option<Group>) -> Done {
        match action {
            Action::Abort => Err("Transaction aborted using Abort action".to_owned()),
            Action::AddBitmap { node, new } => self.add_bitmap_step(node, new),
            Action::RemoveBitmap(bitmap) => self.remove_bitmap_step(bitmap),
            Action::ClearBitmap(bitmap) => self.clear_bitmap_step(bitmap),
            Action::EnableBitmap(bitmap) => self.enable_bitmap_step(bitmap),
            Action::DisableBitmap(bitmap) => self.disable_bitmap_step(bitmap),
            Action::MergeBitmaps { target, sources } => self.merge_bitmaps_step(target, &sources),
            Action::Backup(backup) => self.backup_step(*backup, group),
            Action::DriveBackup(wanted) => self.drive_backup_step(*wanted, group),
            Action::InternalSnapshot { device, name } => self.internal_snapshot_step(&device, name),
            Action::Snapshot { node, overlay } => self.snapshot_step(&node, &overlay),
            Action::SnapshotSync(snapshot) => self.snapshot_sync_step(snapshot),
        }
    }
}

/// Only jobs can end as one.
fn check_completion(actions: &[Action], completion: Completion) -> Result<(), String> {
    let is_job = |action: &&Action| matches!(action, Action::Backup(_) | Action::DriveBackup(_));
    match (completion, actions.iter().find(|action| !is_job(action))) {
        (Completion::Grouped, Some(action)) => Err(format!(
            "Action '{}' does not support transaction property completion-mode = grouped",
            action.name()
        )),
        _ => Ok(()),
    }
}
