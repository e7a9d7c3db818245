//! `nbd`'s options: a disk that a server has.

use std::path::PathBuf;

/// `nbd`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NbdClientOptions {
    /// Where the server is.
    pub server: NbdServerAt,
    /// Which of its exports; empty is the default one.
    pub export: String,
    /// With TLS by these credentials, or without.
    pub tls: Option<NbdTls>,
    /// A context to report as block status instead of `base:allocation`.
    pub x_dirty_bitmap: Option<String>,
    /// How long requests wait for a lost connection.
    pub reconnect_delay_s: u32,
    /// For how long the first connection is attempted; 0: once.
    pub open_timeout_s: u32,
}

/// `tls-creds` and `tls-hostname`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NbdTls {
    /// The credentials' object.
    pub creds: String,
    /// Whom the server's certificate must name; `None`: the host that is connected to.
    pub hostname: Option<String>,
}

/// Where an NBD server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NbdServerAt {
    /// `server.type=unix`
    Unix(PathBuf),
    /// `server.type=inet`
    Inet(NbdInetServer),
    /// `server.type=fd`: an inherited connected socket, by number.
    ConnectedFd(i32),
}

/// `server.type=inet`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NbdInetServer {
    /// A name or a number.
    pub host: String,
    /// As given.
    pub port: String,
    /// The host is a number, not to be looked up.
    pub numeric: bool,
    /// Which of the host's addresses to try.
    pub family: NbdFamily,
    /// Whether an idle connection is probed.
    pub keep_alive: bool,
}

/// `ipv4` and `ipv6`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NbdFamily {
    /// Both, or nothing said.
    Any,
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
}
