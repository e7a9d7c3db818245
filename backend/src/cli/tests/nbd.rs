//! `driver=nbd`: where servers are, and what is asked of them.

use super::node;
use crate::cli::{DriverOptions, NbdClientOptions, NbdFamily, NbdInetServer, NbdServerAt, NbdTls};

fn nbd(argument: &str) -> NbdClientOptions {
    match node(argument).driver {
        DriverOptions::Nbd(nbd) => *nbd,
        other => panic!("{argument}: {other:?}"),
    }
}

fn refusal(argument: &str) -> String {
    let argument = format!("nbd,node-name=n,{argument}");
    super::one("--blockdev", &argument).expect_err(&argument)
}

#[test]
fn a_server_has_the_defaults_of_qemu() {
    let unix = nbd("nbd,node-name=n,server.type=unix,server.path=/s");
    let expected = NbdClientOptions {
        server: NbdServerAt::Unix("/s".into()),
        export: String::new(),
        tls: None,
        x_dirty_bitmap: None,
        reconnect_delay_s: 0,
        open_timeout_s: 0,
    };
    assert_eq!(unix, expected);
}

#[test]
fn every_option_is_taken() {
    let all = nbd(
        "nbd,node-name=n,server.type=inet,server.host=h,server.port=10809,server.numeric=off,\
         server.ipv4=on,server.keep-alive=off,export=e,tls-creds=t,tls-hostname=other,\
         x-dirty-bitmap=qemu:dirty-bitmap:b,reconnect-delay=10,open-timeout=4294967295",
    );
    let expected = NbdClientOptions {
        server: NbdServerAt::Inet(NbdInetServer {
            host: "h".into(),
            port: "10809".into(),
            numeric: false,
            family: NbdFamily::V4,
            keep_alive: false,
        }),
        export: "e".into(),
        tls: Some(NbdTls {
            creds: "t".into(),
            hostname: Some("other".into()),
        }),
        x_dirty_bitmap: Some("qemu:dirty-bitmap:b".into()),
        reconnect_delay_s: 10,
        open_timeout_s: u32::MAX,
    };
    assert_eq!(all, expected);
    let fd = nbd("nbd,node-name=n,server.type=fd,server.str=7");
    assert_eq!(fd.server, NbdServerAt::ConnectedFd(7));
}

#[test]
fn families_combine_as_with_qemu() {
    let family = |more: &str| {
        let argument =
            format!("nbd,node-name=n,server.type=inet,server.host=h,server.port=1{more}");
        match nbd(&argument).server {
            NbdServerAt::Inet(inet) => inet.family,
            other => panic!("{other:?}"),
        }
    };
    for (more, expected) in [
        ("", NbdFamily::Any),
        (",server.ipv4=on", NbdFamily::V4),
        (",server.ipv4=off", NbdFamily::V6),
        (",server.ipv6=on", NbdFamily::V6),
        (",server.ipv6=off", NbdFamily::V4),
        (",server.ipv4=on,server.ipv6=on", NbdFamily::Any),
        (",server.ipv4=on,server.ipv6=off", NbdFamily::V4),
        (",server.ipv4=off,server.ipv6=on", NbdFamily::V6),
    ] {
        assert_eq!(family(more), expected, "{more}");
    }
}

/// The words are those of qemu-storage-daemon 10.0.2, but where it has no such refusal.
#[test]
fn refusals_of_servers() {
    for (argument, expected) in [
        ("export=e", "Parameter 'server' is missing"),
        (
            "server=foo",
            "Invalid parameter type for 'server', expected: object",
        ),
        ("server.path=/s", "Parameter 'server.type' is missing"),
        ("server.type=unix", "Parameter 'server.path' is missing"),
        (
            "server.type=bogus",
            "Parameter 'type' does not accept value 'bogus'",
        ),
        (
            "server.type=inet,server.host=h",
            "Parameter 'server.port' is missing",
        ),
        (
            "server.type=inet,server.host=h,server.port=1,server.ipv4=off,server.ipv6=off",
            "Cannot disable IPv4 and IPv6 at same time",
        ),
        ("server.type=fd,server.str=x", "Unable to parse FD number x"),
        (
            "server.type=unix,server.path=/s,path=/s",
            "Parameter 'path' is unexpected",
        ),
        (
            "server.type=unix,server.path=/s,reconnect-delay=-1",
            "Parameter 'reconnect-delay' expects uint32_t",
        ),
        (
            "server.type=unix,server.path=/s,tls-hostname=h",
            "'tls-hostname' needs 'tls-creds'",
        ),
        (
            "server.type=vsock,server.cid=3,server.port=1",
            "Parameter 'type' does not accept value 'vsock'",
        ),
    ] {
        assert_eq!(refusal(argument), expected, "{argument}");
    }
    let long = "x".repeat(4097);
    assert_eq!(
        refusal(&format!("server.type=unix,server.path=/s,export={long}")),
        "export name too long to send to server"
    );
    let long = "x".repeat(108);
    assert_eq!(
        refusal(&format!("server.type=unix,server.path={long}")),
        format!("UNIX socket path '{long}' is too long\nPath must be less than 108 bytes")
    );
}
