//! Many clients of the monitors' thread, some of them bad: the others do not notice, and what is kept of each is bounded.
//!
//! The control thread is played by the test, so that answers and events can be as many and as large as it likes.

use backend::chardev::{Chardev, Delayed, Name, Place, Stream};
use backend::qmp::events::BLOCK_EXPORT_DELETED;
use backend::qmp::{Hub, MonitorOptions, Pretty, Request};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);
const NEGOTIATE: &[u8] = b"{\"execute\":\"qmp_capabilities\"}\n";
const NEGOTIATE_OOB: &[u8] =
    b"{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":[\"oob\"]}}\n";

/// A client at the other end of a socket pair.
struct Client(BufReader<UnixStream>);

impl Client {
    fn join(hub: &Hub) -> Client {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        ours.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let name = Name::new("unix:".to_owned(), Place::Client);
        let port = Stream::new(theirs.into(), name, Delayed::Maybe).expect("a socket");
        let options = MonitorOptions { pretty: Pretty::No };
        hub.add(Chardev::open(port), options);
        let mut client = Client(BufReader::new(ours));
        assert!(client.next()["QMP"].is_object());
        client
    }

    fn negotiated(hub: &Hub, how: &[u8]) -> Client {
        let mut client = Client::join(hub);
        client.send(how);
        assert_eq!(client.next(), json!({"return": {}}));
        client
    }

    fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).expect("it listens");
    }

    fn next(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("a line");
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line:?}: {e}"))
    }
}

fn next_request(hub: &Hub) -> Request {
    let until = Instant::now() + PATIENCE;
    loop {
        hub.bell().hush();
        if let Some(request) = hub.next() {
            return request;
        }
        assert!(Instant::now() < until, "no request");
        std::thread::yield_now();
    }
}

/// Answers with what was asked for.
fn serve(hub: &Hub, count: usize) {
    for _ in 0..count {
        let request = next_request(hub);
        let (name, _) = request.todo.call.expect("a command");
        hub.answer(request.session, json!({"return": name}));
    }
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number.expect("a number").parse().expect("a number")
}

