//! Malformed and merely odd descriptor chains and ring states.

use tests::client::blk::{Request, UNTOUCHED, kind};
use tests::client::guest::Guest;
use tests::client::memory::{BORDER, HIGH};
use tests::client::ring::{DESC_BYTES, Desc, INDIRECT, NEXT, WRITE};

use super::probe::{Case, DONE, IO_ERROR, Outcome, RING_ERROR, Shot, Stage, fire};
use super::shapes;

/// A ring broken or a request refused: what is asked for is nonsense either way.
pub const BROKEN_OR_REFUSED: &[Outcome] =
    &[Outcome::RingError, Outcome::Closed, Outcome::Status(1)];
pub const DONE_OR_BROKEN: &[Outcome] = &[Outcome::Status(0), Outcome::RingError, Outcome::Closed];

/// Guest addresses of a request's parts, apart from one another.
pub const HEADER: u64 = BORDER + 0x1000;
pub const DATA: u64 = HIGH;
pub const STATUS: u64 = BORDER + 0x2000;
pub const TABLE: u64 = BORDER + 0x3000;
/// Between the second region and the third.
pub const NOWHERE: u64 = 0x8000_0000;

pub fn case(
    name: impl Into<String>,
    expect: &'static [Outcome],
    build: impl Fn(&mut Guest) -> Shot + 'static,
) -> Case {
    let run = move |guest: &mut Guest| {
        prepare(guest, kind::IN);
        let shot = build(guest);
        fire(guest, shot)
    };
    Case {
        name: name.into(),
        stage: Stage::Running,
        expect,
        run: Box::new(run),
    }
}

/// Writes a header of sector 0 and an untouched status.
pub fn prepare(guest: &Guest, kind: u32) {
    guest
        .memory
        .write(HEADER, &Request::bare(kind).out_stream());
    guest.memory.write(STATUS, &[UNTOUCHED]);
}

pub fn header() -> Desc {
    Desc {
        gpa: HEADER,
        len: 16,
        flags: NEXT,
        next: 1,
    }
}

pub fn data() -> Desc {
    Desc {
        gpa: DATA,
        len: 512,
        flags: NEXT | WRITE,
        next: 2,
    }
}

pub fn status() -> Desc {
    Desc {
        gpa: STATUS,
        len: 1,
        flags: WRITE,
        next: 0,
    }
}

/// Writes descriptors from index 0 on and offers the first.
pub fn chain(guest: &mut Guest, descs: &[Desc]) -> Shot {
    descs
        .iter()
        .enumerate()
        .for_each(|(i, desc)| guest.rings[0].set_desc(i as u16, *desc));
    guest.rings[0].offer(0);
    Shot {
        head: 0,
        status: Some(STATUS),
    }
}

pub fn direct(name: &str, expect: &'static [Outcome], descs: Vec<Desc>) -> Case {
    case(name, expect, move |guest| chain(guest, &descs))
}

/// A chain of buffers, linked as they come.
pub fn linked(name: &str, expect: &'static [Outcome], parts: Vec<(u64, u32, u16)>) -> Case {
    let last = parts.len() - 1;
    let link = |(i, (gpa, len, write)): (usize, (u64, u32, u16))| Desc {
        gpa,
        len,
        flags: write | if i < last { NEXT } else { 0 },
        next: i as u16 + 1,
    };
    direct(
        name,
        expect,
        parts.into_iter().enumerate().map(link).collect(),
    )
}

/// Puts a table into memory and one INDIRECT descriptor that may lie about it.
fn indirect(name: &str, expect: &'static [Outcome], entries: Vec<Desc>, outer: Desc) -> Case {
    case(name, expect, move |guest| {
        let bytes: Vec<u8> = entries.iter().flat_map(Desc::bytes).collect();
        let end = guest.memory.regions()[2].gpa + guest.memory.regions()[2].len;
        let room = if outer.gpa >= HIGH {
            end.saturating_sub(outer.gpa) as usize
        } else {
            bytes.len()
        };
        if outer.gpa != NOWHERE {
            guest
                .memory
                .write(outer.gpa, &bytes[..bytes.len().min(room)]);
        }
        chain(guest, &[outer])
    })
}

fn outer(len: u32) -> Desc {
    Desc {
        gpa: TABLE,
        len,
        flags: INDIRECT,
        next: 0,
    }
}

