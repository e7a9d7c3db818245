//! What a mirror comes to, once everything that can be said against it is.
//!
//! The rule: the order of the checks is QSD's, since the first that fails is the one that is told.

use super::following::{First, Size};
use super::{MirrorWanted, Place};
use crate::daemon::backup::Sync;
use crate::daemon::chains::name_of;
use crate::daemon::executor::Daemon;
use blockgraph::NodeId;
use blockgraph::Unmap;
use blockgraph::graph::status::Until;
use blockgraph::graph::{Body, DiscardPolicy, Graph, Role};
use blockgraph::job::copy::Bounds;
use blockgraph::node::Zeroing;

/// What may be the unit of what is copied, in bytes.
const GRANULARITY: std::ops::RangeInclusive<u32> = 512..=64 << 20;
/// What is copied at once if nobody says otherwise.
const BUFFER_BYTES: u64 = 16 << 20;
/// In so many parts.
const COPIES_MAX: usize = 16;
/// Each of them this or more.
const CHUNK_BYTES_MIN: u64 = 1 << 20;
/// The unit is the target's, between these.
const UNIT_BYTES: (u64, u64) = (4 << 10, 64 << 10);

/// A mirror that can be tried.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) source: NodeId,
    pub(super) target: NodeId,
    pub(super) source_bytes: u64,
    pub(super) unit_bytes: u64,
    pub(super) size: Size,
    pub(super) first: First,
    pub(super) bounds: Bounds,
    /// The filter's name.
    pub(super) filter: String,
    pub(super) place: Place,
}

impl Daemon {
    pub(super) fn plan_mirror(&self, wanted: &MirrorWanted) -> Result<Plan, String> {
        let graph = self.kept_graph();
        let source = self.lookup(&wanted.device)?;
        if !graph.is_root(source) {
            return Err("Need a root block node".to_owned());
        }
        let target = self.lookup(&wanted.target)?;
        let granularity = wanted.granularity;
        if granularity != 0 && !GRANULARITY.contains(&granularity) {
            let why = "Parameter 'granularity' expects a value in range [512B, 64MB]";
            return Err(why.to_owned());
        }
        if granularity != 0 && !granularity.is_power_of_two() {
            return Err("Parameter 'granularity' expects a power of 2".to_owned());
        }
        self.check_free(&name_of(&graph, source))?;
        self.check_target(&graph, target)?;
        let place = self.place(&graph, source, wanted.replaces.as_deref())?;
        let first = first(&graph, source, target, wanted.sync)?;
        let buffer_bytes = match u64::try_from(wanted.buffer_bytes) {
            Ok(0) => BUFFER_BYTES,
            Ok(bytes) => bytes,
            Err(_) => return Err("Invalid parameter 'buf-size'".to_owned()),
        };
        if graph.skip_filters(source) == graph.skip_filters(target) {
            return Err("Can't mirror node into itself".to_owned());
        }
        let filter = graph.name_for(wanted.filter.as_deref());
        let filter = filter.map_err(|error| error.to_string())?;
        let unit_bytes = match u64::from(granularity) {
            0 => usual_unit(&graph, target),
            bytes => bytes,
        };
        let size = |id| graph.info(id).map_or(0, |info| info.size_bytes);
        Ok(Plan {
            source,
            target,
            source_bytes: size(source),
            unit_bytes,
            size: Size::Same {
                source: in_sectors(size(source)),
                target: in_sectors(size(target)),
            },
            first,
            bounds: bounds(buffer_bytes, unit_bytes),
            filter,
            place,
        })
    }

    /// Errors: a job works on it, or somebody reads from it what it has not itself.
    fn check_target(&self, graph: &Graph, target: NodeId) -> Result<(), String> {
        let name = name_of(graph, target);
        if let Some(parent) = graph.backed(target) {
            let parent = name_of(graph, parent);
            return Err(format!(
                "Node '{name}' is busy: node is used as backing hd of '{parent}'"
            ));
        }
        self.check_free(&name)
    }

