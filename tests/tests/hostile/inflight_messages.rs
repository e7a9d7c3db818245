//! Inflight regions that are too small, too large, somewhere else, full of lies, or taken away.

use std::fs::File;
use std::os::fd::OwnedFd;

use tests::client::blk::Request;
use tests::client::front::inflight_payload;
use tests::client::guest::Guest;
use tests::client::memory::memfd;
use tests::client::pattern::pattern;
use tests::client::wire::req;

use super::messages::case;
use super::probe::{
    ACCEPTED, Case, HARMLESS, Outcome, REFUSED, Sent, Shot, Stage, fire, say, send_all,
};
use super::ring_messages::start;

/// More than a region of one queue of 128 entries takes.
const ENOUGH: u64 = 8192;
const RING: u16 = 128;

/// The end of the session: there is no ring to be told of it.
const ENDS: &[Outcome] = &[Outcome::Closed];

type Shape = (u64, u64, u16, u16);

fn get(shape: Shape) -> Sent {
    say(req::GET_INFLIGHT_FD, &inflight_payload(shape))
}

fn set(shape: Shape, fd: impl Into<OwnedFd>) -> Sent {
    say(req::SET_INFLIGHT_FD, &inflight_payload(shape)).with([fd])
}

/// What a region that is believed looks like, whatever else is in it.
fn garbage(used_idx: u16) -> File {
    let file = memfd(ENOUGH).unwrap();
    let mut bytes = pattern(9, ENOUGH as usize);
    bytes[8..10].copy_from_slice(&1u16.to_ne_bytes());
    bytes[10..12].copy_from_slice(&RING.to_ne_bytes());
    bytes[14..16].copy_from_slice(&used_idx.to_ne_bytes());
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).unwrap();
    file
}

fn then_start(shape: Shape, file: File, guest: &Guest) -> Vec<Sent> {
    let mut all = vec![set(shape, file)];
    all.extend(start(guest, RING.into(), |_| {}));
    all
}

pub fn regions() -> Vec<Case> {
    let (m, r) = (Stage::Mapped, Stage::Running);
    let whole = (ENOUGH, 0, 1, RING);
    let mut cases = vec![
        case("GET_INFLIGHT_FD a hundred times", r, ACCEPTED, |_| {
            (0..100).map(|_| get((0, 0, 16, 1024))).collect()
        }),
        case(
            "SET_INFLIGHT_FD while the ring runs",
            r,
            REFUSED,
            move |_| vec![set((ENOUGH, 0, 1, RING), memfd(ENOUGH).unwrap())],
        ),
        case("SET_INFLIGHT_FD without a descriptor", m, REFUSED, |_| {
            let payload = inflight_payload((ENOUGH, 0, 1, RING));
            vec![say(req::SET_INFLIGHT_FD, &payload)]
        }),
        case("SET_INFLIGHT_FD with two descriptors", m, REFUSED, |_| {
            let payload = inflight_payload((ENOUGH, 0, 1, RING));
            let fds = [memfd(ENOUGH).unwrap(), memfd(ENOUGH).unwrap()];
            vec![say(req::SET_INFLIGHT_FD, &payload).with(fds)]
        }),
        case("SET_INFLIGHT_FD of twenty bytes", m, REFUSED, |_| {
            let payload = inflight_payload((ENOUGH, 0, 1, RING));
            vec![say(req::SET_INFLIGHT_FD, &payload[..20]).with([memfd(ENOUGH).unwrap()])]
        }),
        case("SET_INFLIGHT_FD with /dev/zero", m, REFUSED, |_| {
            let zero = File::options().read(true).write(true).open("/dev/zero");
            vec![set((ENOUGH, 0, 1, RING), zero.unwrap())]
        }),
        case(
            "SET_INFLIGHT_FD with a file one cannot write to",
            m,
            REFUSED,
            |_| {
                vec![set(
                    (ENOUGH, 0, 1, RING),
                    File::open("/proc/self/exe").unwrap(),
                )]
            },
        ),
        case("SET_INFLIGHT_FD twice", m, ACCEPTED, |_| {
            let regions = [(); 2].map(|()| memfd(ENOUGH).unwrap());
            regions.map(|file| set((ENOUGH, 0, 1, RING), file)).into()
        }),
        case("a ring larger than its region", m, REFUSED, |g| {
            then_start((ENOUGH, 0, 1, RING / 2), memfd(ENOUGH).unwrap(), g)
        }),
        case("a region full of garbage", m, HARMLESS, |g| {
            then_start((ENOUGH, 0, 1, RING), garbage(0), g)
        }),
        case("a region of another ring", m, HARMLESS, |g| {
            then_start((ENOUGH, 0, 1, RING), garbage(1000), g)
        }),
        Case {
            name: "a region that is cut off".to_owned(),
            stage: m,
            expect: ENDS,
            run: Box::new(move |guest| cut_off(guest, whole)),
        },
    ];
    for (name, shape) in [
        ("no queue", (0, 0, 0, RING)),
        ("more queues than there are", (0, 0, 17, RING)),
        ("65535 queues", (0, 0, u16::MAX, RING)),
        ("rings of no entry", (0, 0, 1, 0)),
        ("rings of 65535 entries", (0, 0, 1, u16::MAX)),
    ] {
        cases.push(Case {
            name: format!("GET_INFLIGHT_FD for {name}"),
            stage: r,
            expect: REFUSED,
            run: Box::new(move |guest| send_all(guest, &[get(shape)])),
        });
    }
    for (name, shape) in [
        ("no queue", (ENOUGH, 0, 0, RING)),
        ("of no length", (0, 0, 1, RING)),
        ("too short for its queues", (ENOUGH, 0, 16, 1024)),
        ("one byte too short", (2111, 0, 1, RING)),
        ("beyond its file", (ENOUGH, 4096, 1, RING)),
        ("in the middle of a page", (4096, 512, 1, RING)),
        ("that wraps around", (u64::MAX - 4095, 4096, 1, RING)),
        ("of 2^64 - 1 bytes", (u64::MAX, 0, 1, RING)),
    ] {
        cases.push(Case {
            name: format!("SET_INFLIGHT_FD of a region {name}"),
            stage: m,
            expect: REFUSED,
            run: Box::new(move |guest| send_all(guest, &[set(shape, memfd(ENOUGH).unwrap())])),
        });
    }
    cases
}

/// The memory goes while the ring runs.
fn cut_off(guest: &mut Guest, shape: Shape) -> Outcome {
    let file = memfd(ENOUGH).unwrap();
    let kept = file.try_clone().unwrap();
    let set = send_all(guest, &[set(shape, file)]);
    if set != Outcome::Accepted {
        return set;
    }
    if guest.start_rings().is_err() {
        return Outcome::Closed;
    }
    kept.set_len(0).unwrap();
    // The first request may be answered, as nobody looks before; the next one finds it gone.
    for _ in 0..2 {
        let pending = guest.add(0, &Request::read(0, 512));
        let shot = Shot {
            head: pending.head,
            status: Some(pending.status()),
        };
        match fire(guest, shot) {
            Outcome::Status(_) => {}
            other => return other,
        }
    }
    Outcome::Silent
}
