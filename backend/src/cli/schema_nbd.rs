//! The options of the NBD server, its exports and TLS credentials, member by member in the order of QAPI's schema.

use super::error::{Later, Refusal};
use super::options::{
    InetAddress, NBD_CONNECTIONS_MAX_DEFAULT, NBD_HANDSHAKE_MAX_S_DEFAULT,
    NBD_SEND_TIMEOUT_S_DEFAULT, NbdAddress, NbdOptions, NbdServerOptions, TlsCredsX509Options,
    TlsEndpoint,
};
use super::schema_export::{self, Socket};
use super::visit::Object;

/// Names and descriptions are strings of the protocol, which have at most so many bytes (NBD proto.md, "Values").
const STRING_BYTES_MAX: usize = 4096;

/// Reads `--nbd-server`.
///
/// # Errors
/// What cannot be taken, in QEMU's words.
pub fn nbd_server(mut o: Object) -> Result<NbdServerOptions, Refusal> {
    let mut later = Later::default();
    let handshake_max_s = o.uint32("handshake-max-seconds")?;
    let tls_creds = o.string("tls-creds")?;
    let tls_authz = o.string("tls-authz")?;
    later.check(tls_authz.is_none(), || Refusal::unsupported("'tls-authz'"));
    let max_connections = o.uint32("max-connections")?;
    let addr = address(o.required_object("addr")?, &mut later)?;
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

fn address(mut o: Object, later: &mut Later) -> Result<NbdAddress, Refusal> {
    let Some(socket) = o.word("type", schema_export::SOCKETS)? else {
        return Err(Refusal::missing(&o.full_name("type")));
    };
    let address = match socket {
        Socket::Unix => NbdAddress::Unix(schema_export::unix_path(&mut o, later)?),
        Socket::Fd => NbdAddress::ListeningFd(schema_export::fd(&mut o, later)?),
        Socket::Inet => NbdAddress::Inet(inet(&mut o, later)?),
        Socket::Vsock => {
            return Err(Refusal::unsupported("address type 'vsock'"));
        }
        Socket::ConnectedFd => return Err(Refusal::wrong_value("type", "connected-fd")),
    };
    o.finish()?;
    Ok(address)
}

fn inet(o: &mut Object, later: &mut Later) -> Result<InetAddress, Refusal> {
    let host = o.required_string("host")?;
    let port = o.required_string("port")?;
    let numeric = o.boolean("numeric")?.unwrap_or(false);
    let to = o.uint16("to")?;
    let ipv4 = o.boolean("ipv4")?;
    let ipv6 = o.boolean("ipv6")?;
    let keep_alive = o.boolean("keep-alive")?.unwrap_or(false);
    let mptcp = o.boolean("mptcp")?.unwrap_or(false);
    later.check(!mptcp, || Refusal::unsupported("'addr.mptcp=on'"));
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
    if o.has("bitmaps") {
        return Err(Refusal::unsupported("'bitmaps'"));
    }
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
        allocation_depth,
    })
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
    let priority = o.string("priority")?;
    later.check(priority.is_none(), || Refusal::unsupported("'priority'"));
    let sanity_check = o.boolean("sanity-check")?.unwrap_or(true);
    let password = o.string("passwordid")?;
    later.check(password.is_none(), || Refusal::unsupported("'passwordid'"));
    Ok(TlsCredsX509Options {
        id,
        dir: dir.unwrap_or_default().into(),
        endpoint: endpoint.unwrap_or(TlsEndpoint::Client),
        verify_peer,
        sanity_check,
    })
}
