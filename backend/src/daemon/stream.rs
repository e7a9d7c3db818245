//! `block-stream`: what an image reads from below becomes its own, down to a layer that stays below it.
//!
//! The rule: a copy-on-read filter above the image sees all that is read and written meanwhile. Only when everything is copied, and
//! durable, does the image name another backing file; a job that ends before that leaves an image that is right as it is.

use super::chains::{
    BackingName, backing_called, below, filter_options, flush, name_of, nodes_down, unit_bytes,
};
use super::executor::Daemon;
use super::jobs::{BlockJob, Ended, Finish, Prepared, Seat, Work};
use blockgraph::NodeId;
use blockgraph::filter::copy_on_read::CopyOnRead;
use blockgraph::graph::edit::{Edit, NewFilter};
use blockgraph::graph::perm::{Attachment, Perms, Wants, attach, attach_job};
use blockgraph::graph::{Body, Graph};
use blockgraph::job::copy::{
    Bounds, Copier, CopyPlan, Counts, ErrorPolicy, Ignored, Walked, WorkSet,
};
use blockgraph::job::{OnError, Stream};
use std::rc::Rc;
use std::sync::Arc;

/// As much is copied as one.
const CHUNK_BYTES: u64 = 512 << 10;
/// What is copied or not as one, at the least.
const UNIT_BYTES: u64 = 64 << 10;

/// How far down an image's content is taken from.
#[derive(Clone, Debug)]
pub(crate) enum Down {
    /// To the end of the chain.
    All,
    /// Above the layer of that file name.
    AboveFile(String),
    /// Above the node of that name.
    Above(String),
    /// To the node of that name, it too.
    To(String),
}

/// What `block-stream` is asked for.
#[derive(Debug)]
pub(crate) struct StreamWanted {
    /// The image.
    pub(crate) device: String,
    /// How far down.
    pub(crate) down: Down,
    /// What it says is below it afterwards.
    pub(crate) backing: BackingName,
    /// What is done about errors.
    pub(crate) on_error: OnError,
    /// The filter's name.
    pub(crate) filter: Option<String>,
    /// What every job is asked for.
    pub(crate) job: BlockJob,
}

/// The part of a chain that becomes one image.
struct Part {
    /// The node that was asked for, and what it is but for filters.
    top: NodeId,
    layer: NodeId,
    /// The last layer whose content is taken.
    bottom: NodeId,
    /// The node right above what stays: a filter perhaps.
    last: NodeId,
}

impl Daemon {
    /// Starts a stream job. Errors: in QSD's words.
    pub(crate) fn stream(&mut self, wanted: StreamWanted) -> Result<(), String> {
        self.retry_leaving();
        let graph = self.kept_graph();
        let top = self.lookup(&wanted.device)?;
        let part = part(&graph, top, &wanted)?;
        let nodes: Vec<NodeId> = nodes_down(&graph, top)
            .into_iter()
            .take_while(|id| Some(*id) != below(&graph, part.last))
            .collect();
        for id in &nodes {
            self.check_free(&name_of(&graph, *id))?;
        }
        let stays = below(&graph, part.last).is_some();
        if wanted.backing.file.is_some() && !stays {
            return Err("backing file specified, but streaming the entire chain".to_owned());
        }
        let filter = graph.name_for(wanted.filter.as_deref());
        let filter = filter.map_err(|error| format!("Could not create node: {error}"))?;
        drop(graph);
        let StreamWanted {
            backing,
            on_error,
            filter: named,
            job,
            ..
        } = wanted;
        self.start_block_job(job, |daemon, id| {
            daemon.prepare_stream(
                id,
                &part,
                nodes,
                (filter, named.is_none()),
                backing,
                on_error,
            )
        })
    }

