//! Disks on backing files and with data files, made larger and smaller: what is new reads as zeroes, whatever a backing file
//! or a data file has there, and with whatever space set aside; after a power cut, too.

use super::admin::{Admin, PREALLOCATIONS};
use super::crash::{Seen, crash};
use super::traffic::{Admins, RUN, Run, close, request};
use super::world::{Start, What, World};
use blockgraph::Mode;
use blockgraph::request::Prealloc;
use ring::Durability;
use ring::sim::Weather;

const SECTORS: usize = 400;
/// In the middle of a cluster, and at the end of one, of most sizes.
const SIZES: [(usize, usize); 2] = [(133, 611), (128, 512)];

/// The whole disk is written, by all lanes.
fn fill(world: &mut World) {
    let part = 40;
    for at in (0..world.sectors.len()).step_by(part) {
        let len = part.min(world.sectors.len() - at);
        let lane = at / part % world.lanes.len();
        world.start(lane, What::Write(Durability::Cached), at, len);
    }
    world.settle();
    world.start(0, What::Flush, 0, 0);
    world.settle();
}

/// A part of the last cluster, once that was given back.
fn write_the_end(world: &mut World) {
    let end = world.sectors.len();
    let last = (end - 1) & !31;
    world.start(0, What::Discard, last, end - last);
    world.settle();
    world.start(1, What::Write(Durability::Cached), last + 2, 1);
    world.settle();
}

/// Guests go on meanwhile, and the power is lost now and then.
fn resize(world: &mut World, (to, how): (usize, Prealloc), seen: &mut Seen) {
    world.begin(0, Admin::Resize(to, how));
    let mut steps = 0;
    while world.admin.is_some() {
        steps += 1;
        assert!(steps < 20_000, "{}: never ends", world.name);
        if world.under_way() < 3 {
            request(world, 1);
        }
        let count = 1 + world.chance.below(8) as usize;
        world.turns(count);
        if world.chance.below(100) < 8 {
            crash(world, seen);
        }
    }
    crash(world, seen);
}

/// A full disk is made smaller and larger again, with its space set aside in that way.
fn down_and_up(start: Start<'_>, (small, large): (usize, usize), how: Prealloc, seen: &mut Seen) {
    let mut world = World::new(start);
    world.name = format!("{} {how:?} {small}..{large}", world.name);
    println!("{}", world.name);
    fill(&mut world);
    resize(&mut world, (small, Prealloc::Off), seen);
    write_the_end(&mut world);
    resize(&mut world, (large, how), seen);
    let len = world.sectors.len();
    world.start(0, What::Read, 0, len);
    world.settle();
    fill(&mut world);
    crash(&mut world, seen);
    close(&mut world);
    seen.resized += world.resized;
}

/// In every way, and then by chance.
fn sizes(options: &'static str, below: usize, seed: u64) {
    let mut seen = Seen::default();
    for (n, how) in PREALLOCATIONS.into_iter().enumerate() {
        for (mode, sizes) in [Mode::Fast, Mode::ServeAlways].into_iter().zip(SIZES) {
            let start = Start {
                options,
                sectors: SECTORS,
                below,
                lanes: 2,
                mode,
                seed: seed + n as u64,
                weather: Weather::ROUGH,
            };
            down_and_up(start, sizes, how, &mut seen);
        }
    }
    println!("{seen:?}");
    assert!(seen.during > 20 && seen.resized == 16, "{seen:?}");
    let run = Run {
        options,
        below,
        turns: 12,
        admins: Admins::Sizes,
        ..RUN
    };
    let mut seen = Seen::default();
    run.go(seed, Mode::Mixed(seed), &mut seen);
    println!("{seen:?}");
    // Whether a file reads as zeroes is asked on a thread of its own: how long a resize takes is a matter of time (14 to 28 images).
    assert!(seen.during > 3 && seen.resized > 0, "{seen:?}");
}

#[test]
fn what_grows_over_a_longer_backing_file_never_shows_it() {
    sizes("cluster_size=4096", 1500, 80);
    sizes("cluster_size=512", 1501, 81);
    sizes("cluster_size=4096,compat=0.10", 1501, 82);
    sizes("extended_l2=on,cluster_size=16384", 1700, 83);
}

#[test]
fn what_grows_over_a_shorter_backing_file_never_shows_it() {
    sizes("cluster_size=4096", 301, 90);
    sizes("cluster_size=512,compat=0.10", 301, 91);
    sizes("extended_l2=on,cluster_size=16384", 130, 92);
}

#[test]
fn a_disk_with_a_data_file_grows_and_shrinks_while_guests_write() {
    sizes("data_file=data,cluster_size=4096", 0, 100);
    sizes("data_file=data,cluster_size=512", 1501, 101);
    sizes("data_file=data,extended_l2=on,cluster_size=16384", 0, 102);
}

#[test]
fn a_raw_data_file_is_the_disk_at_any_size() {
    sizes("data_file=data,data_file_raw=on,cluster_size=4096", 0, 110);
    sizes("data_file=data,data_file_raw=on,cluster_size=512", 0, 111);
}
