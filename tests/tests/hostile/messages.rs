//! Malformed, misplaced and misdirected messages.

use std::os::fd::OwnedFd;

use tests::client::guest::Guest;
use tests::client::wire::{
    NEED_REPLY, REPLY, VERSION_1, config_payload, message, req, words32, words64,
};
use vmm_sys_util::eventfd::EventFd;

use super::memory_messages::one;
use super::probe::{ACCEPTED, Case, HARMLESS, Outcome, REFUSED, Sent, Stage, say, send_all};
use super::ring_messages::start;
pub type Build = fn(&Guest) -> Vec<Sent>;

pub fn case(
    name: impl Into<String>,
    stage: Stage,
    expect: &'static [Outcome],
    build: Build,
) -> Case {
    let run = move |guest: &mut Guest| send_all(guest, &build(guest));
    Case {
        name: name.into(),
        stage,
        expect,
        run: Box::new(run),
    }
}

/// A case whose message depends on nothing.
pub fn plain(
    name: impl Into<String>,
    expect: &'static [Outcome],
    request: u32,
    payload: Vec<u8>,
) -> Case {
    at(name, Stage::Running, expect, request, payload)
}

pub fn at(
    name: impl Into<String>,
    stage: Stage,
    expect: &'static [Outcome],
    request: u32,
    payload: Vec<u8>,
) -> Case {
    let run = move |guest: &mut Guest| send_all(guest, &[say(request, &payload)]);
    Case {
        name: name.into(),
        stage,
        expect,
        run: Box::new(run),
    }
}

/// Bytes whose header may lie; the peer is told that nothing follows.
fn raw(name: impl Into<String>, expect: &'static [Outcome], bytes: Vec<u8>) -> Case {
    let run = move |guest: &mut Guest| {
        let wire = guest.wire();
        let sent = wire.send_raw(&bytes, &[]);
        wire.stop_talking();
        match (sent, wire.closed_within(tests::client::patience())) {
            (Err(_), _) | (Ok(()), true) => Outcome::Closed,
            (Ok(()), false) => Outcome::Silent,
        }
    };
    Case {
        name: name.into(),
        stage: Stage::Running,
        expect,
        run: Box::new(run),
    }
}

pub fn event() -> OwnedFd {
    let fd = EventFd::new(0).unwrap();
    // SAFETY: the descriptor is new and given away here.
    unsafe { std::os::fd::FromRawFd::from_raw_fd(std::os::fd::IntoRawFd::into_raw_fd(fd)) }
}

pub fn all() -> Vec<Case> {
    let parts = [
        super::ring_messages::indexes(),
        super::memory_messages::tables(),
        super::memory_messages::slots(),
        super::ring_messages::rings(),
        super::fd_messages::fds(),
        super::inflight_messages::regions(),
        headers(),
        unknown(),
        order(),
        config(),
    ];
    parts.into_iter().flatten().collect()
}

