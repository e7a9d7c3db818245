//! Going to the background and taking inherited descriptors, in processes of their own: this program starts itself with the name of a part to play.

use std::fs;
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

use backend::process::{
    Background, PidFile, SocketError, connected_socket, enter_background, listening_socket,
};
use ring::inherited::Inherited;

/// Where the parts find their socket.
const FD: i32 = 7;

fn main() -> ExitCode {
    let part = std::env::args().nth(1).unwrap_or_default();
    let argument = std::env::args().nth(2).unwrap_or_default();
    match part.as_str() {
        "part:daemon" => daemon(Path::new(&argument)).expect("the daemon's part"),
        "part:failing" => failing().expect("the failing daemon's part"),
        "part:listening" => listening(),
        "part:connected" => connected(),
        _ => {
            the_parent_ends_once_the_daemon_is_up();
            the_parent_ends_with_the_status_of_a_daemon_that_failed();
            an_inherited_listening_socket_is_taken_once();
            an_inherited_connected_socket_is_not_a_listening_one();
            println!("background: 4 passed");
            ExitCode::SUCCESS
        }
    }
}

/// Serves until the other end of its socket is shut down.
fn daemon(pid_path: &Path) -> io::Result<ExitCode> {
    let mut inherited = Inherited::capture()?;
    let daemon = match enter_background()? {
        Background::Parent(code) => return Ok(code),
        Background::Daemon(daemon) => daemon,
    };
    let mut socket = connected_socket(&mut inherited, FD).map_err(io::Error::other)?;
    let pid_file = PidFile::create(pid_path).map_err(io::Error::other)?;
    daemon.up()?;
    socket.read_to_end(&mut Vec::new())?;
    drop(pid_file);
    Ok(ExitCode::SUCCESS)
}

fn failing() -> io::Result<ExitCode> {
    match enter_background()? {
        Background::Parent(code) => Ok(code),
        Background::Daemon(_) => Ok(ExitCode::from(3)),
    }
}

fn listening() -> ExitCode {
    let mut inherited = Inherited::capture().expect("first in main");
    let second = Inherited::capture().map_err(|error| error.kind());
    assert_eq!(second.err(), Some(io::ErrorKind::AlreadyExists));
    assert!(listening_socket(&mut inherited, FD).is_ok());
    let again = listening_socket(&mut inherited, FD).err();
    assert_eq!(again, Some(SocketError::NotASocket(FD)));
    let unknown = listening_socket(&mut inherited, 99).err();
    assert_eq!(unknown, Some(SocketError::NotASocket(99)));
    // Descriptor 8 is a file.
    let file = connected_socket(&mut inherited, 8).err();
    assert_eq!(file, Some(SocketError::NotASocket(8)));
    ExitCode::SUCCESS
}

fn connected() -> ExitCode {
    let mut inherited = Inherited::capture().expect("first in main");
    let refused = listening_socket(&mut inherited, FD).err();
    assert_eq!(refused, Some(SocketError::NotListening(FD)));
    ExitCode::SUCCESS
}

/// Starts this program for one part, with `socket` as its descriptor 7 and a file as 8.
fn start(part: &str, argument: &Path, socket: OwnedFd) -> Child {
    Command::new("sh")
        .args(["-c", "exec \"$0\" \"$@\" 7<&0 8</etc/passwd </dev/null"])
        .arg(std::env::current_exe().expect("own path"))
        .arg(part)
        .arg(argument)
        .stdin(Stdio::from(socket))
        .spawn()
        .expect("sh")
}

fn succeeds(mut child: Child) {
    assert!(child.wait().expect("wait").success());
}

fn the_parent_ends_once_the_daemon_is_up() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let pid_path = dir.path().join("pid");
    let (mut ours, theirs) = UnixStream::pair().expect("socket pair");
    let parent = start("part:daemon", &pid_path, theirs.into());
    let parent_id = parent.id();
    succeeds(parent);

    let pid = fs::read_to_string(&pid_path).expect("written before the parent ends");
    let pid = pid.trim();
    assert_ne!(pid, parent_id.to_string());
    let proc = Path::new("/proc").join(pid);
    let link = |name: &str| fs::read_link(proc.join(name)).expect(name);
    assert_eq!(link("cwd"), Path::new("/"));
    for stream in ["fd/0", "fd/1", "fd/2"] {
        assert_eq!(link(stream), Path::new("/dev/null"), "{stream}");
    }
    let status = fs::read_to_string(proc.join("status")).expect("status");
    assert!(status.contains("Umask:\t0027"), "{status}");
    let stat = fs::read_to_string(proc.join("stat")).expect("stat");
    // proc_pid_stat(5): after the name in brackets come state, parent, process group, session.
    let session = stat
        .rsplit(')')
        .next()
        .and_then(|rest| rest.split_whitespace().nth(3));
    assert_eq!(session, Some(pid));

    ours.shutdown(Shutdown::Write).expect("shutdown");
    ours.read_to_end(&mut Vec::new()).expect("the daemon's end");
    assert!(!pid_path.exists());
}

fn the_parent_ends_with_the_status_of_a_daemon_that_failed() {
    let (_ours, theirs) = UnixStream::pair().expect("socket pair");
    let status = start("part:failing", Path::new(""), theirs.into()).wait();
    assert_eq!(status.expect("wait").code(), Some(3));
}

fn an_inherited_listening_socket_is_taken_once() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let listener = UnixListener::bind(dir.path().join("s")).expect("bind");
    succeeds(start("part:listening", Path::new(""), listener.into()));
}

fn an_inherited_connected_socket_is_not_a_listening_one() {
    let (_ours, theirs) = UnixStream::pair().expect("socket pair");
    succeeds(start("part:connected", Path::new(""), theirs.into()));
}
