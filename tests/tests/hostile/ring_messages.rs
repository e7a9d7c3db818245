//! Rings that do not exist, do not fit or are changed while they run.

use tests::client::guest::Guest;
use tests::client::wire::{req, words32, words64};

use super::messages::{at, case, event, plain};
use super::probe::{ACCEPTED, Case, HARMLESS, REFUSED, Sent, Stage, say};

pub fn indexes() -> Vec<Case> {
    let mut cases = Vec::new();
    for index in [16u32, 64, 255, 256, 0x7fff_ffff, u32::MAX] {
        for (name, request) in [
            ("SET_VRING_NUM", req::SET_VRING_NUM),
            ("SET_VRING_BASE", req::SET_VRING_BASE),
            ("GET_VRING_BASE", req::GET_VRING_BASE),
            ("SET_VRING_ENABLE", req::SET_VRING_ENABLE),
        ] {
            cases.push(plain(
                format!("{name} of queue {index}"),
                REFUSED,
                request,
                words32(&[index, 1]),
            ));
        }
        let mut address = words32(&[index, 0]);
        address.extend(words64(&[0; 4]));
        cases.push(plain(
            format!("SET_VRING_ADDR of queue {index}"),
            REFUSED,
            req::SET_VRING_ADDR,
            address,
        ));
    }
    cases.push(case(
        "SET_VRING_KICK of queue 16",
        Stage::Running,
        REFUSED,
        |_| fd_of(req::SET_VRING_KICK, 16),
    ));
    cases.push(case(
        "SET_VRING_CALL of queue 255",
        Stage::Running,
        REFUSED,
        |_| fd_of(req::SET_VRING_CALL, 255),
    ));
    cases.push(case(
        "SET_VRING_ERR of queue 63",
        Stage::Running,
        REFUSED,
        |_| fd_of(req::SET_VRING_ERR, 63),
    ));
    cases
}

pub fn fd_of(request: u32, index: u64) -> Vec<Sent> {
    vec![say(request, &words64(&[index])).with([event()])]
}

/// A whole ring start with other numbers in it.
pub fn start(guest: &Guest, size: u32, change: fn(&mut [u64; 3])) -> Vec<Sent> {
    let place = guest.rings[0].place;
    let mut at = [
        guest.memory.user(place.desc),
        guest.memory.user(place.used),
        guest.memory.user(place.avail),
    ];
    change(&mut at);
    let mut address = words32(&[0, 0]);
    address.extend(words64(&[at[0], at[1], at[2], 0]));
    vec![
        say(req::SET_VRING_NUM, &words32(&[0, size])),
        say(req::SET_VRING_BASE, &words32(&[0, 0])),
        say(req::SET_VRING_ADDR, &address),
        say(req::SET_VRING_CALL, &words64(&[0])).with([event()]),
        say(req::SET_VRING_KICK, &words64(&[0])).with([event()]),
        say(req::SET_VRING_ENABLE, &words32(&[0, 1])),
    ]
}

