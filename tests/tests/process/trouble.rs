//! Kernels that refuse, interrupt or run out: nothing is lost, and what cannot be had is said once.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use tests::client::blk::{IOERR, OK, Request};
use tests::client::guest::{Guest, Setup};
use tests::client::pattern::{Model, pattern};
use tests::client::trace::Trace;

use super::support::{Place, Process, Start, export, file, words};

const REFUSED: &str =
    "strace -f -D -o DIR/log -e trace=io_uring_setup -e inject=io_uring_setup:error=EPERM";
const DISK_BYTES: usize = 4 << 20;

/// Writes all over the disk in batches, reads it back, and compares the file at the end.
fn exercise(guest: &mut Guest, model: &mut Model) {
    for round in 0..20u64 {
        let requests: Vec<Request> = (0..16)
            .map(|i| {
                let sector = (i * 509 + round * 31) * 16 % (model.sectors() - 16);
                Request::write(sector - sector % 16, pattern(round * 16 + i, 8192))
            })
            .collect();
        // One at a time, as requests of one batch may end in any order and these overlap.
        for request in &requests {
            let done = guest.run(0, request).unwrap();
            model.apply(request, done.status);
            assert_eq!(done.status, OK);
        }
        let reads: Vec<Request> = requests
            .iter()
            .map(|r| Request::read(r.sector, 8192))
            .collect();
        let done = guest.run_batch(0, &reads).unwrap();
        for (read, done) in reads.iter().zip(done) {
            assert_eq!(done.status, OK);
            assert_eq!(
                done.data,
                model.at(read.sector, 8192),
                "sector {}",
                read.sector
            );
        }
    }
    model.check_file().unwrap();
}

fn serve(disk: &Path, options: &str, wrapper: &str, place: &Place) -> Process {
    let mut arguments = file("f", disk, options);
    arguments.extend(export("e", "f", &place.path("s"), ""));
    Start::new(arguments).under(wrapper).ready()
}

#[test]
fn a_pool_of_threads_serves_where_it_is_asked_for() {
    let (place, mut model) = (Place::new(), Model::new(DISK_BYTES).unwrap());
    let wrapper = "strace -f -D -o DIR/log -e trace=io_uring_setup";
    let process = serve(&model.path, ",aio=threads", wrapper, &place);
    let mut guest = Guest::start(&place.path("s"), Setup::default()).unwrap();
    exercise(&mut guest, &mut model);
    let log = fs::read_to_string(process.place.path("log")).unwrap();
    assert!(!log.contains("io_uring_setup("), "{log}");
    drop(guest);
    assert_eq!(process.stop(), "");
}

#[test]
fn where_io_uring_is_refused_threads_serve_and_one_line_says_so() {
    let (place, mut model) = (Place::new(), Model::new(DISK_BYTES).unwrap());
    let null = words("--blockdev null-co,node-name=n,size=1048576");
    let mut arguments = file("f", &model.path, "");
    arguments.extend(null);
    arguments.extend(export("e", "f", &place.path("s"), ""));
    arguments.extend(export("g", "n", &place.path("t"), ""));
    let process = Start::new(arguments).under(REFUSED).ready();
    let mut guest = Guest::start(&place.path("s"), Setup::default()).unwrap();
    exercise(&mut guest, &mut model);
    drop(guest);
    let said = process.stop();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("io_uring is refused here"), "{said}");
}

#[test]
fn whoever_insists_on_io_uring_is_refused_at_the_start() {
    for aio in ["io_uring", "native"] {
        let place = Place::new();
        let disk = place.disk("d", 1 << 20);
        let mut arguments = file("f", &disk, &format!(",cache.direct=on,aio={aio}"));
        arguments.extend(export("e", "f", &place.path("s"), ""));
        let (status, said) = Start::new(arguments).under(REFUSED).run();
        assert_eq!(status.code(), Some(1));
        assert_eq!(said.lines().count(), 1, "{said}");
        let wanted =
            "Unable to use io_uring: failed to init linux io_uring ring: Operation not permitted";
        assert!(said.trim_end().ends_with(wanted), "{said}");
        assert!(!place.path("s").exists());
    }
}

