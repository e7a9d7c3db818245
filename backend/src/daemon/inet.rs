//! TCP sockets that listen, from addresses as QEMU spells them.
//!
//! The rule: a name may have several addresses, and each that can be listened on is; IPv6 sockets are for IPv6 alone, so
//! that the two never stand in each other's way.

use crate::cli::InetAddress;
use crate::process::error_text;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;

/// Clients that may wait to be let in.
const BACKLOG: i32 = 128;

/// Where to connect to, one after the other. Errors: in QSD's words.
pub(super) fn targets(address: &InetAddress) -> Result<Vec<SocketAddr>, String> {
    let (host, port) = (&address.host, &address.port);
    let unresolved = |why: String| format!("address resolution failed for {host}:{port}: {why}");
    let Ok(port) = port.parse::<u16>() else {
        return Err(unresolved(
            "Servname not supported for ai_socktype".to_owned(),
        ));
    };
    let hosts = resolve(address).map_err(|error| unresolved(lookup_text(&error)))?;
    let wanted = hosts.into_iter().filter(|host| wanted(address, host));
    Ok(wanted.map(|host| SocketAddr::new(host, port)).collect())
}

/// Listens. Errors: in QSD's words.
pub(super) fn listen(address: &InetAddress) -> Result<Vec<OwnedFd>, String> {
    let mut listeners = Vec::new();
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for target in targets(address)? {
        match first_free(target, address) {
            Ok(listener) => listeners.push(listener),
            Err(error) => failure = error,
        }
    }
    match listeners.is_empty() {
        true => Err(format!(
            "Failed to find an available port: {}",
            error_text(&failure)
        )),
        false => Ok(listeners),
    }
}

fn resolve(address: &InetAddress) -> io::Result<Vec<IpAddr>> {
    let host = address.host.as_str();
    if host.is_empty() {
        return Ok(vec![
            Ipv4Addr::UNSPECIFIED.into(),
            Ipv6Addr::UNSPECIFIED.into(),
        ]);
    }
    if address.numeric {
        let parsed = host.parse::<IpAddr>();
        return match parsed {
            Ok(ip) => Ok(vec![ip]),
            Err(_) => Err(io::Error::other("Name or service not known")),
        };
    }
    let mut hosts: Vec<IpAddr> = (host, 0).to_socket_addrs()?.map(|a| a.ip()).collect();
    hosts.dedup();
    Ok(hosts)
}

fn wanted(address: &InetAddress, host: &IpAddr) -> bool {
    let (this, other) = match host {
        IpAddr::V4(_) => (address.ipv4, address.ipv6),
        IpAddr::V6(_) => (address.ipv6, address.ipv4),
    };
    this.unwrap_or(other != Some(true))
}

fn first_free(first: SocketAddr, address: &InetAddress) -> io::Result<OwnedFd> {
    let (host, first) = (first.ip(), first.port());
    let mut port = first;
    loop {
        match listen_at(SocketAddr::new(host, port), address.keep_alive) {
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse
                    && port < address.to.unwrap_or(first) =>
            {
                port += 1;
            }
            done => return done,
        }
    }
}

fn listen_at(address: SocketAddr, keep_alive: bool) -> io::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if keep_alive {
        // Sockets that are accepted have it from the one that listens (tcp(7)).
        sockopt::set_socket_keepalive(&socket, true)?;
    }
    net::bind(&socket, &address)?;
    net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// What getaddrinfo(3) says, without what std says before it.
fn lookup_text(error: &io::Error) -> String {
    let text = error.to_string();
    match text.strip_prefix("failed to lookup address information: ") {
        Some(rest) => rest.to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(host: &str, ipv4: Option<bool>, ipv6: Option<bool>) -> InetAddress {
        InetAddress {
            host: host.to_owned(),
            port: "0".to_owned(),
            ipv4,
            ipv6,
            to: None,
            numeric: true,
            keep_alive: false,
        }
    }

    #[test]
    fn a_family_is_wanted_unless_only_the_other_is() {
        let v4 = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let table = [
            (None, None, true),
            (Some(true), None, true),
            (None, Some(true), false),
            (Some(false), None, false),
            (None, Some(false), true),
            (Some(true), Some(true), true),
        ];
        for (ipv4, ipv6, expected) in table {
            assert_eq!(wanted(&address("", ipv4, ipv6), &v4), expected);
        }
    }

    #[test]
    fn a_port_that_is_taken_is_an_error_and_the_next_is_tried_if_there_may_be_one() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = taken.local_addr().expect("an address").port();
        let mut wish = address("127.0.0.1", None, None);
        wish.port = port.to_string();
        let refusal = listen(&wish).expect_err("taken");
        let expected = "Failed to find an available port: Address already in use";
        assert_eq!(refusal, expected);
        wish.to = Some(u16::MAX);
        assert_eq!(listen(&wish).expect("another").len(), 1);
    }

    #[test]
    fn what_is_no_address_is_not_looked_up_when_that_was_said() {
        let refusal = listen(&address("localhost", None, None)).expect_err("a name");
        assert_eq!(
            refusal,
            "address resolution failed for localhost:0: Name or service not known"
        );
    }
}
