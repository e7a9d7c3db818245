//! The options of the NBD server, of its exports, and of the credentials it encrypts with.

use std::path::PathBuf;

/// `--nbd-server`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NbdServerOptions {
    /// Where clients knock.
    pub addr: NbdAddress,
    /// `tls-creds`: the id of an object; nothing is served in the clear then.
    pub tls_creds: Option<String>,
    /// `max-connections`: clients at once; 0: any number.
    pub max_connections: u32,
    /// `handshake-max-seconds`: how long a handshake may take; 0: for ever.
    pub handshake_max_s: u32,
    /// `x-send-timeout`: how long a client may leave its replies unread, in seconds.
    pub send_timeout_s: u32,
}

/// `max-connections` when not given.
pub const NBD_CONNECTIONS_MAX_DEFAULT: u32 = 100;
/// `handshake-max-seconds` when not given.
pub const NBD_HANDSHAKE_MAX_S_DEFAULT: u32 = 10;
/// `x-send-timeout` when not given.
pub const NBD_SEND_TIMEOUT_S_DEFAULT: u32 = 30;

/// Where NBD clients knock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NbdAddress {
    /// `addr.type=unix`: listen on this path.
    Unix(PathBuf),
    /// `addr.type=inet`
    Inet(InetAddress),
    /// `addr.type=fd`: an inherited listening socket, by number.
    ListeningFd(i32),
}

/// `addr.type=inet`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InetAddress {
    /// A name or an address; empty: any of ours.
    pub host: String,
    /// A port or a service's name.
    pub port: String,
    /// `ipv4`: whether to listen there; `None`: unless the other is asked for.
    pub ipv4: Option<bool>,
    /// `ipv6`, likewise.
    pub ipv6: Option<bool>,
    /// `to`: the last port to try.
    pub to: Option<u16>,
    /// `numeric`: the host is an address and not looked up.
    pub numeric: bool,
    /// `keep-alive`: ask a silent client now and then whether it is still there.
    pub keep_alive: bool,
}

/// `--export nbd`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NbdOptions {
    /// What clients call it; `None`: the node's name.
    pub name: Option<String>,
    /// For people.
    pub description: Option<String>,
    /// `bitmaps`: dirty bitmaps on offer, in the order they are told in.
    pub bitmaps: Vec<BitmapRef>,
    /// `allocation-depth`: is `qemu:allocation-depth` on offer?
    pub allocation_depth: bool,
}

/// A dirty bitmap: by its name alone where a node is known, or by its node's and its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BitmapRef {
    /// Whose; `None`: of the node it is said beside.
    pub node: Option<String>,
    /// Its name.
    pub name: String,
}

/// `--object tls-creds-x509`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsCredsX509Options {
    /// Well formed, not known to be free.
    pub id: String,
    /// Where `ca-cert.pem` and the others are.
    pub dir: PathBuf,
    /// For the end that listens?
    pub endpoint: TlsEndpoint,
    /// `verify-peer`
    pub verify_peer: bool,
    /// `sanity-check`
    pub sanity_check: bool,
}

/// `endpoint`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsEndpoint {
    /// The end that connects.
    Client,
    /// The end that listens.
    Server,
}
