//! A bitmap in the hands of a job: what it said is the job's to copy, and what is written from then on is recorded anew.
//!
//! The rule: until the job says which it is to be, nothing is lost: what was copied stays new alone, or both come together again.
//! Nothing is written to the node while a bitmap is frozen; from then on, at any time.

use super::admin::BitmapAdmin;
use super::dirty::{Busy, DirtyBitmap};
use super::error::BitmapError;
use super::find::find;
use crate::units::Span;
use std::sync::Arc;

/// What a bitmap said, and the bitmap, which nobody else may use meanwhile.
#[derive(Debug)]
pub struct Frozen {
    busy: Busy,
    content: Arc<DirtyBitmap>,
}

impl BitmapAdmin<'_> {
    /// Takes what a bitmap says. Errors: it may not be used, or there is no memory.
    pub fn freeze(&self, node: &str, name: &str) -> Result<Frozen, BitmapError> {
        let graph = self.current.get();
        let busy = find(&graph, node, name)?.occupy()?;
        let content = Arc::new(busy.bitmap().copied(graph.bitmap_memory())?);
        busy.bitmap().set_frozen(Some(content.clone()));
        busy.bitmap().clear();
        Ok(Frozen { busy, content })
    }
}

impl Frozen {
    /// What it said.
    pub fn content(&self) -> &DirtyBitmap {
        &self.content
    }

    /// The bitmap says what was written since, and no more.
    pub fn keep_new(self) {
        self.busy.bitmap().set_frozen(None);
    }

    /// The bitmap says all of it.
    pub fn take_back(self) {
        self.busy.bitmap().take_up(&self.content);
        self.keep_new();
    }

    /// That range is to be copied again.
    pub fn mark(&self, span: Span) {
        self.busy.bitmap().set(span);
    }
}