    /// Whose place the target is to take. Filters of jobs stay, and the target gets below them.
    fn place(
        &self,
        graph: &Graph,
        source: NodeId,
        replaces: Option<&str>,
    ) -> Result<Place, String> {
        let named = match replaces {
            Some(name) => name.to_owned(),
            None => {
                let below = graph.skip_implicit(source);
                match below == source {
                    true => return Ok(Place::Source),
                    false => name_of(graph, below),
                }
            }
        };
        let replaced = graph.find(&named);
        let replaced =
            replaced.ok_or_else(|| format!("Failed to find node with node-name='{named}'"))?;
        self.check_target(graph, replaced)?;
        if !graph.reads_as(source, replaced) {
            let source = name_of(graph, source);
            return Err(format!(
                "Cannot replace '{named}' by a node mirrored from '{source}', because it cannot be guaranteed that doing so \
                 would not lead to an abrupt change of visible data"
            ));
        }
        let size = |id| graph.info(id).map(|info| info.size_bytes);
        if size(replaced) != size(source) {
            let why = "cannot replace image with a mirror image of different size";
            return Err(why.to_owned());
        }
        Ok(match replaced == source {
            true => Place::Source,
            false => Place::Node(named),
        })
    }
}

/// What is to be copied at first. Errors: QSD does not do that.
fn first(graph: &Graph, source: NodeId, target: NodeId, sync: Sync) -> Result<First, String> {
    let layer = graph.skip_filters(source);
    let is_overlay = graph
        .node(layer)
        .is_some_and(|node| node.shape().child(Role::Cow).is_some());
    match sync {
        Sync::None => Ok(First::Nothing),
        Sync::Top if is_overlay => Ok(First::Allocated(Until::Including(layer))),
        Sync::Top => Ok(First::Allocated(Until::Bottom)),
        Sync::Full if zeroes_cheaply(graph, target) => Ok(First::AllocatedOnZeroes(Until::Bottom)),
        Sync::Full => Ok(First::All),
        Sync::Incremental | Sync::Bitmap => {
            Err(format!("Sync mode '{}' not supported", sync.name()))
        }
    }
}

/// Does a write of zeroes give space back there? Otherwise they would be written where nothing is, before everything else.
fn zeroes_cheaply(graph: &Graph, target: NodeId) -> bool {
    let unmaps = |node: &blockgraph::graph::Node| node.common().discard == DiscardPolicy::Unmap;
    if !graph.node(target).is_some_and(unmaps) {
        return false;
    }
    let mut id = graph.skip_filters(target);
    for _ in 0..blockgraph::map::DEPTH_MAX {
        let Some(node) = graph.node(id) else {
            return false;
        };
        let Body::Driver(driver) = node.body() else {
            return false;
        };
        match driver.zeroing(Unmap::Allow) {
            Zeroing::Fast => return true,
            Zeroing::Written => return false,
            Zeroing::Below(role) => match node.shape().child(role) {
                Some(child) => id = graph.skip_filters(child),
                None => return false,
            },
        }
    }
    false
}

/// As large as what the target allocates at once, within limits.
fn usual_unit(graph: &Graph, target: NodeId) -> u64 {
    let (least, most) = UNIT_BYTES;
    match graph.unit_bytes(target) {
        0 | 1 => most,
        bytes => bytes.clamp(least, most).next_power_of_two(),
    }
}

fn bounds(buffer_bytes: u64, unit_bytes: u64) -> Bounds {
    let buffer_bytes = buffer_bytes
        .checked_next_multiple_of(unit_bytes)
        .unwrap_or(u64::MAX - u64::MAX % unit_bytes);
    let chunk = buffer_bytes / COPIES_MAX as u64;
    let chunk = chunk.max(CHUNK_BYTES_MIN).min(buffer_bytes);
    Bounds {
        chunk_bytes: (chunk - chunk % unit_bytes).max(unit_bytes),
        copies_max: COPIES_MAX,
        bytes_max: buffer_bytes,
    }
}

/// QEMU counts sizes in sectors.
fn in_sectors(bytes: u64) -> u64 {
    bytes.div_ceil(512)
}