fn headers() -> Vec<Case> {
    let features = |flags: u32| message(req::SET_FEATURES, flags, 8, &words64(&[0]));
    vec![
        raw("nothing at all", &[Outcome::Closed], vec![]),
        raw("half a header", &[Outcome::Closed], words32(&[1])),
        raw(
            "eleven bytes of a header",
            &[Outcome::Closed],
            message(1, 1, 0, &[])[..11].to_vec(),
        ),
        raw(
            "a header without its payload",
            &[Outcome::Closed],
            message(req::SET_FEATURES, VERSION_1, 8, &[]),
        ),
        raw(
            "half a payload",
            &[Outcome::Closed],
            message(req::SET_FEATURES, VERSION_1, 8, &[0; 4]),
        ),
        raw(
            "a payload of 2^32 - 1 bytes",
            &[Outcome::Closed],
            message(req::SET_FEATURES, VERSION_1, u32::MAX, &[0; 64]),
        ),
        raw(
            "a payload of 2^31 bytes",
            &[Outcome::Closed],
            message(req::SET_MEM_TABLE, VERSION_1, 1 << 31, &[0; 64]),
        ),
        raw(
            "a payload of 4097 bytes",
            &[Outcome::Closed],
            message(req::SET_CONFIG, VERSION_1, 4097, &[0; 4097]),
        ),
        raw(
            "a payload of a mebibyte",
            &[Outcome::Closed],
            message(req::SET_CONFIG, VERSION_1, 1 << 20, &[0; 8192]),
        ),
        raw("version 0", &[Outcome::Closed], features(0)),
        raw("version 2", &[Outcome::Closed], features(2)),
        raw("version 3", &[Outcome::Closed], features(3)),
        raw(
            "a reply nobody asked for",
            &[Outcome::Closed],
            features(VERSION_1 | REPLY),
        ),
        raw(
            "reserved flags",
            &[Outcome::Closed],
            features(VERSION_1 | 0xffff_fff0),
        ),
        raw(
            "garbage",
            &[Outcome::Closed],
            tests::client::pattern::pattern(3, 4096),
        ),
        plain(
            "SET_FEATURES of sixteen bytes",
            REFUSED,
            req::SET_FEATURES,
            vec![0; 16],
        ),
        plain(
            "SET_FEATURES of four bytes",
            REFUSED,
            req::SET_FEATURES,
            vec![0; 4],
        ),
        plain(
            "SET_FEATURES of no bytes",
            REFUSED,
            req::SET_FEATURES,
            vec![],
        ),
        plain(
            "GET_FEATURES with a payload",
            HARMLESS,
            req::GET_FEATURES,
            vec![0; 8],
        ),
        plain(
            "SET_VRING_NUM of four bytes",
            REFUSED,
            req::SET_VRING_NUM,
            vec![0; 4],
        ),
        plain(
            "SET_VRING_ADDR of eight bytes",
            REFUSED,
            req::SET_VRING_ADDR,
            vec![0; 8],
        ),
        plain(
            "SET_VRING_KICK of no bytes",
            REFUSED,
            req::SET_VRING_KICK,
            vec![],
        ),
        plain(
            "GET_VRING_BASE of no bytes",
            REFUSED,
            req::GET_VRING_BASE,
            vec![],
        ),
        plain(
            "SET_MEM_TABLE of four bytes",
            REFUSED,
            req::SET_MEM_TABLE,
            vec![0; 4],
        ),
        plain(
            "SET_MEM_TABLE of no bytes",
            REFUSED,
            req::SET_MEM_TABLE,
            vec![],
        ),
    ]
}

fn unknown() -> Vec<Case> {
    let mut cases = Vec::new();
    for request in [0u32, 33, 45, 100, 1 << 16, u32::MAX] {
        cases.push(plain(
            format!("message {request}"),
            REFUSED,
            request,
            vec![0; 8],
        ));
        let bytes = message(request, VERSION_1, 8, &[0; 8]);
        cases.push(raw(
            format!("message {request} that wants no reply"),
            &[Outcome::Closed],
            bytes,
        ));
    }
    for (name, request, len) in [
        ("SET_LOG_BASE", req::SET_LOG_BASE, 16),
        ("SET_LOG_FD", req::SET_LOG_FD, 8),
        ("SEND_RARP", req::SEND_RARP, 8),
        ("NET_SET_MTU", req::NET_SET_MTU, 8),
        ("IOTLB_MSG", req::IOTLB_MSG, 32),
        ("SET_VRING_ENDIAN", req::SET_VRING_ENDIAN, 8),
        ("POSTCOPY_ADVISE", req::POSTCOPY_ADVISE, 0),
        ("VRING_KICK", req::VRING_KICK, 8),
        ("SET_STATUS", req::SET_STATUS, 8),
        ("GET_STATUS", req::GET_STATUS, 0),
        ("SET_DEVICE_STATE_FD", req::SET_DEVICE_STATE_FD, 8),
    ] {
        cases.push(plain(
            format!("{name}, which was not negotiated"),
            REFUSED,
            request,
            vec![0; len],
        ));
    }
    cases
}

