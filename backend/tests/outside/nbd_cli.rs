//! What is wrong with the options of the NBD server, its exports and credentials is said in the words of
//! qemu-storage-daemon, which is run beside ours.

use std::process::{Command, Stdio};

const QSD: &str = "qemu-storage-daemon";
const NODE: &str = "--blockdev null-co,node-name=n";
const SERVER: &str = "--nbd-server addr.type=unix,addr.path=DIR/s";
const EXPORT: &str = "--export nbd,id=e,node-name=n";

/// Each begins with what `NODE`, `SERVER` and `EXPORT` stand for.
const LINES: &[&str] = &[
    "NODE EXPORT",
    "NODE SERVER SERVER",
    "NODE SERVER EXPORT --export nbd,id=f,node-name=n",
    "NODE SERVER EXPORT --export nbd,id=e,node-name=n,name=other",
    "NODE SERVER EXPORT,name=a --export nbd,id=f,node-name=n,name=a",
    "SERVER --export nbd,id=e,node-name=missing",
    "NODE SERVER EXPORT,bogus=1",
    "NODE SERVER EXPORT,allocation-depth=maybe",
    "NODE SERVER EXPORT,name.x=1",
    "NODE SERVER --export nbd,node-name=n",
    "NODE SERVER --export nbd,id=e",
    "NODE SERVER --export nbd,id=1e,node-name=n",
    "--blockdev null-co,node-name=n,read-only=on SERVER EXPORT,writable=on",
    "NODE SERVER EXPORT,iothread=i0",
    "NODE EXPORT,iothread=i0",
    "NODE SERVER --object throttle-group,id=t EXPORT,iothread=t",
    "--object iothread,id=i NODE EXPORT,iothread=i",
    "--blockdev null-co,node-name=n,read-only=on SERVER EXPORT,writable=on,iothread=i0",
    "--nbd-server addr.type=unix,addr.path=/nonexistent/s",
    "--nbd-server addr.type=unix",
    "--nbd-server addr.type=nosuch",
    "--nbd-server addr.path=/x",
    "--nbd-server bogus=1",
    "--nbd-server x",
    "--nbd-server help",
    "SERVER,bogus=1",
    "SERVER,addr.bogus=1",
    "SERVER,max-connections=-1",
    "SERVER,max-connections=x",
    "SERVER,max-connections=4294967296",
    "SERVER,handshake-max-seconds=x",
    "SERVER,tls-creds=missing",
    "--object iothread,id=t SERVER,tls-creds=t",
    "--nbd-server addr.type=inet",
    "--nbd-server addr.type=inet,addr.host=127.0.0.1",
    "--nbd-server addr.type=inet,addr.host=127.0.0.1,addr.port=abc",
    "--nbd-server addr.type=inet,addr.host=nosuch.invalid,addr.port=1",
    "--nbd-server addr.type=inet,addr.host=127.0.0.1,addr.port=1,addr.ipv4=off,addr.ipv6=off",
    "--nbd-server addr.type=inet,addr.host=127.0.0.1,addr.port=1,addr.to=x",
    "--nbd-server addr.type=fd,addr.str=99",
    "--nbd-server addr.type=fd,addr.str=abc",
    "--nbd-server addr.type=fd",
    "--object tls-creds-x509,id=t,endpoint=server",
    "--object tls-creds-x509,id=t,dir=/nonexistent,endpoint=server",
    "--object tls-creds-x509,id=t,dir=/nonexistent,endpoint=nosuch",
    "--object tls-creds-x509,id=t,dir=/nonexistent,bogus=1",
    "--object tls-creds-x509,id=t,dir=/nonexistent,verify-peer=maybe",
    "--object tls-creds-x509,dir=/nonexistent",
];

fn run(program: &str, line: &str) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().to_str().expect("UTF-8").to_owned();
    let line = line
        .replace("NODE", NODE)
        .replace("SERVER", SERVER)
        .replace("EXPORT", EXPORT)
        .replace("DIR", &path);
    let output = Command::new(program)
        .args(line.split_whitespace())
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr).replace(&path, "DIR");
    (output.status.code(), stderr.replace(QSD, "virtioblkd"))
}

#[test]
fn wrong_options_are_refused_in_the_words_of_qemu_storage_daemon() {
    let mut differences = String::new();
    for line in LINES {
        let theirs = run(QSD, line);
        let ours = run(env!("CARGO_BIN_EXE_virtioblkd"), line);
        if theirs != ours {
            differences += &format!("{line}\n  QSD:  {theirs:?}\n  ours: {ours:?}\n");
        }
    }
    assert!(differences.is_empty(), "{differences}");
}

#[test]
fn names_and_descriptions_that_are_too_long_for_the_protocol_are_refused() {
    for option in ["name", "description"] {
        let long = "a".repeat(4097);
        let line = format!("NODE SERVER EXPORT,{option}={long}");
        let theirs = run(QSD, &line);
        assert_eq!(run(env!("CARGO_BIN_EXE_virtioblkd"), &line), theirs);
        assert_eq!(theirs.0, Some(1));
    }
}
