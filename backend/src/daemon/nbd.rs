//! The NBD server as the daemon has it: at most one, with exports by id, and credentials by id beside it.

use super::bitmaps;
use super::engines;
use super::executor::Daemon;
use super::exports::{Export, ExportKey, Served, Shows};
use super::sockets::{self, BoundPath};
use crate::cli::{ExportOptions, NbdOptions, NbdServerOptions, TlsCredsX509Options, TlsEndpoint};
use crate::export::nbd::{
    AllocationDepth, NbdExportOptions, NbdServer, NbdServerOptions as Server, Runs, Writes,
};
use crate::open;
use crate::stats::ExportStats;
use blockgraph::graph::Access;
use blockgraph::graph::perm::{Attachment, Idle, Perms, Wants, attach_idle};
use blockgraph::tls::{Endpoint, SanityCheck, TlsCreds, TlsOptions, VerifyPeer};
use blockgraph::{Graph, NodeId};
use ring::Durability;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// What of the daemon is about NBD.
#[derive(Debug, Default)]
pub(super) struct Nbd {
    running: Option<Running>,
    creds: BTreeMap<String, Creds>,
}

/// Credentials, and what they were asked for with.
#[derive(Debug)]
pub(super) struct Creds {
    pub(super) options: TlsCredsX509Options,
    creds: Arc<TlsCreds>,
}

/// The server.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) server: NbdServer,
    /// Its socket, if we bound it; gone when this is.
    pub(super) path: Option<BoundPath>,
}

impl Nbd {
    /// The server, if there is one.
    pub(super) fn running(&self) -> Option<&Running> {
        self.running.as_ref()
    }

    /// The same, to be changed.
    pub(super) fn running_mut(&mut self) -> Option<&mut Running> {
        self.running.as_mut()
    }

    /// The server, which is over with that.
    pub(super) fn take(&mut self) -> Option<Running> {
        self.running.take()
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Credentials of that id, if there are any.
    pub(super) fn creds(&self, id: &str) -> Option<&Creds> {
        self.creds.get(id)
    }

    /// All credentials' ids.
    pub(super) fn creds_ids(&self) -> impl Iterator<Item = &str> {
        self.creds.keys().map(String::as_str)
    }

    /// Forgets credentials; whoever has them keeps them.
    pub(super) fn remove_creds(&mut self, id: &str) {
        self.creds.remove(id);
    }
}

impl Daemon {
    /// The id is known to be free. Errors: what is wrong with the files, in QEMU's words.
    pub(super) fn add_tls_creds(&mut self, options: TlsCredsX509Options) -> Result<(), String> {
        let creds = TlsCreds::load(&TlsOptions {
            dir: options.dir.clone(),
            endpoint: match options.endpoint {
                TlsEndpoint::Client => Endpoint::Client,
                TlsEndpoint::Server => Endpoint::Server,
            },
            verify_peer: match options.verify_peer {
                true => VerifyPeer::Yes,
                false => VerifyPeer::No,
            },
            sanity_check: match options.sanity_check {
                true => SanityCheck::Yes,
                false => SanityCheck::No,
            },
        });
        let creds = creds.map_err(|error| error.to_string())?;
        let creds = Arc::new(creds);
        self.control.resources.put_creds(&options.id, creds.clone());
        let id = options.id.clone();
        self.nbd.creds.insert(id, Creds { options, creds });
        Ok(())
    }

    /// Credentials by id. Errors: there are none.
    pub(super) fn tls_creds(&self, id: &str) -> Result<&Arc<TlsCreds>, String> {
        match self.nbd.creds.get(id) {
            Some(creds) => Ok(&creds.creds),
            None if self.object(id).is_some() => {
                Err(format!("Object with id '{id}' is not TLS credentials"))
            }
            None => Err(format!("No TLS credentials with id '{id}'")),
        }
    }

