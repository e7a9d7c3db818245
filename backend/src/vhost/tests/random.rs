//! Random conversations: mostly sensible messages with a field here and there that is not.
//!
//! Whatever is said, the session answers or ends, rings start only where the walk accepts them, none is started or
//! stopped twice, and none is left behind. A failing run says its seed; `VHOST_SEED` repeats it.

use super::*;

const CONVERSATIONS: u64 = 300;
const MESSAGES: usize = 60;

/// xorshift64*: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 16) % end
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

struct Things {
    file: File,
    small: File,
    event: EventFd,
    socket: UnixStream,
}

impl Things {
    fn new() -> Things {
        Things {
            file: memory_file(2 * SLOT.len_bytes),
            small: memory_file(0x1000),
            event: eventfd(),
            socket: UnixStream::pair().unwrap().0,
        }
    }

    fn any(&self, random: &mut Random) -> RawFd {
        let all = [
            self.file.as_raw_fd(),
            self.small.as_raw_fd(),
            self.event.as_raw_fd(),
            self.socket.as_raw_fd(),
        ];
        random.pick(&all)
    }
}

/// A slot that holds every ring, or one beside it.
fn slot(random: &mut Random) -> Slot {
    let beside = Slot {
        gpa: 1 << 40,
        len_bytes: 0x1000,
        user: 1 << 41,
        offset: random.pick(&[0, 0x1000, 0x18]),
    };
    let moved = Slot {
        gpa: random.pick(&[0, SLOT.gpa, 0x4000_0000]),
        len_bytes: random.pick(&[SLOT.len_bytes, SLOT.len_bytes + 0x800, 0x4000]),
        user: SLOT.user,
        offset: random.pick(&[0, 0, 0x1000, 0x800, 0x18]),
    };
    random.pick(&[beside, moved, moved])
}

/// A message that a front end could say at some time.
fn message(random: &mut Random, things: &Things) -> (u32, Vec<u8>, Vec<RawFd>) {
    let ring = random.below(2) as u32;
    let file = things.file.as_raw_fd();
    let at = SLOT.user + random.below(0x20) * 0x1000;
    match random.below(20) {
        0 => (2, all_features().to_ne_bytes().to_vec(), vec![]),
        1 | 2 => {
            let slots: Vec<Slot> = (0..=random.below(2)).map(|_| slot(random)).collect();
            let slots: Vec<(Slot, &File)> = slots.into_iter().map(|s| (s, &things.file)).collect();
            let (body, fds) = table(&slots);
            (5, body, fds)
        }
        3 => (37, single(slot(random)), vec![file]),
        4 => (38, single(SLOT), vec![]),
        5 => (37, single(SLOT), vec![file]),
        6 => (8, state(ring, random.pick(&[1, 16, 128, 256])), vec![]),
        7 => (10, state(ring, random.below(0x1_0000) as u32), vec![]),
        8 | 9 => (9, ring_at(ring, at), vec![]),
        10 | 11 => (11, state(ring, 0), vec![]),
        12..=15 => {
            let body = u64::from(ring).to_ne_bytes().to_vec();
            let code = random.pick(&[12, 12, 13, 14]);
            (code, body, vec![things.event.as_raw_fd()])
        }
        16 | 17 => (18, state(ring, random.pick(&[1, 1, 0])), vec![]),
        18 => (random.pick(&[34, 4, 3]), vec![], vec![]),
        _ => (random.pick(&[1, 15, 17, 36]), vec![], vec![]),
    }
}

fn converse(visit: &mut Visit, random: &mut Random, things: &Things) {
    for _ in 0..MESSAGES {
        let (mut code, mut body, mut fds) = message(random, things);
        if random.one_in(40) {
            let at = random.below(body.len().max(1) as u64) as usize;
            let bits = random.next() as u8;
            body.iter_mut()
                .skip(at)
                .take(1)
                .for_each(|byte| *byte ^= bits);
        }
        if random.one_in(100) {
            fds.push(things.any(random));
        }
        if random.one_in(100) {
            body.truncate(random.below(body.len() as u64 + 1) as usize);
        }
        if random.one_in(100) {
            // Not SET_PROTOCOL_FEATURES, which may do away with acknowledgements: the test would wait for one.
            code = 17 + random.below(40) as u32;
        }
        visit
            .client
            .raw(code, NEED_REPLY, body.len() as u32, &body, &fds);
        if visit.client.reply().is_none() {
            return;
        }
    }
}

#[test]
fn random_conversations_end_with_every_ring_stopped() {
    let seed = std::env::var("VHOST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let first = seed.unwrap_or(1);
    let last = seed.unwrap_or(CONVERSATIONS);
    let mut started = 0;
    for seed in first..=last {
        println!("VHOST_SEED={seed}");
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let things = Things::new();
        let mut visit = Visit::prepared();
        visit.client.start_ring(0);
        visit.client.start_ring(1);
        *visit.rings.progress.lock().unwrap() = random.below(300) as u16;
        converse(&mut visit, &mut random, &things);
        visit
            .client
            .socket
            .shutdown(std::net::Shutdown::Both)
            .unwrap_or_default();
        visit.end();
        let log = visit.rings.take_log();
        started += log.iter().filter(|what| what.starts_with("start")).count();
    }
    println!("{started} rings were started");
    assert!(
        seed.is_some() || started as u64 > 2 * CONVERSATIONS,
        "the conversations go far enough to mean something"
    );
}
