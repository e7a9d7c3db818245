//! Random graphs on a simulated disk, held against a model of sectors: chains of qcow2 overlays with filters anywhere,
//! requests from several lanes, and a disk that fails, reorders, holds back and crashes. Reads find what was written,
//! bases stay as they are, and a crash leaves leaks at worst, each sector as it was flushed or as some later write to it
//! made it, and never what another block holds.
//!
//! `GRAPH_MODEL_SEED=n` runs one seed of each test and says more; `GRAPH_MODEL_RUNS=n` runs n times as many as usual.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod crash;
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
use run::Run;
use start::{SPARE_FILES, Start, with_filters};
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

fn start(seed: u64) -> Start {
    let mut start = Start::by_qemu(seed);
    let mut rng = Rng::new(seed ^ 0xf117);
    with_filters(&mut start.stack, &mut rng);
    let spare = (start::LAYERS_MAX * 2) as u32 + SPARE_FILES;
    start.images.entry(ring::FileId(spare - 1)).or_default();
    start
}

/// Runs a plan and says how to see a failure again.
fn run(plan: &Plan) -> (usize, usize) {
    let start = start(plan.seed);
    let outcome = Run::new(plan, &start).and_then(|mut run| {
        run.all()?;
        Ok((run.crashes, run.failed_requests))
    });
    outcome.unwrap_or_else(|fault| {
        let nodes = start.stack.blockdevs();
        let nodes: Vec<_> = nodes.iter().map(|node| node.options.as_str()).collect();
        let layers: Vec<_> = start.stack.layers.iter().map(|l| l.format).collect();
        panic!(
            "{plan:?}\n{layers:#?}\n{}\nseed {}: {fault}",
            nodes.join("\n"),
            plan.seed
        )
    })
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

#[test]
fn reads_equal_the_model_and_a_crash_leaves_leaks_at_worst() {
    let crashes: usize = seeds(0, 100)
        .into_iter()
        .map(|seed| run(&Plan::by_seed(seed)).0)
        .sum();
    println!("{crashes} crash images");
}

#[test]
fn a_failing_disk_fails_requests_and_nothing_else() {
    let runs = seeds(1000, 100)
        .into_iter()
        .map(|seed| run(&Plan::by_seed(seed).failing()));
    let (crashes, failed) = runs.fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    println!("{crashes} crash images, {failed} failed requests");
}
