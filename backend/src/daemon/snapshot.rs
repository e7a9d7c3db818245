//! `blockdev-snapshot` and `blockdev-snapshot-sync`: a layer more on a disk in use.
//!
//! The rule: the overlay takes the node's place for everybody who uses it; what was written before stays where it is, and the
//! node is not written to any more.

use super::edits::shrink;
use super::executor::Daemon;
use crate::cli::{Object, Spelling};
use crate::process::error_text;
use crate::qapi::tables::nodes::BLOCKDEV_OPTIONS;
use crate::qmp::name_text;
use blockgraph::driver::qcow2::create::{Options as ImageOptions, create as create_image};
use blockgraph::graph::edit::Edit;
use blockgraph::graph::open::open;
use blockgraph::graph::perm::{Perms, Wants, attach};
use blockgraph::graph::{Access, Graph};
use blockgraph::request::Prealloc;
use blockgraph::{Io, NodeId};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Does the overlay's file exist?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NewImage {
    /// It does, and is taken as it is.
    Existing,
    /// It is made, and names what is below it.
    AbsolutePaths,
}

/// Who names a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named {
    /// Whoever asks for it.
    AsAsked,
    /// Nobody else.
    ByUs,
}

/// What `blockdev-snapshot-sync` is asked for.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotSync {
    /// No device has a name here, but it is repeated in messages.
    pub(crate) device: Option<String>,
    /// The node to put the overlay on.
    pub(crate) node_name: Option<String>,
    /// The overlay's file.
    pub(crate) file: String,
    /// The overlay's name.
    pub(crate) overlay: Option<String>,
    /// The overlay's format.
    pub(crate) format: Option<String>,
    /// Is the file to be made?
    pub(crate) mode: NewImage,
}

/// An overlay that was put on a node.
#[derive(Debug)]
pub(super) struct NewLayer {
    /// Where the node was.
    node: NodeId,
    /// Where the overlay was.
    overlay: NodeId,
    /// Where the node is now.
    below: NodeId,
    /// Whoever had before what they changed for the other.
    parents: Vec<NodeId>,
}

impl Daemon {
    /// Puts one node on another, in its place. Errors: in QSD's words; nothing has changed then.
    pub(crate) fn snapshot(&mut self, node: &str, overlay: &str) -> Result<(), String> {
        let layer = self.put_snapshot(node, overlay)?;
        self.keep_layer(layer);
        Ok(())
    }

    /// Makes an overlay, or takes one from a file, and puts it on a node.
    pub(crate) fn snapshot_sync(&mut self, wanted: SnapshotSync) -> Result<(), String> {
        let layer = self.put_snapshot_sync(wanted)?;
        self.keep_layer(layer);
        Ok(())
    }

    pub(super) fn put_snapshot(&mut self, node: &str, overlay: &str) -> Result<NewLayer, String> {
        self.retry_leaving();
        let below = self.lookup(node)?;
        self.check_free(node)?;
        let check = Edit::begin(&self.current).check_snapshot(below);
        check.map_err(|error| error.to_string())?;
        let overlay = self.lookup(overlay)?;
        self.put_overlay(below, overlay, Edit::begin(&self.current))
    }

    pub(super) fn put_snapshot_sync(&mut self, wanted: SnapshotSync) -> Result<NewLayer, String> {
        self.retry_leaving();
        let node = self.lookup_either(wanted.device.as_deref(), wanted.node_name.as_deref())?;
        let check = Edit::begin(&self.current).check_snapshot(node);
        check.map_err(|error| error.to_string())?;
        let name = wanted
            .overlay
            .as_deref()
            .ok_or("New overlay node-name missing")?;
        if self.current.get().find(name).is_some() {
            return Err("New overlay node-name already in use".to_owned());
        }
        check_format(wanted.format.as_deref())?;
        if wanted.mode == NewImage::AbsolutePaths {
            self.make_overlay(node, &wanted.file)?;
        }
        let overlay = self.open_overlay(name, &wanted.file)?;
        let mut edit = Edit::begin(&self.current);
        // It is its users', as with QEMU, and goes with the last of them.
        edit.disown(overlay);
        let put = self.put_overlay(node, overlay, edit);
        if put.is_err() {
            // An error to close what nobody used yet is not the one to tell.
            let _ = self.remove_node(name);
        }
        put
    }

