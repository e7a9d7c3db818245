//! Malformed and merely odd descriptor chains and ring states.

use tests::client::blk::{Layout, Request, Table, UNTOUCHED, Where, kind};
use tests::client::guest::Guest;
use tests::client::memory::{BORDER, HIGH};
use tests::client::ring::{DESC_BYTES, Desc, INDIRECT, NEXT, WRITE};

use super::probe::{
    Case, DONE, IO_ERROR, NO_STATUS, Outcome, RING_ERROR, Shot, Stage, UNSUPPORTED, fire, watch,
};

/// A ring broken or a request refused: what is asked for is nonsense either way.
const BROKEN_OR_REFUSED: &[Outcome] = &[Outcome::RingError, Outcome::Closed, Outcome::Status(1)];
const DONE_OR_REFUSED: &[Outcome] = &[Outcome::Status(0), Outcome::Status(1)];
const UNSUPPORTED_OR_REFUSED: &[Outcome] = &[Outcome::Status(1), Outcome::Status(2)];
const DONE_OR_BROKEN: &[Outcome] = &[Outcome::Status(0), Outcome::RingError, Outcome::Closed];

/// Guest addresses of a request's parts, apart from one another.
const HEADER: u64 = BORDER + 0x1000;
const DATA: u64 = HIGH;
const STATUS: u64 = BORDER + 0x2000;
const TABLE: u64 = BORDER + 0x3000;
/// Between the second region and the third.
const NOWHERE: u64 = 0x8000_0000;

