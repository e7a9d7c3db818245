//! One error at each host operation (or each third or fifth) of a script of writes, snapshots and sizes, one run for each: what failed happened or
//! did not, nothing else is lost, and the image goes on and is closed clean.

use super::admin::{Admin, snapshot};
use super::crash::{Seen, active_is_right, crash};
use super::support::sectors::SECTOR;
use super::support::{sim, writes};
use super::world::{ROOM, Start, What, World};
use blockgraph::request::Prealloc;
use blockgraph::{Mode, Unmap};
use ring::Durability;
use ring::sim::{Act, Images, Rule, Times, Weather};

const SECTORS: usize = 96;

/// The same requests every time, one after the other.
fn some(world: &mut World, count: usize) {
    for n in 0..count {
        let sectors = world.sectors.len();
        let unit = [1, 8][world.chance.below(2) as usize];
        let at = world.chance.below((sectors / unit) as u64) as usize * unit;
        let len = ((1 + world.chance.below(10) as usize) * unit).min(sectors - at);
        let what = match n % 6 {
            3 => What::Zeroes(Unmap::Allow, Durability::Cached),
            4 => What::Discard,
            5 => What::Flush,
            _ => What::Write(Durability::Cached),
        };
        world.start(0, what, at, len);
        world.settle();
    }
}

fn change(world: &mut World, admin: Admin) {
    // One that could not be made cannot be deleted, and an old image is not resized while it has any.
    let is_there = |name: &str| world.kept.iter().any(|kept| kept.name == name);
    let is_old = world.name.contains("compat=0.10");
    let possible = match &admin {
        Admin::Delete(name) => is_there(name),
        Admin::Resize(..) => !is_old || world.kept.is_empty(),
        Admin::Create(_) => true,
    };
    if !possible {
        return;
    }
    world.begin(0, admin);
    world.settle();
}

fn script(world: &mut World) {
    some(world, 6);
    change(world, Admin::Create("one".to_owned()));
    some(world, 6);
    change(world, Admin::Create("two".to_owned()));
    change(world, Admin::Delete("one".to_owned()));
    some(world, 3);
    change(world, Admin::Resize(5 * SECTORS + 3, Prealloc::Off));
    some(world, 3);
    change(world, Admin::Resize(SECTORS / 2 + 3, Prealloc::Off));
    some(world, 3);
    change(world, Admin::Delete("two".to_owned()));
    change(world, Admin::Resize(SECTORS, Prealloc::Metadata));
    some(world, 6);
    change(world, Admin::Resize(SECTORS / 2 + 5, Prealloc::Off));
}

/// A run in which the disk's operation `number` fails; false if there is none of that number.
fn run(files: &Images, start: Start<'_>, number: u64, errno: i32, seen: &mut Seen) -> bool {
    let mut world = World::on(files.clone(), start);
    world.name = format!("{} operation {number} errno {errno}", world.name);
    world.errors = true;
    let before = world.disk.count();
    world
        .disk
        .rule(Rule::every(Act::Fail(errno)).times(Times::After(number)));
    script(&mut world);
    let came = world.disk.count() - before > number;
    world.disk.clear_rules();
    assert!(world.failed <= 3, "{}: {} failed", world.name, world.failed);
    world.start(0, What::Flush, 0, 0);
    world.settle();
    if number.is_multiple_of(5) {
        crash(&mut world, seen);
    }
    close(&mut world);
    came
}

fn close(world: &mut World) {
    let what = world.name.clone();
    let node = world.node;
    assert_eq!(writes::close(&mut world.lanes[0], node), Ok(()), "{what}");
    let left = sim::disk(world.disk.images(), ROOM, 1, Weather::CALM);
    let (mut bench, file) = sim::bench(&left, Mode::Fast);
    let report = sim::look(&mut bench, file);
    assert!(report.is_clean(), "{what}: {:?}", report.findings);
    let node = sim::open(&mut bench, file, Default::default());
    world.flushed = world.now;
    active_is_right(world, &mut bench, node);
    for kept in &world.kept {
        assert!(snapshot(&left, &kept.name, &what) == kept.content, "{what}");
    }
}

/// An error at every operation, or at every so many.
fn errors_at(options: &str, mode: Mode, errno: i32, step: u64) {
    let start = Start {
        options,
        sectors: SECTORS,
        below: 0,
        lanes: 1,
        mode,
        seed: 7,
        weather: Weather::CALM,
    };
    let image = sim::image(options, (SECTORS * SECTOR) as u64);
    let mut seen = Seen::default();
    let mut number = 0;
    while run(&image, start, number, errno, &mut seen) {
        number += step;
    }
    println!("{options} {mode:?}: {number} operations, {seen:?}");
    assert!(number > 200, "{number}");
}

#[test]
fn an_input_or_output_error_anywhere_in_a_change_of_the_whole_loses_nothing() {
    errors_at("cluster_size=4096", Mode::Fast, libc::EIO, 1);
}

#[test]
fn a_full_disk_anywhere_in_a_change_of_the_whole_loses_nothing() {
    errors_at(
        "cluster_size=512,refcount_bits=64",
        Mode::ServeAlways,
        libc::ENOSPC,
        5,
    );
}

#[test]
fn an_error_anywhere_in_a_change_of_an_old_image_loses_nothing() {
    errors_at(
        "cluster_size=4096,compat=0.10",
        Mode::Mixed(1),
        libc::EIO,
        3,
    );
}
