//! Backing chains as jobs see them: which layers there are, what they are called, and what an image says of the one below.

use super::executor::Daemon;
use crate::process::error_text;
use crate::qmp::name_text;
use blockgraph::driver::qcow2::format::header::Backing;
use blockgraph::graph::edit::{Edit, NewFilter};
use blockgraph::graph::{Access, Body, Common, DiscardPolicy, Graph, Role};
use blockgraph::job::Worker;
use blockgraph::{Io, Kind, NodeId, Request, Span};
use std::collections::BTreeSet;

/// The deepest chain.
const CHAIN_MAX: usize = 250;

/// What an image is to say about what is below it.
#[derive(Clone, Debug, Default)]
pub(crate) struct BackingName {
    /// Its name; without one, what it is called.
    pub(crate) file: Option<String>,
    /// Is its format to be said to be raw where it is a protocol?
    pub(crate) masks_protocol: bool,
}

impl BackingName {
    /// As it is stored, of what is below an image.
    pub(super) fn stored(&self, graph: &Graph, below: NodeId) -> Option<Backing> {
        let layer = graph.skip_filters(below);
        let kind = graph.node(layer)?.kind();
        let name = match &self.file {
            Some(name) => name.clone(),
            None => graph
                .names(name_text)
                .get(&layer)
                .map_or_else(String::new, name_text),
        };
        let is_protocol = matches!(
            kind,
            "file" | "host_device" | "nbd" | "null-co" | "null-aio"
        );
        let format = match self.masks_protocol && is_protocol {
            true => "raw",
            false => kind,
        };
        (!name.is_empty()).then(|| Backing {
            name,
            format: Some(format.to_owned()),
        })
    }
}

/// A layer of a chain, as clients name it.
#[derive(Clone, Debug)]
pub(crate) enum Layer {
    /// By its file's name.
    File(String),
    /// By its node's name.
    Node(String),
}

/// The nodes from `top` down, filters among them.
pub(super) fn nodes_down(graph: &Graph, top: NodeId) -> Vec<NodeId> {
    let below = |id: &NodeId| {
        let shape = graph.node(*id)?.shape();
        shape.filtered().or(shape.child(Role::Cow))
    };
    let down = std::iter::successors(Some(top), below);
    down.take(CHAIN_MAX).collect()
}

/// What is right below a node in its chain.
pub(super) fn below(graph: &Graph, id: NodeId) -> Option<NodeId> {
    nodes_down(graph, id).get(1).copied()
}

/// What a layer allocates at once.
pub(super) fn unit_bytes(graph: &Graph, id: NodeId) -> u64 {
    match graph.node(graph.skip_filters(id)).map(|node| node.body()) {
        Some(Body::Driver(driver)) => driver.unit_bytes(),
        _ => 1,
    }
}

/// Makes what was written to `place` durable, on a job's thread.
pub(super) fn flush(worker: &mut Worker, place: NodeId) -> Result<(), String> {
    let nothing = Span { at: 0, len: 0 };
    let work = move |io: Io| async move {
        io.request(place, Request::plain(Kind::Flush, nothing))
            .await
    };
    let flushed = worker.run(&[place], work);
    let flushed = flushed.map_err(|error| error_text(&error))?;
    flushed.map_err(|errno| error_text(&errno.into()))
}

/// The name of a node.
pub(super) fn name_of(graph: &Graph, id: NodeId) -> String {
    graph.node(id).map_or("", |node| node.name()).to_owned()
}

/// The layer below `top` that is called `file`: by the image above it, if that is what it is on, else by itself. What an image
/// says of a layer that it was not put on is the name of another disk (QEMU's iotest 040, "overridden backing").
pub(super) fn backing_called(graph: &Graph, top: NodeId, file: &str) -> Option<NodeId> {
    let names = graph.names(name_text);
    let same = |name: &str| {
        let (one, other) = (std::fs::canonicalize(name), std::fs::canonicalize(file));
        name == file || matches!((one, other), (Ok(one), Ok(other)) if one == other)
    };
    let layers: Vec<NodeId> = graph.chain(top).collect();
    let mut pairs = layers.iter().zip(layers.iter().skip(1));
    let found = pairs.find(|(above, below)| {
        let called = |id: &NodeId| names.get(id).map(name_text);
        let image = graph.node(**above);
        let child = image.and_then(|node| node.shape().child(Role::Cow));
        let says = image.and_then(|node| graph.stored_backing(node));
        match says.filter(|says| child.and_then(|id| called(&id)).as_ref() == Some(says)) {
            Some(says) => same(&says),
            None => called(below).as_deref() == Some(file),
        }
    });
    found.map(|(_, below)| *below)
}

