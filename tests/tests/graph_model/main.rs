//! Random graphs on a simulated disk, held against a model of sectors: chains of qcow2 overlays with filters anywhere,
//! requests from several lanes, and a disk that fails, reorders, holds back and crashes. Reads find what was written,
//! bases stay as they are, and a crash leaves leaks at worst, each sector as it was flushed or as some later write to it
//! made it, and never what another block holds.
//!
//! `GRAPH_MODEL_SEED=n` runs one seed of each test and says more; `GRAPH_MODEL_RUNS=n` runs n times as many as usual.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod crash;
mod edits;
mod oracle;
mod plan;
mod run;
mod stack;
mod start;
mod stream;
mod world;

use oracle::Oracle;
use plan::Plan;
use ring::sim::Rng;
use run::{Counts, Run};
use stack::Filter;
use start::{Start, with_filters};
use tests::cells::bytes_of;

/// The seeds of a test: `count` from `first` on, unless the environment says otherwise.
fn seeds(first: u64, count: u64) -> Vec<u64> {
    let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
    if let Some(seed) = number("GRAPH_MODEL_SEED") {
        return vec![seed];
    }
    let count = count * number("GRAPH_MODEL_RUNS").unwrap_or(1);
    println!("seeds {first} to {}", first + count - 1);
    (first..first + count).collect()
}

fn start(seed: u64) -> Result<Start, String> {
    let mut start = match seed % 2 {
        0 => Start::by_qemu(seed / 2),
        _ => Start::by_us(seed, None)?,
    };
    let mut rng = Rng::new(seed ^ 0xf117);
    with_filters(&mut start.stack, &mut rng);
    Ok(start)
}

/// Runs a plan and says how to see a failure again.
fn run(plan: &Plan, start: &Start) -> Counts {
    let outcome = Run::new(plan, start).and_then(|mut run| {
        run.all()?;
        Ok(run.counts)
    });
    outcome.unwrap_or_else(|fault| {
        let nodes = start.stack.blockdevs();
        let nodes: Vec<_> = nodes.iter().map(|node| node.options.as_str()).collect();
        let layers = start.stack.layers.iter().map(|l| format!("{:?}", l.format));
        let layers: Vec<_> = layers.collect();
        let (layers, nodes) = (layers.join("\n"), nodes.join("\n"));
        panic!("{plan:?}\n{layers}\n{nodes}\nseed {}: {fault}", plan.seed)
    })
}

/// Runs many, and adds up what happened.
fn run_all(plans: impl Iterator<Item = Plan>) -> Counts {
    let mut counts = Counts::default();
    for plan in plans {
        let start = start(plan.seed).unwrap_or_else(|fault| panic!("seed {}: {fault}", plan.seed));
        counts.add(run(&plan, &start));
        counts.runs += 1;
    }
    println!("{counts:?}");
    counts
}

/// What the tests begin with is what they think it is.
#[test]
fn qemu_reads_what_it_was_told_to_write() {
    for seed in 0..start::QEMU_STARTS {
        let start = Start::by_qemu(seed);
        let oracle = Oracle::new(&start.stack, &start.images);
        let bytes: Vec<u8> = start.content.iter().copied().flat_map(bytes_of).collect();
        assert!(oracle.read().unwrap() == bytes, "seed {seed}");
        oracle.check().unwrap();
    }
}

/// And we read the same.
#[test]
fn what_qemu_made_reads_as_it_was_written() {
    for seed in 0..start::QEMU_STARTS {
        let start = Start::by_qemu(seed);
        let plan = Plan::by_seed(seed);
        let left = crash::Left {
            plan: &plan,
            stack: &start.stack,
            images: &start.images,
            seed,
        };
        let bytes: Vec<u8> = start.content.iter().copied().flat_map(bytes_of).collect();
        assert!(left.read().unwrap().0 == bytes, "seed {seed}");
    }
}

#[test]
fn reads_equal_the_model_and_a_crash_leaves_leaks_at_worst() {
    let counts = run_all(seeds(0, 120).into_iter().map(Plan::by_seed));
    assert!(counts.crashes > 0, "{counts:?}");
}

#[test]
fn a_failing_disk_fails_requests_and_nothing_else() {
    let plans = seeds(1000, 60).into_iter();
    let counts = run_all(plans.map(|seed| Plan::by_seed(seed).failing()));
    assert!(counts.failed_requests > 0 || counts.runs == 1, "{counts:?}");
}

#[test]
fn a_graph_that_is_changed_under_way_stays_the_same_disk() {
    let counts = run_all(
        seeds(3000, 80)
            .into_iter()
            .map(|seed| Plan::by_seed(seed).edited()),
    );
    assert!(counts.edits > 100 || counts.runs == 1, "{counts:?}");
}

/// One run for each operation the host carries out: that one fails.
#[test]
fn an_error_at_any_one_operation_leaves_a_clean_image_that_equals_the_model() {
    for (seed, bottom) in [(2000, None), (2001, Some("layer0"))] {
        println!("seed {seed}");
        let mut start = Start::by_us(seed, Some(2)).unwrap();
        let copy = Filter::CopyOnRead(bottom.map(str::to_owned));
        start.stack.top_mut().push(copy);
        let calm = Plan::calm(seed, 200);
        let count = run(&calm, &start).operations;
        assert!(count > 100, "{count}");
        for nth in 0..count {
            let counts = run(&calm.failing_once(nth), &start);
            assert_eq!(counts.leaks, 0, "seed {seed} operation {nth}: {counts:?}");
        }
        println!("{count} operations failed, one at a time");
    }
}
