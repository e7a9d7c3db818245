//! One iothread for a guest's rings and for NBD clients.
//!
//! The rule: a client that reads nothing is nobody's trouble but its own.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use blockgraph::driver::nbd::wire::{
    Choose, Command as NbdCommand, CommandFlags, OptionHead, OptionKind, RequestHead,
};
use tests::client::blk::{OK, Request};
use tests::client::guest::{Guest, Setup};
use tests::client::patience;
use tests::client::pattern::pattern;

use super::support::{Place, Start, export, file, words};

const LEN: u64 = 4 << 20;

/// A client of export `n` that asks for the whole disk until nobody listens, and reads no reply.
fn deaf(socket: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(patience())).unwrap();
    stream.read_exact(&mut [0; 18]).unwrap();
    let mut payload = Vec::new();
    Choose {
        name: "n",
        wanted: Vec::new(),
    }
    .encode(&mut payload);
    let head = OptionHead {
        kind: OptionKind::Go,
        len_bytes: payload.len() as u32,
    };
    stream.write_all(&[0, 0, 0, 3]).unwrap();
    stream.write_all(&head.encode()).unwrap();
    stream.write_all(&payload).unwrap();
    // The export, block sizes and the acknowledgement.
    let mut replies = [0; (20 + 12) + (20 + 14) + 20];
    stream.read_exact(&mut replies).unwrap();
    let read = RequestHead {
        flags: CommandFlags(0),
        command: NbdCommand::Read,
        cookie: 1,
        at: 0,
        len: LEN,
    };
    stream.set_nonblocking(true).unwrap();
    while stream.write_all(&read.encode_compact().unwrap()).is_ok() {}
    stream
}

fn threads(pid: u32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    // A thread that has ended meanwhile has no name.
    let names = tasks.flat_map(|task| fs::read_to_string(task.path().join("comm")));
    names.map(|name| name.trim().to_owned()).collect()
}

#[test]
fn a_guest_and_clients_share_an_iothread_and_a_deaf_client_delays_neither() {
    let place = Place::new();
    let (disk, socket, nbd) = (place.disk("d", LEN), place.path("s"), place.path("n"));
    let mut arguments = words("--object iothread,id=io");
    arguments.extend(file("f", &disk, ""));
    arguments.extend(export("e", "f", &socket, ",iothread=io"));
    arguments.extend(words(&format!(
        "--nbd-server addr.type=unix,addr.path={} --export nbd,id=n,node-name=f,name=n,iothread=io",
        nbd.display()
    )));
    let process = Start::new(arguments).ready();
    let mut guest = Guest::start(&socket, Setup::default()).unwrap();
    let deaf = [deaf(&nbd), deaf(&nbd)];
    let uri = format!("nbd+unix:///n?socket={}", nbd.display());
    let copy = place.path("copy");
    let mut client = Command::new("timeout")
        .args(["60", "nbdcopy", &uri])
        .arg(&copy)
        .spawn()
        .unwrap();
    for at in 0..64 {
        let write = Request::write(at * 8, pattern(at, 4096));
        assert_eq!(guest.run(0, &write).unwrap().status, OK);
        let read = guest.run(0, &Request::read(at * 8, 4096)).unwrap();
        assert_eq!(read.data, pattern(at, 4096));
    }
    assert!(client.wait().unwrap().success());
    assert_eq!(fs::metadata(&copy).unwrap().len(), LEN);
    let names = threads(process.pid());
    // Not by its beginning: the kernel's workers are called iou-wrk.
    let of_iothread = names.iter().filter(|name| *name == "io0");
    assert_eq!(of_iothread.count(), 1, "{names:?}");
    drop(guest);
    // In good order, whatever the deaf ones do.
    process.stop();
    drop(deaf);
}
