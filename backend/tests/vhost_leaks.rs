//! A thousand front ends, decent and hostile, leave nothing behind. Alone in its process, as it counts for all of it.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::fs::{File, read_dir};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use backend::vhost::{
    ConfigRefused, Device, Door, DoorEvent, MapRegion, RingRefused, RingStart, RingStop, Rings,
};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

const CONNECTIONS: usize = 1000;
const PATIENCE: Duration = Duration::from_secs(30);

/// Holds what it is given until it is told to stop.
#[derive(Default)]
struct Holder(Mutex<Vec<(u16, RingStart)>>);

impl Rings for Holder {
    fn start(&self, index: u16, ring: RingStart) -> Result<(), RingRefused> {
        self.0.lock().unwrap().push((index, ring));
        Ok(())
    }

    fn stop(&self, index: u16) -> Option<RingStop> {
        self.0.lock().unwrap().retain(|(at, _)| *at != index);
        None
    }

    fn set_call(&self, _index: u16, _call: Option<OwnedFd>) {}
    fn set_err(&self, _index: u16, _err: Option<OwnedFd>) {}
    fn set_kick(&self, _index: u16, _kick: OwnedFd) {}
}

struct Nothing;

impl Device for Nothing {
    fn features(&self) -> u64 {
        0
    }

    fn acked(&self, _features: u64) {}

    fn queues(&self) -> u16 {
        16
    }

    fn ring_size_max(&self) -> u16 {
        1024
    }

    fn config(&self) -> Vec<u8> {
        vec![0; 96]
    }

    fn set_config(&self, _offset: u32, _bytes: &[u8]) -> Result<(), ConfigRefused> {
        Ok(())
    }

    fn take_up(&self, _region: MapRegion) -> Result<(), String> {
        Ok(())
    }

    fn settle(&self) {}

    fn let_go(&self) {}

    fn reset(&self) {}
}

fn say(socket: &UnixStream, code: u32, body: &[u64], fds: &[RawFd]) {
    let len = (body.len() * 8) as u32;
    let mut bytes: Vec<u8> = [code, 1, len].map(u32::to_ne_bytes).concat();
    body.iter()
        .for_each(|word| bytes.extend(word.to_ne_bytes()));
    // The door may have closed it by now.
    let _ = socket.send_with_fds(&[&bytes[..]], fds);
}

/// A front end that runs a ring, and leaves in one of several ways.
fn visit(path: &std::path::Path, memory: &File, how: usize) {
    let socket = UnixStream::connect(path).unwrap();
    let kick = EventFd::new(0).unwrap();
    let (event, file) = (kick.as_raw_fd(), memory.as_raw_fd());
    let user = 1u64 << 40;
    say(&socket, 16, &[1 << 3 | 1 << 5 | 1 << 15], &[]);
    say(&socket, 2, &[1 << 32 | 1 << 30], &[]);
    say(&socket, 5, &[1, 0, 0x10_0000, user, 0], &[file]);
    say(&socket, 8, &[16 << 32], &[]);
    say(&socket, 9, &[0, user, user + 0x2000, user + 0x1000, 0], &[]);
    for code in [12, 13, 14] {
        say(&socket, code, &[0], &[event]);
    }
    say(&socket, 18, &[1 << 32], &[]);
    let (_ours, theirs) = UnixStream::pair().unwrap();
    say(&socket, 21, &[], &[theirs.as_raw_fd()]);
    match how % 6 {
        0 => {}
        1 => say(&socket, 12, &[0], &[event; 3]),
        2 => say(&socket, 99, &[0; 4], &[event, file]),
        3 => say(&socket, 5, &[1, 0, 0x10_0000, user, 0], &[file; 30]),
        4 => say(&socket, 37, &[0, 1 << 30, 0x1000, 1 << 20, 0], &[file]),
        _ => say(&socket, 13, &[0], &[file]),
    }
}

fn count(directory: &str) -> usize {
    read_dir(directory).unwrap().count()
}

fn mapped_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmSize:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse::<usize>().unwrap() << 10
}

#[test]
fn a_thousand_connections_leave_no_descriptor_thread_or_mapping_behind() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let (tell, events) = channel();
    let send = Arc::new(move |event| tell.send(event).unwrap_or_default());
    let holder = Arc::new(Holder::default());
    let door = Door::listen(listener, Arc::new(Nothing), holder.clone(), send).unwrap();
    let memory = tempfile::tempfile().unwrap();
    memory.set_len(0x10_0000).unwrap();

    let mut before = None;
    for connection in 0..CONNECTIONS {
        visit(&path, &memory, connection);
        door.accept_ready().unwrap();
        while events.recv_timeout(PATIENCE).unwrap() != DoorEvent::Listening {}
        assert!(holder.0.lock().unwrap().is_empty());
        if connection == 50 {
            // Allocators and thread stacks are warm by now. The session's thread is joined when the next one begins.
            before = Some((count("/proc/self/fd"), mapped_bytes()));
        }
    }
    door.stop(PATIENCE).unwrap();
    let (fds, bytes) = before.unwrap();
    assert!(count("/proc/self/fd") <= fds);
    // The test's own thread and the main one. A joined thread stays listed until the kernel has reaped it.
    let given_up = Instant::now() + PATIENCE;
    while count("/proc/self/task") > 2 {
        assert!(Instant::now() < given_up, "threads are left");
        std::thread::yield_now();
    }
    assert!(mapped_bytes() < bytes + (16 << 20));
    drop(door);
}
