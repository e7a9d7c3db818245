//! Snapshots made and deleted, and sizes changed, with requests of several lanes in flight and the process killed at any
//! point: the files as the kernel has them and the log of the map's changes are the disk, all that was answered in it.

use super::admin::snapshot;
use super::crash::{active_is_right, snapshot_is_right, snapshots_are_there};
use super::support::modes;
use super::support::sim;
use super::traffic::{Admins, RUN, Run};
use super::world::{ROOM, World};
use crate::killed::{Log, keep, replay};
use blockgraph::Mode;
use blockgraph::driver::qcow2::Options;
use ring::sim::Weather;
use std::sync::Arc;

/// What was looked at.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    kills: u64,
    /// While a change of the image as a whole was under way.
    during: u64,
    /// Clusters that the disk was behind with.
    behind: usize,
    /// With snapshots in the image.
    with_snapshots: u64,
}

/// Ends the process, in thought, and looks at what the next one makes of it.
fn kill(world: &mut World, log: &Log, seen: &mut Seen) {
    seen.kills += 1;
    seen.during += u64::from(world.admin.is_some());
    let left = sim::disk(world.disk.images(), ROOM, seen.kills, Weather::CALM);
    let (mut bench, file) = sim::bench(&left, Mode::Fast);
    let node = sim::open(&mut bench, file, Options::default());
    let replayed = replay(&mut bench, node, log.changes());
    let what = world.name.clone();
    seen.behind += replayed.unwrap_or_else(|error| panic!("{what}: {error}"));

    // All that was answered counts, flushed or not.
    let flushed = std::mem::replace(&mut world.flushed, world.now + 1);
    let there = snapshots_are_there(world, &mut bench, node);
    active_is_right(world, &mut bench, node);
    world.flushed = flushed;
    let report = sim::look(&mut bench, file);
    assert!(
        report.corruptions == 0 || world.lazy,
        "{what}: {:?}",
        report.findings
    );
    seen.with_snapshots += u64::from(!there.is_empty());
    for name in there {
        snapshot_is_right(world, &name, &snapshot(&left, &name, &what));
    }
}

fn go(run: Run, seeds: std::ops::Range<u64>) -> Seen {
    let mut seen = Seen::default();
    for seed in seeds {
        for mode in modes(seed) {
            let mut world = run.world(seed, mode);
            let (node, log) = (world.node, Arc::new(Log::default()));
            keep(&mut world.lanes[0], node, &log);
            run.drive(&mut world, |world| kill(world, &log, &mut seen));
        }
    }
    println!("{seen:?}");
    seen
}

/// More often than power is cut, as what is in flight is of more interest.
const KILLED: Run = Run {
    crashes: (12, 5),
    ..RUN
};

#[test]
fn snapshots_and_sizes_change_while_guests_write_and_a_kill_loses_nothing_that_was_answered() {
    let admins = Admins::All;
    let seen = go(Run { admins, ..KILLED }, 70..76);
    assert!(
        seen.during > 60 && seen.behind > 200 && seen.with_snapshots > 60,
        "{seen:?}"
    );
}

#[test]
fn late_refcounts_and_snapshots_lose_nothing_to_a_kill() {
    let options = "cluster_size=4096,lazy_refcounts=on";
    let seen = go(Run { options, ..KILLED }, 80..84);
    assert!(seen.during > 30 && seen.behind > 100, "{seen:?}");
}

#[test]
fn subclusters_above_something_lose_nothing_to_a_kill() {
    let options = "extended_l2=on,cluster_size=16384";
    let (below, admins) = (700, Admins::All);
    let run = Run {
        options,
        below,
        admins,
        ..KILLED
    };
    let seen = go(run, 90..94);
    assert!(seen.during > 30 && seen.behind > 50, "{seen:?}");
}
