//! A certificate authority of the test's own, by the openssl program, in the files tls-creds-x509 expects.

use std::path::Path;
use std::process::{Command, Stdio};

/// Writes ca-, server- and client- certificates and keys into `dir`, which must exist. The server is `localhost` and
/// 127.0.0.1.
pub fn authority(dir: &Path) {
    run(
        dir,
        "openssl ecparam -name prime256v1 -genkey -noout -out ca-key.pem",
    );
    run(
        dir,
        "openssl req -x509 -new -key ca-key.pem -subj /CN=testca -days 30 -out ca-cert.pem \
         -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign",
    );
    leaf(dir, "server", "30");
    leaf(dir, "client", "30");
}

/// Makes `who` (server or client) a certificate that ends in that many days (`-1`: has ended yesterday).
pub fn leaf(dir: &Path, who: &str, days: &str) {
    let usage = format!(
        "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature,keyEncipherment\n\
         extendedKeyUsage={who}Auth\nsubjectAltName=DNS:localhost,IP:127.0.0.1\n"
    );
    std::fs::write(dir.join("ext"), usage).expect("written");
    run(
        dir,
        "openssl ecparam -name prime256v1 -genkey -noout -out key.sec1",
    );
    run(
        dir,
        &format!("openssl pkcs8 -topk8 -nocrypt -in key.sec1 -out {who}-key.pem"),
    );
    run(
        dir,
        &format!("openssl req -new -key {who}-key.pem -subj /CN={who} -out {who}.csr"),
    );
    run(
        dir,
        &format!(
            "openssl x509 -req -in {who}.csr -CA ca-cert.pem -CAkey ca-key.pem -CAcreateserial \
             -days {days} -extfile ext -out {who}-cert.pem"
        ),
    );
}

fn run(dir: &Path, line: &str) {
    let mut words = line.split_whitespace();
    let status = Command::new(words.next().expect("a program"))
        .args(words)
        .current_dir(dir)
        .stderr(Stdio::null())
        .status()
        .expect("openssl runs");
    assert!(status.success(), "{line}");
}
