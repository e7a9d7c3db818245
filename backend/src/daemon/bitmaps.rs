//! Dirty bitmaps as the daemon has them: what is done with them, and those that exports show.

use super::executor::Daemon;
use crate::cli::BitmapRef;
use blockgraph::bitmap::{BitmapAdmin, Busy, DirtyBitmap, find, find_above};
use blockgraph::graph::{Access, journals};
use blockgraph::{Graph, NodeId};
use std::sync::Arc;
use std::time::{Duration, Instant};

impl Daemon {
    /// What is done with bitmaps.
    pub(crate) fn bitmaps(&mut self) -> BitmapAdmin<'_> {
        BitmapAdmin {
            current: &self.current,
            control: &mut self.control,
        }
    }

    /// Looks after bitmap journals, and notes when to look again.
    pub(super) fn look_at_journals(&mut self) {
        let next = journals::look(&self.current, &mut self.control);
        self.journals_due = next.map(|after| Instant::now() + after);
    }

    /// The same if it is time. Says how long there is until then.
    pub(super) fn tend_journals(&mut self) -> Option<Duration> {
        if self.journals_due? <= Instant::now() {
            self.look_at_journals();
        }
        let left = self.journals_due?.saturating_duration_since(Instant::now());
        Some(left.max(TICK))
    }
}

/// Nothing is so urgent that it may not wait for this.
const TICK: Duration = Duration::from_millis(1);

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
