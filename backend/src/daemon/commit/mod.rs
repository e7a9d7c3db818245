//! `block-commit`: what layers of a chain have goes into a layer below them.
//!
//! The rule: while it is copied, those layers still decide what is read, so a job that ends early leaves everything as it was. Layers
//! in the middle of a chain do not change meanwhile (`middle.rs`); a layer that guests write to does, and is copied again where they
//! have (`active.rs`).

mod active;
mod middle;

use super::chains::{
    BackingName, Layer, backing_called, filter_options, name_of, nodes_down, unit_bytes,
};
use super::executor::Daemon;
use super::jobs::BlockJob;
use crate::qmp::{ErrorClass, QmpError};
use blockgraph::graph::edit::NewFilter;
use blockgraph::graph::perm::{Attachment, Perms, Wants, attach, attach_job};
use blockgraph::graph::{Body, Graph, Role};
use blockgraph::job::OnError;
use blockgraph::{Info, Limits, NodeId};
use std::sync::Arc;

/// What is copied or not as one, at the least.
const UNIT_BYTES: u64 = 64 << 10;

/// A node of which nothing is known.
const NOTHING: Info = Info {
    size_bytes: 0,
    limits: Limits::PLAIN,
};

/// What `block-commit` is asked for.
#[derive(Debug)]
pub(crate) struct CommitWanted {
    /// The chain.
    pub(crate) device: String,
    /// Where to, by node and by file.
    pub(crate) base: (Option<Layer>, Option<Layer>),
    /// The uppermost layer that is copied, by node and by file.
    pub(crate) top: (Option<Layer>, Option<Layer>),
    /// What images say is below them afterwards.
    pub(crate) backing: BackingName,
    /// What is done about errors.
    pub(crate) on_error: OnError,
    /// The filter's name.
    pub(crate) filter: Option<String>,
    /// What every job is asked for.
    pub(crate) job: BlockJob,
}

/// The part of a chain that is committed.
#[derive(Debug)]
struct Part {
    top: NodeId,
    base: NodeId,
    /// From the top down, without the base.
    above: Vec<NodeId>,
    /// Those who have the top as their backing child.
    overlays: Vec<NodeId>,
    top_bytes: u64,
    base_bytes: u64,
    /// What may be copied as one, at the least.
    unit_bytes: u64,
}

/// What a commit job, or a mirror, has in its hands, by names: nodes change places.
#[derive(Debug)]
pub(super) struct Grip {
    pub(super) filter: String,
    /// Where it copies to.
    pub(super) base: String,
    /// Where the top is now.
    pub(super) source: NodeId,
    /// The base, if it was read-only.
    pub(super) was_read_only: Option<String>,
    pub(super) attachments: Vec<Attachment>,
}

impl Daemon {
    /// Starts a commit job. Errors: in QSD's words.
    pub(crate) fn commit(&mut self, wanted: CommitWanted) -> Result<(), QmpError> {
        self.retry_leaving();
        let graph = self.kept_graph();
        let device = graph.find(&wanted.device).ok_or_else(|| {
            let why = format!("Device '{}' not found", wanted.device);
            QmpError::of_class(ErrorClass::DeviceNotFound, why)
        })?;
        if !graph.is_root(device) {
            return Err(QmpError::new("Need a root block node"));
        }
        self.check_free(&wanted.device)?;
        let part = self.part(&graph, device, &wanted)?;
        let is_active = graph.skip_filters(part.top) == graph.skip_filters(device);
        if is_active && wanted.backing.file.is_some() {
            let why = "'backing-file' specified, but 'top' is the active layer";
            return Err(QmpError::new(why));
        }
        drop(graph);
        match is_active {
            true => Ok(self.commit_active(wanted, &part)?),
            false => Ok(self.commit_middle(device, wanted, &part)?),
        }
    }

    fn part(&self, graph: &Graph, device: NodeId, wanted: &CommitWanted) -> Result<Part, String> {
        let find = |name: &String| {
            let found = graph.find(name);
            found.ok_or_else(|| format!("Cannot find device='' nor node-name='{name}'"))
        };
        let outside = |name: &String| format!("'{name}' is not in this backing file chain");
        let top = match &wanted.top {
            (Some(_), Some(_)) => return Err(exclusive("top-node", "top")),
            (Some(Layer::Node(name)), _) => {
                let top = find(name)?;
                let is_inside = nodes_down(graph, device).contains(&top);
                is_inside.then_some(top).ok_or_else(|| outside(name))?
            }
            (_, Some(Layer::File(file))) => match is_called(graph, device, file) {
                true => device,
                false => backing_called(graph, device, file)
                    .ok_or_else(|| format!("Top image file {file} not found"))?,
            },
            _ => device,
        };
        let down = nodes_down(graph, top);
        let base = match &wanted.base {
            (Some(_), Some(_)) => return Err(exclusive("base-node", "base")),
            (Some(Layer::Node(name)), _) => {
                let base = find(name)?;
                let is_inside = down.contains(&base);
                is_inside.then_some(base).ok_or_else(|| outside(name))?
            }
            (_, Some(Layer::File(file))) => {
                let found = backing_called(graph, top, file);
                found.ok_or_else(|| format!("Can't find '{file}' in the backing chain"))?
            }
            _ => graph.chain(top).last().unwrap_or(top),
        };
        let above: Vec<NodeId> = down.into_iter().take_while(|id| *id != base).collect();
        for id in above.iter().chain([&base]) {
            self.check_free(&name_of(graph, *id))?;
        }
        if graph.skip_filters(top) == graph.skip_filters(base) {
            return Err("cannot commit an image into itself".to_owned());
        }
        let size = |id| graph.info(id).map_or(0, |info| info.size_bytes);
        Ok(Part {
            top,
            base,
            above,
            overlays: parents(graph, top),
            top_bytes: size(top),
            base_bytes: size(base),
            unit_bytes: unit_bytes(graph, base)
                .max(unit_bytes(graph, top))
                .max(UNIT_BYTES),
        })
    }

