//! Journals of nodes that are opened anew.
//!
//! The rule: a node that will be written has a journal that says so before it is; one that is not written any more has it say what
//! there is once that is agreed upon. A journal is let go of in between: somebody else may write the disk, and then it
//! shows.

use super::super::journals::{distrust, end, merged, new_journal, tell};
use super::super::open::DriverSpec;
use super::super::open::qcow2::set_readonly;
use super::super::{Access, Activity, Node, Shape};
use super::{ReopenError, Reopening};
use crate::bitmap::{DirtyBitmap, Journal, JournalError, Keeping, Tracker, Use};
use crate::io::Io;
use crate::node::NodeId;
use ring::Errno;
use std::sync::Arc;

fn takes_writes(node: Option<&Node>) -> bool {
    node.is_some_and(|node| node.common().takes_writes())
}

impl Reopening<'_> {
    /// Before images say that their bitmaps are in use.
    pub(super) fn begin_journals(&mut self) -> Result<(), ReopenError> {
        let ids: Vec<NodeId> = self.changes.iter().map(|change| change.id).collect();
        for id in ids {
            if !takes_writes(self.before(id)) && takes_writes(self.edit.graph.node(id)) {
                self.begin_journal(id)?;
            }
        }
        Ok(())
    }

    fn begin_journal(&mut self, id: NodeId) -> Result<(), ReopenError> {
        let Some(node) = self.edit.graph.node(id) else {
            return Ok(());
        };
        let (name, shape) = (node.name().to_owned(), node.shape().clone());
        let Some(spec) = node.spec().cloned() else {
            return Ok(());
        };
        let size_bytes = self.edit.graph.info(id).map_or(0, |info| info.size_bytes);
        let Some((journal, tracker)) = self.journal_of(id, &spec.driver, &shape, size_bytes)?
        else {
            return Ok(());
        };
        let graph = Arc::new(self.edit.graph.kept());
        let (from, memory) = (journal.clone(), graph.bitmap_memory().clone());
        let find = move |io: Io| async move { from.find(&io, size_bytes, &memory).await };
        let found = self.run(&graph, id, find)?.map_err(ReopenError::Journal)?;
        tell(&name, &journal, &found);
        let known = self.known(id);
        let was_inactive = self
            .before(id)
            .is_some_and(|node| node.common().activity == Activity::Inactive);
        let bitmaps = match (journal.is_home(), was_inactive) {
            (true, false) => {
                distrust(&known, found.doubt);
                known
            }
            (true, true) => {
                let mut kept = known;
                kept.retain(|bitmap| bitmap.keeping() == Keeping::InMemory);
                merged(kept, found.bitmaps)
            }
            (false, _) => merged(known, found.bitmaps),
        };
        let path = journal.path().to_owned();
        let (begins, all) = (journal.clone(), bitmaps.clone());
        let begin = move |io: Io| async move { begins.begin(&io, &all).await };
        let begun: Result<(), Errno> = self.run(&graph, id, begin)?;
        begun.map_err(|errno| ReopenError::Journal(JournalError::Write { path, errno }))?;
        self.begun.push((id, tracker, bitmaps));
        Ok(())
    }

    /// The journal that a node had while it was written before, or a new one.
    fn journal_of(
        &mut self,
        id: NodeId,
        driver: &DriverSpec,
        shape: &Shape,
        size_bytes: u64,
    ) -> Result<Option<(Arc<Journal>, Tracker)>, ReopenError> {
        let before = self.before(id).map(|node| node.bitmaps().clone());
        if let Some(tracker) = before
            && let Some(journal) = tracker.journal().filter(|journal| journal.may_be_kept())
        {
            journal.relock().map_err(ReopenError::Journal)?;
            let journal = journal.clone();
            return Ok(Some((journal, tracker)));
        }
        let (graph, control) = (&mut self.edit.graph, &*self.control);
        let journal = new_journal(graph, control, driver, shape, size_bytes, Use::Keep);
        let journal = journal.map_err(ReopenError::Journal)?;
        Ok(journal.map(|journal| {
            self.edit.add_file(id, journal.file().clone());
            (journal.clone(), Tracker::journaled(journal))
        }))
    }

    /// Those that the node has, and those of its image that were read just now; the newest first.
    fn known(&self, id: NodeId) -> Vec<Arc<DirtyBitmap>> {
        let before = self.before(id).map(|node| node.bitmaps().bitmaps());
        let mut known = before.unwrap_or_default();
        let loaded = self.loaded.iter().find(|(loaded, _)| *loaded == id);
        for bitmap in loaded.map_or(&[][..], |(_, loaded)| loaded) {
            if !known.iter().any(|known| known.name() == bitmap.name()) {
                known.push(bitmap.clone());
            }
        }
        known
    }

    /// Journals are as their nodes are from now on. Nothing is under way.
    pub(super) fn settle_journals(&mut self) {
        for (id, tracker, bitmaps) in std::mem::take(&mut self.begun) {
            set_readonly(&bitmaps, Access::ReadWrite);
            self.edit.graph.set_bitmaps(id, tracker.with(bitmaps));
        }
        let ids: Vec<NodeId> = self.changes.iter().map(|change| change.id).collect();
        for id in ids {
            if takes_writes(self.before(id)) && !takes_writes(self.edit.graph.node(id)) {
                self.end_journal(id);
            }
        }
    }

    fn end_journal(&mut self, id: NodeId) {
        let Some(node) = self.before(id) else {
            return;
        };
        let tracker = node.bitmaps().clone();
        if tracker.journal().is_none() {
            return;
        }
        let before = self.edit.before.clone();
        let work = move |io: Io| async move {
            let graph = io.graph().clone();
            if let Some(node) = graph.node(io.here()) {
                end(&io, node).await;
            }
        };
        if self.run(&before, id, work).is_err() {
            tracing::error!("no ring to end a bitmap journal with");
        }
        set_readonly(&tracker.bitmaps(), Access::ReadOnly);
    }
}
