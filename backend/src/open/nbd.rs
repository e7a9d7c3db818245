//! `nbd`: what a server is asked for.

use super::{flushes, open_mode};
use crate::cli::{NbdClientOptions, NbdFamily, NbdServerAt, NodeCommon};
use blockgraph::driver::nbd::client::{Family, Inet, KeepAlive, Lookup, NbdOptions, Server, Tls};
use blockgraph::graph::open::DriverSpec;
use std::time::Duration;

pub(super) fn spec(nbd: NbdClientOptions, common: &NodeCommon) -> DriverSpec {
    let seconds = |s: u32| Duration::from_secs(u64::from(s));
    // The host that is connected to is the one to be there, unless another is named.
    let host = match &nbd.server {
        NbdServerAt::Inet(inet) => Some(inet.host.clone()),
        NbdServerAt::Unix(_) | NbdServerAt::ConnectedFd(_) => None,
    };
    DriverSpec::Nbd(Box::new(NbdOptions {
        server: server(nbd.server),
        export: nbd.export,
        tls: nbd.tls.map_or(Tls::Off, |tls| Tls::Named {
            creds: tls.creds,
            hostname: tls.hostname.or(host),
        }),
        context: nbd.x_dirty_bitmap,
        reconnect_delay: seconds(nbd.reconnect_delay_s),
        open_timeout: seconds(nbd.open_timeout_s),
        mode: open_mode(common),
        flushes: flushes(common),
    }))
}

fn server(at: NbdServerAt) -> Server {
    match at {
        NbdServerAt::Unix(path) => Server::Unix(path),
        NbdServerAt::ConnectedFd(fd) => Server::Passed(fd),
        NbdServerAt::Inet(inet) => Server::Inet(Inet {
            host: inet.host,
            port: inet.port,
            lookup: match inet.numeric {
                true => Lookup::Never,
                false => Lookup::Names,
            },
            family: match inet.family {
                NbdFamily::Any => Family::Any,
                NbdFamily::V4 => Family::V4,
                NbdFamily::V6 => Family::V6,
            },
            keep_alive: match inet.keep_alive {
                true => KeepAlive::On,
                false => KeepAlive::Off,
            },
        }),
    }
}