#[test]
fn an_io_uring_enter_that_fails_now_and_then_loses_nothing() {
    for errno in ["EINTR", "EAGAIN", "EBUSY"] {
        let (place, mut model) = (Place::new(), Model::new(DISK_BYTES).unwrap());
        let wrapper = format!(
            "strace -f -D -o DIR/log -e trace=io_uring_enter -e inject=io_uring_enter:error={errno}:when=3+3"
        );
        let process = serve(&model.path, "", &wrapper, &place);
        let mut guest = Guest::start(&place.path("s"), Setup::default()).unwrap();
        exercise(&mut guest, &mut model);
        let log = fs::read_to_string(process.place.path("log")).unwrap();
        let failed = log
            .lines()
            .filter(|line| line.contains("(INJECTED)"))
            .count();
        println!("{failed} calls failed with {errno}");
        assert!(failed > 50, "{log}");
        drop(guest);
        assert_eq!(process.stop(), "");
    }
}

fn limit_files(pid: u32, soft: &str) {
    let done = Command::new("prlimit")
        .args(["--pid", &pid.to_string()])
        .arg(format!("--nofile={soft}:"))
        .status()
        .unwrap();
    assert!(done.success());
}

/// The lowest number that is no descriptor of the process: with it as the limit, nothing can be opened any more.
fn lowest_free(pid: u32) -> usize {
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let open: Vec<usize> = fds
        .map(|fd| fd.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    (0..).find(|fd| !open.contains(fd)).unwrap()
}

#[test]
fn out_of_descriptors_a_front_end_waits_and_nobody_spins() {
    let (place, mut model) = (Place::new(), Model::new(DISK_BYTES).unwrap());
    let mut arguments = file("f", &model.path, "");
    arguments.extend(words("--blockdev null-co,node-name=n,size=1048576"));
    arguments.extend(export("e", "f", &place.path("s"), ""));
    arguments.extend(export("g", "n", &place.path("t"), ""));
    let process = Start::new(arguments).ready();
    let pid = process.pid();
    let mut guest = Guest::start(&place.path("s"), Setup::default()).unwrap();
    exercise(&mut guest, &mut model);
    limit_files(pid, &lowest_free(pid).to_string());
    let path = place.path("t");
    let waiting = thread::spawn(move || Guest::start(&path, Setup::default()));
    super::support::until("it says that it cannot", || !process.stderr().is_empty());
    let trace = Trace::attach(pid, &["epoll_wait", "epoll_pwait", "accept4"]).unwrap();
    thread::sleep(Duration::from_secs(2));
    let calls = trace.finish().unwrap().len();
    println!("{calls} calls of epoll_wait and accept in two seconds");
    assert!(calls < 40, "{calls} calls");
    exercise(&mut guest, &mut model);
    limit_files(pid, "1024");
    let mut second = waiting.join().unwrap().unwrap();
    let done = second.run(0, &Request::read(0, 4096)).unwrap();
    assert_eq!(done.status, OK);
    drop((guest, second));
    let said = process.stop();
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn stopped_and_continued_it_goes_on() {
    let (place, mut model) = (Place::new(), Model::new(DISK_BYTES).unwrap());
    let mut arguments = file("f", &model.path, "");
    arguments.extend(export("e", "f", &place.path("s"), ""));
    let process = Start::new(arguments).ready();
    let mut guest = Guest::start(&place.path("s"), Setup::default()).unwrap();
    for _ in 0..3 {
        process.signal(Signal::STOP);
        let state = || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid())).unwrap();
            stat.rsplit(") ").next().unwrap().starts_with('T')
        };
        super::support::until("it stands still", state);
        process.signal(Signal::CONT);
        exercise(&mut guest, &mut model);
    }
    drop(guest);
    assert_eq!(process.stop(), "");
}

/// The default action of SIGXFSZ is to kill: one write beyond `ulimit -f` and every disk of the process was gone.
#[test]
fn a_write_beyond_the_file_size_limit_fails_and_kills_nobody() {
    for engine in ["", ",aio=threads"] {
        let (place, model) = (Place::new(), Model::new(DISK_BYTES).unwrap());
        let wrapper = "prlimit --fsize=1048576 --";
        let process = serve(&model.path, engine, wrapper, &place);
        let mut guest = Guest::start(&place.path("s"), Setup::default()).unwrap();
        let beyond = Request::write(4096, pattern(1, 4096));
        assert_eq!(guest.run(0, &beyond).unwrap().status, IOERR, "{engine}");
        let within = Request::write(0, pattern(2, 4096));
        assert_eq!(guest.run(0, &within).unwrap().status, OK, "{engine}");
        drop(guest);
        assert_eq!(process.stop(), "");
    }
}
