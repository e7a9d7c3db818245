//! What is done with bitmaps in a transaction.

use super::{Done, Step};
use crate::daemon::executor::Daemon;
use blockgraph::bitmap::{BitmapError, BitmapName, Busy, NewBitmap, Saved, Source, State};

fn text(error: BitmapError) -> String {
    error.to_string()
}

/// A bitmap that was added.
#[derive(Debug)]
struct Added(BitmapName);

impl Step for Added {
    fn commit(self: Box<Self>, _: &mut Daemon) -> Option<String> {
        None
    }

    fn abort(self: Box<Self>, daemon: &mut Daemon) {
        let BitmapName { node, name } = self.0;
        undone(daemon.bitmaps().remove(&node, &name));
    }
}

/// A bitmap that is about to be removed: nobody may use it meanwhile.
#[derive(Debug)]
struct Removed {
    bitmap: BitmapName,
    busy: Busy,
}

impl Step for Removed {
    fn commit(self: Box<Self>, daemon: &mut Daemon) -> Option<String> {
        let Removed { bitmap, busy } = *self;
        drop(busy);
        undone(daemon.bitmaps().remove(&bitmap.node, &bitmap.name));
        None
    }

    fn abort(self: Box<Self>, _: &mut Daemon) {}
}

/// A bitmap that says something else.
#[derive(Debug)]
struct Changed(Saved);

impl Step for Changed {
    fn commit(self: Box<Self>, _: &mut Daemon) -> Option<String> {
        None
    }

    fn abort(self: Box<Self>, _: &mut Daemon) {
        self.0.restore();
    }
}

/// A bitmap that records, or does not.
#[derive(Debug)]
struct Switched {
    bitmap: BitmapName,
    before: State,
}

impl Step for Switched {
    fn commit(self: Box<Self>, _: &mut Daemon) -> Option<String> {
        None
    }

    fn abort(self: Box<Self>, daemon: &mut Daemon) {
        let Switched { bitmap, before } = *self;
        let BitmapName { node, name } = &bitmap;
        undone(match before {
            State::Recording => daemon.bitmaps().enable(node, name),
            State::Disabled | State::Inconsistent => daemon.bitmaps().disable(node, name),
        });
    }
}

/// What was done before can be undone; if it is not, somebody ought to know.
fn undone(result: Result<(), BitmapError>) {
    if let Err(error) = result {
        tracing::error!("a transaction's bitmap is not as it should be: {error}");
    }
}

impl Daemon {
    pub(super) fn add_bitmap_step(&mut self, node: String, new: NewBitmap) -> Done {
        let name = new.name.clone();
        self.bitmaps().add(&node, new).map_err(text)?;
        Ok(Box::new(Added(BitmapName { node, name })))
    }

    pub(super) fn remove_bitmap_step(&mut self, bitmap: BitmapName) -> Done {
        let busy = self.bitmaps().reserve(&bitmap.node, &bitmap.name);
        let busy = busy.map_err(text)?;
        // Should it stay after all, it is stored again when the image is closed.
        let BitmapName { node, name } = &bitmap;
        self.bitmaps().forget_stored(node, name).map_err(text)?;
        Ok(Box::new(Removed { bitmap, busy }))
    }

    pub(super) fn clear_bitmap_step(&mut self, bitmap: BitmapName) -> Done {
        let BitmapName { node, name } = &bitmap;
        let saved = self.bitmaps().save(node, name).map_err(text)?;
        self.bitmaps().clear(node, name).map_err(text)?;
        Ok(Box::new(Changed(saved)))
    }

    pub(super) fn enable_bitmap_step(&mut self, bitmap: BitmapName) -> Done {
        let BitmapName { node, name } = &bitmap;
        let before = self.bitmaps().state(node, name).map_err(text)?;
        self.bitmaps().enable(node, name).map_err(text)?;
        Ok(Box::new(Switched { bitmap, before }))
    }

    pub(super) fn disable_bitmap_step(&mut self, bitmap: BitmapName) -> Done {
        let BitmapName { node, name } = &bitmap;
        let before = self.bitmaps().state(node, name).map_err(text)?;
        self.bitmaps().disable(node, name).map_err(text)?;
        Ok(Box::new(Switched { bitmap, before }))
    }

    pub(super) fn merge_bitmaps_step(&mut self, target: BitmapName, sources: &[Source]) -> Done {
        let BitmapName { node, name } = &target;
        let saved = self.bitmaps().save(node, name).map_err(text)?;
        let merged = self.bitmaps().merge(node, name, sources);
        merged.map_err(text)?;
        Ok(Box::new(Changed(saved)))
    }
}
