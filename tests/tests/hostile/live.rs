//! What happens while requests are in flight: memory that vanishes, regions that go, words that change as they are read.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use tests::client::blk::{Request, UNTOUCHED, kind};
use tests::client::guest::Guest;
use tests::client::memory::{Area, BORDER, HIGH};
use tests::client::ring::{Desc, NEXT, WRITE};
use tests::client::wire::{req, words32, words64};

use super::probe::{Case, HARMLESS, Outcome, Shot, Stage, fire, say, send_all};

/// Memory that vanished: the request fails, the ring breaks, or the session ends. Never the process.
const VANISHED: &[Outcome] = &[
    Outcome::Status(1),
    Outcome::Status(0),
    Outcome::RingError,
    Outcome::Closed,
    Outcome::Accepted,
    Outcome::LenZero,
];
/// Words that change under the reader: any true answer.
const ANY_ANSWER: &[Outcome] = &[
    Outcome::Status(0),
    Outcome::Status(1),
    Outcome::Status(2),
    Outcome::LenZero,
    Outcome::RingError,
    Outcome::Closed,
    Outcome::Accepted,
];

const HEADER: u64 = BORDER + 0x1000;
const STATUS: u64 = BORDER + 0x2000;

fn case(
    name: &str,
    expect: &'static [Outcome],
    run: impl Fn(&mut Guest) -> Outcome + 'static,
) -> Case {
    Case {
        name: name.into(),
        stage: Stage::Running,
        expect,
        run: Box::new(run),
    }
}

/// A request whose header and status are in the second region and whose data is in the third.
fn shoot(guest: &mut Guest, kind: u32, len: u32) -> Outcome {
    guest
        .memory
        .write(HEADER, &Request::bare(kind).out_stream());
    guest.memory.write(STATUS, &[UNTOUCHED]);
    let write = if kind == kind::IN { WRITE } else { 0 };
    let ring = &mut guest.rings[0];
    ring.set_desc(
        0,
        Desc {
            gpa: HEADER,
            len: 16,
            flags: NEXT,
            next: 1,
        },
    );
    ring.set_desc(
        1,
        Desc {
            gpa: HIGH,
            len,
            flags: NEXT | write,
            next: 2,
        },
    );
    ring.set_desc(
        2,
        Desc {
            gpa: STATUS,
            len: 1,
            flags: WRITE,
            next: 0,
        },
    );
    ring.offer(0);
    fire(
        guest,
        Shot {
            head: 0,
            status: Some(STATUS),
        },
    )
}

pub fn all() -> Vec<Case> {
    let mut cases = truncations();
    cases.extend(removals());
    cases.extend(flips());
    cases
}

fn truncations() -> Vec<Case> {
    vec![
        case("memory gone before a read", VANISHED, |g| {
            g.memory.truncate(2, 0).unwrap();
            shoot(g, kind::IN, 65536)
        }),
        case("memory gone before a write", VANISHED, |g| {
            g.memory.truncate(2, 0).unwrap();
            shoot(g, kind::OUT, 65536)
        }),
        case("half the data gone before a read", VANISHED, |g| {
            g.memory.truncate(2, 32768).unwrap();
            shoot(g, kind::IN, 65536)
        }),
        case("memory gone between two reads", VANISHED, |g| {
            let first = shoot(g, kind::IN, 65536);
            g.memory.truncate(2, 0).unwrap();
            if first == Outcome::Status(0) {
                shoot(g, kind::IN, 65536)
            } else {
                first
            }
        }),
        case("memory gone while reads are in flight", VANISHED, |g| {
            for i in 0..32 {
                g.add(0, &Request::read(i * 128, 65536));
            }
            g.rings[0].publish();
            g.rings[0].kick();
            g.memory.truncate(2, 0).unwrap();
            alive(g)
        }),
        case("memory gone while writes are in flight", VANISHED, |g| {
            let requests: Vec<_> = (0..32)
                .map(|i| Request::write(8192 + i * 128, vec![0; 65536]))
                .collect();
            for request in &requests {
                g.add(0, request);
            }
            g.rings[0].publish();
            g.rings[0].kick();
            g.memory.truncate(2, 0).unwrap();
            alive(g)
        }),
        case("header and status gone", VANISHED, |g| vanish(g, 1)),
        case("the ring gone", VANISHED, |g| vanish(g, 0)),
        case("all memory gone", VANISHED, |g| {
            ready(g);
            (0..3).for_each(|region| g.memory.truncate(region, 0).unwrap());
            g.rings[0].kick();
            alive(g)
        }),
    ]
}

/// Takes away a region that a kicked ring will look at. From here on we must not look at it either.
fn vanish(guest: &mut Guest, region: usize) -> Outcome {
    ready(guest);
    guest.memory.truncate(region, 0).unwrap();
    guest.rings[0].kick();
    alive(guest)
}

/// Publishes a request without a kick.
fn ready(guest: &mut Guest) {
    guest
        .memory
        .write(HEADER, &Request::bare(kind::IN).out_stream());
    let ring = &mut guest.rings[0];
    ring.set_desc(
        0,
        Desc {
            gpa: HEADER,
            len: 16,
            flags: NEXT,
            next: 1,
        },
    );
    ring.set_desc(
        1,
        Desc {
            gpa: STATUS,
            len: 1,
            flags: WRITE,
            next: 0,
        },
    );
    ring.offer(0);
    ring.publish();
}

/// Whether the session answers or is closed; nobody touches the rings.
fn alive(guest: &Guest) -> Outcome {
    send_all(
        guest,
        &[
            say(req::GET_QUEUE_NUM, &[]),
            say(req::GET_VRING_BASE, &words32(&[0, 0])),
        ],
    )
}