pub fn polite(name: &str, expect: &'static [Outcome], request: Request) -> Case {
    let run = move |guest: &mut Guest| {
        let pending = guest.add(0, &request);
        fire(
            guest,
            Shot {
                head: pending.head,
                status: Some(pending.status()),
            },
        )
    };
    Case {
        name: name.into(),
        stage: Stage::Running,
        expect,
        run: Box::new(run),
    }
}

pub fn all() -> Vec<Case> {
    [
        links(),
        tables(),
        addresses(),
        shapes::shapes(),
        shapes::empties(),
        shapes::indexes(),
        shapes::requests(),
        shapes::odd_but_legal(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn links() -> Vec<Case> {
    let to = |next: u16| Desc { next, ..header() };
    vec![
        direct(
            "next is the ring's size",
            RING_ERROR,
            vec![to(128), data(), status()],
        ),
        direct(
            "next is 65535",
            RING_ERROR,
            vec![to(65535), data(), status()],
        ),
        direct("a descriptor that follows itself", RING_ERROR, vec![to(0)]),
        direct(
            "two descriptors that follow each other",
            RING_ERROR,
            vec![header(), Desc { next: 0, ..data() }],
        ),
        direct(
            "a loop of writable descriptors",
            RING_ERROR,
            vec![header(), Desc { next: 1, ..data() }],
        ),
        case(
            "a chain through the whole ring and back",
            RING_ERROR,
            |guest| {
                let all: Vec<Desc> = (0..128)
                    .map(|i| Desc {
                        next: (i + 1) % 128,
                        ..header()
                    })
                    .collect();
                chain(guest, &all)
            },
        ),
        direct(
            "a last descriptor that says there is more",
            RING_ERROR,
            vec![
                header(),
                data(),
                Desc {
                    flags: WRITE | NEXT,
                    next: 999,
                    ..status()
                },
            ],
        ),
    ]
}

fn tables() -> Vec<Case> {
    let good = || vec![header(), data(), status()];
    let nested = Desc {
        gpa: TABLE,
        len: 48,
        flags: INDIRECT,
        next: 0,
    };
    let past_end = HIGH + (16 << 20) - 32;
    let mut cases = vec![
        indirect(
            "an indirect table in an indirect table",
            RING_ERROR,
            vec![nested],
            outer(16),
        ),
        indirect(
            "an indirect table that is nested behind a header",
            RING_ERROR,
            vec![header(), nested],
            outer(32),
        ),
        indirect(
            "an indirect table of no bytes",
            RING_ERROR,
            good(),
            outer(0),
        ),
        indirect(
            "an indirect table of fifteen bytes",
            RING_ERROR,
            good(),
            outer(15),
        ),
        indirect(
            "an indirect table of 47 bytes",
            RING_ERROR,
            good(),
            outer(47),
        ),
        indirect(
            "an indirect table of 49 bytes",
            RING_ERROR,
            good(),
            outer(49),
        ),
        indirect(
            "an indirect table nowhere",
            RING_ERROR,
            good(),
            Desc {
                gpa: NOWHERE,
                ..outer(48)
            },
        ),
        indirect(
            "an indirect table past its region",
            RING_ERROR,
            good(),
            Desc {
                gpa: past_end,
                ..outer(48)
            },
        ),
        indirect(
            "an indirect table at the end of all addresses",
            RING_ERROR,
            vec![],
            Desc {
                gpa: u64::MAX - 31,
                ..outer(48)
            },
        ),
        indirect(
            "an indirect table and more behind it",
            RING_ERROR,
            good(),
            Desc {
                flags: INDIRECT | NEXT,
                ..outer(48)
            },
        ),
        indirect(
            "an indirect table whose next is its length",
            RING_ERROR,
            vec![
                Desc {
                    next: 3,
                    ..header()
                },
                data(),
                status(),
            ],
            outer(48),
        ),
        indirect(
            "an indirect table that loops",
            RING_ERROR,
            vec![header(), Desc { next: 0, ..data() }, status()],
            outer(48),
        ),
        indirect(
            "an indirect table that is cut before its status",
            RING_ERROR,
            good(),
            outer(32),
        ),
        indirect(
            "an indirect table of 2^32 - 16 bytes, most of it nowhere",
            DONE_OR_BROKEN,
            good(),
            outer(0xffff_fff0),
        ),
        indirect(
            "an indirect table marked writable",
            DONE_OR_BROKEN,
            good(),
            Desc {
                flags: INDIRECT | WRITE,
                ..outer(48)
            },
        ),
        indirect(
            "an indirect table across two regions",
            DONE,
            good(),
            Desc {
                gpa: BORDER - 24,
                ..outer(48)
            },
        ),
        indirect(
            "an indirect table in any order",
            DONE,
            vec![
                Desc {
                    next: 2,
                    ..header()
                },
                status(),
                Desc { next: 1, ..data() },
            ],
            outer(48),
        ),
        indirect(
            "an indirect table with room to spare",
            DONE,
            vec![header(), data(), status(), status(), status()],
            outer(80),
        ),
        indirect(
            "an indirect table at an odd address",
            DONE_OR_BROKEN,
            good(),
            Desc {
                gpa: TABLE + 1,
                ..outer(48)
            },
        ),
    ];
    let long = |n: u16| {
        (0..n)
            .map(|i| Desc {
                next: i + 1,
                flags: NEXT | WRITE,
                ..data()
            })
            .collect::<Vec<_>>()
    };
    let mut looped = long(5000);
    looped[4999].next = 0;
    cases.push(indirect(
        "an indirect loop of 5000 descriptors",
        RING_ERROR,
        looped,
        outer(5000 * DESC_BYTES as u32),
    ));
    let mut endless = vec![header()];
    endless.extend(long(20_000));
    endless[20_000].flags = WRITE;
    cases.push(indirect(
        "an indirect chain of 20001 descriptors",
        BROKEN_OR_REFUSED,
        endless,
        outer(20_001 * DESC_BYTES as u32),
    ));
    cases
}

fn addresses() -> Vec<Case> {
    let end = HIGH + (16 << 20);
    let data_at = |gpa: u64, len: u32| vec![header(), Desc { gpa, len, ..data() }, status()];
    vec![
        direct("data nowhere", RING_ERROR, data_at(NOWHERE, 512)),
        direct("data past its region", RING_ERROR, data_at(end - 256, 512)),
        direct(
            "data one byte past its region",
            RING_ERROR,
            data_at(end - 511, 512),
        ),
        direct(
            "data at the end of all addresses",
            RING_ERROR,
            data_at(u64::MAX - 100, 512),
        ),
        direct(
            "data of 2^32 - 1 bytes",
            RING_ERROR,
            data_at(DATA, u32::MAX),
        ),
        direct(
            "data from the second region into nothing",
            RING_ERROR,
            data_at(BORDER * 2 - 256, 512),
        ),
        direct(
            "a header nowhere",
            RING_ERROR,
            vec![
                Desc {
                    gpa: NOWHERE,
                    ..header()
                },
                data(),
                status(),
            ],
        ),
        direct(
            "a header past its region",
            RING_ERROR,
            vec![
                Desc {
                    gpa: end - 8,
                    ..header()
                },
                data(),
                status(),
            ],
        ),
        case("a status byte nowhere", RING_ERROR, |guest| {
            let shot = chain(
                guest,
                &[
                    header(),
                    data(),
                    Desc {
                        gpa: NOWHERE,
                        ..status()
                    },
                ],
            );
            Shot {
                status: None,
                ..shot
            }
        }),
        shapes::over_the_ring(),
        direct("data over the header", DONE, data_at(HEADER, 512)),
        direct("data over the status", DONE, data_at(STATUS & !511, 512)),
        linked("more than two gibibytes", BROKEN_OR_REFUSED, {
            let mut parts = vec![(HEADER, 16, 0)];
            parts.extend((0..125).map(|_| (DATA, 16 << 20, WRITE)));
            parts.push((STATUS, 1, WRITE));
            parts
        }),
        linked("more bytes than the disk has", IO_ERROR, {
            let mut parts = vec![(HEADER, 16, 0)];
            parts.extend((0..5).map(|_| (DATA, 16 << 20, WRITE)));
            parts.push((STATUS, 1, WRITE));
            parts
        }),
    ]
}

/// The high region's data buffers never overlap a case's own addresses.
const _: () = assert!(DATA >= HIGH && TABLE + 8192 < BORDER * 2);