#[test]
fn one_of_64_that_never_reads_is_cut_off_and_the_others_miss_nothing() {
    const EVENTS: usize = 1_400;
    const BYTES: usize = 4_000;
    let hub = Hub::start().expect("a hub");
    let mut deaf = Client::negotiated(&hub, NEGOTIATE);
    let clients: Vec<Client> = (1..64)
        .map(|_| Client::negotiated(&hub, NEGOTIATE))
        .collect();
    let before = resident_kib();
    let heard = &AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for mut client in clients {
            scope.spawn(move || {
                for at in 0..EVENTS {
                    let event = client.next();
                    assert_eq!(event["data"]["id"], format!("{at:0BYTES$}"));
                    heard.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for at in 0..EVENTS {
            hub.event(
                &BLOCK_EXPORT_DELETED,
                json!({"id": format!("{at:0BYTES$}")}),
            );
            // No faster than those who read.
            let until = Instant::now() + PATIENCE;
            while heard.load(Ordering::Relaxed) + 63 * 100 < 63 * at {
                assert!(Instant::now() < until, "somebody hears nothing");
                std::thread::yield_now();
            }
        }
    });
    let grown_mib = (resident_kib().saturating_sub(before)) / 1024;
    println!("{grown_mib} MiB more");
    assert!(grown_mib < 250, "{grown_mib} MiB more");
    let mut rest = Vec::new();
    deaf.0.read_to_end(&mut rest).expect("an end");
    assert!(rest.len() < EVENTS * BYTES, "it got everything");
}

#[test]
fn no_more_than_eight_commands_of_a_client_wait_and_one_that_cannot_overtake_waits_for_each() {
    let hub = Hub::start().expect("a hub");
    for (how, expected) in [(NEGOTIATE, 1), (NEGOTIATE_OOB, 8)] {
        let mut client = Client::negotiated(&hub, how);
        let flood: String = (0..100)
            .map(|at| format!("{{\"execute\":\"c{at}\"}}"))
            .collect();
        client.send(flood.as_bytes());
        let mut waiting: Vec<Request> = (0..expected).map(|_| next_request(&hub)).collect();
        // Another client's command comes after all that this one may have waiting.
        let mut other = Client::negotiated(&hub, NEGOTIATE);
        other.send(b"{\"execute\":\"other\"}");
        let request = next_request(&hub);
        let (name, _) = request.todo.call.as_ref().expect("a command");
        assert_eq!(name, "other");
        hub.answer(request.session, json!({"return": "other"}));
        assert_eq!(other.next()["return"], "other");
        for request in waiting.drain(..) {
            let (name, _) = request.todo.call.expect("a command");
            hub.answer(request.session, json!({"return": name}));
        }
        serve(&hub, 100 - expected);
        for at in 0..100 {
            assert_eq!(client.next()["return"], format!("c{at}"));
        }
    }
}

#[test]
fn answers_that_are_not_read_stop_the_reading_and_keep_nobody_waiting() {
    let hub = Hub::start().expect("a hub");
    let mut deaf = Client::negotiated(&hub, NEGOTIATE);
    let mut other = Client::negotiated(&hub, NEGOTIATE);
    let long = "x".repeat(300_000);
    deaf.send(b"{\"execute\":\"c\"}{\"execute\":\"c\"}{\"execute\":\"c\"}{\"execute\":\"c\"}{\"execute\":\"c\"}{\"execute\":\"c\"}{\"execute\":\"c\"}{\"execute\":\"c\"}");
    let mut answered = 0;
    let until = Instant::now() + Duration::from_secs(1);
    while Instant::now() < until && answered < 8 {
        hub.bell().hush();
        if let Some(request) = hub.next() {
            hub.answer(request.session, json!({"return": long}));
            answered += 1;
        }
        std::thread::yield_now();
    }
    assert!((4..8).contains(&answered), "{answered} answered");
    other.send(b"{\"execute\":\"c\"}");
    serve(&hub, 1);
    assert_eq!(other.next()["return"], "c");
    std::thread::scope(|scope| {
        scope.spawn(|| serve(&hub, 8 - answered));
        for at in 0..8 {
            let answer = deaf.next();
            let expected = if at < answered { long.as_str() } else { "c" };
            assert_eq!(answer["return"], expected);
        }
    });
}

#[test]
fn a_client_that_sends_and_hangs_up_has_its_commands_executed_and_a_half_closed_one_its_answers() {
    let hub = Hub::start().expect("a hub");
    let mut gone = Client::negotiated(&hub, NEGOTIATE_OOB);
    gone.send(b"{\"execute\":\"a\"}{\"execute\":\"b\"}{\"execute\":\"unfin");
    drop(gone);
    serve(&hub, 2);
    let mut half = Client::negotiated(&hub, NEGOTIATE);
    half.send(b"{\"execute\":\"a\"}{\"execute\":\"b\"}");
    half.0.get_mut().shutdown(Shutdown::Write).expect("open");
    serve(&hub, 2);
    assert_eq!(half.next()["return"], "a");
    assert_eq!(half.next()["return"], "b");
    assert_eq!(half.0.read(&mut [0]).expect("an end"), 0);
    assert!(hub.next().is_none());
}

#[test]
fn a_long_string_and_deep_nesting_come_back_and_two_hundred_thousand_brackets_do_not() {
    let hub = Hub::start().expect("a hub");
    let mut client = Client::negotiated(&hub, NEGOTIATE);
    let long = "y".repeat(10 << 20);
    let deep = format!("{}1{}", "[".repeat(1023), "]".repeat(1023));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..2 {
                let request = next_request(&hub);
                let id = request.todo.id.expect("an id");
                hub.answer(request.session, json!({"return": {}, "id": id}));
            }
        });
        client.send(format!("{{\"execute\":\"c\",\"id\":\"{long}\"}}").as_bytes());
        assert_eq!(client.next()["id"], long);
        client.send(format!("{{\"execute\":\"c\",\"id\":{deep}}}").as_bytes());
        let mut line = String::new();
        client.0.read_line(&mut line).expect("a line");
        assert!(line.contains(&deep), "not what was sent");
    });
    client.send("[".repeat(200_000).as_bytes());
    for _ in 0..200_000 / 1025 {
        let request = next_request(&hub);
        let error = request.todo.call.expect_err("too deep");
        assert_eq!(error.desc, "JSON nesting depth limit exceeded");
        hub.answer(request.session, json!({"error": {}}));
    }
}

#[test]
fn garbage_of_every_kind_is_answered_and_forgotten() {
    let hub = Hub::start().expect("a hub");
    let mut chance = 0x9e37_79b9_7f4a_7c15_u64;
    let mut client = Client::negotiated(&hub, NEGOTIATE);
    let mut reader = client.0.get_ref().try_clone().expect("a duplicate");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut bytes = vec![0; 1 << 16];
            let mut tail = Vec::new();
            while !String::from_utf8_lossy(&tail).contains("the-end") {
                let count = reader.read(&mut bytes).expect("answers");
                assert!(count > 0, "hung up");
                tail = [&tail[tail.len().saturating_sub(100)..], &bytes[..count]].concat();
            }
        });
        scope.spawn(|| {
            for _ in 0..200 {
                let junk: Vec<u8> = (0..4096)
                    .map(|_| {
                        chance = chance.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                        let byte = (chance >> 56) as u8;
                        let likely = b"{}[]:,\"'\\ \n0123456789truefalsn";
                        match chance >> 40 & 3 {
                            0 => byte,
                            _ => likely[usize::from(byte) % likely.len()],
                        }
                    })
                    .collect();
                client.send(&junk);
            }
            // Out of whatever is open, as the specification has it.
            client.send(b"\n\xff\n{\"execute\":\"the-end\"}");
        });
        loop {
            let request = next_request(&hub);
            let answer = match request.todo.call {
                Ok((name, _)) => json!({"return": name}),
                Err(error) => json!({"error": error.desc}),
            };
            let is_end = answer["return"] == "the-end";
            hub.answer(request.session, answer);
            if is_end {
                break;
            }
        }
    });
}