    fn put_overlay(
        &mut self,
        node: NodeId,
        overlay: NodeId,
        mut edit: Edit,
    ) -> Result<NewLayer, String> {
        let parents_of = |child: NodeId| -> Vec<NodeId> {
            let nodes = edit.graph().nodes();
            let above = nodes.filter(|(_, n)| n.shape().edges().any(|edge| edge.child == child));
            above.map(|(id, _)| id).collect()
        };
        let (had_node, had_overlay) = (parents_of(node), parents_of(overlay));
        let below = edit.put_overlay(node, overlay);
        let below = below.map_err(|error| error.to_string())?;
        let parents = if below == node { had_node } else { had_overlay };
        shrink(&self.exports, edit.graph());
        let touched = BTreeSet::from([node, overlay]);
        let deadline = Daemon::drain_deadline();
        let done = edit.commit_quiet(&touched, &mut self.control, deadline);
        let leaving = match done {
            Ok((graph, leaving)) => {
                drop(graph);
                leaving
            }
            Err(error) => {
                self.tell_sizes();
                return Err(error.to_string());
            }
        };
        self.edited(leaving);
        Ok(NewLayer {
            node,
            overlay,
            below,
            parents,
        })
    }

    /// The layer is to stay.
    pub(super) fn keep_layer(&mut self, layer: NewLayer) {
        // As with QEMU, it is no error if the node stays writable: nobody writes to it.
        if let Err(error) = self.set_access(layer.below, Access::ReadOnly) {
            tracing::info!("the node below a new overlay stays writable: {error}");
        }
    }

    /// Nothing was written to the layer yet: everything is as it was before.
    pub(super) fn take_layer_off(&mut self, layer: NewLayer) {
        let mut edit = Edit::begin(&self.current);
        let taken = edit.take_off_overlay(layer.node, layer.overlay, layer.below, &layer.parents);
        let taken = taken.map_err(|error| error.to_string());
        let done = taken.and_then(|()| self.commit_quiet(edit, &[layer.node, layer.overlay]));
        if let Err(error) = done {
            tracing::error!("cannot take off an overlay that came to nothing: {error}");
        }
        // One that was opened for this is nobody's.
        self.drop_unused();
    }

    fn make_overlay(&mut self, node: NodeId, path: &str) -> Result<(), String> {
        self.make_image(node, Some(node), path)
    }

    /// Makes a file an image as large as `node`, which says that `below` is below it.
    pub(super) fn make_image(
        &mut self,
        node: NodeId,
        below: Option<NodeId>,
        path: &str,
    ) -> Result<(), String> {
        let graph = self.kept_graph();
        let mut image = ImageOptions::new(graph.info(node).map_or(0, |info| info.size_bytes));
        if let Some(below) = below {
            let below = graph.skip_filters(below);
            image.backing_file = Some(name_for(&graph, below, Path::new(path)));
            image.backing_format = graph.node(below).map(|node| node.kind().to_owned());
        }
        touch(path)?;
        drop(graph);
        self.write_image(path, image)
    }

    /// Makes a file of nothing that is as large as `node`; one that somebody uses is left alone.
    pub(super) fn make_raw(&mut self, node: NodeId, path: &str) -> Result<(), String> {
        let info = self.current.get().info(node);
        let size_bytes = info.map_or(0, |info| info.size_bytes.next_multiple_of(512));
        touch(path)?;
        self.write_file(path, move |io, file| async move {
            let emptied = io.truncate(file, 0, Prealloc::Off).await;
            emptied.map_err(|errno| error_text(&errno.into()))?;
            let sized = io.truncate(file, size_bytes, Prealloc::Off).await;
            sized.map_err(|errno| error_text(&errno.into()))
        })
    }

