//! Exports of either type, by id: making one, and what there is.

use super::bitmaps;
use super::engines;
use super::executor::Daemon;
use super::removal::Leaving;
use super::sockets::{self, BoundPath};
use crate::cli::{ExportKind, ExportOptions, VhostUserBlkOptions};
use crate::export::{MapKeeper, VhostUserBlk};
use crate::open;
use crate::queue::Crew;
use crate::stats::ExportStats;
use crate::vhost::Door;
use crate::virtio_blk::{Cache, Disk, DiskOptions};
use blockgraph::graph::perm::{Attachment, Perms, Wants, attach};
use blockgraph::graph::{Access, DiscardPolicy};
use blockgraph::{Graph, NodeId};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Names one export for ever: ids and descriptors are used again, and what a door had to say may be heard late.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ExportKey(u64);

impl ExportKey {
    /// One that no export had before.
    pub(super) fn unused() -> ExportKey {
        static KEYS: AtomicU64 = AtomicU64::new(0);
        ExportKey(KEYS.fetch_add(1, Ordering::Relaxed))
    }
}

/// An export that exists.
#[derive(Debug)]
pub(super) struct Export {
    pub(super) key: ExportKey,
    pub(super) id: String,
    /// Where its queues run, if that was asked for.
    pub(super) iothread: Option<String>,
    pub(super) served: Served,
    attachment: Attachment,
    /// The node that was asked for, if a job had a filter above it then.
    below: Option<String>,
}

/// The node that an export is asked for, and the place where it uses it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shows {
    pub(super) node: NodeId,
    /// The same, or that of a job's filter: there the node is when the filter is gone.
    pub(super) place: NodeId,
}

/// How a node is shown.
#[derive(Debug)]
pub(super) enum Served {
    /// To a virtual machine.
    VhostUserBlk {
        blk: VhostUserBlk,
        /// Its socket, if we bound it; gone when this is.
        path: Option<BoundPath>,
        when_in_use: WhenInUse,
    },
    /// By the NBD server, under that name.
    Nbd {
        name: String,
        /// What its clients have asked for.
        stats: Arc<ExportStats>,
        /// Nobody else uses them while it is there.
        _bitmaps: bitmaps::Shown,
    },
}

/// What becomes of a wish to delete an export safely while a front end is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WhenInUse {
    /// The front end is disconnected, as by QEMU.
    Disconnect,
    /// `require-safe-del=on`: it is refused.
    Refuse,
}

impl Export {
    pub(super) fn new(
        key: ExportKey,
        options: &ExportOptions,
        served: Served,
        attachment: Attachment,
    ) -> Export {
        Export {
            key,
            id: options.id.clone(),
            iothread: options.iothread.clone(),
            served,
            attachment,
            below: None,
        }
    }

    /// The name of the node it shows.
    fn node_name(&self, graph: &Graph) -> String {
        let node = graph.node(self.node());
        let filtered = node.and_then(|node| node.shape().filtered());
        let is_below = |name: &&String| filtered.is_some() && graph.find(name) == filtered;
        match (self.below.as_ref().filter(is_below), node) {
            (Some(name), _) => name.clone(),
            (None, node) => node.map_or_else(String::new, |node| node.name().to_owned()),
        }
    }

    /// The disk that a guest has of it, if one has.
    pub(super) fn disk(&self) -> Option<&Arc<Disk>> {
        match &self.served {
            Served::VhostUserBlk { blk, .. } => Some(blk.disk()),
            Served::Nbd { .. } => None,
        }
    }

    /// Where front ends knock, if they do.
    pub(super) fn door(&self) -> Option<&Door> {
        match &self.served {
            Served::VhostUserBlk { blk, .. } => Some(blk.door()),
            Served::Nbd { .. } => None,
        }
    }

    /// Its name on the NBD server, if it has one.
    pub(super) fn nbd_name(&self) -> Option<&str> {
        match &self.served {
            Served::VhostUserBlk { .. } => None,
            Served::Nbd { name, .. } => Some(name),
        }
    }

    /// The node it shows.
    pub(super) fn node(&self) -> NodeId {
        self.attachment.node()
    }

    /// What was asked of it.
    pub(super) fn stats(&self) -> &Arc<ExportStats> {
        match &self.served {
            Served::VhostUserBlk { blk, .. } => &blk.disk().stats,
            Served::Nbd { stats, .. } => stats,
        }
    }

    /// Nobody finds it any more.
    pub(super) fn remove_path(&mut self) {
        if let Served::VhostUserBlk { path, .. } = &mut self.served {
            *path = None;
        }
    }
}

/// An export, as a query shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportShown {
    /// Its id.
    pub id: String,
    /// `vhost-user-blk` or `nbd`.
    pub kind: &'static str,
    /// The node it shows.
    pub node_name: String,
    /// It is on its way out.
    pub shutting_down: bool,
}

impl ExportShown {
    fn new(export: &Export, graph: &Graph, shutting_down: bool) -> ExportShown {
        ExportShown {
            id: export.id.clone(),
            kind: match export.served {
                Served::VhostUserBlk { .. } => "vhost-user-blk",
                Served::Nbd { .. } => "nbd",
            },
            node_name: export.node_name(graph),
            shutting_down,
        }
    }
}

impl Daemon {
    /// Every export, the newest first.
    pub(crate) fn exports(&self) -> impl Iterator<Item = ExportShown> {
        let graph = self.current.get();
        let there = self.exports.iter().rev().map(|export| (export, false));
        let leaving = self.leaving_exports().map(|export| (export, true));
        let all = there.chain(leaving);
        all.map(move |(export, leaves)| ExportShown::new(export, &graph, leaves))
    }

