//! Chains whose parts are missing, empty, misplaced or merely odd, and available rings that lie.

use tests::client::blk::{Layout, Request, Table, Where, kind};
use tests::client::guest::Guest;
use tests::client::ring::{Desc, WRITE};

use super::chains::{
    BROKEN_OR_REFUSED, DATA, DONE_OR_BROKEN, HEADER, NOWHERE, STATUS, case, chain, data, header,
    linked, polite, prepare, status,
};
use super::probe::{
    Case, DONE, IO_ERROR, NO_STATUS, Outcome, RING_ERROR, Shot, Stage, UNSUPPORTED, fire, watch,
};
const DONE_OR_REFUSED: &[Outcome] = &[Outcome::Status(0), Outcome::Status(1)];
const UNSUPPORTED_OR_REFUSED: &[Outcome] = &[Outcome::Status(1), Outcome::Status(2)];

/// The driver has the device write over its own ring: what comes of the ring afterwards is nobody's fault but its own.
pub fn over_the_ring() -> Case {
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

pub fn shapes() -> Vec<Case> {
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

pub fn empties() -> Vec<Case> {
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

pub fn indexes() -> Vec<Case> {
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

pub fn requests() -> Vec<Case> {
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

pub fn odd_but_legal() -> Vec<Case> {
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