    /// Errors: there is one already; no such credentials, or not a server's; what is wrong with the address.
    pub(super) fn start_nbd_server(&mut self, options: NbdServerOptions) -> Result<(), String> {
        if self.nbd.is_running() {
            return Err("NBD server already running".to_owned());
        }
        let tls = match &options.tls_creds {
            None => None,
            Some(id) => {
                let config = self.tls_creds(id)?.server_config();
                Some(config.map_err(|error| error.to_string())?)
            }
        };
        let (listeners, path) = sockets::listen(&options.addr, &mut self.inherited)?;
        let seconds = |s: u32| Duration::from_secs(u64::from(s));
        let server = NbdServer::start(Server {
            listeners,
            tls,
            connections_max: (options.max_connections > 0)
                .then_some(options.max_connections as usize),
            handshake_max: (options.handshake_max_s > 0).then(|| seconds(options.handshake_max_s)),
            send_timeout: seconds(options.send_timeout_s),
            current: self.current.clone(),
            epochs: self.teams.epochs().clone(),
        });
        let server = server.map_err(|error| format!("cannot start the NBD server: {error}"))?;
        self.nbd.running = Some(Running { server, path });
        Ok(())
    }

    /// Errors: no server; the name is taken; the node may not be used so. The id is known to be free.
    pub(super) fn nbd_export(
        &mut self,
        options: &ExportOptions,
        kind: &NbdOptions,
        Shows { node, place }: Shows,
    ) -> Result<Export, String> {
        let graph = self.current.get();
        let mut attachment = self.attach_nbd(&graph, node, options)?;
        if place != node {
            attachment = self.attach_nbd(&graph, place, options)?;
        }
        let wish = engines::wish(&graph, node);
        let runs = match options.iothread.as_deref() {
            None => Runs::Alone(self.teams.engine(wish)),
            iothread => Runs::On(Arc::downgrade(&self.teams.team(iothread, wish)?)),
        };
        let Some(running) = &self.nbd.running else {
            return Err("NBD server not running".to_owned());
        };
        let name = kind.name.clone().unwrap_or(options.node_name.clone());
        let access = match options.writable {
            true => Access::ReadWrite,
            false => Access::ReadOnly,
        };
        let bitmaps = bitmaps::occupy(&graph, node, &kind.bitmaps, access)?;
        let info = graph.info(node).ok_or("the node has no size")?;
        let stats = Arc::<ExportStats>::default();
        let added = running.server.add(NbdExportOptions {
            name: name.clone(),
            description: kind.description.clone(),
            node: place,
            size_bytes: info.size_bytes,
            block_bytes: block_bytes(&graph, node),
            writes: match options.writable {
                true => Writes::Allowed,
                false => Writes::Refused,
            },
            durability: match options.writethrough {
                true => Durability::Through,
                false => Durability::Cached,
            },
            allocation_depth: match kind.allocation_depth {
                true => AllocationDepth::Told,
                false => AllocationDepth::Hidden,
            },
            bitmaps: bitmaps.bitmaps.clone(),
            runs,
            stats: stats.clone(),
        });
        if !added {
            return Err(format!("NBD server already has export named '{name}'"));
        }
        let served = Served::Nbd {
            name,
            stats,
            _bitmaps: bitmaps,
        };
        Ok(Export::new(
            ExportKey::unused(),
            options,
            served,
            attachment,
        ))
    }

    /// A client was told the size, so nobody may change it.
    fn attach_nbd(
        &self,
        graph: &Graph,
        node: NodeId,
        options: &ExportOptions,
    ) -> Result<Attachment, String> {
        let writable = options.writable;
        let idle = match options.allow_inactive {
            true => Idle::Allowed,
            false => Idle::Refused,
        };
        let access = graph.node(node).map(|node| node.common().access);
        if writable && access == Some(Access::ReadOnly) {
            return Err("Cannot export read-only node as writable".to_owned());
        }
        let wants = Wants {
            needs: match writable {
                true => Perms::READ_WRITE,
                false => Perms::READ,
            },
            shares: Perms::ALL.without(Perms::RESIZE),
        };
        // As in QEMU, that the size has to stay is said only once the rest is granted.
        let shared = Wants {
            shares: Perms::ALL,
            ..wants
        };
        let refusal = |e| open::perm_refusal(&e).to_string();
        attach_idle(&self.current, node, shared, None, idle).map_err(refusal)?;
        attach_idle(&self.current, node, wants, None, idle).map_err(refusal)
    }
}

/// What a protocol node's transfers must be multiples of; formats and filters take any.
fn block_bytes(graph: &Graph, node: NodeId) -> u32 {
    let files = graph.node(node).map_or(&[][..], |node| node.files());
    let needs = files.iter().map(|file| file.align().offset_bytes);
    needs.max().unwrap_or(1)
}
