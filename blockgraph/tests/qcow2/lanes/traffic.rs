//! Snapshots made and deleted, and sizes changed, with requests of several lanes in flight and the power cut at any point.

use super::admin::{Admin, PREALLOCATIONS};
use super::crash::{Seen, crash, files_beside_are_right};
use super::support::sim::{self, Verdict};
use super::support::{modes, writes};
use super::world::{Start, What, World};
use blockgraph::request::Prealloc;
use blockgraph::{Mode, Unmap};
use ring::Durability;
use ring::sim::Weather;

/// How many snapshots there are at most.
const KEPT_MAX: usize = 3;

/// How a run goes.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    pub options: &'static str,
    pub sectors: usize,
    /// Of the backing file, if there is one.
    pub below: usize,
    pub lanes: usize,
    pub steps: usize,
    /// Of the lanes, in a step at most.
    pub turns: u64,
    /// In a hundred steps, while a change of the whole is under way and else.
    pub crashes: (u64, u64),
    pub admins: Admins,
}

/// Which changes of the whole there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admins {
    None,
    Snapshots,
    Sizes,
    All,
}

impl Run {
    pub fn go(self, seed: u64, mode: Mode, seen: &mut Seen) {
        let mut world = self.world(seed, mode);
        self.drive(&mut world, |world| crash(world, seen));
        seen.resized += world.resized;
    }

    /// The world it begins with.
    pub fn world(&self, seed: u64, mode: Mode) -> World {
        let world = World::new(Start {
            options: self.options,
            sectors: self.sectors,
            below: self.below,
            lanes: self.lanes,
            mode,
            seed,
            weather: Weather::ROUGH,
        });
        println!("{}", world.name);
        world
    }

    /// Lets the world go its way, and ends it in thought, by `end`, now and then and when all is over.
    pub fn drive(&self, world: &mut World, mut end: impl FnMut(&mut World)) {
        for step in 0..self.steps {
            self.step(world, step);
            let chance = match world.admin {
                Some(_) => self.crashes.0,
                None => self.crashes.1,
            };
            if world.chance.below(100) < chance {
                end(world);
            }
        }
        world.settle();
        end(world);
        close(world);
    }

    fn step(&self, world: &mut World, step: usize) {
        let lane = world.chance.below(world.lanes.len() as u64) as usize;
        match world.chance.below(10) {
            0..5 if world.under_way() < 2 * self.lanes => request(world, lane),
            5 if world.admin.is_none() && self.admins != Admins::None => {
                let admin = self.admin(world, step);
                world.begin(lane, admin);
            }
            _ => {}
        }
        let count = 1 + world.chance.below(self.turns) as usize;
        world.turns(count);
    }

    fn admin(&self, world: &mut World, step: usize) -> Admin {
        let resizes = match self.admins {
            Admins::Sizes => true,
            Admins::All => world.chance.below(2) == 0,
            Admins::None | Admins::Snapshots => false,
        };
        if resizes {
            let least = self.sectors as u64 / 2;
            let to = (least + world.chance.below(3 * least)) as usize;
            return Admin::Resize(to, preallocation(world, to));
        }
        let kept = world.kept.len() as u64;
        match kept {
            0 => Admin::Create(format!("s{step}")),
            _ if kept < KEPT_MAX as u64 && world.chance.below(2) == 0 => {
                Admin::Create(format!("s{step}"))
            }
            _ => {
                let which = world.chance.below(kept) as usize;
                Admin::Delete(world.kept[which].name.clone())
            }
        }
    }
}

/// The image is closed clean.
pub fn close(world: &mut World) {
    let node = world.node;
    assert_eq!(writes::close(&mut world.lanes[0], node), Ok(()));
    let files = world.disk.images();
    let (verdict, said) = sim::ask_qemu(&files);
    assert_eq!(verdict, Verdict::Clean, "{}: {said}", world.name);
    world.flushed = world.now;
    files_beside_are_right(world, &files);
}

/// Only what grows can have its space set aside.
fn preallocation(world: &mut World, to: usize) -> Prealloc {
    match to > world.sectors.len() {
        true => PREALLOCATIONS[world.chance.below(4) as usize],
        false => Prealloc::Off,
    }
}