fn case(
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
fn prepare(guest: &Guest, kind: u32) {
    guest
        .memory
        .write(HEADER, &Request::bare(kind).out_stream());
    guest.memory.write(STATUS, &[UNTOUCHED]);
}

fn header() -> Desc {
    Desc {
        gpa: HEADER,
        len: 16,
        flags: NEXT,
        next: 1,
    }
}

fn data() -> Desc {
    Desc {
        gpa: DATA,
        len: 512,
        flags: NEXT | WRITE,
        next: 2,
    }
}

fn status() -> Desc {
    Desc {
        gpa: STATUS,
        len: 1,
        flags: WRITE,
        next: 0,
    }
}

/// Writes descriptors from index 0 on and offers the first.
fn chain(guest: &mut Guest, descs: &[Desc]) -> Shot {
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

fn direct(name: &str, expect: &'static [Outcome], descs: Vec<Desc>) -> Case {
    case(name, expect, move |guest| chain(guest, &descs))
}

/// A chain of buffers, linked as they come.
fn linked(name: &str, expect: &'static [Outcome], parts: Vec<(u64, u32, u16)>) -> Case {
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

fn polite(name: &str, expect: &'static [Outcome], request: Request) -> Case {
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
        shapes(),
        empties(),
        indexes(),
        requests(),
        odd_but_legal(),
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
        over_the_ring(),
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

/// The driver has the device write over its own ring: what comes of the ring afterwards is nobody's fault but its own.
fn over_the_ring() -> Case {
    const EXPECT: &[Outcome] = &[Outcome::Accepted, Outcome::RingError, Outcome::Closed];
    let run = |guest: &mut Guest| {
        prepare(guest, kind::IN);
        let avail = guest.rings[0].place.avail;
        let over = Desc {
            gpa: avail,
            ..data()
        };
        let shot = chain(guest, &[header(), over, status()]);
        match fire(guest, shot) {
            Outcome::Status(_) => Outcome::Accepted,
            other => other,
        }
    };
    Case {
        name: "data over the ring itself".into(),
        stage: Stage::Running,
        expect: EXPECT,
        run: Box::new(run),
    }
}

fn shapes() -> Vec<Case> {
    let (h, d, s) = ((HEADER, 16, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE));
    vec![
        linked("no status byte", NO_STATUS, vec![h]),
        linked(
            "no status byte, and readable data",
            NO_STATUS,
            vec![h, (DATA, 512, 0)],
        ),
        linked("no header", IO_ERROR, vec![d, s]),
        linked("no header and no data", IO_ERROR, vec![s]),
        linked(
            "a header of fifteen bytes",
            IO_ERROR,
            vec![(HEADER, 15, 0), s],
        ),
        linked("a header of one byte", IO_ERROR, vec![(HEADER, 1, 0), d, s]),
        linked(
            "a writable header",
            IO_ERROR,
            vec![(HEADER, 16, WRITE), d, s],
        ),
        linked(
            "the status before the header",
            BROKEN_OR_REFUSED,
            vec![s, h],
        ),
        linked(
            "readable data behind writable data",
            BROKEN_OR_REFUSED,
            vec![h, d, (DATA + 4096, 512, 0), s],
        ),
        linked(
            "a header in two halves around the data",
            BROKEN_OR_REFUSED,
            vec![(HEADER, 8, 0), d, (HEADER + 8, 8, 0), s],
        ),
        linked(
            "a read with readable data only",
            DONE_OR_REFUSED,
            vec![h, (DATA, 512, 0), s],
        ),
        linked(
            "a read with both kinds of data",
            DONE_OR_REFUSED,
            vec![h, (DATA + 4096, 512, 0), d, s],
        ),
    ]
}

fn empties() -> Vec<Case> {
    let (h, d, s) = ((HEADER, 16, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE));
    let none = |write| (DATA + 8192, 0, write);
    vec![
        linked(
            "an empty descriptor before the header",
            DONE,
            vec![none(0), h, d, s],
        ),
        linked(
            "an empty descriptor in the header",
            DONE,
            vec![(HEADER, 8, 0), none(0), (HEADER + 8, 8, 0), d, s],
        ),
        linked(
            "an empty descriptor behind the header",
            DONE,
            vec![h, none(0), d, s],
        ),
        linked("empty data", DONE, vec![h, none(WRITE), s]),
        linked(
            "an empty descriptor before the data",
            DONE,
            vec![h, none(WRITE), d, s],
        ),
        linked(
            "an empty descriptor before the status",
            DONE,
            vec![h, d, none(WRITE), s],
        ),
        linked(
            "an empty descriptor behind the status",
            DONE,
            vec![h, d, s, none(WRITE)],
        ),
        linked(
            "an empty descriptor nowhere",
            DONE,
            vec![h, (NOWHERE, 0, WRITE), d, s],
        ),
        linked("an empty status", NO_STATUS, vec![h, (STATUS, 0, WRITE)]),
        linked(
            "nothing but empty descriptors",
            NO_STATUS,
            (0..5).map(|_| none(0)).collect(),
        ),
        linked("a hundred empty descriptors", DONE, {
            let mut parts = vec![h];
            parts.extend((0..100).map(|_| none(WRITE)));
            parts.extend([d, s]);
            parts
        }),
        linked(
            "one empty writable descriptor",
            NO_STATUS,
            vec![none(WRITE)],
        ),
    ]
}

/// Offers heads of the same good chain, and waits for as many answers, or the end.
fn offers(name: &str, expect: &'static [Outcome], heads: &'static [u16]) -> Case {
    let run = move |guest: &mut Guest| {
        prepare(guest, kind::IN);
        let good = [header(), data(), status()];
        good.iter()
            .enumerate()
            .for_each(|(i, desc)| guest.rings[0].set_desc(i as u16, *desc));
        heads.iter().for_each(|head| guest.rings[0].offer(*head));
        let shot = Shot {
            head: heads[0],
            status: Some(STATUS),
        };
        let mut outcome = fire(guest, shot);
        for _ in 1..heads.len() {
            if !matches!(outcome, Outcome::Status(_)) {
                break;
            }
            outcome = watch(guest, shot);
        }
        outcome
    };
    Case {
        name: name.into(),
        stage: Stage::Running,
        expect,
        run: Box::new(run),
    }
}

fn jump(name: &str, idx: u16) -> Case {
    case(name, RING_ERROR, move |guest| {
        let shot = chain(guest, &[header(), data(), status()]);
        guest.rings[0].set_avail_idx(idx);
        shot
    })
}

fn indexes() -> Vec<Case> {
    const TWICE: &[u16] = &[0, 0];
    const MANY: &[u16] = &[0; 64];
    vec![
        offers("a head that is the ring's size", RING_ERROR, &[128]),
        offers("a head beyond the ring", RING_ERROR, &[129]),
        offers("a head of 65535", RING_ERROR, &[65535]),
        offers("a head twice at once", DONE_OR_BROKEN, TWICE),
        offers("a head sixty-four times at once", DONE_OR_BROKEN, MANY),
        jump("the available index runs one too far", 129),
        jump("the available index runs half around", 32768),
        jump("the available index runs backwards", u16::MAX),
    ]
}

fn requests() -> Vec<Case> {
    let of = |kind: u32, in_len: u32| Request {
        in_len,
        ..Request::bare(kind)
    };
    let many = |n: u64| {
        Request::segments(
            kind::DISCARD,
            &(0..n).map(|i| (i * 8, 1, 0)).collect::<Vec<_>>(),
        )
    };
    vec![
        polite("a SCSI command", UNSUPPORTED, of(kind::SCSI_CMD, 512)),
        polite(
            "a SCSI command with data out",
            UNSUPPORTED,
            Request {
                payload: vec![0; 512],
                ..of(kind::SCSI_CMD, 96)
            },
        ),
        polite("a type of all ones", UNSUPPORTED, of(u32::MAX, 0)),
        polite(
            "a sector of all ones",
            IO_ERROR,
            Request::read(u64::MAX, 512),
        ),
        polite(
            "a sector whose byte overflows to zero",
            IO_ERROR,
            Request::read(1 << 55, 512),
        ),
        polite(
            "a discard of 4096 segments",
            UNSUPPORTED_OR_REFUSED,
            many(4096),
        ),
        polite(
            "a discard with data in",
            DONE_OR_REFUSED,
            Request {
                in_len: 512,
                ..many(1)
            },
        ),
        polite(
            "a write without data out but with data in",
            DONE_OR_REFUSED,
            of(kind::OUT, 512),
        ),
        polite(
            "a flush with a megabyte of data",
            DONE_OR_REFUSED,
            Request {
                payload: vec![0; 1 << 20],
                ..of(kind::FLUSH, 0)
            },
        ),
        polite(
            "GET_ID with data out",
            DONE_OR_REFUSED,
            Request {
                payload: vec![1; 64],
                ..Request::get_id(20)
            },
        ),
    ]
}

fn odd_but_legal() -> Vec<Case> {
    let cuts = |out: &[u32], data: &[u32]| Layout {
        out_cuts: Some(out.to_vec()),
        in_cuts: Some(data.to_vec()),
        ..Layout::default()
    };
    let bytes: Vec<u32> = (1..16).collect();
    let every = |n: u32| (1..n).collect::<Vec<u32>>();
    let border = |table| Layout {
        place: Where::Border,
        table,
        ..Layout::default()
    };
    vec![
        polite(
            "a header of sixteen descriptors",
            DONE,
            Request::read(0, 512).laid(cuts(&bytes, &[512])),
        ),
        polite(
            "a header of sixteen descriptors and sixteen empty ones",
            DONE,
            {
                let twice: Vec<u32> = bytes.iter().flat_map(|b| [*b, *b]).collect();
                Request::read(0, 512).laid(cuts(&twice, &[512]))
            },
        ),
        polite(
            "the status in the data's descriptor",
            DONE,
            Request::read(0, 4096).laid(cuts(&[], &[])),
        ),
        polite(
            "data of one byte each",
            DONE,
            Request::read(0, 512).laid(Layout {
                table: Table::Indirect,
                ..cuts(&[], &every(513))
            }),
        ),
        polite(
            "data across two regions",
            DONE,
            Request::read(0, 8192).laid(border(Table::Direct)),
        ),
        polite(
            "data across two regions, indirect",
            DONE,
            Request::read(0, 8192).laid(border(Table::Indirect)),
        ),
        polite(
            "a descriptor and then an indirect table",
            DONE,
            Request::read(0, 4096).laid(Layout {
                table: Table::Mixed,
                ..Layout::default()
            }),
        ),
    ]
}

/// The high region's data buffers never overlap a case's own addresses.
const _: () = assert!(DATA >= HIGH && TABLE + 8192 < BORDER * 2);
