//! `blockdev-reopen`: nodes opened anew with other options and children.
//!
//! The rule: a child that was opened with its parent has its options from both, so where the parent is opened anew and names
//! the child it is opened anew too, with what was said of it then and what it inherits now.

use super::edits::shrink;
use super::engines::check_engines;
use super::executor::Daemon;
use crate::cli::{BlockdevOptions, ChildRef, NodeCommon, Object, child_blockdev};
use crate::open;
use crate::qapi::tables::nodes::BLOCKDEV_OPTIONS;
use blockgraph::graph::reopen::{ReopenError, reopen, set_common};
use blockgraph::graph::{Access, Graph};
use blockgraph::{Common, NodeId};

impl Daemon {
    /// Opens nodes anew, all of them or none. Errors: in QSD's words; nothing has changed then.
    pub(crate) fn reopen_nodes(&mut self, options: Vec<BlockdevOptions>) -> Result<(), String> {
        self.retry_leaving();
        let graph = self.kept_graph();
        let mut specs = Vec::new();
        let mut all = Vec::new();
        for mut options in options {
            let name = options.node_name.as_deref();
            let name = name.ok_or("node-name not specified")?.to_owned();
            let node = graph.find(&name);
            let node =
                node.ok_or_else(|| format!("Failed to find node with node-name='{name}'"))?;
            check_engines(&options)?;
            let given = options.clone();
            self.write_out_children(&graph, node, &mut options)?;
            specs.push(open::node_spec(options).map_err(|error| error.to_string())?);
            all.push((name, given));
        }
        drop(graph);
        let deadline = Daemon::drain_deadline();
        let exports = &self.exports;
        let publishing = |graph: &Graph| shrink(exports, graph);
        let control = &mut self.control;
        let done = reopen(&self.current, specs, control, deadline, publishing);
        let (graph, leaving) = done.map_err(|error| refusal(&error, &all))?;
        let nodes: Vec<_> = all
            .into_iter()
            .filter_map(|(name, given)| Some((graph.find(&name)?, given)))
            .collect();
        drop(graph);
        for (node, given) in nodes {
            self.remember(node, given);
        }
        self.edited(leaving);
        Ok(())
    }

    /// Children that were opened with a node, and that it names, as if they were written out again.
    fn write_out_children(
        &self,
        graph: &Graph,
        node: NodeId,
        options: &mut BlockdevOptions,
    ) -> Result<(), String> {
        let Some(shape) = graph.node(node).map(|node| node.shape()) else {
            return Ok(());
        };
        let parent = options.common.clone();
        for (option, child) in options.driver.named_children() {
            let mut edges = shape.edges();
            let Some(now) = edges.find(|edge| edge.option == option) else {
                continue;
            };
            let inherited = match option {
                "backing" => parent.for_backing(),
                _ => parent.for_child(),
            };
            if let ChildRef::Node(name) = child
                && graph.find(name) == Some(now.child)
                && !graph.is_owned(now.child)
                && let Some(again) = self.given_again(name, &inherited)?
            {
                *child = ChildRef::Inline(Box::new(again));
            }
            if let ChildRef::Inline(child) = child {
                self.write_out_children(graph, now.child, child)?;
            }
        }
        Ok(())
    }

    fn given_again(
        &self,
        name: &str,
        inherited: &NodeCommon,
    ) -> Result<Option<BlockdevOptions>, String> {
        let Some(given) = self.given(name) else {
            return Ok(None);
        };
        if given.members.is_empty() {
            return Ok(None);
        }
        let object = Object::checked(given.members.clone(), &BLOCKDEV_OPTIONS, given.spelling);
        let again = object.and_then(|object| child_blockdev(object, inherited));
        let again = again.map_err(|error| error.to_string())?;
        Ok(Some(again))
    }

    /// Makes a node, and what was opened with it to hold its bytes, read-only or not. Errors: in QSD's words.
    pub(crate) fn set_access(&mut self, node: NodeId, access: Access) -> Result<(), String> {
        let graph = self.kept_graph();
        let wanted: Vec<(NodeId, Common)> = graph
            .with_own_files(node)
            .into_iter()
            .filter_map(|id| {
                let spec = graph.node(id)?.spec()?;
                Some((
                    id,
                    Common {
                        access,
                        ..spec.common
                    },
                ))
            })
            .collect();
        drop(graph);
        self.set_commons(&wanted)
    }

    /// Gives nodes other options of those that every node has. Errors: in QSD's words.
    pub(super) fn set_commons(&mut self, wanted: &[(NodeId, Common)]) -> Result<(), String> {
        let deadline = Daemon::drain_deadline();
        let exports = &self.exports;
        let publishing = |graph: &Graph| shrink(exports, graph);
        let control = &mut self.control;
        let done = set_common(&self.current, wanted, control, deadline, publishing);
        let (_, leaving) = done.map_err(|error| open::reopen_refusal(&error).to_string())?;
        self.edited(leaving);
        Ok(())
    }
}

/// An option that was said before and is not now would have its default: that has words of its own.
fn refusal(error: &ReopenError, all: &[(String, BlockdevOptions)]) -> String {
    if let ReopenError::Fixed { node, option } = error
        && let Some((_, options)) = all.iter().find(|(name, _)| name == node)
        && !options.given.says(option)
    {
        return format!("Option '{option}' cannot be reset to its default value");
    }
    open::reopen_refusal(error).to_string()
}
