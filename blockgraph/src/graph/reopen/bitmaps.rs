//! Bitmaps of images that are opened anew.
//!
//! The rule: an image that is not written any more has what its bitmaps say, before anybody could write it otherwise; one that is
//! written from now on says that they are in use, before it is: what cannot be done of that fails the whole. Until all is agreed
//! upon the bitmaps in memory are as they were.

use super::super::open::qcow2::{has_bitmaps_to_record, set_readonly};
use super::super::{Access, Activity, Body, Node};
use super::bodies::metadata_of;
use super::{ReopenError, Reopening};
use crate::bitmap::{DirtyBitmap, Keeping, State};
use crate::driver::qcow2::format::bitmap_dir::{Bitmap, Stored};
use crate::driver::qcow2::{Image, load_bitmaps};
use crate::io::Io;
use crate::node::{Driver, NodeId};
use std::sync::Arc;

/// An image of which it was said that its bitmaps are in use, and what was said before.
struct Said {
    id: NodeId,
    before: Vec<Bitmap>,
}

impl Reopening<'_> {
    /// Stores the bitmaps of an image that is written now and will not be. Requests that come after all have the image say
    /// again that its bitmaps are in use.
    pub(super) fn store_bitmaps(&mut self, id: NodeId) -> Result<(), ReopenError> {
        let takes_writes = |node: Option<&Node>| node.is_some_and(|n| n.common().takes_writes());
        let (before, after) = (self.before(id), self.edit.graph.node(id));
        if !takes_writes(before) || takes_writes(after) {
            return Ok(());
        }
        let Some(Body::Driver(driver)) = before.map(|node| node.body().clone()) else {
            return Ok(());
        };
        let bitmaps = before.map(|node| node.bitmaps().bitmaps());
        let bitmaps = bitmaps.unwrap_or_default();
        let before = self.edit.before.clone();
        let work = move |io: Io| async move {
            match driver.as_qcow2() {
                Some(image) => image.store_bitmaps(&io, &bitmaps).await,
                None => Ok(()),
            }
        };
        Ok(self.run(&before, id, work)??)
    }

    /// What the bitmaps of an image say that was inactive and is not any more.
    pub(super) fn load_bitmaps(&mut self, id: NodeId, image: &Image) -> Result<(), ReopenError> {
        let activity = |node: Option<&Node>| node.map(|node| node.common().activity);
        let was = activity(self.before(id));
        let is = activity(self.edit.graph.node(id));
        if (was, is) != (Some(Activity::Inactive), Some(Activity::Active)) {
            return Ok(());
        }
        let graph = Arc::new(self.edit.graph.kept());
        let file = metadata_of(&graph, id)?;
        let all = image.bitmaps();
        let work = move |io: Io| async move { load_bitmaps(&io, file, all).await };
        let mut loaded = self.run(&graph, file, work)??;
        loaded.reverse();
        self.loaded.push((id, loaded));
        Ok(())
    }

    /// Images that may be written now say that their bitmaps are in use, or none of them does.
    pub(super) fn record_bitmaps(&mut self) -> Result<(), ReopenError> {
        let mut said = Vec::new();
        for id in self.handed_over.clone() {
            let recorded = self.record_bitmaps_of(id, &mut said);
            if let Err(error) = recorded {
                said.into_iter().for_each(|said| self.take_back(said));
                return Err(error);
            }
        }
        Ok(())
    }

    fn record_bitmaps_of(&mut self, id: NodeId, said: &mut Vec<Said>) -> Result<(), ReopenError> {
        let Some(node) = self.edit.graph.node(id) else {
            return Ok(());
        };
        let Some(driver) = image_of(node).filter(|_| node.common().takes_writes()) else {
            return Ok(());
        };
        let name = node.name().to_owned();
        let before = driver.as_qcow2().map(|image| image.bitmaps());
        let before = before.unwrap_or_default();
        if let Some(name) = self.differing(id, &before) {
            let node = node.name().to_owned();
            return Err(ReopenError::BitmapsDiffer { node, name });
        }
        if !has_bitmaps_to_record(node.common(), &*driver) {
            return Ok(());
        }
        said.push(Said { id, before });
        let graph = Arc::new(self.edit.graph.kept());
        let work = move |io: Io| async move {
            match driver.as_qcow2() {
                Some(image) => image.record_bitmaps(&io).await,
                None => Ok(()),
            }
        };
        let recorded = self.run(&graph, id, work)?;
        recorded.map_err(|errno| ReopenError::BitmapsInUse { node: name, errno })
    }

    /// A bitmap that is not in the image as it is in memory: somebody else has had the image meanwhile.
    fn differing(&self, id: NodeId, stored: &[Bitmap]) -> Option<String> {
        let loaded = self.loaded.iter().any(|(loaded, _)| *loaded == id);
        let before = self.before(id).filter(|_| !loaded)?;
        if before.common().takes_writes() {
            return None;
        }
        if before.bitmaps().journal().is_some() {
            // What it has of them counts, not what the image says of those that were in use.
            return None;
        }
        let known = before.bitmaps().by_name();
        let differs = |bitmap: &&Bitmap| {
            let state = known.get(&bitmap.text()).map(|known| known.state());
            let is_lost = state == Some(State::Inconsistent);
            state.is_none() || is_lost != (bitmap.stored == Stored::InUse)
        };
        stored.iter().find(differs).map(Bitmap::text)
    }

    /// Images that are written again after all: at the latest their first write would do this.
    pub(super) fn record_bitmaps_again(&mut self) {
        let before = self.edit.before.clone();
        for id in self.handed_over.clone() {
            let Some(node) = before.node(id).filter(|node| node.common().takes_writes()) else {
                continue;
            };
            let Some(driver) = image_of(node) else {
                continue;
            };
            let work = move |io: Io| async move {
                match driver.as_qcow2() {
                    Some(image) => image.record_bitmaps(&io).await,
                    None => Ok(()),
                }
            };
            let recorded = self.run(&before, id, work);
            if !matches!(recorded, Ok(Ok(()))) {
                tracing::warn!("node '{}' cannot be written for now", node.name());
            }
        }
    }

    /// As well as can be: nobody has written to the image yet.
    fn take_back(&mut self, said: Said) {
        let Said { id, before } = said;
        let Some(driver) = self.edit.graph.node(id).and_then(image_of) else {
            return;
        };
        let graph = Arc::new(self.edit.graph.kept());
        let work = move |io: Io| async move {
            match driver.as_qcow2() {
                Some(image) => image.trust_bitmaps(&io, &before).await,
                None => Ok(()),
            }
        };
        let name = graph.node(id).map_or("", Node::name);
        if !matches!(self.run(&graph, id, work), Ok(Ok(()))) {
            tracing::error!("the bitmaps in the image of node '{name}' cannot be used any more");
        }
    }

    /// The bitmaps in memory are what is agreed upon. Nothing is under way.
    pub(super) fn settle_bitmaps(&mut self) {
        for id in std::mem::take(&mut self.handed_over) {
            let (Some(before), Some(after)) = (self.before(id), self.edit.graph.node(id)) else {
                continue;
            };
            let (was, is) = (before.common(), after.common());
            let tracker = before.bitmaps().clone();
            let mut bitmaps: Vec<Arc<DirtyBitmap>> = tracker.bitmaps();
            if is.activity == Activity::Inactive && was.activity == Activity::Active {
                bitmaps.retain(|bitmap| bitmap.keeping() == Keeping::InMemory);
            }
            let loaded = self.loaded.iter_mut().find(|(loaded, _)| *loaded == id);
            if let Some((_, loaded)) = loaded {
                let known = tracker.by_name();
                let new = loaded.drain(..);
                bitmaps.extend(new.filter(|bitmap| !known.contains_key(bitmap.name())));
            }
            let access = match is.takes_writes() {
                true => Access::ReadWrite,
                false => Access::ReadOnly,
            };
            if was.takes_writes() != is.takes_writes() {
                set_readonly(&bitmaps, access);
            }
            self.edit.graph.set_bitmaps(id, tracker.with(bitmaps));
        }
    }
}

fn image_of(node: &Node) -> Option<Arc<dyn Driver>> {
    match node.body().clone() {
        Body::Driver(driver) if driver.as_qcow2().is_some() => Some(driver),
        _ => None,
    }
}
