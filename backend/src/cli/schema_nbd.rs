//! The options of the NBD server, its exports and TLS credentials, member by member in the order of QAPI's schema.

use super::error::{Later, Refusal};
use super::options::{
    BitmapRef, InetAddress, NBD_CONNECTIONS_MAX_DEFAULT, NBD_HANDSHAKE_MAX_S_DEFAULT,
    NBD_SEND_TIMEOUT_S_DEFAULT, NbdAddress, NbdOptions, NbdServerOptions, TlsCredsX509Options,
    TlsEndpoint,
};
use super::schema_export;
use super::visit::{NameOrObject, Object};

/// Names and descriptions are strings of the protocol, which have at most so many bytes (NBD proto.md, "Values").
const STRING_BYTES_MAX: usize = 4096;

/// Reads `--nbd-server`.
///
/// # Errors
/// What cannot be taken, in QEMU's words.
pub fn nbd_server(o: Object) -> Result<NbdServerOptions, Refusal> {
    server(o, address)
}

/// Reads `nbd-server-start`, whose address is spelled in the old way.
///
/// # Errors
/// What cannot be taken, in QEMU's words.
pub fn nbd_server_start(o: Object) -> Result<NbdServerOptions, Refusal> {
    server(o, legacy_address)
}

type ReadAddress = fn(Object, &mut Later) -> Result<NbdAddress, Refusal>;

fn server(mut o: Object, read_address: ReadAddress) -> Result<NbdServerOptions, Refusal> {
    let mut later = Later::default();
    let handshake_max_s = o.uint32("handshake-max-seconds")?;
    let tls_creds = o.string("tls-creds")?;
    let max_connections = o.uint32("max-connections")?;
    let addr = read_address(o.required_object("addr")?, &mut later)?;
    let send_timeout_s = o.uint32("x-send-timeout")?;
    later.check(send_timeout_s != Some(0), || {
        Refusal::new("x-send-timeout must be greater than 0")
    });
    o.finish()?;
    later.into_result()?;
    Ok(NbdServerOptions {
        addr,
        tls_creds,
        max_connections: max_connections.unwrap_or(NBD_CONNECTIONS_MAX_DEFAULT),
        handshake_max_s: handshake_max_s.unwrap_or(NBD_HANDSHAKE_MAX_S_DEFAULT),
        send_timeout_s: send_timeout_s.unwrap_or(NBD_SEND_TIMEOUT_S_DEFAULT),
    })
}

/// Where clients can knock.
const SOCKETS: &[(&str, Socket)] = &[
    ("inet", Socket::Inet),
    ("unix", Socket::Unix),
    ("fd", Socket::Fd),
];

#[derive(Clone, Copy)]
enum Socket {
    Inet,
    Unix,
    Fd,
}

fn socket_type(o: &mut Object) -> Result<Socket, Refusal> {
    let socket = o.word("type", SOCKETS)?;
    socket.ok_or_else(|| Refusal::missing(o.full_name("type")))
}

fn address(mut o: Object, later: &mut Later) -> Result<NbdAddress, Refusal> {
    let socket = socket_type(&mut o)?;
    address_of(socket, o, later)
}

/// The same with everything but the type in a box of its own.
fn legacy_address(mut o: Object, later: &mut Later) -> Result<NbdAddress, Refusal> {
    let socket = socket_type(&mut o)?;
    let data = o.required_object("data")?;
    o.finish()?;
    address_of(socket, data, later)
}

fn address_of(socket: Socket, mut o: Object, later: &mut Later) -> Result<NbdAddress, Refusal> {
    let address = match socket {
        Socket::Unix => NbdAddress::Unix(schema_export::unix_path(&mut o, later)?),
        Socket::Fd => NbdAddress::ListeningFd(schema_export::fd(&mut o, later)?),
        Socket::Inet => NbdAddress::Inet(inet(&mut o, later)?),
    };
    o.finish()?;
    Ok(address)
}

pub(super) fn inet(o: &mut Object, later: &mut Later) -> Result<InetAddress, Refusal> {
    let host = o.required_string("host")?;
    let port = o.required_string("port")?;
    let numeric = o.boolean("numeric")?.unwrap_or(false);
    let to = o.uint16("to")?;
    let ipv4 = o.boolean("ipv4")?;
    let ipv6 = o.boolean("ipv6")?;
    let keep_alive = o.boolean("keep-alive")?.unwrap_or(false);
    later.check(ipv4 != Some(false) || ipv6 != Some(false), || {
        Refusal::new("Cannot disable IPv4 and IPv6 at same time")
    });
    Ok(InetAddress {
        host,
        port,
        ipv4,
        ipv6,
        to,
        numeric,
        keep_alive,
    })
}

/// What `--export nbd` has besides what all exports have.
pub(super) fn nbd_export(o: &mut Object, later: &mut Later) -> Result<NbdOptions, Refusal> {
    let name = o.string("name")?;
    let description = o.string("description")?;
    let bitmaps = bitmap_refs(o, "bitmaps")?.unwrap_or_default();
    let allocation_depth = o.boolean("allocation-depth")?.unwrap_or(false);
    let fits = |text: &Option<String>| text.as_ref().is_none_or(|t| t.len() <= STRING_BYTES_MAX);
    later.check(fits(&name), || {
        let name = name.as_deref().unwrap_or_default();
        Refusal::new(format!("export name '{name}' too long"))
    });
    later.check(fits(&description), || {
        let description = description.as_deref().unwrap_or_default();
        Refusal::new(format!("description '{description}' too long"))
    });
    Ok(NbdOptions {
        name,
        description,
        bitmaps,
        allocation_depth,
    })
}

/// A list of bitmaps.
pub(crate) fn bitmap_refs(o: &mut Object, name: &str) -> Result<Option<Vec<BitmapRef>>, Refusal> {
    let Some(members) = o.names_or_objects(name, "BlockDirtyBitmapOrStr")? else {
        return Ok(None);
    };
    let refs = members.into_iter().map(|member| match member {
        NameOrObject::Name(name) => Ok(BitmapRef { node: None, name }),
        NameOrObject::Object(mut o) => {
            let node = Some(o.required_string("node")?);
            let name = o.required_string("name")?;
            o.finish()?;
            Ok(BitmapRef { node, name })
        }
    });
    refs.collect::<Result<_, _>>().map(Some)
}

/// What `--object tls-creds-x509` has.
pub(super) fn tls_creds_x509(
    o: &mut Object,
    id: String,
    later: &mut Later,
) -> Result<TlsCredsX509Options, Refusal> {
    let verify_peer = o.boolean("verify-peer")?.unwrap_or(true);
    let dir = o.string("dir")?;
    later.check(dir.is_some(), || {
        Refusal::new("Missing 'dir' property value")
    });
    let words = [
        ("client", TlsEndpoint::Client),
        ("server", TlsEndpoint::Server),
    ];
    let endpoint = o.word("endpoint", &words)?;
    let sanity_check = o.boolean("sanity-check")?.unwrap_or(true);
    Ok(TlsCredsX509Options {
        id,
        dir: dir.unwrap_or_default().into(),
        endpoint: endpoint.unwrap_or(TlsEndpoint::Client),
        verify_peer,
        sanity_check,
    })
}
