//! What a crash left: opened again, read, checked, written to, and now and then shown to QEMU.

use super::plan::Plan;
use super::run::Verdict;
use super::stack::Stack;
use super::start::SECTORS;
use super::world::{Nature, World};
use blockgraph::{Event, Kind, Outcome, Span, Started};
use ring::sim::Images;
use ring::{Mem, Seg, Wait};
use tests::cells::{Cells, SECTOR};

/// The files of a stack when nothing runs.
#[derive(Clone, Copy, Debug)]
pub struct Left<'a> {
    pub plan: &'a Plan,
    pub stack: &'a Stack,
    pub images: &'a Images,
    pub seed: u64,
}

/// A token for the requests that are made here.
const TOKEN: u64 = 7;

/// Asks the top of a world for one thing, and waits.
pub fn ask(world: &mut World, kind: Kind, span: Span, mem: &Mem) -> Outcome {
    let segs: Vec<Seg> = mem.segs().collect();
    let lane = &mut world.lanes[0];
    lane.begin_batch();
    let started = lane.start(world.top, kind, span, &segs, TOKEN);
    lane.end_batch();
    if let Started::Done(outcome) = started {
        return outcome;
    }
    for _ in 0..100_000 {
        for lane in &mut world.lanes {
            lane.turn(Wait::Not).expect("a turn");
            let event = lane.take();
            lane.end_batch();
            if let Some(Event::Finished { outcome, .. }) = event {
                return outcome;
            }
        }
    }
    panic!("{kind:?} of {span} never ends");
}

/// Everything the guest can read.
pub fn read_all(world: &mut World) -> Result<Vec<u8>, String> {
    let len = (SECTORS * SECTOR) as usize;
    let mem = Mem::zeroed(len).expect("memory");
    mem.store(0, &vec![0x77; len]);
    let span = Span::new(0, SECTORS * SECTOR).expect("a span");
    ask(world, Kind::Read, span, &mem).map_err(|errno| format!("reading everything: {errno}"))?;
    let mut bytes = vec![0; len];
    mem.load(0, &mut bytes);
    Ok(bytes)
}

/// Files nobody may write to are as they were.
pub fn bases_are_untouched(bases: &Images, images: &Images) -> Verdict {
    let changed = bases.iter().find(|(file, bytes)| images[file] != **bytes);
    match changed {
        Some((file, _)) => Err(format!("{file:?}, a base, was changed")),
        None => Ok(()),
    }
}

impl Left<'_> {
    fn open(&self) -> Result<World, String> {
        World::open(self.stack, self.images, Nature::calm(self.plan))
            .map_err(|error| format!("opening: {error}"))
    }

    /// What the guest would find, and the images are without errors after it has looked.
    pub fn read(&self) -> Result<Vec<u8>, String> {
        let mut world = self.open()?;
        let found = read_all(&mut world)?;
        world.close()?;
        Ok(found)
    }

    /// Every sector is as it was flushed, or as some later write made it; the images have leaks at worst.
    pub fn holds_against(&self, cells: &Cells) -> Verdict {
        let mut world = self.open()?;
        let found = read_all(&mut world)?;
        cells.crashed(&found)?;
        world.close()
    }
}
