//! Disks that another server has: over TLS from another daemon of ours, and from one that goes away for good.

use rustix::process::Signal;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;
use tests::client::blk::{OK, Request};
use tests::client::guest::{Guest, Setup};
use tests::client::pattern::pattern;

use super::support::{Place, Start, export, file, until, wait_taken, words};

const DISK_BYTES: u64 = 8 << 20;

fn openssl(dir: &Path, line: &str) {
    let status = Command::new("openssl")
        .args(line.split_whitespace())
        .current_dir(dir)
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "openssl {line}");
}

/// A certificate authority, a server called localhost and a client.
fn authority(dir: &Path) {
    let key = "ecparam -name prime256v1 -genkey -noout -out";
    openssl(dir, &format!("{key} ca-key.pem"));
    openssl(
        dir,
        "req -x509 -new -key ca-key.pem -subj /CN=ca -days 3 -out ca-cert.pem \
         -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign",
    );
    for who in ["server", "client"] {
        let extensions = format!("extendedKeyUsage={who}Auth\nsubjectAltName=DNS:localhost\n");
        fs::write(dir.join("extensions"), extensions).unwrap();
        openssl(dir, &format!("{key} key"));
        openssl(
            dir,
            &format!("pkcs8 -topk8 -nocrypt -in key -out {who}-key.pem"),
        );
        openssl(
            dir,
            &format!("req -new -key {who}-key.pem -subj /CN={who} -out csr"),
        );
        openssl(
            dir,
            &format!(
                "x509 -req -in csr -CA ca-cert.pem -CAkey ca-key.pem -CAcreateserial -days 3 \
                 -extfile extensions -out {who}-cert.pem"
            ),
        );
    }
}

/// A port of this machine that nobody else uses just now.
fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// Writes through a guest, reads it back, and returns what was written at 1 MiB.
fn write_and_read(socket: &Path) -> Vec<u8> {
    let mut guest = Guest::start(socket, Setup::default()).unwrap();
    let payload = pattern(7, 64 << 10);
    let write = Request::write(2048, payload.clone());
    assert_eq!(guest.run(0, &write).unwrap().status, OK);
    let done = guest.run(0, &Request::read(2048, 64 << 10)).unwrap();
    assert_eq!((done.status, done.data.as_slice()), (OK, &payload[..]));
    payload
}

#[test]
fn a_guest_writes_through_two_daemons_over_tls() {
    let place = Place::new();
    authority(place.root());
    let (disk, socket, port) = (place.disk("d", DISK_BYTES), place.path("s"), free_port());
    let dir = place.root().display();
    let mut arguments = words(&format!(
        "--object tls-creds-x509,id=t,dir={dir},endpoint=server \
         --nbd-server addr.type=inet,addr.host=127.0.0.1,addr.port={port},tls-creds=t"
    ));
    arguments.extend(file("f", &disk, ""));
    arguments.extend(words("--export nbd,id=e,node-name=f,name=disk,writable=on"));
    let server = Start::new(arguments).ready();
    let mut arguments = words(&format!(
        "--object tls-creds-x509,id=t,dir={dir},endpoint=client \
         --blockdev nbd,node-name=n,server.type=inet,server.host=localhost,server.port={port},\
         server.ipv4=on,tls-creds=t,export=disk"
    ));
    arguments.extend(export("e", "n", &socket, ""));
    let client = Start::new(arguments).ready();
    let written = write_and_read(&socket);
    client.stop();
    server.stop();
    assert_eq!(
        fs::read(&disk).unwrap()[1 << 20..][..written.len()],
        written
    );
}

/// qemu-nbd, killed when dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn qemu_nbd(place: &Place, disk: &Path) -> Server {
    let socket = place.path("nbd");
    let mut arguments = words(&format!("-t -f raw -x disk -k {}", socket.display()));
    arguments.push(disk.display().to_string());
    let child = Command::new("qemu-nbd").args(arguments).spawn().unwrap();
    let server = Server(child);
    until("qemu-nbd listens", || socket.exists());
    server
}

#[test]
fn a_server_that_is_gone_does_not_hold_up_the_end() {
    let place = Place::new();
    let (disk, socket) = (place.disk("d", DISK_BYTES), place.path("s"));
    let server = qemu_nbd(&place, &disk);
    let mut arguments = words(&format!(
        "--blockdev nbd,node-name=n,server.type=unix,server.path={},export=disk,reconnect-delay=3600",
        place.path("nbd").display()
    ));
    arguments.extend(export("e", "n", &socket, ""));
    let mut client = Start::new(arguments).ready();
    write_and_read(&socket);
    let mut guest = Guest::start(&socket, Setup::default()).unwrap();
    drop(server);
    for i in 0..16 {
        guest.add(0, &Request::write(i * 8, pattern(i, 4096)));
    }
    guest.submit(0);
    wait_taken(&guest, 0, 16);
    let begun = Instant::now();
    client.signal(Signal::TERM);
    // What was written and not flushed may be lost with the server, and that is said.
    assert_eq!(client.wait().code(), Some(1));
    println!("ended after {:?}", begun.elapsed());
    let said = client.stderr();
    assert!(said.contains("cannot flush node n"), "{said}");
    assert!(!socket.exists());
}