    fn prepare_stream(
        &mut self,
        id: &str,
        part: &Part,
        nodes: Vec<NodeId>,
        (filter, implicit): (String, bool),
        backing: BackingName,
        on_error: OnError,
    ) -> Result<Prepared, String> {
        let graph = self.kept_graph();
        let names: Vec<String> = nodes.iter().map(|id| name_of(&graph, *id)).collect();
        let mut finish = Streamed {
            filter: filter.clone(),
            top: name_of(&graph, part.layer),
            last: name_of(&graph, part.last),
            backing,
            was_read_only: None,
            attachments: Vec::new(),
        };
        let bottom = name_of(&graph, part.bottom);
        let size_bytes = graph.info(part.top).map_or(0, |info| info.size_bytes);
        let unit_bytes = unit_bytes(&graph, part.layer).max(UNIT_BYTES);
        drop(graph);
        let prepared = self.set_up_stream(id, part, &nodes, &mut finish, (bottom, implicit));
        if let Err(error) = prepared {
            finish.abort(self);
            return Err(error);
        }
        let mut nodes = names;
        nodes.push(filter.clone());
        let work = Streaming {
            filter,
            place: part.top,
            // What the image has below it is all that there could be to copy.
            size_bytes: if part.bottom == part.layer {
                0
            } else {
                size_bytes
            },
            unit_bytes,
            on_error,
        };
        Ok(Prepared {
            work: work.boxed(),
            finish: Box::new(finish),
            nodes,
        })
    }

    /// Has the filter in its place, and everything that is used in its hands.
    fn set_up_stream(
        &mut self,
        id: &str,
        part: &Part,
        nodes: &[NodeId],
        finish: &mut Streamed,
        (bottom, implicit): (String, bool),
    ) -> Result<(), String> {
        if self.make_writable(part.layer)? {
            finish.was_read_only = Some(finish.top.clone());
        }
        let graph = self.kept_graph();
        let info = graph.info(part.top).ok_or("No medium")?;
        let body = CopyOnRead::new(info, Some(bottom));
        let new = NewFilter {
            name: finish.filter.clone(),
            kind: "copy-on-read",
            common: filter_options(&graph, part.top),
            body: Body::Driver(Arc::new(body)),
        };
        drop(graph);
        let moved = self.insert_filter(part.top, new, implicit)?;
        let job = Wants {
            needs: Perms::READ.or(Perms::WRITE_UNCHANGED),
            shares: Perms::ALL.without(Perms::RESIZE),
        };
        let attached = attach(&self.current, part.top, job, None);
        finish
            .attachments
            .push(attached.map_err(|error| error.to_string())?);
        let unchanged = Wants {
            needs: Perms::NONE,
            shares: Perms::READ.or(Perms::WRITE_UNCHANGED),
        };
        let who = || format!("stream job '{id}'");
        let top = (moved, Wants::NOTHING, "active node");
        let others = nodes
            .iter()
            .skip(1)
            .map(|id| (*id, unchanged, "intermediate node"));
        for (node, wants, role) in std::iter::once(top).chain(others) {
            let attached = attach_job(&self.current, node, wants, (who(), role));
            finish
                .attachments
                .push(attached.map_err(|error| error.to_string())?);
        }
        Ok(())
    }
}

/// Which part of the chain below `top` is meant. Errors: none, in QSD's words.
fn part(graph: &Graph, top: NodeId, wanted: &StreamWanted) -> Result<Part, String> {
    let layer = graph.skip_filters(top);
    let down = nodes_down(graph, top);
    let find = |name: &str| {
        let found = graph.find(name);
        found.ok_or_else(|| format!("Cannot find device='' nor node-name='{name}'"))
    };
    let device = &wanted.device;
    let base = match &wanted.down {
        Down::All => None,
        Down::AboveFile(file) => {
            let found = backing_called(graph, top, file);
            Some(found.ok_or_else(|| format!("Can't find '{file}' in the backing chain"))?)
        }
        Down::Above(name) => {
            let base = find(name)?;
            if base == top || !down.contains(&base) {
                return Err(format!(
                    "Node '{name}' is not a backing image of '{device}'"
                ));
            }
            Some(base)
        }
        Down::To(name) => {
            let bottom = find(name)?;
            if graph.skip_filters(bottom) != bottom {
                return Err(format!(
                    "Node '{name}' is a filter, use a non-filter node as 'bottom'"
                ));
            }
            if !down.contains(&bottom) {
                return Err(format!(
                    "Node '{name}' is not in a chain starting from '{device}'"
                ));
            }
            let last = bottom;
            return Ok(Part {
                top,
                layer,
                bottom,
                last,
            });
        }
    };
    let above = down.iter().take_while(|id| Some(**id) != base);
    let above: Vec<NodeId> = above.copied().collect();
    let is_layer = |id: &&NodeId| graph.skip_filters(**id) == **id;
    let bottom = above.iter().rev().find(is_layer).copied().unwrap_or(layer);
    let last = match base {
        Some(_) => above.last().copied().unwrap_or(bottom),
        None => bottom,
    };
    Ok(Part {
        top,
        layer,
        bottom,
        last,
    })
}

