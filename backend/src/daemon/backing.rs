//! `change-backing-file`: what an image says is below it.
//!
//! The rule: only the image's own words change; what is below it in this process stays. The format that is stored is that of
//! what is below it.

use super::executor::Daemon;
use blockgraph::driver::qcow2::format::header::Backing;
use blockgraph::graph::{Access, Graph, Role};
use blockgraph::job::rename_backing;
use blockgraph::{Io, NodeId};

impl Daemon {
    /// The image `image`, in the chain below `device`, names `backing_file` from now on; an empty name is none. Errors: in
    /// QSD's words.
    pub(crate) fn change_backing_file(
        &mut self,
        device: &str,
        image: &str,
        backing_file: &str,
    ) -> Result<(), String> {
        self.retry_leaving();
        let top = self.lookup(device)?;
        let graph = self.kept_graph();
        if !graph.is_root(top) {
            return Err("Need a root block node".to_owned());
        }
        let id = graph.find(image);
        let id = id.ok_or_else(|| format!("Cannot find device='' nor node-name='{image}'"))?;
        if graph.next_layer(id).is_none() {
            let why = "not allowing backing file change on an image without a backing file";
            return Err(why.to_owned());
        }
        if !graph.chain(top).any(|layer| layer == id) && top != id {
            return Err(format!(
                "'{device}' and image file are not in the same chain"
            ));
        }
        let access = graph.node(id).map(|node| node.common().access);
        let format = format_below(&graph, id);
        drop(graph);
        let read_only = access == Some(Access::ReadOnly);
        if read_only {
            self.set_access(id, Access::ReadWrite)?;
        }
        let renamed = self.rename_backing(id, backing_file, format);
        if read_only {
            self.set_access(id, Access::ReadOnly)?;
        }
        renamed
    }

    fn rename_backing(
        &mut self,
        id: NodeId,
        name: &str,
        format: Option<String>,
    ) -> Result<(), String> {
        let backing = (!name.is_empty()).then(|| Backing {
            name: name.to_owned(),
            format,
        });
        let stored = self.store_backing(id, id, backing);
        stored.map_err(|why| format!("Could not change backing file to '{name}': {why}"))
    }

    /// An image says that this is below it, after what was written to `durable` is so. Errors: why it cannot.
    pub(super) fn store_backing(
        &mut self,
        durable: NodeId,
        image: NodeId,
        backing: Option<Backing>,
    ) -> Result<(), String> {
        let graph = self.kept_graph();
        let work = move |io: Io| async move { rename_backing(&io, durable, image, backing).await };
        let deadline = Some(Daemon::drain_deadline());
        let done = self.control.run_until(&graph, image, deadline, work);
        let done = done.map_err(|error| crate::process::error_text(&error))?;
        done.map_err(|errno| crate::process::error_text(&errno.into()))
    }
}

/// The driver of what is below an image, filters aside.
fn format_below(graph: &Graph, id: NodeId) -> Option<String> {
    let below = graph.node(id)?.shape().child(Role::Cow)?;
    let below = graph.node(graph.skip_filters(below))?;
    Some(below.kind().to_owned())
}
