//! Random request streams through lanes and real drivers on a simulated disk, held against a model of sectors: whatever
//! the disk does within its rights, reads find what was written, errors are told to those they concern, and a crash
//! leaves each sector as it was or as some write made it, with everything flushed in place.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod full;
mod run;
mod threads;
mod world;

use blockgraph::Mode;
use blockgraph::graph::DetectZeroes;
use run::{Run, stream};
use tests::cells::{Cells, Overlap, SECTOR, bytes_of};
use threads::Shared;
use world::{FILE, Plan, SECTORS, World, window};

const STEPS: usize = 150;

fn modes(seed: u64) -> [Mode; 3] {
    [Mode::Fast, Mode::ServeAlways, Mode::Mixed(seed)]
}

/// Runs the plan in one mode and says how to see a failure again.
fn run(plan: &Plan, mode: Mode) -> Run<'_> {
    let mut run = Run::new(plan, mode);
    if let Err(fault) = run.all(&stream(plan, STEPS)) {
        panic!("{mode:?} {plan:?}: {fault}");
    }
    run
}

/// No transfer ends within a sector: what cannot be told whole from torn is left to the other tests.
fn whole_sectors(plan: &mut Plan) {
    if plan.block_bytes == 1 {
        plan.weather.short = 0;
    }
}

#[test]
fn fast_served_and_mixed_agree_with_the_model_and_with_each_other() {
    for seed in 0..300 {
        let mut plan = Plan::by_seed(seed);
        // A discard may do something or nothing, so that images could differ.
        plan.discard = blockgraph::graph::DiscardPolicy::Ignore;
        let images = modes(seed).map(|mode| run(&plan, mode).world.disk.images());
        assert!(images[0][&FILE] == images[1][&FILE], "{plan:?}");
        assert!(images[0][&FILE] == images[2][&FILE], "{plan:?}");
    }
}

#[test]
fn of_overlapping_writes_one_is_found_in_each_sector_and_nothing_else_is_touched() {
    for seed in 5000..5600 {
        let mut plan = Plan::by_seed(seed);
        plan.overlap = Overlap::Writes;
        whole_sectors(&mut plan);
        run(&plan, modes(seed)[seed as usize % 3]);
    }
}

#[test]
fn discards_lose_nothing_but_what_they_discard() {
    for seed in 1000..1300 {
        let mut plan = Plan::by_seed(seed);
        plan.discard = blockgraph::graph::DiscardPolicy::Unmap;
        run(&plan, modes(seed)[seed as usize % 3]);
    }
}

#[test]
fn a_failing_disk_fails_those_it_concerns_and_nobody_else() {
    let mut failed = 0;
    for seed in 2000..2600 {
        let mut plan = Plan::by_seed(seed);
        plan.weather.failed = 30;
        whole_sectors(&mut plan);
        failed += run(&plan, modes(seed)[seed as usize % 3]).failed_requests;
    }
    assert!(
        failed > 1000,
        "the test must test something: {failed} failures"
    );
}

#[test]
fn a_crash_leaves_each_sector_old_or_new_and_everything_flushed() {
    let mut crashes = 0;
    for seed in 3000..3400 {
        let mut plan = Plan::by_seed(seed);
        whole_sectors(&mut plan);
        plan.overlap = [Overlap::Never, Overlap::Writes][seed as usize / 2 % 2];
        plan.weather.failed = [0, 20][seed as usize % 2];
        crashes += run(&plan, modes(seed)[seed as usize % 3]).crashes;
    }
    assert!(crashes > 5000, "{crashes}");
}

#[test]
fn a_ring_without_room_is_back_pressure_and_no_error() {
    for seed in 7000..7003 {
        let mut plan = Plan::by_seed(seed);
        (plan.lanes, plan.block_bytes, plan.offset_bytes) = (1, 512, 0);
        (plan.delay_ns, plan.detect_zeroes) = (None, DetectZeroes::Off);
        let count = 2 * u64::from(ring::SLOTS);
        assert!(full::overfill(&plan, Mode::Fast, count) > 0, "{plan:?}");
        assert_eq!(full::overfill(&plan, Mode::ServeAlways, count), 0);
        full::overfill(&plan, Mode::Mixed(seed), count);
    }
}

/// The story of a seed differs from run to run here, since threads do; what must hold does not.
#[test]
fn threads_that_share_blocks_find_what_each_of_them_wrote() {
    for seed in 6000..6030 {
        let mut plan = Plan::by_seed(seed);
        (plan.block_bytes, plan.lanes) = (4096, 0);
        plan.offset_bytes = plan.offset_bytes.next_multiple_of(4096);
        println!("seed {seed}");
        let World {
            disk,
            top,
            current,
            epochs,
            ..
        } = World::new(&plan, &Cells::new(SECTORS), Mode::Fast);
        let shared = Shared {
            disk,
            top,
            current,
            epochs,
        };
        let mode = modes(seed)[seed as usize % 3];
        let (plan, shared) = (&plan, &shared);
        std::thread::scope(|scope| {
            let threads = (0..threads::THREADS)
                .map(|n| scope.spawn(move || threads::work(plan, shared, n, mode)));
            let threads: Vec<_> = threads.collect();
            for thread in threads {
                let mine = thread.join().unwrap();
                let images = shared.disk.images();
                let image = window(plan, &images[&FILE]);
                for (sector, stamp) in mine {
                    let found = &image[(sector * SECTOR) as usize..][..SECTOR as usize];
                    assert!(found == bytes_of(stamp), "sector {sector}");
                }
            }
        });
    }
}

#[test]
fn the_same_seed_is_the_same_story() {
    for seed in 4000..4020 {
        let plan = Plan::by_seed(seed);
        let [first, second] = [(); 2].map(|()| run(&plan, Mode::Mixed(seed)).world.disk.log());
        assert!(first == second, "{plan:?}");
        assert!(!first.is_empty());
    }
}
