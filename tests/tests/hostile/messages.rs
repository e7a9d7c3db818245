//! Malformed, misplaced and misdirected messages.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use tests::client::guest::Guest;
use tests::client::memory::memfd;
use tests::client::wire::{
    NEED_REPLY, REPLY, VERSION_1, config_payload, message, req, words32, words64,
};
use vmm_sys_util::eventfd::EventFd;

use super::probe::{ACCEPTED, Case, HARMLESS, Outcome, REFUSED, Sent, Stage, say, send_all};

type Open = fn() -> OwnedFd;
type Build = fn(&Guest) -> Vec<Sent>;

fn case(name: impl Into<String>, stage: Stage, expect: &'static [Outcome], build: Build) -> Case {
    let run = move |guest: &mut Guest| send_all(guest, &build(guest));
    Case {
        name: name.into(),
        stage,
        expect,
        run: Box::new(run),
    }
}

/// A case whose message depends on nothing.
fn plain(
    name: impl Into<String>,
    expect: &'static [Outcome],
    request: u32,
    payload: Vec<u8>,
) -> Case {
    at(name, Stage::Running, expect, request, payload)
}

fn at(
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

fn event() -> OwnedFd {
    let fd = EventFd::new(0).unwrap();
    // SAFETY: the descriptor is new and given away here.
    unsafe { std::os::fd::FromRawFd::from_raw_fd(std::os::fd::IntoRawFd::into_raw_fd(fd)) }
}

pub fn all() -> Vec<Case> {
    let parts = [
        indexes(),
        tables(),
        slots(),
        rings(),
        fds(),
        headers(),
        unknown(),
        order(),
        config(),
    ];
    parts.into_iter().flatten().collect()
}

fn indexes() -> Vec<Case> {
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

fn fd_of(request: u32, index: u64) -> Vec<Sent> {
    vec![say(request, &words64(&[index])).with([event()])]
}

/// SET_MEM_TABLE that says `count` and carries these regions and as many descriptors of the first memfd as told.
fn table(guest: &Guest, count: u32, regions: &[[u64; 4]], fds: usize) -> Vec<Sent> {
    let mut payload = words32(&[count, 0]);
    regions.iter().for_each(|r| payload.extend(words64(r)));
    vec![
        say(req::SET_MEM_TABLE, &payload)
            .with((0..fds).map(|_| guest.memory.duplicate(0).unwrap())),
    ]
}

fn one(guest: &Guest, change: fn(&mut [u64; 4])) -> Vec<Sent> {
    let mut words = guest.memory.regions()[0].words();
    change(&mut words);
    table(guest, 1, &[words], 1)
}

fn spaced(n: u64) -> Vec<[u64; 4]> {
    (0..n)
        .map(|i| [i << 32, 4096, (i + 1) << 40, i * 4096])
        .collect()
}

fn tables() -> Vec<Case> {
    let n = Stage::Negotiated;
    vec![
        case("a table of no regions", n, HARMLESS, |g| {
            table(g, 0, &[], 0)
        }),
        case("a table of nine regions", n, REFUSED, |g| {
            table(g, 9, &spaced(9), 9)
        }),
        case("a table of 2^32 - 1 regions", n, REFUSED, |g| {
            table(g, u32::MAX, &spaced(8), 8)
        }),
        case("a table of eight regions", n, ACCEPTED, |g| {
            table(g, 8, &spaced(8), 8)
        }),
        case("a table with a region too few", n, REFUSED, |g| {
            table(g, 3, &spaced(2), 3)
        }),
        case("a table with a region too many", n, REFUSED, |g| {
            table(g, 1, &spaced(2), 1)
        }),
        case("a table with a descriptor too few", n, REFUSED, |g| {
            table(g, 3, &spaced(3), 2)
        }),
        case("a table with a descriptor too many", n, REFUSED, |g| {
            table(g, 2, &spaced(2), 3)
        }),
        case("a table with forty descriptors", n, REFUSED, |g| {
            table(g, 8, &spaced(8), 40)
        }),
        case("regions that overlap", n, REFUSED, |g| {
            table(g, 2, &[[0, 8192, 1 << 40, 0], [4096, 4096, 2 << 40, 0]], 2)
        }),
        case("the same region twice", n, REFUSED, |g| {
            table(g, 2, &[[0, 8192, 1 << 40, 0], [0, 8192, 1 << 40, 0]], 2)
        }),
        case("regions with one front-end address", n, HARMLESS, |g| {
            table(
                g,
                2,
                &[[0, 8192, 1 << 40, 0], [1 << 32, 8192, 1 << 40, 0]],
                2,
            )
        }),
        case("a region past its memfd", n, REFUSED, |g| {
            one(g, |w| w[1] += 4096)
        }),
        case("a region far past its memfd", n, REFUSED, |g| {
            one(g, |w| w[1] = 1 << 40)
        }),
        case("a region of 2^64 - 4096 bytes", n, REFUSED, |g| {
            one(g, |w| w[1] = u64::MAX - 4095)
        }),
        case("a region of no bytes", n, REFUSED, |g| one(g, |w| w[1] = 0)),
        case("an offset behind the memfd", n, REFUSED, |g| {
            one(g, |w| w[3] = 1 << 30)
        }),
        case("an offset that overflows", n, REFUSED, |g| {
            one(g, |w| w[3] = u64::MAX - 4095)
        }),
        case("an offset of one byte", n, HARMLESS, |g| {
            one(g, |w| (w[1], w[3]) = (4096, 1))
        }),
        case("a guest address that overflows", n, REFUSED, |g| {
            one(g, |w| w[0] = u64::MAX - 4095)
        }),
        case("a front-end address that overflows", n, HARMLESS, |g| {
            one(g, |w| w[2] = u64::MAX - 4095)
        }),
        case("a pipe as memory", n, REFUSED, |g| {
            of_kind(g, std::io::pipe().unwrap().0.into())
        }),
        case("a socket as memory", n, REFUSED, |g| {
            of_kind(g, UnixStream::pair().unwrap().0.into())
        }),
        case("an eventfd as memory", n, REFUSED, |g| of_kind(g, event())),
        case("a directory as memory", n, REFUSED, |g| {
            of_kind(g, File::open("/").unwrap().into())
        }),
        case("a read-only file as memory", n, REFUSED, |g| {
            of_kind(g, File::open("/proc/self/exe").unwrap().into())
        }),
        case("/dev/null as memory", n, REFUSED, |g| {
            of_kind(g, File::open("/dev/null").unwrap().into())
        }),
        case("a regular file as memory", n, HARMLESS, |g| {
            let file = tempfile::tempfile().unwrap();
            file.set_len(g.memory.regions()[0].len).unwrap();
            of_kind(g, file.into())
        }),
    ]
}

fn of_kind(guest: &Guest, fd: OwnedFd) -> Vec<Sent> {
    let mut sent = one(guest, |_| {}).pop().unwrap();
    sent.fds = vec![fd];
    vec![sent]
}

/// ADD_MEM_REG or REM_MEM_REG.
fn slot(request: u32, words: [u64; 4], fds: Vec<OwnedFd>) -> Sent {
    let [gpa, len, user, offset] = words;
    say(request, &words64(&[0, gpa, len, user, offset])).with(fds)
}

fn small() -> OwnedFd {
    memfd(4096).unwrap().into()
}

const FAR: [u64; 4] = [1 << 44, 4096, 1 << 44, 0];

fn slots() -> Vec<Case> {
    let r = Stage::Running;
    vec![
        case("a slot added", r, ACCEPTED, |_| {
            vec![slot(req::ADD_MEM_REG, FAR, vec![small()])]
        }),
        case("a slot without a descriptor", r, REFUSED, |_| {
            vec![slot(req::ADD_MEM_REG, FAR, vec![])]
        }),
        case("a slot with two descriptors", r, REFUSED, |_| {
            vec![slot(req::ADD_MEM_REG, FAR, vec![small(), small()])]
        }),
        case("a slot past its memfd", r, REFUSED, |_| {
            vec![slot(
                req::ADD_MEM_REG,
                [1 << 44, 8192, 1 << 44, 0],
                vec![small()],
            )]
        }),
        case("a slot of no bytes", r, REFUSED, |_| {
            vec![slot(
                req::ADD_MEM_REG,
                [1 << 44, 0, 1 << 44, 0],
                vec![small()],
            )]
        }),
        case("a slot over a region", r, REFUSED, |_| {
            vec![slot(
                req::ADD_MEM_REG,
                [4096, 4096, 1 << 44, 0],
                vec![small()],
            )]
        }),
        case("a slot added twice", r, REFUSED, |_| {
            (0..2)
                .map(|_| slot(req::ADD_MEM_REG, FAR, vec![small()]))
                .collect()
        }),
        case("more slots than there are", r, REFUSED, |_| {
            let words = |i: u64| [(1 << 44) + i * 8192, 4096, (1 << 44) + i * 8192, 0];
            (0..510)
                .map(|i| slot(req::ADD_MEM_REG, words(i), vec![small()]))
                .collect()
        }),
        case("a slot removed that is not there", r, REFUSED, |_| {
            vec![slot(req::REM_MEM_REG, FAR, vec![])]
        }),
        case("a slot removed by half", r, REFUSED, |g| {
            let [gpa, len, user, offset] = g.memory.regions()[1].words();
            vec![slot(req::REM_MEM_REG, [gpa, len / 2, user, offset], vec![])]
        }),
        case("a slot removed and removed", r, REFUSED, |g| {
            (0..2)
                .map(|_| slot(req::REM_MEM_REG, g.memory.regions()[1].words(), vec![]))
                .collect()
        }),
        case("a slot removed with three descriptors", r, REFUSED, |g| {
            vec![slot(
                req::REM_MEM_REG,
                g.memory.regions()[1].words(),
                (0..3).map(|_| small()).collect(),
            )]
        }),
        case("the region of a running ring removed", r, HARMLESS, |g| {
            vec![slot(
                req::REM_MEM_REG,
                g.memory.regions()[0].words(),
                vec![],
            )]
        }),
        case("ADD_MEM_REG cut short", r, REFUSED, |_| {
            vec![say(req::ADD_MEM_REG, &words64(&[0, 0])).with([small()])]
        }),
    ]
}

/// A whole ring start with other numbers in it.
fn start(guest: &Guest, size: u32, change: fn(&mut [u64; 3])) -> Vec<Sent> {
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

fn rings() -> Vec<Case> {
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

fn fds() -> Vec<Case> {
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
        ("GET_INFLIGHT_FD", req::GET_INFLIGHT_FD, 24),
        ("SET_INFLIGHT_FD", req::SET_INFLIGHT_FD, 24),
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
