//! Credentials from files: what is refused and in which words, and that two ends made of one authority shake hands.

use crate::support;
use blockgraph::tls::{Endpoint, SanityCheck, TlsCreds, TlsOptions, VerifyPeer};
use rustls::{ClientConnection, ServerConnection};
use std::fs;
use std::path::Path;
use support::pki;

fn options(dir: &Path, endpoint: Endpoint) -> TlsOptions {
    TlsOptions {
        dir: dir.to_owned(),
        endpoint,
        verify_peer: VerifyPeer::Yes,
        sanity_check: SanityCheck::Yes,
    }
}

fn load(dir: &Path, endpoint: Endpoint) -> TlsCreds {
    TlsCreds::load(&options(dir, endpoint)).expect("credentials")
}

/// Copies an authority's files, changes some, and returns what loading them as a server's then says.
fn refusal(from: &Path, change: impl FnOnce(&Path)) -> String {
    let to = tempfile::tempdir().expect("a directory");
    for file in fs::read_dir(from).expect("listed") {
        let file = file.expect("an entry");
        fs::copy(file.path(), to.path().join(file.file_name())).expect("copied");
    }
    change(to.path());
    let error = TlsCreds::load(&options(to.path(), Endpoint::Server)).expect_err("refused");
    error
        .to_string()
        .replace(&to.path().display().to_string(), "DIR")
}

#[test]
fn wrong_files_are_refused_by_name() {
    let dir = tempfile::tempdir().expect("a directory");
    pki::authority(dir.path());
    let dir = dir.path();
    let spoil =
        |name: &'static str| refusal(dir, move |d| fs::write(d.join(name), "x").expect("written"));
    let lose = |name: &'static str| {
        refusal(dir, move |d| {
            fs::remove_file(d.join(name)).expect("removed")
        })
    };
    for name in ["ca-cert.pem", "server-cert.pem", "server-key.pem"] {
        assert_eq!(
            lose(name),
            format!("Unable to access credentials DIR/{name}: No such file or directory")
        );
    }
    assert_eq!(
        spoil("ca-cert.pem"),
        "Unable to import CA certificate list DIR/ca-cert.pem"
    );
    for name in ["server-cert.pem", "server-key.pem"] {
        let text = spoil(name);
        let pair = "Cannot load certificate 'DIR/server-cert.pem' & key 'DIR/server-key.pem': ";
        assert!(text.starts_with(pair), "{text}");
    }
    assert!(spoil("ca-crl.pem").starts_with("Cannot load CRL 'DIR/ca-crl.pem': "));
    let large = refusal(dir, |d| {
        fs::write(d.join("ca-cert.pem"), vec![b'x'; 2 << 20]).expect("written");
    });
    assert!(large.contains("DIR/ca-cert.pem: larger than"), "{large}");
}

#[test]
fn our_own_certificate_is_looked_at_first() {
    let dir = tempfile::tempdir().expect("a directory");
    pki::authority(dir.path());
    let dir = dir.path();
    let mismatch = refusal(dir, |d| {
        fs::copy(d.join("client-key.pem"), d.join("server-key.pem")).expect("copied");
    });
    assert_eq!(
        mismatch,
        "Cannot load certificate 'DIR/server-cert.pem' & key 'DIR/server-key.pem': \
         The certificate and the given key do not match."
    );
    let expired = refusal(dir, |d| pki::leaf(d, "server", "-1"));
    assert_eq!(
        expired,
        "The server certificate DIR/server-cert.pem has expired"
    );
    let stranger = refusal(dir, |d| {
        let other = tempfile::tempdir().expect("a directory");
        pki::authority(other.path());
        for name in ["server-cert.pem", "server-key.pem"] {
            fs::copy(other.path().join(name), d.join(name)).expect("copied");
        }
    });
    assert_eq!(
        stranger,
        "Our own certificate DIR/server-cert.pem failed validation against DIR/ca-cert.pem: \
         The certificate hasn't got a known issuer"
    );
}

#[test]
fn credentials_are_for_one_end() {
    let dir = tempfile::tempdir().expect("a directory");
    pki::authority(dir.path());
    let client = load(dir.path(), Endpoint::Client);
    let error = client.server_config().expect_err("refused").to_string();
    assert_eq!(error, "Expected TLS credentials for a server endpoint");
    let server = load(dir.path(), Endpoint::Server);
    let error = server.client_config(None).expect_err("refused").to_string();
    assert_eq!(error, "Expected TLS credentials for a client endpoint");
    let error = client.client_config(Some("a b")).expect_err("refused");
    assert!(error.to_string().contains("'a b'"));
    let error = client.client_config(None).expect_err("refused").to_string();
    assert_eq!(error, "No hostname for certificate validation");
}

/// Both ends in memory. Errors: whichever end refuses first.
fn shake(
    client: &mut ClientConnection,
    server: &mut ServerConnection,
) -> Result<(), rustls::Error> {
    for _ in 0..10 {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).expect("memory");
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            server.read_tls(&mut rest).expect("memory");
            server.process_new_packets()?;
        }
        bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).expect("memory");
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            client.read_tls(&mut rest).expect("memory");
            client.process_new_packets()?;
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok(())
}

fn meet(client: &TlsCreds, name: Option<&str>, server: &TlsCreds) -> Result<(), rustls::Error> {
    let client = client.client_config(name).expect("a client's");
    let config = server.server_config().expect("a server's");
    let mut server = ServerConnection::new(config).expect("a session");
    shake(&mut client.session().expect("a session"), &mut server)
}

#[test]
fn ends_of_one_authority_shake_hands_and_others_do_not() {
    let dir = tempfile::tempdir().expect("a directory");
    pki::authority(dir.path());
    let other = tempfile::tempdir().expect("a directory");
    pki::authority(other.path());
    let (client, server) = (
        load(dir.path(), Endpoint::Client),
        load(dir.path(), Endpoint::Server),
    );
    for name in [Some("localhost"), Some("127.0.0.1")] {
        meet(&client, name, &server).expect("friends");
    }
    for name in ["elsewhere", "127.0.0.2"] {
        meet(&client, Some(name), &server).expect_err("not its name");
    }
    let stranger = load(other.path(), Endpoint::Client);
    meet(&stranger, Some("localhost"), &server).expect_err("a server of another authority");
    fs::remove_file(dir.path().join("client-key.pem")).expect("removed");
    let bare = load(dir.path(), Endpoint::Client);
    meet(&bare, Some("localhost"), &server).expect_err("a client without a certificate");
}

#[test]
fn who_need_not_prove_himself_is_let_in() {
    let dir = tempfile::tempdir().expect("a directory");
    pki::authority(dir.path());
    let other = tempfile::tempdir().expect("a directory");
    pki::authority(other.path());
    let lenient = |dir: &Path, endpoint| {
        let mut options = options(dir, endpoint);
        options.verify_peer = VerifyPeer::No;
        TlsCreds::load(&options).expect("credentials")
    };
    let client = lenient(other.path(), Endpoint::Client);
    let server = lenient(dir.path(), Endpoint::Server);
    for name in [Some("elsewhere"), None] {
        meet(&client, name, &server).expect("nobody asks");
    }
}
