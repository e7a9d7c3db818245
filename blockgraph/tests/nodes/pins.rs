//! Pins, grace periods and holds under real threads: what a lookup found is not taken away while somebody uses it, and
//! nobody waits for ever.
#![allow(clippy::unwrap_used)]

use blockgraph::driver::null::Reads;
use blockgraph::graph::open::{DriverSpec, NodeSpec, NullKind, NullSpec, open};
use blockgraph::graph::{Common, Control};
use blockgraph::hold::Holds;
use blockgraph::pin::{Epochs, Pin, Pins};
use blockgraph::{Current, Span};
use ring::sim::Rng;
use ring::{Choice, Mem};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Poll, Wake, Waker};

/// Parks a thread until its future is woken; a wake-up that is lost shows as a test that does not end.
#[derive(Default)]
struct Parker {
    woken: Mutex<bool>,
    bell: Condvar,
}

impl Wake for Parker {
    fn wake(self: Arc<Self>) {
        *self.woken.lock().unwrap() = true;
        self.bell.notify_one();
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let parker = Arc::new(Parker::default());
    let waker = Waker::from(parker.clone());
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return value;
        }
        let mut woken = parker.woken.lock().unwrap();
        while !*woken {
            woken = parker.bell.wait(woken).unwrap();
        }
        *woken = false;
    }
}

/// A place that lookups find, and how many use it. A writer takes it away, waits for the grace period, and may then
/// rely on nobody using it.
#[derive(Default)]
struct Places {
    /// The place a lookup finds.
    current: AtomicUsize,
    users: [AtomicU64; 8],
    /// A use of a place that had been taken away for good.
    gone: [AtomicBool; 8],
}

/// Looks up and uses places in batches, as a lane does, until `stop`.
fn reader(places: &Places, epochs: &Arc<Epochs>, stop: &AtomicBool, seed: u64) {
    let mut rng = Rng::new(seed);
    let mut pins = Pins::new(epochs.clone());
    let mut out: VecDeque<(Pin, usize)> = VecDeque::new();
    while !stop.load(Ordering::Relaxed) {
        pins.refresh();
        for _ in 0..rng.below(4) {
            // The lookup is an ordinary load: the fences are the pins' business.
            let place = places.current.load(Ordering::Relaxed);
            out.push_back((pins.pin(), place));
            places.users[place].fetch_add(1, Ordering::Relaxed);
        }
        pins.settle();
        if rng.coin() {
            std::thread::yield_now();
        }
        let keep = rng.below(4) as usize;
        while out.len() > keep {
            let at = rng.below(out.len() as u64) as usize;
            let (pin, place) = out.remove(at).unwrap();
            assert!(!places.gone[place].load(Ordering::Relaxed), "seed {seed}");
            places.users[place].fetch_sub(1, Ordering::Release);
            pins.unpin(pin);
        }
        pins.settle();
        // An idle thread holds nobody up.
        if rng.below(16) == 0 {
            for (pin, place) in out.drain(..) {
                places.users[place].fetch_sub(1, Ordering::Release);
                pins.unpin(pin);
            }
            pins.settle();
        }
    }
    for (pin, place) in out.drain(..) {
        places.users[place].fetch_sub(1, Ordering::Release);
        pins.unpin(pin);
    }
}

/// Takes places away, one after the other.
fn writer(places: &Places, epochs: &Epochs, rounds: usize) {
    for round in 0..rounds {
        let old = places.current.load(Ordering::Relaxed);
        let new = (old + 1) % places.users.len();
        places.gone[new].store(false, Ordering::Relaxed);
        places.current.store(new, Ordering::Release);
        block_on(epochs.grace());
        let users = places.users[old].load(Ordering::Acquire);
        assert_eq!(users, 0, "round {round}: place {old} is still in use");
        places.gone[old].store(true, Ordering::Relaxed);
    }
}

#[test]
fn after_a_grace_period_nobody_uses_what_was_taken_away() {
    for seed in 0..20 {
        let (places, epochs) = (Places::default(), Arc::new(Epochs::default()));
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for n in 0..3 {
                let (places, epochs, stop) = (&places, &epochs, &stop);
                scope.spawn(move || reader(places, epochs, stop, seed << 8 | n));
            }
            // Whatever comes of the writer, the readers end.
            let writer = scope.spawn(|| writer(&places, &epochs, 300));
            let ended = writer.join();
            stop.store(true, Ordering::Relaxed);
            assert!(ended.is_ok(), "seed {seed}");
        });
    }
}

#[test]
fn many_wait_for_grace_at_once_and_all_are_told() {
    for seed in 0..20 {
        let (places, epochs) = (Places::default(), Arc::new(Epochs::default()));
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let readers = [0, 1].map(|n| {
                let (places, epochs, stop) = (&places, &epochs, &stop);
                scope.spawn(move || reader(places, epochs, stop, seed << 8 | n))
            });
            let waiters =
                [(); 4].map(|()| scope.spawn(|| (0..100).for_each(|_| block_on(epochs.grace()))));
            waiters
                .into_iter()
                .for_each(|waiter| waiter.join().unwrap());
            stop.store(true, Ordering::Relaxed);
            readers
                .into_iter()
                .for_each(|reader| reader.join().unwrap());
        });
    }
}

