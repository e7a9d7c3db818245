//! Nodes opened anew with other options or children, several at once: all of it, or nothing.
//!
//! The rule: what can fail without anybody noticing is done first (options compared, files opened); then requests that come
//! through the nodes are held back until none is under way (`pause.rs`), images brought to disk and read again, permissions
//! checked; what is published last is the whole of it. An option that is not said has its default, as when a node is opened
//! for the first time.

mod bitmaps;
mod bodies;
mod compare;
mod journals;
mod plan;

use super::edit::{Edit, EditError, Leaving};
use super::open::{NodeSpec, OpenError};
use super::pause::{Quiet, StillBusy};
use super::perm::PermError;
use super::{Common, Control, Current, Graph, Node};
use crate::bitmap::{DirtyBitmap, JournalError, Tracker};
use crate::driver::file::FileError;
use crate::driver::qcow2::{Qcow2Error, StoreError};
use crate::driver::raw::WindowError;
use crate::filter::throttle::GroupError;
use crate::node::NodeId;
use ring::Errno;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;
use thiserror::Error;

/// Why nodes cannot be opened anew so; the texts are QEMU's.
#[derive(Debug, Error)]
pub enum ReopenError {
    /// It has no name to be found by.
    #[error("node-name not specified")]
    NoName,
    /// Nobody has that name.
    #[error("Failed to find node with node-name='{0}'")]
    NotFound(String),
    /// A child by that name is not there.
    #[error("Cannot find device='' nor node-name='{0}'")]
    NoChild(String),
    /// What it is for good.
    #[error("Cannot change the option '{option}'")]
    Fixed {
        /// The node.
        node: String,
        /// Which of its options.
        option: String,
    },
    /// A kind of node that stays as it was opened.
    #[error("Block format '{kind}' used by node '{node}' does not support reopening files")]
    Never {
        /// Its driver.
        kind: &'static str,
        /// The node.
        node: String,
    },
    /// What is below an image has to be said.
    #[error("backing is missing for '{0}'")]
    BackingMissing(String),
    /// A job's filter stays where it is.
    #[error("Cannot replace implicit {option} child of {node}")]
    Implicit {
        /// As what.
        option: &'static str,
        /// The node.
        node: String,
    },
    /// The server does not take writes.
    #[error("Can't reopen read-only NBD mount as read/write")]
    ReadOnlyServer,
    /// What was written could not be made durable.
    #[error("Error flushing drive")]
    Flush(#[source] Errno),
    /// Some disk is stuck.
    #[error(transparent)]
    Busy(#[from] StillBusy),
    /// The control thread's ring is gone.
    #[error("Cannot open nodes anew")]
    Ring(#[source] std::io::Error),
    /// The graph cannot be so.
    #[error(transparent)]
    Edit(#[from] EditError),
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The window.
    #[error(transparent)]
    Window(#[from] WindowError),
    /// The group.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// The image.
    #[error(transparent)]
    Qcow2(#[from] Qcow2Error),
    /// What its bitmaps say is not in it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The image does not say that they are in use.
    #[error("{node}: Failed to make dirty bitmaps writable: Cannot update bitmap directory: {}", super::errno_text(&(*.errno).into()))]
    BitmapsInUse {
        /// The node.
        node: String,
        /// Why.
        errno: Errno,
    },
    /// Somebody else has had it meanwhile.
    #[error(
        "{node}: Failed to make dirty bitmaps writable: Corruption: bitmap '{name}' is not in the image as it is in memory"
    )]
    BitmapsDiffer {
        /// The node.
        node: String,
        /// The bitmap.
        name: String,
    },
    /// The file beside it.
    #[error(transparent)]
    Journal(JournalError),
    /// What belongs to opening.
    #[error(transparent)]
    Open(#[from] OpenError),
}

impl ReopenError {
    /// What QEMU prints on a line of its own below the message, if anything.
    pub fn hint(&self) -> Option<String> {
        match self {
            ReopenError::Edit(EditError::Perm(error)) => error.hint(),
            ReopenError::Open(error) => error.hint(),
            _ => None,
        }
    }
}

impl From<PermError> for ReopenError {
    fn from(error: PermError) -> ReopenError {
        ReopenError::Edit(error.into())
    }
}

/// A node to be opened anew.
#[derive(Debug)]
struct Change {
    id: NodeId,
    spec: NodeSpec,
    old: Arc<NodeSpec>,
}

/// The new generation in the making.
struct Reopening<'a> {
    edit: Edit,
    control: &'a mut Control,
    deadline: Instant,
    /// In the order in which they were asked for, children of a node after it.
    changes: Vec<Change>,
    /// Images brought to disk, by where they were: they go on, or others take over.
    handed_over: Vec<NodeId>,
    /// Bitmaps of images that were inactive, the newest of each first.
    loaded: Vec<(NodeId, Vec<Arc<DirtyBitmap>>)>,
    /// Nodes with a journal that may be written from now on, and their bitmaps.
    begun: Vec<(NodeId, Tracker, Vec<Arc<DirtyBitmap>>)>,
}

/// Opens nodes anew, each found by its name, so that they are as `specs` say; an inline child is the one the node has. Returns
/// the new generation and what is no longer in it; `publishing` sees it first, while nothing is under way. Errors: see
/// [`ReopenError`]; nothing has changed then, and requests that were held back go on.
pub fn reopen(
    current: &Arc<Current>,
    specs: Vec<NodeSpec>,
    control: &mut Control,
    deadline: Instant,
    publishing: impl FnOnce(&Graph),
) -> Result<(Arc<Graph>, Leaving), ReopenError> {
    let mut reopening = Reopening::new(current, control, deadline);
    let done = reopening.prepare(current, specs);
    reopening.finish(done, publishing)
}

/// Gives nodes other options of those that every node has, each found by its place, and leaves the rest as it is. Errors: as
/// [`reopen`].
pub fn set_common(
    current: &Arc<Current>,
    wanted: &[(NodeId, Common)],
    control: &mut Control,
    deadline: Instant,
    publishing: impl FnOnce(&Graph),
) -> Result<(Arc<Graph>, Leaving), ReopenError> {
    let mut reopening = Reopening::new(current, control, deadline);
    let done = reopening
        .plan_common(wanted)
        .and_then(|()| reopening.carry_out(current));
    reopening.finish(done, publishing)
}

impl<'a> Reopening<'a> {
    fn new(current: &Arc<Current>, control: &'a mut Control, deadline: Instant) -> Reopening<'a> {
        Reopening {
            edit: Edit::begin(current),
            control,
            deadline,
            changes: Vec::new(),
            handed_over: Vec::new(),
            loaded: Vec::new(),
            begun: Vec::new(),
        }
    }

    fn finish(
        self,
        done: Result<Quiet, ReopenError>,
        publishing: impl FnOnce(&Graph),
    ) -> Result<(Arc<Graph>, Leaving), ReopenError> {
        match done {
            Ok(quiet) => {
                publishing(&self.edit.graph);
                Ok(self.commit(quiet))
            }
            Err(error) => {
                self.undo();
                Err(error)
            }
        }
    }

    fn prepare(
        &mut self,
        current: &Arc<Current>,
        specs: Vec<NodeSpec>,
    ) -> Result<Quiet, ReopenError> {
        for spec in specs {
            let name = spec.name.as_deref().ok_or(ReopenError::NoName)?;
            let id = self.edit.graph.find(name);
            let id = id.ok_or_else(|| ReopenError::NotFound(name.to_owned()))?;
            self.plan(id, spec)?;
        }
        self.carry_out(current)
    }

    fn plan_common(&mut self, wanted: &[(NodeId, Common)]) -> Result<(), ReopenError> {
        for (id, common) in wanted {
            let node = self.before(*id);
            let old = node.and_then(|node| node.spec().cloned());
            let old = old.ok_or_else(|| ReopenError::NotFound(String::new()))?;
            let mut spec = (*old).clone();
            spec.common = *common;
            let id = *id;
            self.changes.push(Change { id, spec, old });
        }
        Ok(())
    }

    fn carry_out(&mut self, current: &Arc<Current>) -> Result<Quiet, ReopenError> {
        self.open_files()?;
        let touched: BTreeSet<NodeId> = self.changes.iter().map(|change| change.id).collect();
        let quiet = Quiet::begin(current, &touched, self.control, self.deadline)?;
        let done = self.remake_bodies().and_then(|()| self.settle_rights());
        if let Err(error) = done {
            self.record_bitmaps_again();
            return Err(error);
        }
        Ok(quiet)
    }

    fn settle_rights(&mut self) -> Result<(), ReopenError> {
        self.edit.drop_unused();
        let agreed = self.edit.agree()?;
        // Only now may images be written that could not be before.
        let done = self
            .repair_images()
            .and_then(|()| self.begin_journals())
            .and_then(|()| self.record_bitmaps());
        if let Err(error) = done {
            self.edit.disagree(agreed);
            return Err(error);
        }
        Ok(())
    }

    /// The node at that place, as it was.
    fn before(&self, id: NodeId) -> Option<&Node> {
        self.edit.before.node(id)
    }

    fn commit(mut self, quiet: Quiet) -> (Arc<Graph>, Leaving) {
        let before = self.edit.before.clone();
        for id in &self.handed_over {
            if let Some(super::Body::Driver(driver)) = before.node(*id).map(Node::body)
                && let Some(image) = driver.as_qcow2()
            {
                image.retire();
            }
        }
        for change in &self.changes {
            if let Some(super::Body::Driver(driver)) =
                self.edit.graph.node(change.id).map(Node::body)
            {
                driver.adjust(&change.spec.driver);
            }
        }
        self.settle_bitmaps();
        self.settle_journals();
        let published = self.edit.publish();
        drop(quiet);
        published
    }

    /// The names of files that were opened in vain will be given to others.
    fn undo(self) {
        let known: BTreeSet<_> = self.edit.before.files().map(|file| file.id()).collect();
        let files = self.edit.graph.files();
        let new = files.filter(|file| !known.contains(&file.id()));
        self.control.forget(new);
    }
}
