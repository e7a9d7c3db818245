//! Journals of nodes: made, merged with what images say, kept up to date, and ended with their nodes.
//!
//! The rule: bitmaps that an image has as they are are the image's; what the journal says counts for those that were in use, and
//! for those that the image does not have.

use super::open::DriverSpec;
use super::{Activity, Control, Current, Graph, Node, Role, Shape};
use crate::bitmap::{
    Beside, BitmapError, DirtyBitmap, Doubt, FoundInJournal, Journal, JournalError, JournalFile,
    Keeping, State, Use, open_journal,
};
use crate::io::Io;
use crate::map::DEPTH_MAX;
use crate::node::NodeId;
use crate::request::{Kind, Request};
use crate::units::Span;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How soon a journal is tried again that could not be written.
const AGAIN: Duration = Duration::from_secs(5);

impl DriverSpec {
    /// The file beside it that keeps its bitmaps, if any.
    pub(super) fn journal(&self) -> Option<&PathBuf> {
        match self {
            DriverSpec::Raw { journal, .. } => journal.as_ref(),
            DriverSpec::Qcow2(spec) => spec.journal.as_ref(),
            _ => None,
        }
    }
}

/// The file that the disk of `top` is in, if that has a name.
fn file_of(graph: &Graph, top: NodeId) -> Option<PathBuf> {
    let mut id = top;
    for _ in 0..DEPTH_MAX {
        let node = graph.node(id)?;
        if let Some(origin) = node.origin() {
            return Some(origin.path.clone());
        }
        id = storage_of(node.shape())?;
    }
    None
}

/// Where a node's own file is: the metadata's, if it has that apart.
fn storage_of(shape: &Shape) -> Option<NodeId> {
    let child = |role| shape.child(role);
    let below = shape.filtered().or(child(Role::Metadata));
    below.or(child(Role::Image))
}

/// The journal that a node is to have, of which nothing is known yet; `None` if it asks for none, or if there is none and it is only
/// looked at. `size_bytes` is the node's.
pub(super) fn new_journal(
    graph: &mut Graph,
    control: &Control,
    driver: &DriverSpec,
    shape: &Shape,
    size_bytes: u64,
    wanted: Use,
) -> Result<Option<Arc<Journal>>, JournalError> {
    let Some(path) = driver.journal() else {
        return Ok(None);
    };
    let beside = match driver {
        DriverSpec::Raw { window, .. } => Beside::Raw(window.offset_bytes),
        _ => Beside::Image,
    };
    let disk = storage_of(shape).and_then(|below| file_of(graph, below));
    let file = match control.resources.journal(path) {
        Some(file) => Some(JournalFile::given(file)),
        None => open_journal(graph.new_file_id(), path, disk.as_deref(), wanted)?,
    };
    let journal = |file| Arc::new(Journal::new(file, path.clone(), &beside, disk, size_bytes));
    Ok(file.map(journal))
}

/// Says what was found, if it is worth it.
pub(super) fn tell(node: &str, journal: &Journal, found: &FoundInJournal) {
    let path = journal.path().display();
    match found.doubt {
        _ if found.bitmaps.is_empty() => {}
        Some(doubt) => {
            tracing::warn!("node '{node}': the bitmaps in {path} cannot be relied on: {doubt}")
        }
        None if found.after_crash => tracing::info!(
            "node '{node}': its last writer did not close it; bitmaps come from {path}"
        ),
        None => {}
    }
}

/// All bitmaps of a node, the newest first: those of its image, and what its journal adds.
pub(super) fn merged(
    of_image: Vec<Arc<DirtyBitmap>>,
    of_journal: Vec<DirtyBitmap>,
) -> Vec<Arc<DirtyBitmap>> {
    let mut all = of_image;
    let mut new: Vec<Arc<DirtyBitmap>> = Vec::new();
    for found in of_journal {
        match all.iter_mut().find(|known| known.name() == found.name()) {
            None => new.push(Arc::new(found)),
            Some(known) if known.state() == State::Inconsistent => {
                if known.granularity_bytes() == found.granularity_bytes() {
                    *known = Arc::new(found);
                }
            }
            Some(_) => {}
        }
    }
    // They were added after those that the image has.
    new.reverse();
    new.extend(all);
    new
}

