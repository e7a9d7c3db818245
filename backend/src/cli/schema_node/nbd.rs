//! `nbd`: a disk that a server has.

use crate::cli::error::{Later, Refusal};
use crate::cli::options::{NbdClientOptions, NbdFamily, NbdInetServer, NbdServerAt, NbdTls};
use crate::cli::scalar;
use crate::cli::visit::Object;

/// `sun_path` of unix(7), with its terminating NUL.
const UNIX_PATH_LEN_BYTES: usize = 108;
/// Names are strings of the protocol, which have at most so many bytes (NBD proto.md, "Values").
const STRING_LEN_MAX_BYTES: usize = 4096;

#[derive(Clone, Copy)]
enum Socket {
    Inet,
    Unix,
    Fd,
}

const SOCKETS: &[(&str, Socket)] = &[
    ("inet", Socket::Inet),
    ("unix", Socket::Unix),
    ("fd", Socket::Fd),
];

pub(super) fn read(o: &mut Object, later: &mut Later) -> Result<NbdClientOptions, Refusal> {
    let server = server(o.required_object("server")?, later)?;
    let export = o.string("export")?.unwrap_or_default();
    let creds = o.string("tls-creds")?;
    let hostname = o.string("tls-hostname")?;
    let x_dirty_bitmap = o.string("x-dirty-bitmap")?;
    let reconnect_delay_s = o.uint32("reconnect-delay")?.unwrap_or(0);
    let open_timeout_s = o.uint32("open-timeout")?.unwrap_or(0);
    later.check(export.len() <= STRING_LEN_MAX_BYTES, || {
        Refusal::new("export name too long to send to server")
    });
    let query = x_dirty_bitmap.as_ref().map_or(0, String::len);
    later.check(query <= STRING_LEN_MAX_BYTES, || {
        Refusal::new("x-dirty-bitmap query too long to send to server")
    });
    // QEMU takes it and never looks at it.
    later.check(hostname.is_none() || creds.is_some(), || {
        Refusal::new("'tls-hostname' needs 'tls-creds'")
    });
    Ok(NbdClientOptions {
        server,
        export,
        tls: creds.map(|creds| NbdTls { creds, hostname }),
        x_dirty_bitmap,
        reconnect_delay_s,
        open_timeout_s,
    })
}

fn server(mut o: Object, later: &mut Later) -> Result<NbdServerAt, Refusal> {
    let Some(socket) = o.word("type", SOCKETS)? else {
        return Err(Refusal::missing(o.full_name("type")));
    };
    let server = match socket {
        Socket::Unix => unix(&mut o, later)?,
        Socket::Inet => NbdServerAt::Inet(inet(&mut o, later)?),
        Socket::Fd => fd(&mut o, later)?,
    };
    o.finish()?;
    Ok(server)
}

fn unix(o: &mut Object, later: &mut Later) -> Result<NbdServerAt, Refusal> {
    let path = o.required_string("path")?;
    later.check(path.len() < UNIX_PATH_LEN_BYTES, || {
        Refusal::new(format!(
            "UNIX socket path '{path}' is too long\nPath must be less than {UNIX_PATH_LEN_BYTES} bytes"
        ))
    });
    Ok(NbdServerAt::Unix(path.into()))
}

fn inet(o: &mut Object, later: &mut Later) -> Result<NbdInetServer, Refusal> {
    let host = o.required_string("host")?;
    let port = o.required_string("port")?;
    let numeric = o.boolean("numeric")?.unwrap_or(false);
    let ipv4 = o.boolean("ipv4")?;
    let ipv6 = o.boolean("ipv6")?;
    later.check((ipv4, ipv6) != (Some(false), Some(false)), || {
        Refusal::new("Cannot disable IPv4 and IPv6 at same time")
    });
    // Not said is on: a server whose host vanished would otherwise never be missed.
    let keep_alive = o.boolean("keep-alive")?.unwrap_or(true);
    Ok(NbdInetServer {
        host,
        port,
        numeric,
        family: family(ipv4, ipv6),
        keep_alive,
    })
}

/// As QEMU combines the two.
fn family(ipv4: Option<bool>, ipv6: Option<bool>) -> NbdFamily {
    match (ipv4, ipv6) {
        (Some(true), Some(true)) | (None, None) => NbdFamily::Any,
        (_, Some(true)) | (Some(false), _) => NbdFamily::V6,
        (Some(true), _) | (_, Some(false)) => NbdFamily::V4,
    }
}

fn fd(o: &mut Object, later: &mut Later) -> Result<NbdServerAt, Refusal> {
    let text = o.required_string("str")?;
    // Too large for a descriptor is a number all the same: no such descriptor.
    let number = scalar::int64(&text).map(|fd| i32::try_from(fd).unwrap_or(-1));
    later.check(number.is_some(), || {
        Refusal::new(format!("Unable to parse FD number {text}"))
    });
    later.check(number.unwrap_or(-1) >= 0, || {
        Refusal::new(format!("File descriptor '{text}' is not a socket"))
    });
    Ok(NbdServerAt::ConnectedFd(number.unwrap_or(-1)))
}