pub fn rings() -> Vec<Case> {
    let m = Stage::Mapped;
    let mut cases = vec![
        case("a ring of 128", m, ACCEPTED, |g| start(g, 128, |_| {})),
        case("a ring of no descriptors", m, REFUSED, |g| {
            start(g, 0, |_| {})
        }),
        case("a ring of three descriptors", m, REFUSED, |g| {
            start(g, 3, |_| {})
        }),
        case("a ring of a hundred descriptors", m, REFUSED, |g| {
            start(g, 100, |_| {})
        }),
        case("a ring of 32769 descriptors", m, REFUSED, |g| {
            start(g, 32769, |_| {})
        }),
        case("a ring of 65536 descriptors", m, REFUSED, |g| {
            start(g, 65536, |_| {})
        }),
        case("a ring of 2^32 - 1 descriptors", m, REFUSED, |g| {
            start(g, u32::MAX, |_| {})
        }),
        case("descriptors nowhere", m, REFUSED, |g| {
            start(g, 128, |at| at[0] = 64)
        }),
        case("a used ring nowhere", m, REFUSED, |g| {
            start(g, 128, |at| at[1] = 64)
        }),
        case("an available ring nowhere", m, REFUSED, |g| {
            start(g, 128, |at| at[2] = 64)
        }),
        case("descriptors at the end of all addresses", m, REFUSED, |g| {
            start(g, 128, |at| at[0] = u64::MAX - 15)
        }),
        case("a used ring at the end of all addresses", m, REFUSED, |g| {
            start(g, 128, |at| at[1] = u64::MAX - 3)
        }),
        case(
            "an available ring at the end of all addresses",
            m,
            REFUSED,
            |g| start(g, 128, |at| at[2] = u64::MAX - 1),
        ),
        case("descriptors that are not aligned", m, REFUSED, |g| {
            start(g, 128, |at| at[0] += 8)
        }),
        case("a used ring that is not aligned", m, REFUSED, |g| {
            start(g, 128, |at| at[1] += 2)
        }),
        case("an available ring that is not aligned", m, REFUSED, |g| {
            start(g, 128, |at| at[2] += 1)
        }),
        case("descriptors past their region", m, REFUSED, |g| past(g, 0)),
        case("a used ring past its region", m, REFUSED, |g| past(g, 1)),
        case("an available ring past its region", m, REFUSED, |g| {
            past(g, 2)
        }),
        at(
            "SET_VRING_BASE of 65536",
            m,
            REFUSED,
            req::SET_VRING_BASE,
            words32(&[0, 65536]),
        ),
        at(
            "SET_VRING_BASE of 2^32 - 1",
            m,
            REFUSED,
            req::SET_VRING_BASE,
            words32(&[0, u32::MAX]),
        ),
        at(
            "SET_VRING_BASE of 65535",
            m,
            ACCEPTED,
            req::SET_VRING_BASE,
            words32(&[0, 65535]),
        ),
        plain(
            "SET_VRING_NUM while the ring runs",
            REFUSED,
            req::SET_VRING_NUM,
            words32(&[0, 64]),
        ),
        plain(
            "SET_VRING_NUM of 0 while the ring runs",
            REFUSED,
            req::SET_VRING_NUM,
            words32(&[0, 0]),
        ),
        plain(
            "SET_VRING_BASE while the ring runs",
            REFUSED,
            req::SET_VRING_BASE,
            words32(&[0, 7]),
        ),
        plain(
            "SET_VRING_ENABLE of 2",
            HARMLESS,
            req::SET_VRING_ENABLE,
            words32(&[0, 2]),
        ),
        plain(
            "SET_VRING_ENABLE of 2^32 - 1",
            HARMLESS,
            req::SET_VRING_ENABLE,
            words32(&[0, u32::MAX]),
        ),
        at(
            "a ring enabled before it is set up",
            m,
            HARMLESS,
            req::SET_VRING_ENABLE,
            words32(&[0, 1]),
        ),
        case(
            "a kick eventfd before anything else of a ring",
            m,
            HARMLESS,
            |_| fd_of(req::SET_VRING_KICK, 0),
        ),
        case("five hundred sizes", m, ACCEPTED, |_| {
            (0..500)
                .map(|_| say(req::SET_VRING_NUM, &words32(&[3, 64])))
                .collect()
        }),
        case("five hundred call eventfds", m, ACCEPTED, |_| {
            (0..500)
                .flat_map(|_| fd_of(req::SET_VRING_CALL, 2))
                .collect()
        }),
        case("five hundred kick eventfds", m, ACCEPTED, |_| {
            (0..500)
                .flat_map(|_| fd_of(req::SET_VRING_KICK, 2))
                .collect()
        }),
    ];
    cases.push(plain(
        "a base taken twice",
        ACCEPTED,
        req::GET_VRING_BASE,
        words32(&[0, 0]),
    ));
    cases.push(at(
        "a base taken of a ring that never ran",
        m,
        ACCEPTED,
        req::GET_VRING_BASE,
        words32(&[5, 0]),
    ));
    cases
}

/// A ring part that begins inside the last region and ends behind it.
fn past(guest: &Guest, part: usize) -> Vec<Sent> {
    let last = guest.memory.regions()[2];
    let mut sent = start(guest, 128, |_| {});
    let at = 8 + part * 8 + 12;
    sent[2].bytes[at..at + 8].copy_from_slice(&(last.user + last.len - 16).to_le_bytes());
    sent
}