#[test]
fn threads_that_come_and_go_hold_nobody_up() {
    let (places, epochs) = (Places::default(), Arc::new(Epochs::default()));
    std::thread::scope(|scope| {
        for n in 0..3u64 {
            let (places, epochs) = (&places, &epochs);
            scope.spawn(move || {
                for round in 0..100 {
                    let stop = AtomicBool::new(false);
                    let mut pins = Pins::new(epochs.clone());
                    pins.refresh();
                    let _ = pins.pin();
                    // Gone with a pin still out, as a thread that panicked.
                    drop(pins);
                    stop.store(true, Ordering::Relaxed);
                    reader(places, epochs, &stop, n << 16 | round);
                }
            });
        }
        scope.spawn(|| (0..300).for_each(|_| block_on(epochs.grace())));
    });
}

/// A range of blocks that mapped writers change without a lock, when nobody holds it, and holders change by reading,
/// waiting and writing back: the shape of a read-modify-write against the fast path.
struct Blocks {
    holds: Holds,
    /// Each half of a block has one owner that only ever adds one: a lost addition is a lost write.
    blocks: [AtomicU64; 4],
}

const MAPPED: u64 = 1;
const SERVED: u64 = 1 << 32;

/// Adds to its half by compare and swap (a mapped write touches no other half), if the range is free.
fn mapped_writer(blocks: &Blocks, epochs: &Arc<Epochs>, seed: u64, counts: &[AtomicU64; 4]) {
    let mut rng = Rng::new(seed);
    let mut pins = Pins::new(epochs.clone());
    for _ in 0..4000 {
        let at = rng.below(4) as usize;
        pins.refresh();
        if blocks.holds.free(Span::new(at as u64 * 512, 512).unwrap()) {
            let pin = pins.pin();
            if rng.below(8) == 0 {
                std::thread::yield_now();
            }
            blocks.blocks[at].fetch_add(MAPPED, Ordering::Relaxed);
            counts[at].fetch_add(1, Ordering::Relaxed);
            pins.unpin(pin);
        }
        pins.settle();
    }
}

/// Reads the whole block, and writes it back with its own half changed.
fn served_writer(blocks: &Blocks, epochs: &Epochs, seed: u64, counts: &[AtomicU64; 4]) {
    let mut rng = Rng::new(seed);
    for _ in 0..300 {
        let at = rng.below(4) as usize;
        block_on(async {
            let _hold = blocks
                .holds
                .hold(Span::new(at as u64 * 512, 512).unwrap())
                .await;
            epochs.grace().await;
            let whole = blocks.blocks[at].load(Ordering::Relaxed);
            std::thread::yield_now();
            blocks.blocks[at].store(whole + SERVED, Ordering::Relaxed);
            counts[at].fetch_add(1, Ordering::Relaxed);
        });
    }
}

#[test]
fn no_mapped_write_is_lost_to_a_read_modify_write_under_a_hold() {
    for seed in 0..20 {
        let epochs = Arc::new(Epochs::default());
        let blocks = Blocks {
            holds: Holds::default(),
            blocks: Default::default(),
        };
        let (mapped, served): ([AtomicU64; 4], [AtomicU64; 4]) = Default::default();
        std::thread::scope(|scope| {
            for n in 0..2 {
                let (blocks, epochs, mapped, served) = (&blocks, &epochs, &mapped, &served);
                scope.spawn(move || mapped_writer(blocks, epochs, seed << 8 | n, mapped));
                scope.spawn(move || served_writer(blocks, epochs, seed << 16 | n, served));
            }
        });
        for at in 0..4 {
            let block = blocks.blocks[at].load(Ordering::SeqCst);
            let (mapped, served) = (&mapped[at], &served[at]);
            assert_eq!(block % SERVED, mapped.load(Ordering::SeqCst), "seed {seed}");
            assert_eq!(block / SERVED, served.load(Ordering::SeqCst), "seed {seed}");
        }
    }
}

/// Work that mapped something in its last step left its thread pinned, and the thread slept: who awaited a grace period
/// (a freed cluster, an edit of the graph) waited until the control thread had something else to do.
#[test]
fn the_control_lane_pins_nothing_once_its_work_is_done() {
    let (current, epochs) = (Arc::<Current>::default(), Arc::<Epochs>::default());
    let mut control = Control::new(current.clone(), epochs.clone(), Choice::Threads).unwrap();
    let null = NodeSpec {
        name: None,
        common: Common::default(),
        driver: DriverSpec::Null(NullSpec {
            kind: NullKind::Co,
            size_bytes: 1 << 20,
            reads: Reads::Zeroes,
            latency_ns: 0,
        }),
    };
    let (node, graph) = open(&current, null, &mut control).unwrap();
    let read = control.run(&graph, node, move |io| async move {
        io.sleep(1).await;
        io.read(node, 0, &Mem::zeroed(512).unwrap()).await
    });
    assert_eq!(read.unwrap(), Ok(()));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(pin!(epochs.grace()).poll(&mut cx).is_ready());
}