/// Ends the journal of the node that `io` is at, if there is one: the node and all below it are closed. A journal that cannot say so
/// is one that a crash left.
pub async fn end_here(io: Io) {
    let graph = io.graph().clone();
    if let Some(node) = graph.node(io.here()) {
        end(&io, node).await;
    }
}

/// The node is not written any more.
pub(super) async fn end(io: &Io, node: &Node) {
    let Some(journal) = node.bitmaps().journal() else {
        return;
    };
    let bitmaps = node.bitmaps().bitmaps();
    let mut relied_on = bitmaps.iter().filter(|bitmap| {
        bitmap.keeping() == Keeping::Persistent && bitmap.state() != State::Inconsistent
    });
    let kept_by_image = relied_on.all(|bitmap| bitmap.is_readonly());
    if let Err(errno) = journal.end(io, &bitmaps, kept_by_image).await {
        let path = journal.path().display();
        tracing::error!("bitmap journal {path} of node '{}': {errno}", node.name());
    }
    journal.unlock();
}

/// Something other than a request is about to change the file of the node that `io` is at.
pub async fn before_change(io: &Io) {
    if let Some(node) = io.graph().node(io.here()) {
        node.bitmaps().say_a_word(io).await;
    }
}

/// Has the journal of a node, if there is one, say what its bitmaps say now: what a crash would leave is that from here on.
///
/// # Errors
/// It cannot be written: what a crash would leave is what it said before.
pub fn store(current: &Arc<Current>, control: &mut Control, id: NodeId) -> Result<(), BitmapError> {
    let graph = Arc::new(current.get().kept());
    let Some(node) = graph.node(id) else {
        return Ok(());
    };
    let tracker = node.bitmaps().clone();
    let Some(journal) = tracker.journal().cloned() else {
        return Ok(());
    };
    let kept = journal.clone();
    let work = move |io: Io| async move {
        // What a bitmap says no more must not be lost by the disk: a guest would find what no copy of it has.
        let flush = Request::plain(Kind::Flush, Span { at: 0, len: 0 });
        io.request(id, flush).await?;
        kept.store(&io, &tracker.bitmaps()).await
    };
    let stored = control.run(&graph, id, work);
    let stored = stored
        .map_err(|_| ring::Errno::IO)
        .and_then(|stored| stored);
    stored.map_err(|errno| BitmapError::Journal {
        path: journal.path().display().to_string(),
        errno,
    })
}

/// Looks after all journals: to be called when [`crate::notice::Notice::JournalDue`] was posted, and again after the time that it
/// answers.
pub fn look(current: &Arc<Current>, control: &mut Control) -> Option<Duration> {
    let graph = Arc::new(current.get().kept());
    let with_journals = graph.nodes().filter(|(_, node)| {
        node.bitmaps().journal().is_some() && node.common().activity == Activity::Active
    });
    let ids: Vec<NodeId> = with_journals.map(|(id, _)| id).collect();
    let next = ids
        .into_iter()
        .filter_map(|id| look_at(&graph, control, id));
    next.min()
}

fn look_at(graph: &Arc<Graph>, control: &mut Control, id: NodeId) -> Option<Duration> {
    let node = graph.node(id)?;
    let tracker = node.bitmaps().clone();
    let journal = tracker.journal().cloned()?;
    let kept = journal.clone();
    let work = move |io: Io| async move { kept.look(&io, &tracker.bitmaps()).await };
    match control.run(graph, id, work) {
        Ok(Ok(next)) => next,
        Ok(Err(errno)) => {
            let path = journal.path().display();
            tracing::warn!("bitmap journal {path} of node '{}': {errno}", node.name());
            Some(AGAIN)
        }
        Err(_) => None,
    }
}

/// Of a disk that could be written by others meanwhile: bitmaps that say too little now must not be relied on.
pub(super) fn distrust(bitmaps: &[Arc<DirtyBitmap>], doubt: Option<Doubt>) {
    let persistent = bitmaps
        .iter()
        .filter(|b| b.keeping() == Keeping::Persistent);
    for bitmap in persistent.filter(|_| doubt.is_some()) {
        bitmap.distrust();
    }
}
