//! Which options a node keeps for as long as it lives.
//!
//! The rule: what is found different here is refused by the option's name; everything else may change. Children are not
//! looked at (`plan.rs` does).

use super::super::Sharing;
use super::super::open::{DriverSpec, FileSpec, FilterSpec, NodeSpec, NullSpec};
use crate::driver::file::{FileOptions, Locking};
use crate::driver::nbd::client::{NbdOptions, Server};
use crate::filter::blkdebug;
use crate::node::Engine;

/// The option that names the file beside a disk.
const JOURNAL: &str = "x-bitmap-journal";

/// The first option of `new` that is different and may not be, if any.
pub(super) fn fixed(old: &NodeSpec, new: &NodeSpec) -> Option<&'static str> {
    if let Some(option) = fixed_of_driver(&old.driver, &new.driver) {
        return Some(option);
    }
    let forced = |spec: &NodeSpec| spec.common.sharing == Sharing::Forced;
    first(&[(forced(old) == forced(new), "force-share")])
}

fn fixed_of_driver(old: &DriverSpec, new: &DriverSpec) -> Option<&'static str> {
    match (old, new) {
        (DriverSpec::Null(old), DriverSpec::Null(new)) => null(old, new),
        (DriverSpec::File(old), DriverSpec::File(new)) => file(old, new),
        (DriverSpec::Nbd(old), DriverSpec::Nbd(new)) => nbd(old, new),
        (DriverSpec::Qcow2(old), DriverSpec::Qcow2(new)) => first(&[
            (old.options.snapshot == new.options.snapshot, "x-snapshot"),
            (old.journal == new.journal, JOURNAL),
        ]),
        (DriverSpec::Raw { journal: old, .. }, DriverSpec::Raw { journal: new, .. }) => {
            first(&[(old == new, JOURNAL)])
        }
        (DriverSpec::Delay { .. }, DriverSpec::Delay { .. })
        | (DriverSpec::SnapshotAccess { .. }, DriverSpec::SnapshotAccess { .. }) => None,
        (DriverSpec::Filter(old), DriverSpec::Filter(new)) => filter(old, new),
        _ => Some("driver"),
    }
}

/// The name of the first that is not the same.
fn first(same: &[(bool, &'static str)]) -> Option<&'static str> {
    let different = same.iter().find(|(same, _)| !same);
    different.map(|(_, option)| *option)
}

fn null(old: &NullSpec, new: &NullSpec) -> Option<&'static str> {
    first(&[
        (old.kind == new.kind, "driver"),
        (old.size_bytes == new.size_bytes, "size"),
        (old.reads == new.reads, "read-zeroes"),
        (old.latency_ns == new.latency_ns, "latency-ns"),
    ])
}

fn file(old: &FileSpec, new: &FileSpec) -> Option<&'static str> {
    let (old, new): (&FileOptions, &FileOptions) = (&old.options, &new.options);
    let engine = |engine: Engine| match engine {
        // What nobody chose is as good as any other.
        Engine::Any => None,
        chosen => Some(chosen),
    };
    let locking = |locking: Locking| locking == Locking::Off;
    first(&[
        (old.kind == new.kind, "driver"),
        (old.filename == new.filename, "filename"),
        (engine(old.engine) == engine(new.engine), "aio"),
        (locking(old.locking) == locking(new.locking), "locking"),
    ])
}

fn nbd(old: &NbdOptions, new: &NbdOptions) -> Option<&'static str> {
    let server = match (&old.server, &new.server) {
        (Server::Unix(_), Server::Unix(_)) => "server.path",
        (Server::Inet(old), Server::Inet(new)) if old.host != new.host => "server.host",
        (Server::Inet(old), Server::Inet(new)) if old.port != new.port => "server.port",
        (Server::Inet(_), Server::Inet(_)) => "server",
        _ => "server.type",
    };
    first(&[
        (old.server == new.server, server),
        (old.export == new.export, "export"),
        (old.tls == new.tls, "tls-creds"),
        (old.context == new.context, "x-dirty-bitmap"),
        (
            old.reconnect_delay == new.reconnect_delay,
            "reconnect-delay",
        ),
        (old.open_timeout == new.open_timeout, "open-timeout"),
    ])
}

fn filter(old: &FilterSpec, new: &FilterSpec) -> Option<&'static str> {
    match (old, new) {
        (
            FilterSpec::Blkdebug {
                options: a,
                config: x,
                ..
            },
            FilterSpec::Blkdebug {
                options: b,
                config: y,
                ..
            },
        ) => first(&[(x == y, "config")]).or(rules(a, b)),
        _ if std::mem::discriminant(old) == std::mem::discriminant(new) => None,
        _ => Some("driver"),
    }
}

fn rules(old: &blkdebug::Options, new: &blkdebug::Options) -> Option<&'static str> {
    let (was, is) = (&old.pretended, &new.pretended);
    first(&[
        (old.inject_error == new.inject_error, "inject-error"),
        (old.set_state == new.set_state, "set-state"),
        (was.align == is.align, "align"),
        (was.max_transfer == is.max_transfer, "max-transfer"),
        (was.opt_write_zero == is.opt_write_zero, "opt-write-zero"),
        (was.max_write_zero == is.max_write_zero, "max-write-zero"),
        (was.opt_discard == is.opt_discard, "opt-discard"),
        (was.max_discard == is.max_discard, "max-discard"),
        (old.takes == new.takes, "take-child-perms"),
        (old.unshares == new.unshares, "unshare-child-perms"),
    ])
}
