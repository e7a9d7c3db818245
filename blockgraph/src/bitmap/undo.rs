//! What has to be known to undo a change of a bitmap, for whoever makes several changes or none.
//!
//! The rule: nothing is written to the node between the change and its undoing: it is one edit of the graph.

use super::admin::BitmapAdmin;
use super::dirty::{Busy, DirtyBitmap, State};
use super::error::BitmapError;
use super::find::{check_changeable, check_removable, check_usable, find};
use std::sync::Arc;

/// What a bitmap said.
#[derive(Debug)]
pub struct Saved {
    bitmap: Arc<DirtyBitmap>,
    copy: DirtyBitmap,
}

impl Saved {
    /// Has it say that again.
    pub fn restore(self) {
        self.bitmap.clear();
        self.bitmap.take_up(&self.copy);
    }
}

impl BitmapAdmin<'_> {
    /// Keeps what a bitmap says. Errors: it may not be used, or there is no memory.
    pub fn save(&self, node: &str, name: &str) -> Result<Saved, BitmapError> {
        let graph = self.current.get();
        let bitmap = find(&graph, node, name)?.bitmap;
        check_changeable(&bitmap)?;
        let copy = bitmap.copied(graph.bitmap_memory())?;
        Ok(Saved { bitmap, copy })
    }

    /// The same where the bitmap has to be in a journal, and that may fail. Errors: there is no memory.
    pub fn save_if_journaled(&self, node: &str, name: &str) -> Result<Option<Saved>, BitmapError> {
        let graph = self.current.get();
        let found = graph.find(node).and_then(|id| graph.node(id));
        match found.is_some_and(|node| node.bitmaps().journal().is_some()) {
            true => self.save(node, name).map(Some),
            false => Ok(None),
        }
    }

    /// Does it record? Errors: it may not be used.
    pub fn state(&self, node: &str, name: &str) -> Result<State, BitmapError> {
        let bitmap = find(&self.current.get(), node, name)?.bitmap;
        check_usable(&bitmap)?;
        Ok(bitmap.state())
    }

    /// Keeps a bitmap that is about to be removed from everybody else. Errors: somebody uses it.
    pub fn reserve(&self, node: &str, name: &str) -> Result<Busy, BitmapError> {
        let bitmap = find(&self.current.get(), node, name)?.bitmap;
        check_removable(&bitmap)?;
        let busy = bitmap.occupy();
        busy.ok_or_else(|| BitmapError::Busy(name.to_owned()))
    }
}
