//! NBD clients that do not play by the rules: slow, silent, many, gone, or random. None keeps another, the end of an
//! export or the end of the process waiting.

#[path = "../outside/nbd_wire/peer.rs"]
#[allow(dead_code)]
mod peer;
#[path = "../outside/nbd_wire/script.rs"]
#[allow(dead_code)]
mod script;

use blockgraph::driver::nbd::wire::OptionKind;
use peer::{Home, Server};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

const OURS: &str = env!("CARGO_BIN_EXE_virtioblkd");
const HOMES: [Home; 2] = [Home::Any, Home::Iothread];

/// A client that has agreed on `e`.
fn agreed(server: &Server) -> UnixStream {
    let mut stream = server.connect().expect("a connection");
    stream
        .write_all(&script::FLAGS.to_be_bytes())
        .expect("sent");
    stream.write_all(&script::go("e")).expect("sent");
    // Three infos and the acknowledgement.
    let mut replies = [0; (20 + 6) + (20 + 14) + (20 + 12) + 20];
    stream.read_exact(&mut replies).expect("an agreement");
    stream
}

/// Asks for the whole disk, over and over, and reads nothing; until the server takes no more.
fn deaf(server: &Server) -> UnixStream {
    let mut stream = agreed(server);
    let read = script::head(0, 0, 0, peer::SIZE);
    let read = read.encode_compact().expect("short");
    stream.set_nonblocking(true).expect("a socket");
    for _ in 0..1000 {
        if stream.write_all(&read).is_err() {
            break;
        }
    }
    stream.set_nonblocking(false).expect("a socket");
    stream
}