    /// Makes the base writable, puts the filter above the top, and takes hold of everything. Errors: in QSD's words; nothing has
    /// changed then.
    fn take_hold(
        &mut self,
        part: &Part,
        (id, name, implicit): (&str, String, bool),
        kind: &'static str,
        body: impl FnOnce(&Graph) -> Body,
    ) -> Result<Grip, String> {
        let graph = self.kept_graph();
        let mut grip = Grip {
            filter: name,
            base: name_of(&graph, part.base),
            source: part.top,
            was_read_only: None,
            attachments: Vec::new(),
        };
        let new = NewFilter {
            name: grip.filter.clone(),
            kind,
            common: filter_options(&graph, part.top),
            body: body(&graph),
        };
        drop(graph);
        let held = self.hold_all(part, &mut grip, id, (new, implicit));
        if let Err(error) = held {
            self.let_go_of_all(&mut grip);
            return Err(error);
        }
        Ok(grip)
    }

    fn hold_all(
        &mut self,
        part: &Part,
        grip: &mut Grip,
        id: &str,
        (new, implicit): (NewFilter, bool),
    ) -> Result<(), String> {
        let base = self.kept_graph().skip_filters(part.base);
        if self.make_writable(base)? {
            grip.was_read_only = Some(name_of(&self.current.get(), base));
        }
        grip.source = self.insert_filter(part.top, new, implicit)?;
        let between = Wants {
            needs: Perms::NONE,
            shares: Perms::WRITE.or(Perms::WRITE_UNCHANGED),
        };
        let grows = match part.base_bytes < part.top_bytes {
            true => Perms::RESIZE,
            false => Perms::NONE,
        };
        let base = Wants {
            needs: Perms::READ_WRITE.or(grows),
            shares: Perms::READ.or(Perms::WRITE_UNCHANGED),
        };
        let main = attach(&self.current, part.top, Wants::NOTHING, None);
        grip.attachments
            .push(main.map_err(|error| error.to_string())?);
        let graph = self.kept_graph();
        let others = part.above.iter().skip(1).copied();
        for node in [grip.source].into_iter().chain(others) {
            let who = (format!("commit job '{id}'"), "intermediate node");
            let mut wants = between;
            // What only filters the base reads as the base does all the time.
            if graph.skip_filters(node) == graph.skip_filters(part.base) {
                wants.shares = wants.shares.or(Perms::READ);
            }
            let attached = attach_job(&self.current, node, wants, who);
            grip.attachments
                .push(attached.map_err(|error| error.to_string())?);
        }
        drop(graph);
        for node in &part.overlays {
            let who = (format!("commit job '{id}'"), "overlay");
            let attached = attach_job(&self.current, *node, Wants::NOTHING, who);
            grip.attachments
                .push(attached.map_err(|error| error.to_string())?);
        }
        let attached = attach(&self.current, part.base, base, None);
        grip.attachments
            .push(attached.map_err(|error| error.to_string())?);
        Ok(())
    }

    /// The graph becomes what it was.
    pub(super) fn let_go_of_all(&mut self, grip: &mut Grip) {
        grip.attachments.clear();
        if let Err(error) = self.remove_filter(&grip.filter) {
            tracing::error!("cannot take out the filter of a job: {error}");
        }
        self.restore_access(grip);
    }

    pub(super) fn restore_access(&mut self, grip: &mut Grip) {
        if let Some(name) = grip.was_read_only.take() {
            self.make_read_only(&name);
        }
    }
}

/// Those who have `id` as their backing child.
fn parents(graph: &Graph, id: NodeId) -> Vec<NodeId> {
    let has = |node: &blockgraph::graph::Node| node.shape().child(Role::Cow) == Some(id);
    let found = graph.nodes().filter(|(_, node)| has(node));
    found.map(|(id, _)| id).collect()
}

fn exclusive(one: &str, other: &str) -> String {
    format!("'{one}' and '{other}' are mutually exclusive")
}

/// Is the layer itself called so?
fn is_called(graph: &Graph, id: NodeId, file: &str) -> bool {
    let layer = graph.skip_filters(id);
    let name = graph
        .names(crate::qmp::name_text)
        .get(&layer)
        .map(crate::qmp::name_text);
    name.as_deref() == Some(file)
}

/// The names of all nodes that others may not do certain things with meanwhile.
fn blocked(graph: &Graph, part: &Part) -> Vec<String> {
    let others = [&part.base].into_iter().chain(&part.overlays);
    let nodes = part.above.iter().chain(others);
    nodes.map(|id| name_of(graph, *id)).collect()
}

/// A driver as a node's body.
fn body(driver: impl blockgraph::Driver + 'static) -> Body {
    Body::Driver(Arc::new(driver))
}
