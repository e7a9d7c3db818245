//! How it starts: ready means that sockets accept; in the background; with sockets that somebody else made.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use tests::client::blk::{OK, Request};
use tests::client::guest::{Guest, Setup};
use tests::client::patience;
use tests::client::ring::readable;

use super::support::{Place, Start, export, watch, words};

const NULL: &str = "--blockdev null-co,node-name=n,size=1048576,read-zeroes=on";

fn read_one(guest: &mut Guest) {
    assert_eq!(guest.run(0, &Request::read(0, 4096)).unwrap().status, OK);
}

#[test]
fn ready_means_that_every_socket_accepts() {
    let place = Place::new();
    let sockets = ["a", "b", "c"].map(|name| place.path(name));
    let mut arguments = words(NULL);
    for (i, socket) in sockets.iter().enumerate() {
        arguments.extend(export(&format!("e{i}"), "n", socket, ""));
    }
    let process = Start::new(arguments).ready();
    println!("start to ready: {:?}", process.begun.elapsed());
    for socket in &sockets {
        UnixStream::connect(socket).unwrap();
    }
    assert_eq!(process.notification(), None, "said once");
    process.stop();
}

#[test]
fn nobody_is_told_of_a_start_that_fails() {
    let place = Place::new();
    let mut arguments = words(NULL);
    arguments.extend(export("e", "n", &place.path("s"), ""));
    arguments.extend(export("f", "missing", &place.path("t"), ""));
    let mut process = Start::new(arguments).spawn();
    assert_eq!(process.wait().code(), Some(1));
    assert_eq!(process.notification(), None);
    assert!(!place.path("s").exists() && !place.path("t").exists());
}

#[test]
fn in_the_background_it_serves_when_its_parent_has_ended() {
    // Both paths are relative: the daemon changes its directory.
    let mut arguments = words(NULL);
    arguments.extend(export("e", "n", "s".as_ref(), ""));
    arguments.extend(words("--daemonize --pidfile p"));
    let mut parent = Start::new(arguments).spawn();
    assert_eq!(parent.wait().code(), Some(0), "{}", parent.stderr());
    let (socket, pid_file) = (parent.place.path("s"), parent.place.path("p"));
    let pid: i32 = fs::read_to_string(&pid_file)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let daemon = watch(pid).unwrap();
    assert_ne!(pid as u32, parent.pid());
    assert_eq!(parent.notification().as_deref(), Some("READY=1"));
    let directory = fs::read_link(format!("/proc/{pid}/cwd")).unwrap();
    assert_eq!(directory, std::path::Path::new("/"));
    let mut guest = Guest::start(&socket, Setup::default()).unwrap();
    read_one(&mut guest);
    kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
    assert!(readable(&daemon, patience()).unwrap(), "it does not end");
    assert!(!socket.exists(), "the socket is left");
    assert!(!pid_file.exists(), "the pid file is left");
}

#[test]
fn a_start_that_fails_in_the_background_is_the_parents_failure() {
    let mut arguments = words(NULL);
    arguments.extend(export("e", "n", "none/s".as_ref(), ""));
    arguments.extend(words("--daemonize --pidfile p"));
    let mut parent = Start::new(arguments).spawn();
    assert_eq!(parent.wait().code(), Some(1));
    assert!(parent.stderr().contains("Failed to"), "{}", parent.stderr());
    assert!(!parent.place.path("p").exists());
}

#[test]
fn a_socket_that_the_service_manager_passed_is_listened_at() {
    let place = Place::new();
    let (disk, socket) = (place.disk("d", 1 << 20), place.path("s"));
    let listener = UnixListener::bind(&socket).unwrap();
    let arguments = words(&format!("--blk-file {}", disk.display()));
    let start = Start::new(arguments);
    let start = start.with_third(listener.into(), "LISTEN_PID=$$ LISTEN_FDS=1");
    let process = start.ready();
    for _ in 0..2 {
        let mut guest = Guest::start(&socket, Setup::default()).unwrap();
        read_one(&mut guest);
    }
    process.stop();
    assert!(socket.exists(), "it is the service manager's");
}

#[test]
fn a_listening_descriptor_is_one_for_an_export_too() {
    let place = Place::new();
    let socket = place.path("s");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut arguments = words(NULL);
    arguments.extend(words(
        "--export vhost-user-blk,id=e,node-name=n,addr.type=fd,addr.str=3",
    ));
    let process = Start::new(arguments)
        .with_third(listener.into(), "")
        .ready();
    for _ in 0..2 {
        let mut guest = Guest::start(&socket, Setup::default()).unwrap();
        read_one(&mut guest);
    }
    process.stop();
    assert!(socket.exists(), "it is not ours");
}

#[test]
fn a_socket_passed_to_another_process_is_not_taken() {
    let place = Place::new();
    let listener = UnixListener::bind(place.path("s")).unwrap();
    let disk = place.disk("d", 1 << 20);
    let arguments = words(&format!("--blk-file {}", disk.display()));
    let start = Start::new(arguments);
    let start = start.with_third(listener.into(), "LISTEN_PID=1 LISTEN_FDS=1");
    let (status, said) = start.run();
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("--blk-file needs --socket-path"), "{said}");
}

/// A connected socket for the daemon; the guest is at the other end once it has connected to `listener`.
fn accept(listener: UnixListener) -> thread::JoinHandle<OwnedFd> {
    thread::spawn(move || OwnedFd::from(listener.accept().unwrap().0))
}

#[test]
fn a_connected_socket_is_served_and_its_end_is_the_processes() {
    let place = Place::new();
    let (disk, path) = (place.disk("d", 1 << 20), place.path("s"));
    let accepted = accept(UnixListener::bind(&path).unwrap());
    let guest = thread::spawn(move || {
        let mut guest = Guest::start(&path, Setup::default()).unwrap();
        read_one(&mut guest);
    });
    let arguments = words(&format!("--blk-file {} --fd 3", disk.display()));
    let mut process = Start::new(arguments)
        .with_third(accepted.join().unwrap(), "")
        .ready();
    guest.join().unwrap();
    assert_eq!(process.wait().code(), Some(0), "{}", process.stderr());
}

#[test]
fn a_connected_socket_ends_by_signal_too() {
    let place = Place::new();
    let (disk, path) = (place.disk("d", 1 << 20), place.path("s"));
    let accepted = accept(UnixListener::bind(&path).unwrap());
    let guest = thread::spawn(move || {
        let mut guest = Guest::start(&path, Setup::default()).unwrap();
        read_one(&mut guest);
        guest
    });
    let arguments = words(&format!("--blk-file {} --fd 3", disk.display()));
    let process = Start::new(arguments)
        .with_third(accepted.join().unwrap(), "")
        .ready();
    let guest = guest.join().unwrap();
    process.stop();
    drop(guest);
}