    /// Those that are on their way out.
    pub(super) fn leaving_exports(&self) -> impl Iterator<Item = &Export> {
        self.leaving.iter().filter_map(Leaving::export)
    }

    pub(super) fn add_export(&mut self, options: ExportOptions) -> Result<(), String> {
        let all = self.exports.iter().chain(self.leaving_exports());
        if all.into_iter().any(|export| export.id == options.id) {
            let id = options.id;
            return Err(format!("Block export id '{id}' is already in use"));
        }
        let name = &options.node_name;
        let graph = self.current.get();
        let node = graph
            .find(name)
            .ok_or_else(|| format!("Cannot find device='' nor node-name='{name}'"))?;
        let node = follower(&graph, node).unwrap_or(node);
        drop(graph);
        if !options.allow_inactive {
            self.activate(node)?;
        }
        let place = self.place_of(node);
        let shows = Shows { node, place };
        let mut export = match &options.kind {
            ExportKind::VhostUserBlk(kind) => self.vhost_user_blk(&options, kind, shows)?,
            ExportKind::Nbd(kind) => self.nbd_export(&options, kind, shows)?,
        };
        if place != node {
            export.below = Some(options.node_name);
        }
        self.exports.push(export);
        Ok(())
    }

    /// Where a node is used by whoever comes now. While a backup or a stream has its filter above it, that is the filter's place,
    /// where the node will be again; what is read through the filter is what the node has.
    fn place_of(&self, node: NodeId) -> NodeId {
        let graph = self.current.get();
        let mut all = graph.nodes();
        let found = all.find(|(id, above)| {
            above.shape().filtered() == Some(node)
                && matches!(above.kind(), "copy-before-write" | "copy-on-read")
                && !graph.is_owned(*id)
                && self.check_free(above.name()).is_err()
        });
        found.map_or(node, |(id, _)| id)
    }

    /// The graph may have changed: guests' writes may go to other images by now, whose maps are to be logged.
    pub(super) fn follow_images(&mut self) {
        for export in &self.exports {
            if let Served::VhostUserBlk { blk, .. } = &export.served {
                blk.follow_image(&mut self.control, Daemon::drain_deadline);
            }
        }
    }

    fn vhost_user_blk(
        &mut self,
        options: &ExportOptions,
        kind: &VhostUserBlkOptions,
        Shows { node, place }: Shows,
    ) -> Result<Export, String> {
        let graph = self.current.get();
        let mut attachment = self.attach(&graph, node, options.writable)?;
        if place != node {
            attachment = self.attach(&graph, place, options.writable)?;
        }
        let wish = engines::wish(&graph, node);
        let team = self.teams.team(options.iothread.as_deref(), wish)?;
        let info = graph.info(node).ok_or("the node has no size")?;
        let common = graph.node(node).map(|node| node.common());
        let disk = Arc::new(Disk::new(&DiskOptions {
            node: place,
            info,
            writable: options.writable,
            cache: match options.writethrough {
                true => Cache::WriteThrough,
                false => Cache::WriteBack,
            },
            logical_block_bytes: kind.logical_block_size_bytes,
            serial: kind.serial.clone().unwrap_or_else(|| options.id.clone()),
            queues: kind.num_queues,
            may_unmap: common.is_some_and(|c| c.discard == DiscardPolicy::Unmap),
        }));
        let (socket, path) = sockets::open(&kind.addr, &mut self.inherited)?;
        let key = ExportKey::unused();
        let crew = Crew::new(team, disk.clone());
        let (current, epochs) = (self.current.clone(), self.teams.epochs().clone());
        let engine = self.teams.engine(wish);
        let maps = options
            .writable
            .then(|| MapKeeper::new(current, epochs, place, engine));
        let blk = VhostUserBlk::new(socket, disk, maps, crew, self.events(key))
            .map_err(|error| format!("{error}: {}", error.0))?;
        let when_in_use = match kind.require_safe_del {
            true => WhenInUse::Refuse,
            false => WhenInUse::Disconnect,
        };
        let served = Served::VhostUserBlk {
            blk,
            path,
            when_in_use,
        };
        Ok(Export::new(key, options, served, attachment))
    }

    /// An export reads, and writes if it may, and lets everybody else do as they like.
    fn attach(&self, graph: &Graph, node: NodeId, writable: bool) -> Result<Attachment, String> {
        let access = graph.node(node).map(|node| node.common().access);
        if writable && access == Some(Access::ReadOnly) {
            return Err("Cannot export read-only node as writable".to_owned());
        }
        let wants = Wants {
            needs: if writable {
                Perms::READ_WRITE
            } else {
                Perms::READ
            },
            shares: Perms::ALL,
        };
        attach(&self.current, node, wants, None).map_err(|e| open::perm_refusal(&e).to_string())
    }

    fn events(&self, key: ExportKey) -> crate::vhost::Events {
        let news = self.news.clone();
        Arc::new(move |event| news.push(key, event))
    }
}

/// The filter of a job that follows what is written to a node: whoever wrote past it would have the job miss that.
fn follower(graph: &Graph, node: NodeId) -> Option<NodeId> {
    let mut nodes = graph.nodes();
    let found = nodes
        .find(|(_, above)| above.kind() == "mirror_top" && above.shape().filtered() == Some(node));
    found.map(|(id, _)| id)
}
