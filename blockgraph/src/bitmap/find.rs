//! Bitmaps by name, and whether they may be used.
//!
//! The rule: what is busy, or inconsistent, is nobody else's; only removing asks for less.

use super::dirty::{Busy, DirtyBitmap, State};
use super::error::BitmapError;
use crate::graph::{Access, Graph, Role};
use crate::map::DEPTH_MAX;
use crate::node::NodeId;
use std::sync::Arc;

/// A bitmap as somebody asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapName {
    /// The name of its node.
    pub node: String,
    /// Its own.
    pub name: String,
}

/// A bitmap, and the node it belongs to.
#[derive(Clone, Debug)]
pub struct Found {
    /// The node.
    pub node: NodeId,
    /// The bitmap.
    pub bitmap: Arc<DirtyBitmap>,
}

/// A bitmap by the names of its node and its own.
pub fn find(graph: &Graph, node: &str, name: &str) -> Result<Found, BitmapError> {
    let found = graph.find(node);
    let node = found.ok_or_else(|| BitmapError::NoNode(node.to_owned()))?;
    let found = find_at(graph, node, name);
    found.ok_or_else(|| BitmapError::NotFound(name.to_owned()))
}

/// A bitmap of `top`, or else of the first node below it that has one of that name: through filters and backing files.
pub fn find_above(graph: &Graph, top: NodeId, name: &str) -> Result<Found, BitmapError> {
    let below = |id: &NodeId| {
        let shape = graph.node(*id)?.shape();
        shape.filtered().or(shape.child(Role::Cow))
    };
    let mut nodes = std::iter::successors(Some(top), below).take(DEPTH_MAX);
    let found = nodes.find_map(|id| find_at(graph, id, name));
    found.ok_or_else(|| BitmapError::NotFoundBelow(name.to_owned()))
}

fn find_at(graph: &Graph, node: NodeId, name: &str) -> Option<Found> {
    sync_size(graph, node);
    let bitmap = graph.node(node)?.bitmaps().find(name)?;
    Some(Found { node, bitmap })
}

/// Files grow as they are written: a bitmap is as large as its node whenever somebody looks.
fn sync_size(graph: &Graph, id: NodeId) {
    if let (Some(node), Some(info)) = (graph.node(id), graph.info(id)) {
        node.bitmaps().fit(info.size_bytes);
    }
}

impl Found {
    /// Errors: somebody has it, or it is inconsistent.
    pub fn check(&self) -> Result<(), BitmapError> {
        check_usable(&self.bitmap)
    }

    /// Takes it for the caller alone. Errors: somebody has it, or it is inconsistent.
    pub fn occupy(&self) -> Result<Busy, BitmapError> {
        check_usable(&self.bitmap)?;
        let name = || self.bitmap.name().to_owned();
        self.bitmap
            .occupy()
            .ok_or_else(|| BitmapError::Busy(name()))
    }

    /// The same for an export that named no node. Errors also: clients that may not write would see it change.
    pub fn occupy_for(&self, graph: &Graph, export: Access) -> Result<Busy, BitmapError> {
        check_usable(&self.bitmap)?;
        let access = graph.node(self.node).map(|node| node.common().access);
        let recording = self.bitmap.state() == State::Recording;
        if export == Access::ReadOnly && access == Some(Access::ReadWrite) && recording {
            let name = self.bitmap.name().to_owned();
            return Err(BitmapError::EnabledOnReadOnly(name));
        }
        self.occupy()
    }
}

impl DirtyBitmap {
    /// May what it says be taken over into something of that size? Errors: it is in use, inconsistent or of another size.
    pub(crate) fn check_source(&self, size_bytes: u64) -> Result<(), BitmapError> {
        check_usable(self)?;
        match (size_bytes, self.size_bytes()) {
            (target, source_size) if target != source_size => Err(BitmapError::Sizes {
                target,
                source_size,
            }),
            _ => Ok(()),
        }
    }
}

fn check_free(bitmap: &DirtyBitmap) -> Result<(), BitmapError> {
    match bitmap.is_busy() {
        true => Err(BitmapError::Busy(bitmap.name().to_owned())),
        false => Ok(()),
    }
}

/// Errors: somebody has it, or it would not be what its image has.
pub(super) fn check_removable(bitmap: &DirtyBitmap) -> Result<(), BitmapError> {
    check_free(bitmap)?;
    match bitmap.is_readonly() {
        true => Err(BitmapError::ReadOnly(bitmap.name().to_owned())),
        false => Ok(()),
    }
}

/// May it say something else from now on?
pub(crate) fn check_changeable(bitmap: &DirtyBitmap) -> Result<(), BitmapError> {
    check_removable(bitmap)?;
    check_usable(bitmap)
}

pub(super) fn check_usable(bitmap: &DirtyBitmap) -> Result<(), BitmapError> {
    check_free(bitmap)?;
    match bitmap.state() {
        State::Inconsistent => Err(BitmapError::Inconsistent(bitmap.name().to_owned())),
        _ => Ok(()),
    }
}
