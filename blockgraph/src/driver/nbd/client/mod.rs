//! nbd: a disk that a server has, over a unix socket, TCP or TLS.
//!
//! The rule: everything serves (`map` answers slow), by requests to the connection's own thread, which all queue threads
//! share. What a request needs of the export (blocks, pieces, flags it has not) is seen to in `requests.rs`; who sends
//! it, when, and again after a reconnection, in `worker.rs`.

mod address;
mod called;
mod chunks;
mod dial;
mod error;
mod export;
mod handshake;
mod link;
mod patient;
mod requests;
mod session;
mod slots;
mod transport;
mod worker;

pub use address::{Connected, Family, Inet, KeepAlive, Lookup, Server};
pub use error::ClientError;

use super::wire::{ExportHead, STRING_BYTES_MAX};
use crate::driver::file::{Flushes, OpenMode};
use crate::graph::name::Described;
use crate::graph::open::DriverSpec;
use crate::graph::{Access, Resources};
use crate::hold::Holds;
use crate::io::Io;
use crate::node::{Driver, Info, Local, Map, Outcome, Zeroing};
use crate::request::{Dir, Prealloc, Request, Unmap};
use crate::status::Status;
use crate::tls::TlsClient;
use crate::units::Span;
use dial::Number;
use handshake::Wish;
use link::{Link, Order};
use ring::Errno;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use worker::Worker;

/// What to connect to and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdOptions {
    /// Where the server is.
    pub server: Server,
    /// Which of its exports; empty is the default one.
    pub export: String,
    /// With TLS, or without.
    pub tls: Tls,
    /// A context to ask for instead of `base:allocation` (`x-dirty-bitmap`): its lowest two bits are then what block status
    /// says, as with QEMU.
    pub context: Option<String>,
    /// How long requests wait for a lost connection.
    pub reconnect_delay: Duration,
    /// For how long the first connection is attempted; zero: once.
    pub open_timeout: Duration,
    /// For reading or writing.
    pub mode: OpenMode,
    /// What a flush does.
    pub flushes: Flushes,
}

/// Whether a connection is encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tls {
    /// It is not.
    Off,
    /// By credentials that the control thread was given under that name ([`crate::graph::Resources`]).
    Named {
        /// The name.
        creds: String,
        /// Whom the server's certificate must name.
        hostname: Option<String>,
    },
    /// By these.
    With(TlsClient),
}

/// A disk that a server has.
#[derive(Debug)]
pub struct NbdClient {
    export: export::Export,
    /// Does the server tell what is allocated?
    tells_status: bool,
    /// Are the numbers told QEMU's depths, which go beyond two bits?
    tells_depth: bool,
    /// Are flushes sent?
    sends_flushes: AtomicBool,
    described: Described,
    link: Arc<Link>,
    /// Blocks being written, or read to be changed and written back.
    holds: Holds,
}

/// Opens an export; also says whether it may be written. Waits for the server, at most as long as `open_timeout` or an
/// attempt takes. Errors: see [`ClientError`].
pub fn open(
    options: &NbdOptions,
    resources: &mut Resources,
) -> Result<(NbdClient, Access), ClientError> {
    check_lengths(options)?;
    let tls = match &options.tls {
        Tls::Off => None,
        Tls::With(tls) => Some(tls.clone()),
        Tls::Named { creds, hostname } => {
            let tls = resources.tls_client(creds, hostname.as_deref());
            Some(tls.map_err(|error| ClientError::Tls(error.to_string()))?)
        }
    };
    let server = match options.server {
        Server::Passed(fd) => match resources.take_socket(fd) {
            Some(socket) => Server::Connected(Connected(Arc::new(socket))),
            None => Server::Passed(fd),
        },
        ref other => other.clone(),
    };
    let number = Number {
        server,
        wish: Wish {
            export: options.export.clone(),
            tls,
            context: options.context.clone(),
        },
    };
    let session = number.dial_for(options.open_timeout)?;
    let export = session.export;
    let access = match (options.mode, export.can(ExportHead::READ_ONLY)) {
        (OpenMode::ReadOnly, _) | (OpenMode::Auto, true) => Access::ReadOnly,
        (OpenMode::ReadWrite, true) => {
            let text = "request on write denied without write permission";
            return Err(ClientError::Unusable(text.to_owned()));
        }
        (_, false) => Access::ReadWrite,
    };
    let link = Arc::new(Link::new().map_err(ClientError::System)?);
    let client = NbdClient {
        export,
        tells_status: session.context.is_some(),
        tells_depth: options.context.as_deref() == Some(super::wire::CONTEXT_DEPTH),
        sends_flushes: AtomicBool::new(options.flushes == Flushes::Sync),
        described: called::described(options),
        link: link.clone(),
        holds: Holds::default(),
    };
    let worker = Worker::new(link, number, session, options.reconnect_delay);
    let thread = std::thread::Builder::new().name(String::from("nbd-client"));
    let started = thread.spawn(move || worker.run());
    started.map_err(ClientError::System)?;
    Ok((client, access))
}

fn check_lengths(options: &NbdOptions) -> Result<(), ClientError> {
    let refuse = |text: &str| Err(ClientError::Unusable(text.to_owned()));
    if options.export.len() > STRING_BYTES_MAX {
        return refuse("export name too long to send to server");
    }
    let context = options.context.as_ref().map_or(0, String::len);
    if context > STRING_BYTES_MAX {
        return refuse("x-dirty-bitmap query too long to send to server");
    }
    Ok(())
}

impl Driver for NbdClient {
    fn map(&self, _dir: Dir, _span: Span) -> Map {
        Map::Slow
    }

    fn serve<'a>(&'a self, _io: &'a Io, request: Request) -> Local<'a, Outcome> {
        Box::pin(self.perform(request))
    }

    fn status<'a>(&'a self, io: &'a Io, span: Span) -> Local<'a, Result<Status, Errno>> {
        Box::pin(self.ask_status(io.here(), span))
    }

    fn info(&self) -> Info {
        self.export.info()
    }

    fn described(&self, _kind: &str) -> Described {
        self.described.clone()
    }

    fn zeroing(&self, _unmap: Unmap) -> Zeroing {
        self.export.zeroing()
    }

    /// An export has the size its server gave it.
    fn truncate<'a>(&'a self, _io: &'a Io, size_bytes: u64, _how: Prealloc) -> Local<'a, Outcome> {
        let same = size_bytes == self.info().size_bytes;
        Box::pin(async move {
            match same {
                true => Ok(()),
                false => Err(Errno::NOTSUP),
            }
        })
    }

    fn writable(&self) -> bool {
        !self.export.can(ExportHead::READ_ONLY)
    }

    fn adjust(&self, spec: &DriverSpec) {
        if let DriverSpec::Nbd(options) = spec {
            let sends = options.flushes == Flushes::Sync;
            self.sends_flushes.store(sends, Ordering::Relaxed);
        }
    }

    fn cancel(&self) {
        self.link.order(Order::Cancel);
    }

    fn hurry(&self) {
        self.link.order(Order::Hurry);
    }

    fn close<'a>(&'a self, _io: &'a Io) -> Local<'a, Outcome> {
        Box::pin(async {
            self.link.order(Order::Stop);
            self.link.ended().await;
            Ok(())
        })
    }
}

impl Drop for NbdClient {
    /// Nobody waits here: the thread takes its leave by itself.
    fn drop(&mut self) {
        self.link.order(Order::Stop);
    }
}
