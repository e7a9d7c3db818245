//! Dirty bitmaps as the daemon has them: what is done with them, and those that exports show.

use super::executor::Daemon;
use crate::cli::BitmapRef;
use blockgraph::bitmap::{BitmapAdmin, Busy, DirtyBitmap, find, find_above};
use blockgraph::graph::Access;
use blockgraph::{Graph, NodeId};
use std::sync::Arc;

impl Daemon {
    /// What is done with bitmaps.
    pub(crate) fn bitmaps(&mut self) -> BitmapAdmin<'_> {
        BitmapAdmin {
            current: &self.current,
            control: &mut self.control,
        }
    }
}

/// The bitmaps that an export shows, in the order they were asked for in; nobody else may use them.
#[derive(Debug, Default)]
pub(super) struct Shown {
    pub(super) bitmaps: Vec<Arc<DirtyBitmap>>,
    /// Each once.
    busy: Vec<Busy>,
}

/// Takes the bitmaps that an export of `node` is to show. Errors: in QSD's words.
pub(super) fn occupy(
    graph: &Graph,
    node: NodeId,
    refs: &[BitmapRef],
    export: Access,
) -> Result<Shown, String> {
    let mut shown = Shown::default();
    for BitmapRef { node: of, name } in refs {
        let found = match of {
            Some(of) => find(graph, of, name),
            None => find_above(graph, node, name),
        };
        let found = found.map_err(|error| error.to_string())?;
        // QSD shows one twice to who asks for it twice.
        let is_it = |other: &Arc<DirtyBitmap>| Arc::ptr_eq(other, &found.bitmap);
        if !shown.bitmaps.iter().any(is_it) {
            let busy = match of {
                Some(_) => found.occupy(),
                None => found.occupy_for(graph, export),
            };
            shown.busy.push(busy.map_err(|error| error.to_string())?);
        }
        shown.bitmaps.push(found.bitmap);
    }
    Ok(shown)
}