impl Daemon {
    /// Puts a job's filter above a node, in its place; says where the node is now. Nobody notices. Errors: who uses what.
    pub(super) fn insert_filter(
        &mut self,
        node: NodeId,
        filter: NewFilter,
        implicit: bool,
    ) -> Result<NodeId, String> {
        let mut edit = Edit::begin(&self.current);
        let below = edit.insert_above(node, filter);
        let below = below.map_err(|error| error.to_string())?;
        if implicit {
            edit.mark_implicit(node);
        }
        self.commit_quiet(edit, &[node])?;
        Ok(below)
    }

    /// Publishes an edit while nothing is under way through `touched`. Errors: in QSD's words; nothing has changed then.
    pub(super) fn commit_quiet(&mut self, edit: Edit, touched: &[NodeId]) -> Result<(), String> {
        self.retry_leaving();
        let touched = BTreeSet::from_iter(touched.iter().copied());
        let deadline = Daemon::drain_deadline();
        let done = edit.commit_quiet(&touched, &mut self.control, deadline);
        let (graph, leaving) = done.map_err(|error| error.to_string())?;
        drop(graph);
        self.edited(leaving);
        Ok(())
    }

    /// Takes a job's filter of that name out.
    pub(super) fn remove_filter(&mut self, name: &str) -> Result<(), String> {
        let mut edit = Edit::begin(&self.current);
        let Some(filter) = edit.graph().find(name) else {
            return Ok(());
        };
        edit.remove_filter(filter)
            .map_err(|error| error.to_string())?;
        self.commit_quiet(edit, &[filter])
    }

    /// Makes what was written to a node durable.
    pub(super) fn flush_node(&mut self, node: NodeId) -> Result<(), String> {
        let graph = self.kept_graph();
        let nothing = Span { at: 0, len: 0 };
        let work = move |io: Io| async move {
            io.request(node, Request::plain(Kind::Flush, nothing)).await
        };
        let done = self.control.run(&graph, node, work);
        let done = done.map_err(|error| error_text(&error))?;
        done.map_err(|errno| error_text(&errno.into()))
    }

    /// An image says that this is below it, and is made writable for that.
    pub(super) fn store_backing_writable(
        &mut self,
        durable: NodeId,
        node: NodeId,
        backing: Option<Backing>,
    ) -> Result<(), String> {
        let name = name_of(&self.current.get(), node);
        let was_read_only = self.make_writable(node)?;
        let stored = self.store_backing(durable, node, backing);
        if was_read_only {
            self.make_read_only(&name);
        }
        stored
    }

    /// Makes a node writable if it is not; says whether it was not.
    pub(super) fn make_writable(&mut self, node: NodeId) -> Result<bool, String> {
        let graph = self.kept_graph();
        let access = graph.node(node).map(|node| node.common().access);
        drop(graph);
        let was_not = access == Some(Access::ReadOnly);
        if was_not {
            self.set_access(node, Access::ReadWrite)?;
        }
        Ok(was_not)
    }

    /// Makes a node of that name read-only again.
    pub(super) fn make_read_only(&mut self, name: &str) {
        let node = self.current.get().find(name);
        if let Some(node) = node
            && let Err(error) = self.set_access(node, Access::ReadOnly)
        {
            tracing::warn!("node {name} stays writable after a job: {error}");
        }
    }
}

/// What every node that a job puts into the graph is like.
pub(super) fn filter_options(graph: &Graph, node: NodeId) -> Common {
    let below = graph.node(node).map(|node| node.common());
    Common {
        access: below.map_or(Access::ReadWrite, |common| common.access),
        // What is below decides about discards.
        discard: DiscardPolicy::Unmap,
        ..Common::default()
    }
}
