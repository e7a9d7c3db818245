//! More requests at once than a ring has room for: told, not lost, and never an error.

use super::world::{FILE, Plan, SECTORS, World, window};
use blockgraph::{Event, Kind, Mode, Span, Started};
use ring::sim::{Act, Rule};
use ring::{Durability, Mem, Seg, Wait};
use tests::cells::{Cells, SECTOR};

/// Starts `count` writes on a disk that holds them all; answers how many found no room at first.
pub fn overfill(plan: &Plan, mode: Mode, count: u64) -> usize {
    let mut world = World::new(plan, &Cells::new(SECTORS), mode);
    world.disk.rule(Rule::every(Act::Hold));
    let mem = Mem::zeroed(SECTOR as usize).expect("memory");
    mem.store(0, &[9; SECTOR as usize]);
    let segs: Vec<Seg> = mem.segs().collect();
    let (mut refused, mut ended) = (0, 0);
    for token in 0..count {
        let span = Span::new(token % SECTORS * SECTOR, SECTOR).expect("a span");
        let kind = Kind::Write(Durability::Cached);
        loop {
            let lane = &mut world.lanes[0];
            lane.begin_batch();
            let started = lane.start(world.top, kind, span, &segs, token);
            lane.end_batch();
            if started == Started::Pending {
                break;
            }
            assert_eq!(started, Started::Full);
            refused += 1;
            // Only now does the disk let go.
            world.disk.clear_rules();
            world.disk.release_all();
            ended += turn(&mut world);
        }
    }
    world.disk.clear_rules();
    while ended < count {
        world.disk.release_all();
        ended += turn(&mut world);
    }
    assert_eq!(world.lanes[0].in_flight(), 0);
    let images = world.disk.images();
    assert!(window(plan, &images[&FILE]).iter().all(|&byte| byte == 9));
    refused
}

fn turn(world: &mut World) -> u64 {
    let lane = &mut world.lanes[0];
    lane.turn(Wait::Not).expect("turned");
    let mut ended = 0;
    while let Some(Event::Finished { outcome, .. }) = lane.take() {
        assert_eq!(outcome, Ok(()));
        ended += 1;
    }
    lane.end_batch();
    ended
}
