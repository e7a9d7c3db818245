//! What a client's node is called: the address of its export as a URI (NBD's doc/uri.md), and its options.

use super::{NbdOptions, Server, Tls};
use crate::graph::name::{Described, Setting, Short};

/// What there is to say of a node with those options. Passed sockets have no address.
pub(super) fn described(options: &NbdOptions) -> Described {
    let text = |name: &str, value: &str| (name.to_owned(), Setting::Text(value.to_owned()));
    let export = options.export.as_str();
    let (mut settings, short) = match &options.server {
        Server::Unix(path) => {
            let path = path.display().to_string();
            let slash = if export.is_empty() { "" } else { "/" };
            let uri = format!("nbd+unix://{slash}{export}?socket={path}");
            let server = vec![text("server.type", "unix"), text("server.path", &path)];
            (server, Short::Own(uri))
        }
        Server::Inet(inet) => {
            let (host, port) = (&inet.host, &inet.port);
            let slash = if export.is_empty() { "" } else { "/" };
            let uri = format!("nbd://{host}:{port}{slash}{export}");
            let server = vec![
                text("server.type", "inet"),
                text("server.host", host),
                text("server.port", port),
            ];
            (server, Short::Own(uri))
        }
        Server::Passed(number) => {
            let number = number.to_string();
            let server = vec![text("server.type", "fd"), text("server.str", &number)];
            (server, Short::None)
        }
        Server::Connected(_) => (vec![text("server.type", "fd")], Short::None),
    };
    if !export.is_empty() {
        settings.push(text("export", export));
    }
    if let Tls::Named { creds, hostname } = &options.tls {
        settings.push(text("tls-creds", creds));
        settings.extend(hostname.iter().map(|name| text("tls-hostname", name)));
    }
    Described { settings, short }
}