fn order() -> Vec<Case> {
    let (f, n, m, r) = (
        Stage::Fresh,
        Stage::Negotiated,
        Stage::Mapped,
        Stage::Running,
    );
    vec![
        case("SET_MEM_TABLE before anything", f, HARMLESS, |g| {
            one(g, |_| {})
        }),
        case("a ring before anything", f, HARMLESS, |g| {
            start(g, 128, |_| {})
        }),
        case("a ring before memory", n, HARMLESS, |g| {
            start(g, 128, |_| {})
        }),
        at(
            "GET_CONFIG before anything",
            f,
            HARMLESS,
            req::GET_CONFIG,
            config_payload(0, 0, &[0; 60]),
        ),
        at(
            "GET_VRING_BASE before anything",
            f,
            HARMLESS,
            req::GET_VRING_BASE,
            words32(&[0, 0]),
        ),
        at(
            "SET_VRING_ENABLE before anything",
            f,
            HARMLESS,
            req::SET_VRING_ENABLE,
            words32(&[0, 1]),
        ),
        at(
            "RESET_DEVICE before anything",
            f,
            HARMLESS,
            req::RESET_DEVICE,
            vec![],
        ),
        at("SET_OWNER twice", n, HARMLESS, req::SET_OWNER, vec![]),
        at(
            "RESET_OWNER while the ring runs",
            r,
            HARMLESS,
            req::RESET_OWNER,
            vec![],
        ),
        at(
            "features that were not offered",
            n,
            REFUSED,
            req::SET_FEATURES,
            words64(&[1 << 60 | 1 << 32]),
        ),
        at(
            "every feature there is",
            n,
            REFUSED,
            req::SET_FEATURES,
            words64(&[u64::MAX]),
        ),
        at(
            "protocol features that were not offered",
            f,
            HARMLESS,
            req::SET_PROTOCOL_FEATURES,
            words64(&[u64::MAX]),
        ),
        at(
            "other features while the ring runs",
            r,
            HARMLESS,
            req::SET_FEATURES,
            words64(&[1 << 32 | 1 << 30]),
        ),
        case("RESET_DEVICE three times", m, ACCEPTED, |_| {
            (0..3).map(|_| say(req::RESET_DEVICE, &[])).collect()
        }),
        case(
            "a flood of questions, no answer read",
            r,
            &[Outcome::Accepted],
            |g| {
                g.wire()
                    .flood(&message(req::GET_FEATURES, VERSION_1 | NEED_REPLY, 0, &[]));
                vec![]
            },
        ),
    ]
}

fn config() -> Vec<Case> {
    const NOTHING: &[Outcome] = &[Outcome::EmptyReply, Outcome::Closed, Outcome::Nak];
    let get = |offset: u32, len: usize| config_payload(offset, 0, &vec![0; len]);
    let lie = |offset: u32, says: u32, len: usize| {
        let mut payload = words32(&[offset, says, 0]);
        payload.extend(vec![0; len]);
        payload
    };
    let (g, s) = (req::GET_CONFIG, req::SET_CONFIG);
    vec![
        plain("GET_CONFIG from an odd offset", ACCEPTED, g, get(13, 7)),
        plain("GET_CONFIG of 257 bytes", NOTHING, g, get(0, 257)),
        plain("GET_CONFIG of 4000 bytes", NOTHING, g, get(0, 4000)),
        plain("GET_CONFIG of nothing", HARMLESS, g, get(0, 0)),
        plain("GET_CONFIG across the end", NOTHING, g, get(90, 100)),
        plain(
            "GET_CONFIG at offset 2^32 - 1",
            NOTHING,
            g,
            get(u32::MAX, 8),
        ),
        plain(
            "GET_CONFIG at an offset that overflows",
            NOTHING,
            g,
            get(u32::MAX - 3, 8),
        ),
        plain(
            "GET_CONFIG that says more than it brings",
            NOTHING,
            g,
            lie(0, 60, 8),
        ),
        plain(
            "GET_CONFIG that says 2^32 - 1",
            NOTHING,
            g,
            lie(0, u32::MAX, 8),
        ),
        plain("GET_CONFIG cut short", NOTHING, g, vec![0; 8]),
        plain(
            "SET_CONFIG of the capacity",
            HARMLESS,
            s,
            config_payload(0, 0, &[0xff; 8]),
        ),
        plain(
            "SET_CONFIG of a write cache of 2",
            HARMLESS,
            s,
            config_payload(32, 0, &[2]),
        ),
        plain(
            "SET_CONFIG with flags 7",
            HARMLESS,
            s,
            config_payload(32, 7, &[1]),
        ),
        plain(
            "SET_CONFIG of nothing",
            HARMLESS,
            s,
            config_payload(32, 0, &[]),
        ),
        plain(
            "SET_CONFIG across the end",
            REFUSED,
            s,
            config_payload(90, 0, &[0; 100]),
        ),
        plain(
            "SET_CONFIG at offset 2^32 - 1",
            REFUSED,
            s,
            config_payload(u32::MAX, 0, &[0; 4]),
        ),
        plain(
            "SET_CONFIG that says more than it brings",
            REFUSED,
            s,
            lie(32, 60, 1),
        ),
        plain(
            "SET_CONFIG that says less than it brings",
            HARMLESS,
            s,
            lie(32, 1, 60),
        ),
        plain("SET_CONFIG cut short", REFUSED, s, vec![0; 4]),
    ]
}
