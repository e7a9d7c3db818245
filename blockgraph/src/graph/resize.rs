//! A disk of another size while it is in use.
//!
//! The rule: whoever does not share resizing is asked first. A disk becomes smaller while nothing is under way on it, and whoever
//! shows it to others knows before anything goes on (`resized`): what they still ask for beyond the end is refused.

use super::open::DriverSpec;
use super::pause::{Quiet, StillBusy};
use super::perm::{PermError, Perms, Wants, attach};
use super::{Access, Body, Control, Current, Graph, Node, Role};
use crate::bitmap::{BitmapError, check_changeable};
use crate::driver::qcow2::resize::ResizeFailure;
use crate::io::Io;
use crate::node::NodeId;
use crate::request::Prealloc;
use ring::Errno;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use thiserror::Error;

/// What was told to end ends within this.
const LAST_CALL: Duration = Duration::from_secs(5);

/// Why a disk keeps its size; the texts are QEMU's.
#[derive(Debug, Error)]
pub enum ResizeError {
    /// Somebody relies on the size.
    #[error(transparent)]
    Perm(#[from] PermError),
    /// Somebody's backing file.
    #[error("Node '{node}' is busy: node is used as backing hd of '{parent}'")]
    Busy {
        /// The node.
        node: String,
        /// Whose.
        parent: String,
    },
    /// It is not written to.
    #[error("Image is read-only")]
    ReadOnly,
    /// It has no say in its size.
    #[error("Image format driver does not support resize")]
    Unsupported,
    /// A window of a given size.
    #[error("Cannot resize fixed-size raw disks")]
    FixedWindow,
    /// A device is as large as it is.
    #[error("Cannot grow device files")]
    Device,
    /// Some disk is stuck.
    #[error(transparent)]
    Stuck(#[from] StillBusy),
    /// A bitmap in the image.
    #[error(transparent)]
    Bitmap(#[from] BitmapError),
    /// One that is not in memory.
    #[error("Cannot resize qcow2 with persistent bitmaps that were not loaded into memory")]
    BitmapNotLoaded,
    /// The image.
    #[error(transparent)]
    Image(#[from] ResizeFailure),
    /// The file.
    #[error("Failed to resize file: {}", super::errno_text(&(*.0).into()))]
    File(Errno),
    /// The control thread's ring is gone.
    #[error("Cannot resize")]
    Ring(#[source] std::io::Error),
}

/// Makes the disk that `node` shows `size_bytes` long; `resized` is called when that was tried, while nothing that may have
/// become too long is under way.
pub fn resize(
    current: &Arc<Current>,
    node: NodeId,
    size_bytes: u64,
    control: &mut Control,
    deadline: Instant,
    resized: impl FnOnce(&Graph),
) -> Result<(), ResizeError> {
    let graph = Arc::new(current.get().kept());
    let name = |id| graph.node(id).map_or("", |node| node.name()).to_owned();
    if let Some(parent) = graph.backed(node) {
        return Err(ResizeError::Busy {
            node: name(node),
            parent: name(parent),
        });
    }
    let wants = Wants {
        needs: Perms::RESIZE,
        shares: Perms::ALL,
    };
    let _resizes = attach(current, node, wants, None)?;
    may_resize(&graph, node, size_bytes)?;
    let now = graph.info(node).map_or(0, |info| info.size_bytes);
    let quiet = match size_bytes < now {
        true => Some(Quiet::begin(
            current,
            &BTreeSet::from([node]),
            control,
            deadline,
        )?),
        false => None,
    };
    let work = move |io: Io| async move { truncate(&io, node, size_bytes).await };
    let cancel = || {
        for below in graph.parents_first(node) {
            if let Some(Body::Driver(driver)) = graph.node(below).map(|node| node.body()) {
                driver.cancel();
            }
        }
    };
    let done = control.run_or(&graph, node, (deadline, LAST_CALL), cancel, work);
    resized(&graph);
    drop(quiet);
    done.map_err(ResizeError::Ring)?
}

/// Whether the drivers take it, as far as can be told beforehand.
fn may_resize(graph: &Graph, node: NodeId, size_bytes: u64) -> Result<(), ResizeError> {
    let mut id = node;
    for _ in 0..crate::map::DEPTH_MAX {
        let Some(node) = graph.node(id) else { break };
        if node.common().access == Access::ReadOnly {
            return Err(ResizeError::ReadOnly);
        }
        if let Some(below) = node.shape().filtered() {
            id = below;
            continue;
        }
        let grows = size_bytes > graph.info(id).map_or(0, |info| info.size_bytes);
        let fixed = match node.spec().map(|spec| &spec.driver) {
            Some(DriverSpec::Raw { window, .. }) => window.size_bytes.is_some(),
            _ => false,
        };
        check_bitmaps(node)?;
        return match node.kind() {
            "qcow2" | "file" => Ok(()),
            "raw" if fixed => Err(ResizeError::FixedWindow),
            "raw" => {
                let below = node.shape().child(Role::Image);
                below.map_or(Ok(()), |below| may_resize(graph, below, size_bytes))
            }
            "host_device" if grows => Err(ResizeError::Device),
            "host_device" => Ok(()),
            _ => Err(ResizeError::Unsupported),
        };
    }
    Err(ResizeError::Unsupported)
}

/// May the bitmaps in an image get another size?
fn check_bitmaps(node: &Node) -> Result<(), ResizeError> {
    let image = match node.body() {
        Body::Driver(driver) => driver.as_qcow2(),
        Body::Filter(_) => None,
    };
    let known = node.bitmaps().by_name();
    for stored in image.map(|image| image.bitmaps()).unwrap_or_default() {
        match known.get(&stored.text()) {
            Some(bitmap) => check_changeable(bitmap)?,
            None => return Err(ResizeError::BitmapNotLoaded),
        }
    }
    Ok(())
}

async fn truncate(io: &Io, node: NodeId, size_bytes: u64) -> Result<(), ResizeError> {
    let id = io.graph().skip_filters(node);
    let body = io.graph().node(id).map(|node| node.body().clone());
    if id == node
        && let Some(Body::Driver(driver)) = body
        && let Some(image) = driver.as_qcow2()
    {
        image.resize(&io.at(id), size_bytes, Prealloc::Off).await?;
        return io
            .resize_bitmaps(node, size_bytes)
            .map_err(ResizeError::File);
    }
    let done = io.truncate(node, size_bytes, Prealloc::Off).await;
    done.map_err(ResizeError::File)
}
