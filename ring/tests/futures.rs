//! Operations as futures: waking, waiting for a slot, and being dropped half-way.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use ring::sim::{Act, Cancels, Kind, Rule, Weather};
use ring::{Done, Errno, Handle, Mem, Op, Running, Tasks, Wait};
use std::cell::RefCell;
use std::future::Future;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

/// Runs tasks until there are none.
fn drive(ring: &Handle, tasks: &mut Tasks) {
    let mut done: Vec<Done> = Vec::new();
    tasks.run();
    while !tasks.is_empty() {
        let wait = if tasks.can_run() {
            Wait::Not
        } else {
            Wait::One
        };
        ring.borrow_mut().turn(wait, &mut done).unwrap();
        tasks.run();
    }
}

fn poll_once(running: &mut Running) -> Poll<Result<(), Errno>> {
    Pin::new(running).poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn tasks_read_what_other_tasks_wrote() {
    on_each(&[0; 64 << 10], Cache::Page, |rig| {
        let mut tasks = Tasks::new(rig.ring.bell());
        let (ring, name) = (Handle::new(rig.ring), rig.name);
        let ends = Rc::new(RefCell::new(Vec::new()));
        for n in 0..64u64 {
            let (ring, ends) = (ring.clone(), ends.clone());
            tasks.spawn(Box::pin(async move {
                let bytes = pattern(n, 1000);
                ring.run(write(n * 1024), mem_of(&bytes)).await.unwrap();
                ring.run(sync(), Mem::none()).await.unwrap();
                let mem = Mem::zeroed(1000).unwrap();
                ring.run(read(n * 1024), mem.clone()).await.unwrap();
                ends.borrow_mut().push(bytes_of(&mem) == bytes);
            }));
        }
        drive(&ring, &mut tasks);
        assert_eq!(*ends.borrow(), [true; 64], "{name}");
    });
}

#[test]
fn a_task_is_woken_from_another_thread() {
    #[derive(Default)]
    struct Letter {
        waker: Option<Waker>,
        arrived: bool,
    }
    on_each(&[], Cache::Page, |mut rig| {
        let bell = rig.ring.bell();
        let fd = bell.as_raw_fd();
        rig.start(Op::Poll { fd }, &Mem::none(), 5);
        let mut tasks = Tasks::new(bell);
        let ring = Handle::new(rig.ring);
        for _ in 0..20 {
            let letter: Arc<Mutex<Letter>> = Arc::default();
            let post = letter.clone();
            tasks.spawn(Box::pin(std::future::poll_fn(move |cx| {
                let mut letter = letter.lock().unwrap();
                letter.waker = Some(cx.waker().clone());
                match letter.arrived {
                    true => Poll::Ready(()),
                    false => Poll::Pending,
                }
            })));
            let sender = std::thread::spawn(move || {
                let mut letter = post.lock().unwrap();
                letter.arrived = true;
                if let Some(waker) = letter.waker.take() {
                    waker.wake();
                }
            });
            drive(&ring, &mut tasks);
            sender.join().unwrap();
        }
    });
}

#[test]
fn more_futures_than_slots_all_end() {
    on_each(&[6; 512], Cache::Page, |rig| {
        let mut tasks = Tasks::new(rig.ring.bell());
        let (ring, name) = (Handle::new(rig.ring), rig.name);
        let ends = Rc::new(RefCell::new(0));
        let count = ring::SLOTS as usize * 2;
        for _ in 0..count {
            let (ring, ends) = (ring.clone(), ends.clone());
            tasks.spawn(Box::pin(async move {
                let mem = Mem::zeroed(512).unwrap();
                ring.run(read(0), mem.clone()).await.unwrap();
                assert_eq!(bytes_of(&mem), [6; 512]);
                *ends.borrow_mut() += 1;
            }));
        }
        drive(&ring, &mut tasks);
        assert_eq!(*ends.borrow(), count, "{name}");
    });
}

/// Woken, and by how much.
#[derive(Default)]
struct Count(std::sync::atomic::AtomicU32);

impl std::task::Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    }
}

#[test]
fn a_future_without_a_slot_is_woken_when_abandoned_operations_free_one() {
    let rig = simulated(1, &[6; 512], Cache::Page, Weather::CALM);
    let disk = rig.disk.clone().unwrap();
    disk.rule(Rule::every(Act::Hold));
    let ring = Handle::new(rig.ring);
    let mut abandoned = Vec::new();
    while ring.borrow_mut().room() > 0 {
        abandoned.push(ring.run(read(0), Mem::zeroed(512).unwrap()));
    }
    let mut starved = ring.run(read(0), Mem::zeroed(512).unwrap());
    let count = Arc::new(Count::default());
    let waker = Waker::from(count.clone());
    let pending = Pin::new(&mut starved).poll(&mut Context::from_waker(&waker));
    assert!(pending.is_pending());
    drop(abandoned);
    disk.clear_rules();
    disk.release_all();
    ring.borrow_mut().turn(Wait::One, &mut Vec::new()).unwrap();
    assert!(count.0.load(std::sync::atomic::Ordering::SeqCst) > 0);
    assert!(poll_once(&mut starved).is_pending(), "it has a slot now");
    ring.borrow_mut().turn(Wait::One, &mut Vec::new()).unwrap();
    assert_eq!(poll_once(&mut starved), Poll::Ready(Ok(())));
}

