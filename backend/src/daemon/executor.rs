//! Executes commands one by one, in the order given, each wholly or not at all.

use super::engines::{self, Teams, check_engines};
use super::nbd::Nbd;
use super::sockets::{self, BoundPath};
use crate::cli::{
    BlockdevOptions, ChildRef, Command, DriverOptions, ExportKind, ExportOptions, NbdServerAt,
    ObjectOptions,
};
use crate::export::VhostUserBlk;
use crate::open;
use crate::process::connected_stream;
use crate::queue::Crew;
use crate::vhost::DoorEvent;
use crate::virtio_blk::{Cache, Disk, DiskOptions};
use blockgraph::graph::perm::{Attachment, Perms, Wants, attach};
use blockgraph::graph::{Access, Control, DiscardPolicy};
use blockgraph::{Current, Graph, NodeId};
use ring::inherited::Inherited;
use ring::{Bell, Choice};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// An export that exists.
#[derive(Debug)]
pub(super) struct Export {
    pub(super) id: String,
    pub(super) blk: VhostUserBlk,
    /// Its socket, if we bound it; gone when this is.
    pub(super) path: Option<BoundPath>,
    _attachment: Attachment,
}

/// What doors have to say, for the control thread.
#[derive(Debug)]
pub(super) struct News {
    events: Mutex<VecDeque<(String, DoorEvent)>>,
    pub(super) bell: Bell,
}

impl News {
    fn push(&self, export: &str, event: DoorEvent) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.push_back((export.to_owned(), event));
        drop(events);
        self.bell.ring();
    }

    pub(super) fn pop(&self) -> Option<(String, DoorEvent)> {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.pop_front()
    }
}

/// Everything the control thread owns.
#[derive(Debug)]
pub struct Daemon {
    pub(super) current: Arc<Current>,
    pub(super) teams: Teams,
    pub(super) control: Control,
    pub(super) exports: Vec<Export>,
    pub(super) news: Arc<News>,
    pub(super) nbd: Nbd,
    pub(super) inherited: Inherited,
}

impl Daemon {
    /// A daemon that serves nothing yet. Errors: out of descriptors.
    pub fn new(inherited: Inherited) -> std::io::Result<Daemon> {
        let current = Arc::<Current>::default();
        let teams = Teams::new(current.clone());
        // Threads, not io_uring: opening and closing nodes is no reason to set up a ring, and they are never refused.
        let control = Control::new(current.clone(), teams.epochs().clone(), Choice::Threads)?;
        Ok(Daemon {
            teams,
            control,
            current,
            exports: Vec::new(),
            news: Arc::new(News {
                events: Mutex::default(),
                bell: Bell::new()?,
            }),
            nbd: Nbd::default(),
            inherited,
        })
    }

    /// Executes one command. Errors: in QSD's words; nothing has changed then.
    pub fn execute(&mut self, command: Command) -> Result<(), String> {
        match command {
            Command::Object(ObjectOptions::Iothread(options)) => {
                self.check_object_id(&options.id)?;
                self.teams.add_iothread(options)
            }
            Command::Object(ObjectOptions::TlsCredsX509(options)) => self.add_tls_creds(options),
            Command::Object(ObjectOptions::ThrottleGroup(options)) => {
                self.check_object_id(&options.id)?;
                let limits = open::throttle_limits(&options.limits);
                let graph = self.current.get();
                let added = graph.throttle_groups().add(&options.id, limits);
                added.map(drop).map_err(|error| error.to_string())
            }
            Command::Blockdev(options) => self.add_node(options),
            Command::Export(options) => self.add_export(options),
            Command::NbdServer(options) => self.start_nbd_server(options),
            // Printing is the caller's; nothing here has a terminal.
            Command::ShowHelp(_) => Ok(()),
        }
    }

    /// Is there an object of that id, of whatever type?
    pub(super) fn has_object(&self, id: &str) -> bool {
        let groups = self.current.get();
        let is_group = groups.throttle_groups().get(id).is_ok();
        is_group || self.teams.has_iothread(id) || self.nbd.has_creds(id)
    }

    /// Errors: the id is taken.
    pub(super) fn check_object_id(&self, id: &str) -> Result<(), String> {
        match self.has_object(id) {
            true => Err(format!(
                "attempt to add duplicate property '{id}' to object (type 'container')"
            )),
            false => Ok(()),
        }
    }

    fn add_node(&mut self, options: BlockdevOptions) -> Result<(), String> {
        check_engines(&options)?;
        self.offer_sockets(&options)?;
        let opened = blockgraph::graph::open::open(
            &self.current,
            open::node_spec(options).map_err(|e| e.to_string())?,
            &mut self.control,
        );
        opened.map_err(|e| open::open_refusal(&e).to_string())?;
        Ok(())
    }

    /// Inherited sockets that nodes ask for by number. Errors: in QSD's words.
    fn offer_sockets(&mut self, options: &BlockdevOptions) -> Result<(), String> {
        if let DriverOptions::Nbd(nbd) = &options.driver
            && let NbdServerAt::ConnectedFd(fd) = nbd.server
        {
            let socket = connected_stream(&mut self.inherited, fd).map_err(|e| e.to_string())?;
            self.control.resources.put_socket(fd, socket);
        }
        for child in options.driver.children() {
            if let ChildRef::Inline(child) = child {
                self.offer_sockets(child)?;
            }
        }
        Ok(())
    }

    fn add_export(&mut self, options: ExportOptions) -> Result<(), String> {
        let taken = self.exports.iter().any(|export| export.id == options.id);
        if taken || self.nbd.has_export(&options.id) {
            return Err(format!(
                "Block export id '{}' is already in use",
                options.id
            ));
        }
        let name = &options.node_name;
        let graph = self.current.get();
        let node = graph
            .find(name)
            .ok_or_else(|| format!("Cannot find device='' nor node-name='{name}'"))?;
        let kind = match &options.kind {
            ExportKind::VhostUserBlk(kind) => kind,
            ExportKind::Nbd(kind) => return self.add_nbd_export(&options, kind, node),
        };
        let attachment = self.attach(&graph, node, options.writable)?;
        let wish = engines::wish(&graph, node);
        let team = self.teams.team(options.iothread.as_deref(), wish)?;
        let info = graph.info(node).ok_or("the node has no size")?;
        let common = graph.node(node).map(|node| node.common());
        let disk = Arc::new(Disk::new(&DiskOptions {
            node,
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
        let crew = Crew::new(team, disk.clone());
        let blk = VhostUserBlk::new(socket, disk, crew, self.events(&options.id))
            .map_err(|error| format!("{error}: {}", error.0))?;
        self.exports.push(Export {
            id: options.id,
            blk,
            path,
            _attachment: attachment,
        });
        Ok(())
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

    fn events(&self, id: &str) -> crate::vhost::Events {
        let (news, id) = (self.news.clone(), id.to_owned());
        Arc::new(move |event| news.push(&id, event))
    }
}
