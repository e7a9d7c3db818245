//! Descriptors that are missing, too many, or of a kind that is none of a ring's.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use tests::client::guest::Guest;
use tests::client::memory::memfd;
use tests::client::wire::{req, words32, words64};

use super::messages::{case, event};
use super::probe::{ACCEPTED, Case, HARMLESS, Outcome, REFUSED, Stage, say, send_all};
use super::ring_messages::fd_of;

type Open = fn() -> OwnedFd;

fn file(path: &str) -> OwnedFd {
    File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap()
        .into()
}

/// A pipe that takes no more and has a reader, who never comes to read.
fn full_pipe() -> OwnedFd {
    let (reader, mut writer) = std::io::pipe().unwrap();
    // A pipe holds 64 KiB unless told otherwise.
    writer.write_all(&[1; 65536]).unwrap();
    std::mem::forget(reader);
    writer.into()
}

fn other_end() -> OwnedFd {
    UnixStream::pair().unwrap().0.into()
}

pub fn fds() -> Vec<Case> {
    let r = Stage::Running;
    let kick =
        |fd: fn() -> OwnedFd| move |guest: &mut Guest| replaced(guest, req::SET_VRING_KICK, fd());
    let call =
        |fd: fn() -> OwnedFd| move |guest: &mut Guest| replaced(guest, req::SET_VRING_CALL, fd());
    let mut cases = vec![
        case("SET_VRING_KICK without a descriptor", r, REFUSED, |_| {
            vec![say(req::SET_VRING_KICK, &words64(&[0]))]
        }),
        case("SET_VRING_CALL without a descriptor", r, REFUSED, |_| {
            vec![say(req::SET_VRING_CALL, &words64(&[0]))]
        }),
        case(
            "SET_VRING_CALL that says there is none",
            r,
            ACCEPTED,
            |_| vec![say(req::SET_VRING_CALL, &words64(&[0x100]))],
        ),
        case(
            "SET_VRING_CALL that says there is none, and one",
            r,
            HARMLESS,
            |_| fd_of(req::SET_VRING_CALL, 0x100),
        ),
        case(
            "SET_VRING_KICK that says there is none",
            r,
            HARMLESS,
            |_| vec![say(req::SET_VRING_KICK, &words64(&[0x100]))],
        ),
        case("SET_VRING_KICK with two descriptors", r, REFUSED, |_| {
            vec![say(req::SET_VRING_KICK, &words64(&[0])).with([event(), event()])]
        }),
        case("SET_VRING_CALL with 33 descriptors", r, REFUSED, |_| {
            vec![say(req::SET_VRING_CALL, &words64(&[0])).with((0..33).map(|_| event()))]
        }),
        case("SET_FEATURES with a descriptor", r, REFUSED, |g| {
            vec![say(req::SET_FEATURES, &words64(&[g.agreed.features])).with([event()])]
        }),
        case("GET_FEATURES with eight descriptors", r, REFUSED, |_| {
            vec![say(req::GET_FEATURES, &[]).with((0..8).map(|_| event()))]
        }),
        case("GET_VRING_BASE with a descriptor", r, REFUSED, |_| {
            vec![say(req::GET_VRING_BASE, &words32(&[0, 0])).with([event()])]
        }),
        case(
            "an unknown message with 253 descriptors",
            r,
            REFUSED,
            |_| vec![say(99, &[]).with((0..253).map(|_| event()))],
        ),
        case(
            "SET_BACKEND_REQ_FD without a descriptor",
            r,
            REFUSED,
            |_| vec![say(req::SET_BACKEND_REQ_FD, &[])],
        ),
        case("SET_BACKEND_REQ_FD with two", r, REFUSED, |_| {
            vec![say(req::SET_BACKEND_REQ_FD, &[]).with([other_end(), other_end()])]
        }),
        case("SET_BACKEND_REQ_FD with a file", r, HARMLESS, |_| {
            vec![say(req::SET_BACKEND_REQ_FD, &[]).with([file("/dev/zero")])]
        }),
        case("SET_BACKEND_REQ_FD with a dead socket", r, HARMLESS, |_| {
            vec![say(req::SET_BACKEND_REQ_FD, &[]).with([other_end()])]
        }),
    ];
    let odd: [(&str, Open); 8] = [
        ("/dev/zero", || file("/dev/zero")),
        ("/dev/full", || file("/dev/full")),
        ("/dev/null", || file("/dev/null")),
        ("a memfd", || memfd(4096).unwrap().into()),
        ("a pipe's reading end", || std::io::pipe().unwrap().0.into()),
        ("a full pipe", full_pipe),
        ("a dead socket", other_end),
        ("a directory", || File::open("/").unwrap().into()),
    ];
    for (name, fd) in odd {
        let mut push = |what: &str, run: Box<dyn Fn(&mut Guest) -> Outcome>| {
            cases.push(Case {
                name: format!("{name} as {what}"),
                stage: r,
                expect: HARMLESS,
                run,
            });
        };
        push("kick", Box::new(kick(fd)));
        push("call", Box::new(call(fd)));
        push(
            "err",
            Box::new(move |guest: &mut Guest| replaced_err(guest, fd())),
        );
    }
    cases
}

/// Replaces an eventfd by something else, puts a request in the ring, and sees whether the session goes on.
fn replaced(guest: &mut Guest, request: u32, fd: OwnedFd) -> Outcome {
    let outcome = send_all(guest, &[say(request, &words64(&[0])).with([fd])]);
    if outcome != Outcome::Accepted {
        return outcome;
    }
    guest.add(0, &tests::client::blk::Request::read(0, 4096));
    guest.rings[0].publish();
    guest.rings[0].kick();
    send_all(guest, &[say(req::GET_QUEUE_NUM, &[])])
}

/// The same for err, with a broken ring to make use of it.
fn replaced_err(guest: &mut Guest, fd: OwnedFd) -> Outcome {
    let outcome = send_all(guest, &[say(req::SET_VRING_ERR, &words64(&[0])).with([fd])]);
    guest.rings[0].offer(u16::MAX);
    guest.rings[0].publish();
    guest.rings[0].kick();
    match outcome {
        Outcome::Accepted => send_all(guest, &[say(req::GET_QUEUE_NUM, &[])]),
        other => other,
    }
}