    fn write_image(&mut self, path: &str, image: ImageOptions) -> Result<(), String> {
        self.write_file(path, move |io, file| async move {
            let made = create_image(&io, file, &image).await;
            made.map_err(|error| error.to_string())
        })
    }

    /// Writes a file that nobody uses, through a node of its own that is gone afterwards.
    fn write_file<F: Future<Output = Result<(), String>> + 'static>(
        &mut self,
        path: &str,
        write: impl FnOnce(Io, NodeId) -> F + 'static,
    ) -> Result<(), String> {
        let name = "new-overlay-file";
        let file = json!({"driver": "file", "filename": path, "node-name": name});
        let node = self.open_json(file)?;
        let wants = Wants {
            needs: Perms::WRITE.or(Perms::RESIZE),
            shares: Perms::ALL.without(Perms::RESIZE),
        };
        let attached = attach(&self.current, node, wants, None);
        let attached = attached.map_err(|error| error.to_string());
        if let Err(error) = attached {
            self.remove_node(name)?;
            return Err(error);
        }
        let graph = self.kept_graph();
        let work = move |io: Io| write(io, node);
        let made = self
            .control
            .run_until(&graph, node, Some(Daemon::drain_deadline()), work);
        drop((graph, attached));
        let made = match made {
            Ok(made) => made,
            Err(error) => Err(format!("Could not create '{path}': {error}")),
        };
        made.and(self.remove_node(name))
    }

    fn open_overlay(&mut self, name: &str, path: &str) -> Result<NodeId, String> {
        self.open_json(json!({
            "driver": "qcow2", "node-name": name, "backing": null,
            "file": {"driver": "file", "filename": path},
        }))
    }

    fn open_json(&mut self, options: Value) -> Result<NodeId, String> {
        self.open_options(options, Named::AsAsked)
    }

    /// The same of a node that gets a name which no user may give, whatever is said.
    pub(super) fn open_unnamed(&mut self, options: Value) -> Result<NodeId, String> {
        self.open_options(options, Named::ByUs)
    }

    fn open_options(&mut self, options: Value, named: Named) -> Result<NodeId, String> {
        let Value::Object(members) = options else {
            return Err("not an object".to_owned());
        };
        let options = Object::checked(members, &BLOCKDEV_OPTIONS, Spelling::Json);
        let options = options.and_then(crate::cli::blockdev);
        let options = options.map_err(|error| error.to_string())?;
        let given = options.clone();
        let mut spec = crate::open::node_spec(options).map_err(|error| error.to_string())?;
        if named == Named::ByUs {
            spec.name = None;
        }
        let opened = open(&self.current, spec, &mut self.control);
        let opened = opened.map_err(|error| crate::open::open_refusal(&error).to_string());
        let node = opened?.0;
        self.remember(node, given);
        Ok(node)
    }
}

/// Overlays are qcow2 here.
fn check_format(format: Option<&str>) -> Result<(), String> {
    match format {
        None | Some("qcow2") => Ok(()),
        Some("raw") => Err("The overlay does not support backing images".to_owned()),
        Some(other) => Err(format!("Unknown file format '{other}'")),
    }
}

/// What an overlay at `path` says of what is below it. A relative name would begin at the overlay's directory.
fn name_for(graph: &Graph, below: NodeId, path: &Path) -> String {
    let name = graph
        .names(name_text)
        .get(&below)
        .map_or_else(String::new, name_text);
    let here = path.parent().is_none_or(|dir| dir.as_os_str().is_empty());
    if here || name.starts_with("json:") || Path::new(&name).is_absolute() || name.contains("://") {
        return name;
    }
    match std::path::absolute(&name) {
        Ok(absolute) => absolute.display().to_string(),
        Err(_) => name,
    }
}

/// There is a file of that name; what it holds stays.
fn touch(path: &str) -> Result<(), String> {
    let mut how = std::fs::OpenOptions::new();
    let made = how.write(true).create(true).mode(0o644).open(path);
    made.map(drop)
        .map_err(|error| format!("Could not create '{path}': {}", error_text(&error)))
}