/// Bytes of a buffer so large that freeing it unmaps it.
const LARGE: usize = 1 << 20;

/// A disk that holds every read, whatever is cancelled.
fn holding() -> (ring::sim::Disk, Handle) {
    let calm = Weather {
        cancels: Cancels::Ignored,
        ..Weather::CALM
    };
    let rig = simulated(1, &[0xee; LARGE], Cache::Page, calm);
    let disk = rig.disk.clone().unwrap();
    disk.rule(Rule::every(Act::Hold).kind(Kind::Read));
    (disk, Handle::new(rig.ring))
}

#[test]
fn a_read_that_lands_after_its_future_is_gone_hits_no_freed_memory() {
    let (disk, ring) = holding();
    let running = ring.run(read(0), Mem::zeroed(LARGE).unwrap());
    ring.borrow_mut().turn(Wait::Not, &mut Vec::new()).unwrap();
    drop(running);
    // Were the buffer freed, one of these would have its place, or nothing would and the read would fault.
    let others: Vec<Mem> = (0..4).map(|_| Mem::zeroed(LARGE).unwrap()).collect();
    assert_eq!(disk.release_all(), 1);
    ring.borrow_mut().turn(Wait::Not, &mut Vec::new()).unwrap();
    assert!(others.iter().all(Mem::is_zero), "written to freed memory");
    let landed = |event: &ring::sim::Event| matches!(event, ring::sim::Event::CarriedOut(_));
    assert!(disk.log().iter().any(landed), "it did land");
}

#[test]
fn the_memory_of_an_abandoned_read_is_free_once_it_has_landed() {
    let (disk, ring) = holding();
    let room = ring.borrow_mut().room();
    for _ in 0..3 {
        let running = ring.run(read(0), Mem::zeroed(8192).unwrap());
        drop(running);
    }
    assert_eq!(ring.borrow_mut().room(), room - 3, "held, not freed");
    assert_eq!(disk.release_all(), 3);
    ring.borrow_mut().turn(Wait::Not, &mut Vec::new()).unwrap();
    assert_eq!(ring.borrow_mut().room(), room);
}

#[test]
fn futures_dropped_at_any_moment_leave_every_slot_free() {
    for seed in 0..200 {
        let mut rng = ring::sim::Rng::new(seed);
        let rig = simulated(seed, &pattern(1, 64 << 10), Cache::None, Weather::ROUGH);
        let full = rig.ring.room();
        let ring = Handle::new(rig.ring);
        let mut running = Vec::new();
        for _ in 0..200 {
            match rng.below(4) {
                0 | 1 => {
                    let at = rng.below(100) * 512;
                    let mem = Mem::zeroed(1024).unwrap().slice(rng.below(9) as usize, 512);
                    let op = if rng.coin() { read(at) } else { write(at) };
                    running.push(ring.run(op, mem));
                }
                2 if !running.is_empty() => {
                    let at = rng.below(running.len() as u64) as usize;
                    drop(running.swap_remove(at));
                }
                _ => {
                    ring.borrow_mut().turn(Wait::Not, &mut Vec::new()).unwrap();
                    running.retain_mut(|running| poll_once(running).is_pending());
                }
            }
        }
        drop(running);
        while ring.borrow_mut().room() < full {
            ring.borrow_mut().turn(Wait::One, &mut Vec::new()).unwrap();
        }
    }
}

#[test]
fn a_future_dropped_on_a_real_engine_leaves_its_slot_free() {
    on_each(&pattern(1, 1 << 20), Cache::None, |rig| {
        let full = rig.ring.room();
        let ring = Handle::new(rig.ring);
        let reads = (0..32).map(|_| ring.run(read(0), Mem::zeroed(1 << 20).unwrap()));
        drop(reads.collect::<Vec<_>>());
        while ring.borrow_mut().room() < full {
            ring.borrow_mut().turn(Wait::One, &mut Vec::new()).unwrap();
        }
        let (bell, name) = (ring.borrow_mut().bell(), rig.name);
        let timeout = ring.run(Op::Timeout { ns: u64::MAX / 2 }, Mem::none());
        let poll = ring.run(
            Op::Poll {
                fd: bell.as_raw_fd(),
            },
            Mem::none(),
        );
        drop((timeout, poll));
        while ring.borrow_mut().room() < full {
            ring.borrow_mut().turn(Wait::One, &mut Vec::new()).unwrap();
        }
        assert_eq!(ring.borrow_mut().room(), full, "{name}");
    });
}