fn removals() -> Vec<Case> {
    vec![
        case("a region removed while it is read into", HARMLESS, |g| {
            load(g);
            let [gpa, len, user, offset] = g.memory.regions()[2].words();
            send_all(
                g,
                &[say(
                    req::REM_MEM_REG,
                    &words64(&[0, gpa, len, user, offset]),
                )],
            )
        }),
        case(
            "the ring's region removed while it is busy",
            HARMLESS,
            |g| {
                load(g);
                let [gpa, len, user, offset] = g.memory.regions()[0].words();
                send_all(
                    g,
                    &[say(
                        req::REM_MEM_REG,
                        &words64(&[0, gpa, len, user, offset]),
                    )],
                )
            },
        ),
        case("another table while the ring is busy", HARMLESS, |g| {
            load(g);
            let mut payload = words32(&[1, 0]);
            payload.extend(words64(&g.memory.regions()[0].words()));
            send_all(
                g,
                &[say(req::SET_MEM_TABLE, &payload).with([g.memory.duplicate(0).unwrap()])],
            )
        }),
        case("the base taken while the ring is busy", HARMLESS, |g| {
            load(g);
            send_all(g, &[say(req::GET_VRING_BASE, &words32(&[0, 0]))])
        }),
        case("the device reset while the ring is busy", HARMLESS, |g| {
            load(g);
            send_all(g, &[say(req::RESET_DEVICE, &[])])
        }),
        case("a thousand kicks for nothing", &[Outcome::Accepted], |g| {
            (0..1000).for_each(|_| g.rings[0].kick());
            send_all(g, &[say(req::GET_QUEUE_NUM, &[])])
        }),
    ]
}

fn load(guest: &mut Guest) {
    for i in 0..32 {
        guest.add(0, &Request::read(i * 128, 65536));
    }
    guest.rings[0].publish();
    guest.rings[0].kick();
}

/// Flips 64-bit words of guest memory between their value and another until it is dropped.
struct Flipper {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Flipper {
    fn new(area: Area, offset: usize, other: u64) -> Flipper {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let work = move || {
            let word = area.u64(offset);
            let value = word.load(Ordering::Relaxed);
            while !seen.load(Ordering::Relaxed) {
                word.store(other, Ordering::Relaxed);
                word.store(value, Ordering::Relaxed);
            }
        };
        Flipper {
            stop,
            thread: Some(thread::spawn(work)),
        }
    }
}

impl Drop for Flipper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// Runs many reads while a word flips, until something other than an answer comes.
fn flipping(guest: &mut Guest, gpa: u64, other: u64) -> Outcome {
    const ROUNDS: u32 = 200;
    guest
        .memory
        .write(HEADER, &Request::bare(kind::IN).out_stream());
    // The word must have its true value before it starts to flip.
    let first = shoot(guest, kind::IN, 4096);
    if !matches!(first, Outcome::Status(_)) {
        return first;
    }
    let _flipper = Flipper::new(guest.memory.area(gpa, 8), 0, other);
    let mut outcome = first;
    for _ in 0..ROUNDS {
        guest.memory.write(STATUS, &[UNTOUCHED]);
        guest.rings[0].offer(0);
        outcome = fire(
            guest,
            Shot {
                head: 0,
                status: None,
            },
        );
        // Nobody knows where the status went; a length without one is as true as anything here.
        if outcome == Outcome::Wrong {
            outcome = Outcome::Accepted;
        }
        if matches!(
            outcome,
            Outcome::RingError | Outcome::Closed | Outcome::Silent
        ) {
            break;
        }
    }
    outcome
}

fn flip(name: &str, gpa: u64, other: u64) -> Case {
    case(name, ANY_ANSWER, move |g| flipping(g, gpa, other))
}

fn flips() -> Vec<Case> {
    let desc = |index: u64, word: u64| 0x1000 + index * 16 + word * 8;
    let rest = |len: u64, flags: u64, next: u64| len | flags << 32 | next << 48;
    vec![
        flip(
            "the data's address flips to nowhere",
            desc(1, 0),
            0x8000_0000,
        ),
        flip(
            "the data's address flips to the end of all addresses",
            desc(1, 0),
            u64::MAX - 16,
        ),
        flip(
            "the data's length flips to 2^32 - 1",
            desc(1, 1),
            rest(0xffff_ffff, 3, 2),
        ),
        flip(
            "the data's length flips to nothing",
            desc(1, 1),
            rest(0, 3, 2),
        ),
        flip(
            "the data's next flips beyond the ring",
            desc(1, 1),
            rest(4096, 3, 60000),
        ),
        flip(
            "the data's next flips to itself",
            desc(1, 1),
            rest(4096, 3, 1),
        ),
        flip(
            "the data flips to an indirect table",
            desc(1, 1),
            rest(4096, 4, 2),
        ),
        flip("the data flips to readable", desc(1, 1), rest(4096, 1, 2)),
        flip("the status flips away", desc(1, 1), rest(4096, 2, 2)),
        flip(
            "the status's length flips to nothing",
            desc(2, 1),
            rest(0, 2, 0),
        ),
        flip("the header flips to one byte", desc(0, 1), rest(1, 1, 1)),
        flip("the type flips to a write", HEADER, 1),
        flip("the type flips to a discard", HEADER, 11),
        flip("the sector flips to the end", HEADER + 8, u64::MAX),
        flip("the sector flips to 2^55", HEADER + 8, 1 << 55),
    ]
}
