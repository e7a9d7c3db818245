//! The journal beside a node that is opened.
//!
//! The rule: it is kept up from before the first write, and what it says is known before the node is.

use super::super::journals::{merged, new_journal, tell};
use super::super::{Access, Activity, Body, Common};
use super::qcow2::set_readonly;
use super::{DriverSpec, Made, OpenError, Opening};
use crate::bitmap::{Journal, JournalError, Use};
use crate::io::Io;
use crate::node::NodeId;
use std::sync::Arc;

impl Opening<'_> {
    /// The journal that `driver` asks for.
    pub(super) fn journal_for(
        &mut self,
        driver: &DriverSpec,
        made: &Made,
        common: Common,
    ) -> Result<Option<Arc<Journal>>, OpenError> {
        let Body::Driver(body) = &made.body else {
            return Ok(None);
        };
        let wanted = match common.takes_writes() {
            true => Use::Keep,
            false => Use::Look,
        };
        let size_bytes = body.info().size_bytes;
        let (graph, control) = (&mut self.graph, &*self.control);
        let journal = new_journal(graph, control, driver, &made.shape, size_bytes, wanted)?;
        Ok(journal)
    }

    /// The bitmaps that the journal of a new node has.
    pub(super) fn take_up_journal(&mut self, id: NodeId) -> Result<(), OpenError> {
        let Some(node) = self.graph.node(id) else {
            return Ok(());
        };
        let (tracker, common) = (node.bitmaps().clone(), node.common());
        let Some(journal) = tracker.journal().cloned() else {
            return Ok(());
        };
        let name = node.name().to_owned();
        let size_bytes = self.graph.info(id).map_or(0, |info| info.size_bytes);
        let memory = self.graph.bitmap_memory().clone();
        let from = journal.clone();
        let find = move |io: Io| async move { from.find(&io, size_bytes, &memory).await };
        let found = self.run(id, find).map_err(|errno| JournalError::Read {
            path: journal.path().to_owned(),
            errno,
        });
        let found = found??;
        if common.activity == Activity::Inactive {
            // Another process has the disk: what is known of it is out of date by the time it is ours.
            return Ok(());
        }
        tell(&name, &journal, &found);
        let bitmaps = merged(tracker.bitmaps(), found.bitmaps);
        let access = match common.takes_writes() {
            true => Access::ReadWrite,
            false => Access::ReadOnly,
        };
        set_readonly(&bitmaps, access);
        self.graph.set_bitmaps(id, tracker.with(bitmaps));
        Ok(())
    }

    /// A node that may be written is one whose journal says so.
    pub(super) fn begin_journal(&mut self, id: NodeId) -> Result<(), OpenError> {
        let node = self.graph.node(id);
        let Some(node) = node.filter(|node| node.common().takes_writes()) else {
            return Ok(());
        };
        let tracker = node.bitmaps().clone();
        let Some(journal) = tracker.journal().cloned() else {
            return Ok(());
        };
        let path = journal.path().to_owned();
        let begin = move |io: Io| async move { journal.begin(&io, &tracker.bitmaps()).await };
        let begun = self.run(id, begin).and_then(|begun| begun);
        Ok(begun.map_err(|errno| JournalError::Write { path, errno })?)
    }
}
