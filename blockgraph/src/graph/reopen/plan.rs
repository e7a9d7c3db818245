//! What is to become of each node and of its children, before anything is done.
//!
//! The rule: a child is named, or written out in place; written out, it is the child that was opened with the node, and is
//! opened anew with it. Only `file` and `backing` may be other nodes than before.

use super::super::open::{Backing, Child, DriverSpec, FilterSpec, NodeSpec};
use super::super::{Body, Role, Shape};
use super::{Change, ReopenError, Reopening, compare};
use crate::node::NodeId;

/// May that child be another node?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Freedom {
    Any,
    Same,
}

fn fixed(node: &str, option: &str) -> ReopenError {
    ReopenError::Fixed {
        node: node.to_owned(),
        option: option.to_owned(),
    }
}

/// Is it of a kind that is opened anew at all?
fn may_change(driver: &DriverSpec) -> bool {
    match driver {
        DriverSpec::SnapshotAccess { .. } => false,
        DriverSpec::Filter(filter) => !matches!(
            **filter,
            FilterSpec::CopyOnRead { .. }
                | FilterSpec::CopyBeforeWrite { .. }
                | FilterSpec::Compress { .. }
        ),
        _ => true,
    }
}

impl Reopening<'_> {
    fn name(&self, id: NodeId) -> &str {
        self.before(id).map_or("", |node| node.name())
    }

    /// `id` is to be as `spec` says.
    pub(super) fn plan(&mut self, id: NodeId, mut spec: NodeSpec) -> Result<(), ReopenError> {
        let node = self.before(id).ok_or_else(|| {
            let name = spec.name.clone();
            ReopenError::NotFound(name.unwrap_or_default())
        })?;
        let never = || ReopenError::Never {
            kind: node.kind(),
            node: node.name().to_owned(),
        };
        let old = node.spec().cloned().ok_or_else(never)?;
        // That is changed by other means.
        spec.common.activity = node.common().activity;
        if !may_change(&old.driver) {
            return Err(never());
        }
        if let Some(option) = compare::fixed(&old, &spec) {
            return Err(fixed(node.name(), option));
        }
        // The last word on a node counts.
        self.changes.retain(|change| change.id != id);
        let driver = spec.driver.clone();
        self.changes.push(Change { id, spec, old });
        self.plan_children(id, driver)
    }

    fn plan_children(&mut self, id: NodeId, driver: DriverSpec) -> Result<(), ReopenError> {
        let any = Freedom::Any;
        match driver {
            DriverSpec::Null(_) | DriverSpec::File(_) | DriverSpec::Nbd(_) => Ok(()),
            DriverSpec::Raw { file, .. } | DriverSpec::SnapshotAccess { file } => {
                self.plan_child(id, "file", file, any)
            }
            DriverSpec::Delay { file, .. } => self.plan_child(id, "file", file, any),
            DriverSpec::Filter(filter) => match *filter {
                FilterSpec::Throttle { file, .. }
                | FilterSpec::CopyOnRead { file, .. }
                | FilterSpec::CopyBeforeWrite { file, .. }
                | FilterSpec::Compress { file }
                | FilterSpec::Preallocate { file, .. } => self.plan_child(id, "file", file, any),
                FilterSpec::Blkdebug { image, .. } => {
                    self.plan_child(id, "image", image, Freedom::Same)
                }
            },
            DriverSpec::Qcow2(image) => {
                self.plan_child(id, "file", image.file, any)?;
                if let Some(data) = image.data_file {
                    self.plan_child(id, "data-file", data, Freedom::Same)?;
                }
                self.plan_backing(id, image.backing)
            }
        }
    }

    fn plan_backing(&mut self, id: NodeId, backing: Backing) -> Result<(), ReopenError> {
        match backing {
            Backing::Node(child) => self.plan_child(id, "backing", child, Freedom::Any),
            Backing::Nothing => Ok(self.edit.set_backing(id, None)?),
            Backing::Stored if self.has_backing(id) => {
                let name = self.before(id).map_or("", |node| node.name());
                Err(ReopenError::BackingMissing(name.to_owned()))
            }
            Backing::Stored => Ok(()),
        }
    }

    /// Has it a backing file, or does it name one?
    fn has_backing(&self, id: NodeId) -> bool {
        let Some(node) = self.before(id) else {
            return false;
        };
        let names = match node.body() {
            Body::Driver(driver) => driver.as_qcow2().map(|image| image.header()),
            Body::Filter(_) => None,
        };
        node.shape().child(Role::Cow).is_some()
            || names.is_some_and(|header| header.backing.is_some())
    }

    fn plan_child(
        &mut self,
        id: NodeId,
        option: &'static str,
        child: Child,
        freedom: Freedom,
    ) -> Result<(), ReopenError> {
        let now = self.child_of(id, option);
        let spec = match child {
            Child::Inline(spec) => *spec,
            Child::Named(name) => {
                let new = self.edit.graph.find(&name);
                let new = new.ok_or(ReopenError::NoChild(name))?;
                return self.link(id, option, (now, new), freedom);
            }
        };
        // A child that somebody opened by itself is not the node's to open anew.
        let own = now.filter(|now| !self.edit.graph.asked_for.contains(now));
        let Some(own) = own else {
            return Err(fixed(self.name(id), &format!("{option}.driver")));
        };
        let name = self.before(own).map(|node| node.name());
        if spec.name.is_some() && spec.name.as_deref() != name {
            return Err(fixed(self.name(own), "node-name"));
        }
        self.plan(own, spec)
    }

    fn child_of(&self, id: NodeId, option: &str) -> Option<NodeId> {
        let mut edges = self.edit.graph.node(id)?.shape().edges();
        let edge = edges.find(|edge| edge.option == option)?;
        Some(edge.child)
    }

    /// Makes `new` that child, in place of `now`.
    fn link(
        &mut self,
        id: NodeId,
        option: &'static str,
        (now, new): (Option<NodeId>, NodeId),
        freedom: Freedom,
    ) -> Result<(), ReopenError> {
        let graph = &self.edit.graph;
        if let Some(now) = now {
            if now == new || graph.skip_implicit(now) == new {
                return Ok(());
            }
            if graph.is_implicit(now) {
                let node = graph.node(id).map_or("", |node| node.name()).to_owned();
                return Err(ReopenError::Implicit { option, node });
            }
        }
        if freedom == Freedom::Same {
            return Err(fixed(self.name(id), option));
        }
        if option == "backing" {
            return Ok(self.edit.set_backing(id, Some(new))?);
        }
        let shape = graph.node(id).map(|node| node.shape());
        let role = match shape {
            Some(Shape::Filter { below, .. }) => below.role,
            Some(Shape::Format { file, .. }) => file.role,
            _ => return Err(fixed(self.name(id), option)),
        };
        Ok(self.edit.replace_child(id, role, new)?)
    }
}
