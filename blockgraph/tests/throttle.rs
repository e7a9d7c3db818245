//! Throttle groups in real time, through real lanes on several threads.

mod support;

use blockgraph::driver::null::Reads;
use blockgraph::filter::throttle::{Limits, Rate};
use blockgraph::graph::open::{Child, DriverSpec, FilterSpec, NodeSpec, NullKind, NullSpec};
use blockgraph::pin::Epochs;
use blockgraph::{Current, Kind, Mode, NodeId, Started};
use ring::{Choice, Durability, Mem};
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::{Bench, common, inline, modes, span};

const SECONDS: u64 = 9;

fn null() -> Child {
    inline(NodeSpec {
        name: None,
        common: common(),
        driver: DriverSpec::Null(NullSpec {
            kind: NullKind::Co,
            size_bytes: 1 << 30,
            reads: Reads::Zeroes,
            latency_ns: 0,
        }),
    })
}

fn throttled(bench: &mut Bench, group: &str) -> NodeId {
    let group = group.to_owned();
    let file = null();
    bench.open(NodeSpec {
        name: None,
        common: common(),
        driver: DriverSpec::Filter(Box::new(FilterSpec::Throttle { file, group })),
    })
}

fn rate(avg: u64, max: u64, max_length_s: u64) -> Rate {
    Rate {
        avg,
        max,
        max_length_s,
    }
}

/// What a limit lets through: what its bucket holds, and what leaks out of it.
fn model(rate: Rate) -> u64 {
    match rate.max {
        0 => rate.avg / 10 + rate.avg * SECONDS,
        max => max * rate.max_length_s + rate.avg * SECONDS,
    }
}

/// One lane that asks without end; how many requests of 4096 bytes passed in time.
fn ask(current: &Arc<Current>, epochs: &Arc<Epochs>, node: NodeId, kind: Kind) -> u64 {
    let (current, epochs) = (current.clone(), epochs.clone());
    let mut bench = Bench::on(current, epochs, Choice::Best, Mode::Fast);
    let mem = Mem::zeroed(4096).expect("memory");
    let end = Instant::now() + Duration::from_secs(SECONDS);
    let (mut under_way, mut passed) = (0, 0);
    while Instant::now() < end {
        while under_way < 8 && Instant::now() < end {
            match bench.start(node, kind, span(0, 4096), &mem, 1) {
                Started::Done(outcome) => {
                    outcome.expect("passed");
                    passed += 1;
                }
                _ => under_way += 1,
            }
        }
        let (_, outcome) = bench.wait();
        outcome.expect("passed");
        under_way -= 1;
        passed += 1;
    }
    passed - under_way.min(1)
}

#[test]
fn limits_hold_in_real_time_over_two_members_with_a_thread_each() {
    let write = Kind::Write(Durability::Cached);
    let limits = [
        (
            rate(500, 0, 1),
            Limits {
                iops_total: rate(500, 0, 1),
                ..Limits::default()
            },
        ),
        (
            rate(400, 2000, 1),
            Limits {
                iops_read: rate(400, 2000, 1),
                ..Limits::default()
            },
        ),
        (
            rate(300, 600, 3),
            Limits {
                iops_write: rate(300, 600, 3),
                ..Limits::default()
            },
        ),
        (
            rate(1000, 0, 1),
            Limits {
                bps_total: rate(1000 * 4096, 0, 1),
                ..Limits::default()
            },
        ),
    ];
    let mut bench = Bench::new(Choice::Threads, Mode::Fast);
    let epochs = Arc::new(Epochs::default());
    let mut lanes = Vec::new();
    for (n, (rate, limits)) in limits.into_iter().enumerate() {
        let name = format!("g{n}");
        let groups = bench.current.get();
        groups
            .throttle_groups()
            .add(&name, limits)
            .expect("a group");
        let kind = if limits.iops_write.avg > 0 {
            write
        } else {
            Kind::Read
        };
        for _ in 0..2 {
            let node = throttled(&mut bench, &name);
            lanes.push((rate, node, kind));
        }
    }
    let current = bench.current.clone();
    let threads = lanes.into_iter().map(|(rate, node, kind)| {
        let (current, epochs) = (current.clone(), epochs.clone());
        std::thread::spawn(move || (rate, ask(&current, &epochs, node, kind)))
    });
    let threads: Vec<_> = threads.collect();
    let passed = threads
        .into_iter()
        .map(|thread| thread.join().expect("no panic"));
    let passed: Vec<(Rate, u64)> = passed.collect();
    for pair in passed.chunks(2) {
        let [(rate, one), (_, other)] = pair else {
            panic!("two members each");
        };
        let (sum, wanted) = (one + other, model(*rate));
        println!("{rate:?}: {one} + {other} of {wanted}");
        assert!(
            sum.abs_diff(wanted) * 20 <= wanted,
            "{rate:?}: {sum} of {wanted}"
        );
        // A burst is for whoever comes first.
        let fair = one.abs_diff(*other) * 10 <= wanted / 2;
        assert!(fair || rate.max > 0, "{one} and {other}");
    }
}

#[test]
fn requests_that_wait_pass_in_every_mode_and_their_lane_sleeps_meanwhile() {
    for mode in modes(3) {
        let disk = ring::sim::Config::new(3).disk();
        let mut bench = Bench::new(Choice::Sim(disk), mode);
        let limits = Limits {
            bps_write: rate(1 << 20, 0, 1),
            ..Limits::default()
        };
        let groups = bench.current.get();
        let group = groups.throttle_groups().add("g", limits).expect("a group");
        let node = throttled(&mut bench, "g");
        let before = bench
            .lane
            .ring()
            .borrow_mut()
            .virtual_ns()
            .expect("simulated");
        // Four seconds' worth, and a tenth that the bucket holds.
        for _ in 0..64 {
            bench.write(node, 0, &[1; 1 << 16]).expect("written");
        }
        let after = bench
            .lane
            .ring()
            .borrow_mut()
            .virtual_ns()
            .expect("simulated");
        let took_ms = (after - before) / 1_000_000;
        assert!((3700..4100).contains(&took_ms), "{took_ms} ms {mode:?}");
        group.set_limits(Limits::default()).expect("none");
        for _ in 0..64 {
            bench.write(node, 0, &[1; 1 << 16]).expect("written");
        }
        let later = bench
            .lane
            .ring()
            .borrow_mut()
            .virtual_ns()
            .expect("simulated");
        assert!(later - after < 100_000_000, "{mode:?}");
    }
}

#[test]
fn an_unknown_group_is_refused() {
    let bench = Bench::new(Choice::Threads, Mode::Fast);
    let spec = NodeSpec {
        name: None,
        common: common(),
        driver: DriverSpec::Filter(Box::new(FilterSpec::Throttle {
            file: null(),
            group: "g".to_owned(),
        })),
    };
    let error = support::open(&bench.current, spec).expect_err("no group");
    assert_eq!(error.to_string(), "Throttle group 'g' does not exist");
}
