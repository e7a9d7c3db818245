//! Memory tables and slots that overlap, overflow, lie or carry the wrong descriptors.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use tests::client::guest::Guest;
use tests::client::memory::memfd;
use tests::client::wire::{req, words32, words64};

use super::messages::{case, event};
use super::probe::{ACCEPTED, Case, HARMLESS, REFUSED, Sent, Stage, say};

/// SET_MEM_TABLE that says `count` and carries these regions and as many descriptors of the first memfd as told.
fn table(guest: &Guest, count: u32, regions: &[[u64; 4]], fds: usize) -> Vec<Sent> {
    let mut payload = words32(&[count, 0]);
    regions.iter().for_each(|r| payload.extend(words64(r)));
    vec![
        say(req::SET_MEM_TABLE, &payload)
            .with((0..fds).map(|_| guest.memory.duplicate(0).unwrap())),
    ]
}

pub fn one(guest: &Guest, change: fn(&mut [u64; 4])) -> Vec<Sent> {
    let mut words = guest.memory.regions()[0].words();
    change(&mut words);
    table(guest, 1, &[words], 1)
}

fn spaced(n: u64) -> Vec<[u64; 4]> {
    (0..n)
        .map(|i| [i << 32, 4096, (i + 1) << 40, i * 4096])
        .collect()
}

pub fn tables() -> Vec<Case> {
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

pub fn slots() -> Vec<Case> {
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
