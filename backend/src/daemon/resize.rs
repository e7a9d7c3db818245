//! `block_resize`: a disk of another size, while guests use it.
//!
//! The rule: a guest may know a disk as smaller than it is, never as larger.

use super::chains::name_of;
use super::edits::shrink;
use super::executor::Daemon;
use blockgraph::Graph;
use blockgraph::graph::resize::resize;

impl Daemon {
    /// Makes the disk of a node `size_bytes` long. Errors: in QSD's words.
    pub(crate) fn resize_node(
        &mut self,
        device: Option<&str>,
        node_name: Option<&str>,
        size_bytes: i64,
    ) -> Result<(), String> {
        self.retry_leaving();
        let node = self.lookup_either(device, node_name)?;
        self.check_free(&name_of(&self.current.get(), node))?;
        let size = u64::try_from(size_bytes);
        let size = size.map_err(|_| "Parameter 'size' expects a >0 size".to_owned())?;
        let name = name_of(&self.current.get(), node);
        self.check_free(&name)?;
        let exports = &self.exports;
        let resized = |graph: &Graph| shrink(exports, graph);
        let deadline = Daemon::drain_deadline();
        let control = &mut self.control;
        let done = resize(&self.current, node, size, control, deadline, resized);
        self.tell_sizes();
        done.map_err(|error| error.to_string())
    }
}
