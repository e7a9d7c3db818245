//! The short form of the command line: one file, one socket, a format that is never guessed; and several disks at once.

use std::fs;
use std::process::Command;

use tests::client::blk::{IOERR, OK, Request};
use tests::client::front::feature;
use tests::client::guest::{Guest, Setup};
use tests::client::pattern::pattern;
use tests::client::starter::Kind;

use super::support::{Place, Start, export, file, words};

const LEN: u64 = 1 << 20;

#[test]
fn capabilities_are_json_whatever_else_is_said() {
    let output = Command::new(Kind::Virtioblkd.program().unwrap())
        .args(["--blockdev", "nonsense", "--print-capabilities"])
        .output()
        .unwrap();
    assert!(output.status.success());
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(said["type"], "block");
    let features = said["features"].as_array().unwrap();
    for feature in ["read-only", "blk-file"] {
        assert!(features.iter().any(|f| f == feature), "{said}");
    }
}

#[test]
fn a_raw_file_with_a_qcow2_header_in_it_stays_raw_and_that_is_said() {
    let place = Place::new();
    let (disk, socket) = (place.path("disk"), place.path("s"));
    // A guest may write this; and a real image of another size, to be sure that its size is not believed.
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(&disk)
        .arg("64M")
        .status()
        .unwrap();
    assert!(made.success());
    let before = fs::read(&disk).unwrap();
    let line = format!(
        "--blk-file {} --socket-path {}",
        disk.display(),
        socket.display()
    );
    let process = Start::new(words(&line)).ready();
    assert!(process.stderr().contains("serving it as raw"));
    let mut guest = Guest::start(&socket, Setup::default()).unwrap();
    let config = guest.front.get_config(8).unwrap();
    let sectors = u64::from_le_bytes(config.try_into().unwrap());
    assert_eq!(sectors, (before.len() as u64).div_ceil(512));
    let read = guest.run(0, &Request::read(0, 512)).unwrap();
    assert_eq!((read.status, &read.data[..]), (OK, &before[..512]));
    let write = Request::write(0, pattern(3, 512));
    assert_eq!(guest.run(0, &write).unwrap().status, OK);
    drop(guest);
    process.stop();
    assert_eq!(fs::read(&disk).unwrap()[..512], pattern(3, 512));
}

#[test]
fn a_format_that_was_said_needs_no_notice_and_another_is_refused() {
    let place = Place::new();
    let (disk, socket) = (place.disk("disk.qcow2", LEN), place.path("s"));
    let line = format!(
        "--blk-file {} --socket-path {}",
        disk.display(),
        socket.display()
    );
    let (status, said) = Start::new(words(&line)).run();
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("by its name this is a qcow2 image"), "{said}");
    assert!(!socket.exists());
    let process = Start::new(words(&format!("{line} --format raw"))).ready();
    assert_eq!(process.stop(), "");
}

#[test]
fn a_read_only_disk_refuses_writes_and_is_untouched() {
    let place = Place::new();
    let (disk, socket) = (place.path("d"), place.path("s"));
    fs::write(&disk, pattern(9, LEN as usize)).unwrap();
    let line = format!(
        "--blk-file {} --socket-path {} --read-only --format raw",
        disk.display(),
        socket.display()
    );
    let process = Start::new(words(&line)).ready();
    let mut guest = Guest::start(&socket, Setup::default()).unwrap();
    assert_ne!(guest.agreed.offered & feature::RO, 0);
    let write = Request::write(0, vec![1; 512]);
    assert_eq!(guest.run(0, &write).unwrap().status, IOERR);
    let read = guest.run(0, &Request::read(0, 4096)).unwrap();
    assert_eq!(read.data, pattern(9, LEN as usize)[..4096]);
    drop(guest);
    process.stop();
    assert_eq!(fs::read(&disk).unwrap(), pattern(9, LEN as usize));
}

#[test]
fn two_exports_of_one_process_are_two_disks() {
    let place = Place::new();
    let disks = ["a", "b"].map(|name| place.disk(name, LEN));
    let sockets = ["s", "t"].map(|name| place.path(name));
    let mut arguments = words("--object iothread,id=i0 --object iothread,id=i1,poll-max-ns=0");
    for (i, (disk, socket)) in disks.iter().zip(&sockets).enumerate() {
        arguments.extend(file(&format!("f{i}"), disk, ""));
        let iothread = format!(",iothread=i{i}");
        arguments.extend(export(
            &format!("e{i}"),
            &format!("f{i}"),
            socket,
            &iothread,
        ));
    }
    let process = Start::new(arguments).ready();
    let start = |socket| Guest::start(socket, Setup::default()).unwrap();
    let mut guests = [start(&sockets[0]), start(&sockets[1])];
    for (i, guest) in guests.iter_mut().enumerate() {
        let write = Request::write(8, pattern(i as u64, 4096));
        assert_eq!(guest.run(0, &write).unwrap().status, OK);
    }
    let tasks = fs::read_dir(format!("/proc/{}/task", process.pid())).unwrap();
    let names = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("comm")).unwrap());
    let names: Vec<String> = names.map(|name| name.trim().to_owned()).collect();
    for iothread in ["i0", "i1"] {
        let threads = names.iter().filter(|name| name.starts_with(iothread));
        assert_eq!(threads.count(), 1, "{iothread} among {names:?}");
    }
    // One leaves; the other goes on.
    let [first, mut second] = guests;
    drop(first);
    let read = second.run(0, &Request::read(8, 4096)).unwrap();
    assert_eq!(read.data, pattern(1, 4096));
    drop(second);
    process.stop();
    for (i, disk) in disks.iter().enumerate() {
        let bytes = fs::read(disk).unwrap();
        assert_eq!(bytes[4096..8192], pattern(i as u64, 4096));
    }
}

#[test]
fn all_queues_of_an_iothread_run_on_its_one_thread() {
    let place = Place::new();
    let socket = place.path("s");
    let mut arguments =
        words("--object iothread,id=io --blockdev null-co,node-name=n,size=1048576");
    arguments.extend(export("e", "n", &socket, ",iothread=io,num-queues=4"));
    let process = Start::new(arguments).ready();
    let setup = Setup {
        queues: 4,
        ..Setup::default()
    };
    let mut guest = Guest::start(&socket, setup).unwrap();
    for queue in 0..4 {
        let done = guest.run(queue, &Request::read(0, 4096)).unwrap();
        assert_eq!(done.status, OK);
    }
    let tasks = fs::read_dir(format!("/proc/{}/task", process.pid())).unwrap();
    let names = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("comm")).unwrap());
    assert_eq!(names.filter(|name| name.starts_with("io")).count(), 1);
    drop(guest);
    process.stop();
}

#[test]
fn what_one_guest_chose_of_the_write_cache_is_not_the_next_ones() {
    const WRITEBACK_AT: u32 = 32;
    let place = Place::new();
    let (disk, socket) = (place.disk("d", LEN), place.path("s"));
    let mut arguments = file("f", &disk, "");
    arguments.extend(export("e", "f", &socket, ""));
    let process = Start::new(arguments).ready();
    let writeback = |guest: &mut Guest| guest.front.get_config(60).unwrap()[WRITEBACK_AT as usize];
    let mut first = Guest::start(&socket, Setup::default()).unwrap();
    assert_eq!(writeback(&mut first), 1);
    first.front.set_config(WRITEBACK_AT, 0, &[0]).unwrap();
    assert_eq!(writeback(&mut first), 0);
    drop(first);
    let mut second = Guest::start(&socket, Setup::default()).unwrap();
    assert_eq!(writeback(&mut second), 1);
    drop(second);
    process.stop();
}