/// Reads up to the end; false if there was none in time.
fn is_closed(stream: &mut UnixStream) -> bool {
    let mut block = vec![0; 1 << 20];
    loop {
        match stream.read(&mut block) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}

fn terminate(server: &mut Server) -> ExitStatus {
    let pid = rustix::process::Pid::from_child(server.child());
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a signal");
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(status) = server.child().try_wait().expect("a child") {
            return status;
        }
        assert!(Instant::now() < until, "it does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_client_that_reads_nothing_is_cut_off_and_others_are_served_meanwhile() {
    HOMES.into_iter().for_each(cut_off);
}

fn cut_off(home: Home) {
    let server = Server::start_at(home, OURS, &[",x-send-timeout=1"]);
    let mut deaf = deaf(&server);
    for _ in 0..20 {
        assert!(server.serves());
    }
    let mut silent = agreed(&server);
    server.wait_for("reads no replies");
    assert!(is_closed(&mut deaf));
    // Whoever asks for nothing may stay.
    let flush = script::head(3, 0, 0, 0).encode_compact().expect("short");
    silent.write_all(&flush).expect("sent");
    silent.read_exact(&mut [0; 16]).expect("an answer");
    assert!(server.serves());
}

#[test]
fn a_client_that_reads_nothing_does_not_keep_the_process_from_its_end() {
    HOMES.into_iter().for_each(ends_all_the_same);
}

fn ends_all_the_same(home: Home) {
    let mut server = Server::start_at(home, OURS, &[]);
    let deaf: Vec<UnixStream> = (0..3).map(|_| deaf(&server)).collect();
    let half = server.connect().expect("a connection");
    let begun = Instant::now();
    assert!(terminate(&mut server).success(), "{}", server.log());
    // Far below the send timeout of 30 seconds, and nothing that a busy machine takes.
    assert!(begun.elapsed() < Duration::from_secs(15), "it waited");
    assert!(!server.dir().join("socket").exists());
    drop((deaf, half));
}

#[test]
fn a_handshake_that_takes_too_long_is_ended() {
    let server = Server::start(OURS, &[",handshake-max-seconds=1"]);
    let mut silent = server.connect().expect("a connection");
    let mut slow = server.connect().expect("a connection");
    slow.write_all(&script::FLAGS.to_be_bytes()).expect("sent");
    let list = script::option(OptionKind::List, &[]);
    let mut served = agreed(&server);
    for byte in list.iter().cycle() {
        std::thread::sleep(Duration::from_millis(50));
        if slow.write_all(&[*byte]).is_err() {
            break;
        }
    }
    assert!(is_closed(&mut silent));
    // Transmission has no such limit.
    let flush = script::head(3, 0, 0, 0).encode_compact().expect("short");
    served.write_all(&flush).expect("sent");
    served.read_exact(&mut [0; 16]).expect("an answer");
}

#[test]
fn more_clients_than_may_be_wait_until_one_leaves() {
    let server = Server::start(OURS, &[",max-connections=3,handshake-max-seconds=0"]);
    let mut three: Vec<UnixStream> = (0..3)
        .map(|_| server.connect().expect("a connection"))
        .collect();
    let mut fourth = UnixStream::connect(server.dir().join("socket")).expect("a queue");
    fourth
        .set_read_timeout(Some(Duration::from_millis(300)))
        .expect("a socket");
    let early = fourth.read(&mut [0; 18]).expect_err("nobody greets it");
    assert_eq!(early.kind(), io::ErrorKind::WouldBlock);
    three.pop();
    fourth
        .set_read_timeout(Some(Duration::from_secs(20)))
        .expect("a socket");
    fourth.read_exact(&mut [0; 18]).expect("a greeting");
}

#[test]
fn a_connection_may_break_off_after_any_byte() {
    HOMES.into_iter().for_each(breaks_off);
}

fn breaks_off(home: Home) {
    let mut server = Server::start_at(home, OURS, &[]);
    let descriptors = open_descriptors(&mut server);
    let write = script::head(1, 0, 8 * 65536, 64);
    let mut whole = script::FLAGS.to_be_bytes().to_vec();
    whole.extend(script::structured());
    whole.extend(script::set_contexts("e", &["base:allocation"]));
    whole.extend(script::go("e"));
    whole.extend(write.encode_compact().expect("short"));
    whole.extend([b'c'; 64]);
    for cut in 0..whole.len() {
        let mut stream = server.connect().expect("a connection");
        let _ = stream.write_all(&whole[..cut]);
    }
    assert!(server.serves());
    // Whoever is gone has left nothing behind.
    let until = Instant::now() + Duration::from_secs(20);
    while open_descriptors(&mut server) > descriptors + ONCE {
        assert!(Instant::now() < until, "{home:?}: descriptors are left");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// An iothread has its ring when it is first used.
const ONCE: usize = 4;

/// How many are open once nobody is connected.
fn settled_descriptors(server: &mut Server) -> u64 {
    let until = Instant::now() + Duration::from_secs(20);
    while thread_names(server).iter().any(|name| name == "nbd") {
        assert!(Instant::now() < until, "a client stays");
        std::thread::sleep(Duration::from_millis(10));
    }
    open_descriptors(server) as u64
}

fn open_descriptors(server: &mut Server) -> usize {
    let list = std::fs::read_dir(format!("/proc/{}/fd", server.child().id()));
    list.expect("a process").count()
}

#[test]
fn random_bytes_at_any_stage_end_in_an_answer_or_a_close() {
    let servers = HOMES.map(|home| Server::start_at(home, OURS, &[",handshake-max-seconds=0"]));
    let seed = std::process::id() as u64 ^ 0x5eed;
    println!("seed {seed}");
    let mut state = seed;
    let mut random = move || {
        // SplitMix64 (Steele, Lea, Flood 2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    for round in 0..300 {
        let server = &servers[round % 2];
        let mut stream = match random() % 2 {
            0 => server.connect().expect("a connection"),
            _ => agreed(server),
        };
        let mut bytes: Vec<u8> = match random() % 3 {
            0 => script::all(&[script::FLAGS.to_be_bytes().to_vec(), script::go("e")]),
            1 => script::head(
                random() as u16 % 10,
                random() as u16 % 64,
                random() % (2 << 20),
                random() % 8192,
            )
            .encode_compact()
            .expect("short")
            .to_vec(),
            _ => Vec::new(),
        };
        let garbage = (0..random() % 200).map(|_| random() as u8);
        bytes.extend(garbage.collect::<Vec<u8>>());
        if let Some(at) = (random() as usize).checked_rem(bytes.len()) {
            bytes[at] ^= 1 << (random() % 8);
        }
        let _ = stream.write_all(&bytes);
        stream
            .shutdown(std::net::Shutdown::Write)
            .expect("a socket");
        assert!(is_closed(&mut stream), "seed {seed}");
    }
    assert!(servers.iter().all(Server::serves));
}

#[test]
fn a_flood_of_requests_is_answered_in_full_with_bounded_memory() {
    HOMES.into_iter().for_each(flood);
}

fn flood(home: Home) {
    let mut server = Server::start_at(home, OURS, &[]);
    let mut stream = agreed(&server);
    let read = script::head(0, 0, 0, peer::SIZE);
    let read = read.encode_compact().expect("short");
    const READS: usize = 400;
    let mut reader = stream.try_clone().expect("a socket");
    let sender = std::thread::spawn(move || {
        for _ in 0..READS {
            stream.write_all(&read).expect("sent");
        }
        stream
    });
    let mut reply = vec![0; 16 + peer::SIZE as usize];
    for _ in 0..READS {
        reader.read_exact(&mut reply).expect("an answer");
        assert_eq!(reply[..4], 0x6744_6698u32.to_be_bytes());
        assert_eq!(reply[16 + 65536], 0x5a);
    }
    drop(sender.join().expect("no panic"));
    let pid = server.child().id();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let peak = status.lines().find(|line| line.starts_with("VmHWM"));
    let peak_kb: u64 = peak
        .and_then(|line| line.split_whitespace().nth(1))
        .and_then(|kb| kb.parse().ok())
        .expect("a number");
    assert!(peak_kb < 160 << 10, "{peak_kb} KiB");
}

#[test]
fn out_of_descriptors_is_waited_out_and_costs_no_cpu() {
    let mut server = Server::start(OURS, &[",handshake-max-seconds=0"]);
    let pid = rustix::process::Pid::from_child(server.child());
    // Enough for one connection that is served, by far too few for the crowd.
    let few = Some(settled_descriptors(&mut server) + 6);
    let limit = rustix::process::Rlimit {
        current: few,
        maximum: few,
    };
    let resource = rustix::process::Resource::Nofile;
    rustix::process::prlimit(Some(pid), resource, limit).expect("a limit");
    let path = server.dir().join("socket");
    let crowd: Vec<UnixStream> = (0..20)
        .map(|_| UnixStream::connect(&path).expect("a queue"))
        .collect();
    let ticks = |server: &mut Server| {
        let stat = format!("/proc/{}/stat", server.child().id());
        let stat = std::fs::read_to_string(stat).expect("a process");
        let fields = stat.rsplit(')').next().expect("fields").to_owned();
        let numbers = fields.split_whitespace().skip(11).take(2);
        numbers.filter_map(|n| n.parse::<u64>().ok()).sum::<u64>()
    };
    server.wait_for("cannot let a client in");
    let before = ticks(&mut server);
    std::thread::sleep(Duration::from_secs(1));
    let spent = ticks(&mut server) - before;
    assert!(spent < 30, "{spent} ticks in a second");
    drop(crowd);
    let until = Instant::now() + Duration::from_secs(20);
    while !server.serves() {
        assert!(Instant::now() < until, "nobody is served any more");
    }
}

#[test]
fn connections_of_an_iothread_live_on_its_thread_and_on_no_other() {
    let mut server = Server::start_at(Home::Iothread, OURS, &[]);
    let mut clients: Vec<UnixStream> = (0..5).map(|_| agreed(&server)).collect();
    let flush = script::head(3, 0, 0, 0).encode_compact().expect("short");
    for client in &mut clients {
        client.write_all(&flush).expect("sent");
        client.read_exact(&mut [0; 16]).expect("an answer");
    }
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        // Threads of handshakes end when those are over.
        let names = thread_names(&mut server);
        if !names.iter().any(|name| name == "nbd") {
            let of_iothread = names.iter().filter(|name| *name == "io0").count();
            assert_eq!(of_iothread, 1, "{names:?}");
            break;
        }
        assert!(Instant::now() < until, "{names:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
    for client in &mut clients {
        client.write_all(&flush).expect("sent");
        client.read_exact(&mut [0; 16]).expect("an answer");
    }
    assert!(terminate(&mut server).success(), "{}", server.log());
}

fn thread_names(server: &mut Server) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", server.child().id()));
    let names = tasks.expect("a process").flatten();
    // A thread that has ended meanwhile has no name.
    let names = names.flat_map(|task| std::fs::read_to_string(task.path().join("comm")));
    names.map(|name| name.trim().to_owned()).collect()
}
