//! What a backup comes to, once everything that can be said against it is.
//!
//! The rule: the order of the checks is QSD's, since the first that fails is the one that is told.

use super::{BackupWanted, BitmapMode, Sync};
use crate::daemon::chains::name_of;
use crate::daemon::executor::Daemon;
use blockgraph::NodeId;
use blockgraph::bitmap::find;
use blockgraph::graph::{Body, Graph};
use blockgraph::job::Layers;
use blockgraph::job::copy::Writing;

/// A backup that can be tried.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) source: NodeId,
    pub(super) target: NodeId,
    pub(super) size_bytes: u64,
    /// The filter's name.
    pub(super) filter: String,
    /// The bitmap that is the job's meanwhile.
    pub(super) bitmap: Option<PlannedBitmap>,
    /// Only what is dirty in it is copied.
    pub(super) copies_dirty: bool,
    pub(super) layers: Layers,
}

/// A bitmap, and when it forgets.
#[derive(Debug)]
pub(super) struct PlannedBitmap {
    pub(super) node: String,
    pub(super) name: String,
    pub(super) mode: BitmapMode,
}

impl Daemon {
    pub(super) fn plan_backup(&self, wanted: &BackupWanted) -> Result<Plan, String> {
        let source = self.lookup(&wanted.device)?;
        let target = self.lookup(&wanted.target)?;
        let graph = self.kept_graph();
        let bitmap = check_bitmap(&graph, source, wanted)?;
        if source == target {
            return Err("Source and target cannot be the same".to_owned());
        }
        if wanted.writing == Writing::Compressed && !compresses(&graph, target) {
            // QSD ends it with the name of a device, of which there are none.
            return Err("Compression is not supported for this drive ".to_owned());
        }
        self.check_free(&name_of(&graph, source))?;
        self.check_free(&name_of(&graph, target))?;
        check_perf(wanted)?;
        let size = |id| graph.info(id).map(|info| info.size_bytes);
        if size(source) != size(target) {
            return Err("Source and target image have different sizes".to_owned());
        }
        let filter = graph.name_for(wanted.filter.as_deref());
        let filter = filter.map_err(|error| format!("Could not create node: {error}"))?;
        Ok(Plan {
            source,
            target,
            size_bytes: size(source).unwrap_or(0),
            filter,
            bitmap,
            copies_dirty: matches!(wanted.sync, Sync::Bitmap | Sync::Incremental),
            layers: match wanted.sync {
                Sync::Top => Layers::Top,
                _ => Layers::All,
            },
        })
    }
}

fn compresses(graph: &Graph, id: NodeId) -> bool {
    match graph.node(graph.skip_filters(id)).map(|node| node.body()) {
        Some(Body::Driver(driver)) => driver.compresses(),
        _ => false,
    }
}

fn check_perf(wanted: &BackupWanted) -> Result<(), String> {
    if !(1..=i64::from(i32::MAX)).contains(&wanted.perf.copies_max) {
        return Err(format!("max-workers must be between 1 and {}", i32::MAX));
    }
    if wanted.perf.chunk_bytes < 0 {
        let why = "max-chunk must be zero (which means no limit) or positive";
        return Err(why.to_owned());
    }
    Ok(())
}

/// The bitmap of a backup, if it has one.
fn check_bitmap(
    graph: &Graph,
    source: NodeId,
    wanted: &BackupWanted,
) -> Result<Option<PlannedBitmap>, String> {
    let sync = wanted.sync.name();
    let Some(name) = &wanted.bitmap else {
        return match (wanted.sync, wanted.bitmap_mode) {
            (Sync::Bitmap | Sync::Incremental, _) => Err(format!(
                "must provide a valid bitmap name for '{sync}' sync mode"
            )),
            (_, Some(_)) => Err("Cannot specify bitmap sync mode without a bitmap".to_owned()),
            (_, None) => Ok(None),
        };
    };
    let mode = match (wanted.sync, wanted.bitmap_mode) {
        (Sync::Incremental, None | Some(BitmapMode::OnSuccess)) => Some(BitmapMode::OnSuccess),
        (Sync::Incremental, Some(_)) => {
            return Err(format!(
                "Bitmap sync mode must be 'on-success' when using sync mode '{sync}'"
            ));
        }
        (_, mode) => mode,
    };
    let node = name_of(graph, source);
    let found = find(graph, &node, name);
    let found = found.map_err(|_| format!("Bitmap '{name}' could not be found"))?;
    let mode = mode.ok_or("Bitmap sync mode must be given when providing a bitmap")?;
    found.check().map_err(|error| error.to_string())?;
    if wanted.sync == Sync::None {
        return Err(format!(
            "sync mode '{sync}' does not produce meaningful bitmap outputs"
        ));
    }
    if mode == BitmapMode::Never && !matches!(wanted.sync, Sync::Bitmap | Sync::Incremental) {
        return Err(format!(
            "Bitmap sync mode '{}' has no meaningful effect when combined with sync mode '{sync}'",
            mode.name()
        ));
    }
    let name = name.clone();
    Ok(Some(PlannedBitmap { node, name, mode }))
}