/// The job's work.
#[derive(Debug)]
struct Streaming {
    filter: String,
    /// Where the filter is.
    place: NodeId,
    size_bytes: u64,
    unit_bytes: u64,
    on_error: OnError,
}

impl Streaming {
    fn boxed(self) -> Work {
        Box::new(move |seat| self.run(seat))
    }

    fn run(self, seat: &Seat) -> Result<Ended, String> {
        let progress = &*seat.handle.progress;
        progress.set_remaining(self.size_bytes);
        let mut worker = seat.worker()?;
        let plan = CopyPlan {
            parts: Rc::new(Stream {
                filter: self.filter,
            }),
            nodes: vec![self.place],
            work: Arc::new(WorkSet::full(self.size_bytes, self.unit_bytes)),
            bounds: Bounds {
                chunk_bytes: CHUNK_BYTES,
                ..Bounds::default()
            },
            errors: ErrorPolicy::both(self.on_error, Ignored::LeftOut),
            counts: Counts::Steps,
        };
        let tell = |word| seat.tell(word);
        let walked = Copier::new(&mut worker, plan, progress, &tell).run();
        if let Walked::Cancelled(_) = walked.map_err(|error| error.to_string())? {
            return Ok(Ended::Cancelled);
        }
        flush(&mut worker, self.place)?;
        Ok(Ended::Done)
    }
}

/// What a stream job does to the graph, by names: nodes change places.
#[derive(Debug)]
struct Streamed {
    filter: String,
    top: String,
    /// The node right above what stays.
    last: String,
    backing: BackingName,
    /// The image, if it was read-only.
    was_read_only: Option<String>,
    attachments: Vec<Attachment>,
}

impl Streamed {
    /// The image has another backing file, or none.
    fn cut(&self, daemon: &mut Daemon) -> Result<(), String> {
        let graph = daemon.kept_graph();
        let find = |name: &str| {
            graph
                .find(name)
                .ok_or_else(|| format!("Node {name} is gone"))
        };
        let (top, last) = (find(&self.top)?, find(&self.last)?);
        let stays = below(&graph, last);
        let has_backing = below(&graph, top).is_some();
        let stored = stays.and_then(|stays| self.backing.stored(&graph, stays));
        drop(graph);
        if has_backing {
            daemon.store_backing(top, top, stored)?;
        }
        let mut edit = Edit::begin(&daemon.current);
        let filter = edit.graph().find(&self.filter);
        let filter = filter.ok_or_else(|| format!("Node {} is gone", self.filter))?;
        edit.remove_filter(filter)
            .map_err(|error| error.to_string())?;
        let top = edit.graph().find(&self.top).unwrap_or(top);
        if has_backing {
            edit.set_backing(top, stays)
                .map_err(|error| error.to_string())?;
        }
        daemon.commit_quiet(edit, &[filter])
    }

    fn restore_access(&mut self, daemon: &mut Daemon) {
        if let Some(name) = self.was_read_only.take() {
            daemon.make_read_only(&name);
        }
    }
}

impl Finish for Streamed {
    fn prepare(&mut self, daemon: &mut Daemon) -> Result<(), String> {
        // The filter's place and the image's cannot both be somebody's.
        self.attachments.clear();
        self.cut(daemon)?;
        self.restore_access(daemon);
        Ok(())
    }

    fn abort(&mut self, daemon: &mut Daemon) {
        self.attachments.clear();
        if let Err(error) = daemon.remove_filter(&self.filter) {
            tracing::error!("cannot take out the filter of a job: {error}");
        }
        self.restore_access(daemon);
    }
}