pub fn request(world: &mut World, lane: usize) {
    let unit = [1, 8, 16][world.chance.below(3) as usize];
    let units = world.sectors.len() / unit;
    let at = match world.chance.below(4) {
        // Where sizes change.
        0 => units - 1,
        _ => world.chance.below(units as u64) as usize,
    };
    let at = at * unit;
    let len = (1 + world.chance.below(6) as usize) * unit;
    let len = len.min(world.sectors.len() - at);
    let durability = match world.chance.below(20) {
        0 => Durability::Through,
        _ => Durability::Cached,
    };
    let unmap = [Unmap::Allow, Unmap::Keep][world.chance.below(2) as usize];
    let what = match world.chance.below(12) {
        0 => What::Zeroes(unmap, durability),
        1 => What::Discard,
        2 => What::Flush,
        3 | 4 => What::Read,
        _ => What::Write(durability),
    };
    world.start(lane, what, at, len);
}

/// What most runs are like.
pub const RUN: Run = Run {
    options: "cluster_size=4096",
    sectors: 1024,
    below: 0,
    lanes: 3,
    steps: 300,
    turns: 4,
    crashes: (12, 1),
    admins: Admins::Snapshots,
};

fn go(run: Run, seeds: std::ops::Range<u64>) -> Seen {
    let mut seen = Seen::default();
    for seed in seeds {
        for mode in modes(seed) {
            run.go(seed, mode, &mut seen);
        }
    }
    println!("{seen:?}");
    seen
}

#[test]
fn snapshots_come_and_go_while_guests_write_and_a_power_cut_loses_nothing() {
    let seen = go(RUN, 0..4);
    assert!(
        seen.during > 150 && seen.dirty > 30 && seen.shown_to_qemu > 5,
        "{seen:?}"
    );
}

#[test]
fn snapshots_of_an_old_image_come_and_go_while_guests_write() {
    let options = "cluster_size=4096,compat=0.10";
    let seen = go(Run { options, ..RUN }, 10..12);
    assert!(seen.during > 50 && seen.dirty == 0, "{seen:?}");
}

#[test]
fn snapshots_of_tiny_clusters_with_wide_refcounts_come_and_go() {
    let options = "cluster_size=512,refcount_bits=64";
    let (sectors, steps) = (512, 200);
    let seen = go(
        Run {
            options,
            sectors,
            steps,
            ..RUN
        },
        20..22,
    );
    assert!(seen.during > 50, "{seen:?}");
}

#[test]
fn snapshots_of_subclusters_come_and_go() {
    let options = "extended_l2=on,cluster_size=16384";
    let seen = go(Run { options, ..RUN }, 30..32);
    assert!(seen.during > 50, "{seen:?}");
}

#[test]
fn a_disk_grows_and_shrinks_while_guests_write_and_a_power_cut_loses_nothing() {
    let seen = go(
        Run {
            admins: Admins::Sizes,
            ..RUN
        },
        40..43,
    );
    assert!(seen.during > 100 && seen.dirty > 20, "{seen:?}");
    let options = "cluster_size=512,compat=0.10";
    let seen = go(
        Run {
            options,
            admins: Admins::Sizes,
            ..RUN
        },
        44..46,
    );
    assert!(seen.during > 50, "{seen:?}");
}

#[test]
fn sizes_and_snapshots_change_while_guests_write() {
    let seen = go(
        Run {
            admins: Admins::All,
            ..RUN
        },
        50..53,
    );
    assert!(seen.during > 100 && seen.dirty > 20, "{seen:?}");
}

#[test]
fn lazy_refcounts_are_repaired_after_a_power_cut_and_nothing_is_lost() {
    let run = Run {
        options: "lazy_refcounts=on,cluster_size=4096",
        crashes: (0, 10),
        admins: Admins::None,
        ..RUN
    };
    let seen = go(run, 60..64);
    assert!(seen.dirty > 250 && seen.cut_again > 50, "{seen:?}");
    assert!(seen.shown_to_qemu > 10, "{seen:?}");
}

#[test]
fn lazy_refcounts_and_snapshots_go_together() {
    let options = "lazy_refcounts=on,cluster_size=4096";
    let seen = go(Run { options, ..RUN }, 70..72);
    assert!(seen.dirty > 30, "{seen:?}");
}
