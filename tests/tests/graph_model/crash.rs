//! What a crash left: opened again, read, checked, written to, and now and then shown to QEMU.

use super::oracle::Oracle;
use super::plan::Plan;
use super::run::Verdict;
use super::stack::{Format, Stack, file_name};
use super::start::SECTORS;
use super::world::{Nature, World};
use blockgraph::driver::qcow2::check::{self, Repair};
use blockgraph::{Event, Kind, Outcome, Span, Started};
use ring::sim::{Images, Rng};
use ring::{Durability, Errno, Mem, Seg, Wait};
use std::time::{Duration, Instant};
use tests::cells::{Cells, SECTOR, bytes_of, stamp};

/// The files of a stack when nothing runs.
#[derive(Clone, Copy, Debug)]
pub struct Left<'a> {
    pub plan: &'a Plan,
    pub stack: &'a Stack,
    pub images: &'a Images,
    pub seed: u64,
}

/// How long nothing may happen: turns cost nothing, but compression is the work of other threads.
#[derive(Debug, Default)]
pub struct Patience {
    turns: usize,
    waiting_since: Option<Instant>,
}

impl Patience {
    /// One more turn in which nothing ended.
    pub fn is_over(&mut self) -> bool {
        self.turns += 1;
        if self.turns < 5_000 {
            return false;
        }
        std::thread::sleep(Duration::from_micros(50));
        let since = self.waiting_since.get_or_insert_with(Instant::now);
        since.elapsed() > Duration::from_secs(60)
    }

    pub fn turns(&self) -> usize {
        self.turns
    }
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
    let mut patience = Patience::default();
    loop {
        for lane in &mut world.lanes {
            lane.turn(Wait::Not).expect("a turn");
            let event = lane.take();
            lane.end_batch();
            if let Some(Event::Finished { outcome, .. }) = event {
                return outcome;
            }
        }
        if patience.is_over() {
            println!("{kind:?} of {span} never ends");
            return Err(Errno(libc::ETIME));
        }
    }
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

/// No image of a closed stack is worse than leaky; answers how many clusters leaked.
pub fn check(plan: &Plan, stack: &Stack, images: &Images) -> Result<u64, String> {
    let mut world = World::bare(images, Nature::calm(plan));
    let top = stack.layers.len() - 1;
    let mut leaks = 0;
    for (n, layer) in stack.layers.iter().enumerate() {
        let Format::Qcow2(layout) = layer.format else {
            continue;
        };
        // One that was left dirty is set right when it is opened for writing, which only the top one was.
        let repair = match n < top && layout.lazy_refcounts {
            true => Repair::Everything,
            false => Repair::Nothing,
        };
        let file = world.node(&file_name(layer.file));
        let graph = world.current.get();
        let looked = world.control.run(&graph, file, move |io| async move {
            check::check(&io, file, repair).await
        });
        let report = looked.map_err(|error| error.to_string())?;
        let report = report.map_err(|error| format!("check of {}: {error}", layer.name))?;
        if report.corruptions > 0 {
            return Err(format!("check of {}: {report:?}", layer.name));
        }
        leaks += report.leaks;
    }
    Ok(leaks)
}

/// Requests after a crash carry numbers above all others.
const LATER: u64 = 1 << 20;

impl Left<'_> {
    fn open(&self) -> Result<World, String> {
        World::open(self.stack, self.images, Nature::calm(self.plan))
            .map_err(|error| format!("opening: {error}"))
    }

    /// What the guest would find; and how many clusters leak after it has looked.
    pub fn read(&self) -> Result<(Vec<u8>, u64), String> {
        let mut world = self.open()?;
        let found = read_all(&mut world)?;
        world.close()?;
        let leaks = check(self.plan, self.stack, &world.disk.images())?;
        Ok((found, leaks))
    }

    /// Every sector is as it was flushed, or as some later write made it; the images have leaks at worst, and can be used.
    pub fn holds_against(&self, cells: &Cells, to_qemu: bool) -> Verdict {
        let mut world = self.open()?;
        let mut found = read_all(&mut world)?;
        cells.crashed(&found)?;
        if self.seed.is_multiple_of(3) {
            self.write_on(&mut world, &mut found)?;
        }
        world.close()?;
        check(self.plan, self.stack, &world.disk.images())?;
        if to_qemu {
            self.show_to_qemu(cells, &found, &world.disk.images())?;
        }
        Ok(())
    }

    /// Life goes on: writes land where they should and nowhere else.
    fn write_on(&self, world: &mut World, content: &mut [u8]) -> Verdict {
        let mut rng = Rng::new(self.seed);
        for n in 0..6 {
            let sectors = 1 + rng.below(24);
            let at = rng.below(SECTORS - sectors + 1);
            let mem = Mem::zeroed((sectors * SECTOR) as usize).ok_or("memory")?;
            for sector in 0..sectors {
                let bytes = bytes_of(stamp(LATER + n, at + sector));
                mem.store((sector * SECTOR) as usize, &bytes);
                content[((at + sector) * SECTOR) as usize..][..SECTOR as usize]
                    .copy_from_slice(&bytes);
            }
            let span = Span::new(at * SECTOR, sectors * SECTOR).ok_or("a span")?;
            let written = ask(world, Kind::Write(Durability::Cached), span, &mem);
            written.map_err(|errno| format!("writing on after the crash: {errno}"))?;
        }
        match read_all(world)? == content {
            true => Ok(()),
            false => Err("what was written after the crash reads otherwise".to_owned()),
        }
    }

    /// QEMU agrees: about what the crash left, and about what we made of it.
    fn show_to_qemu(&self, cells: &Cells, found: &[u8], closed: &Images) -> Verdict {
        let read = Oracle::new(self.stack, self.images).read();
        let read = read.map_err(|error| format!("QEMU, of the crash image: {error}"))?;
        cells
            .crashed(&read)
            .map_err(|error| format!("QEMU reads: {error}"))?;
        let oracle = Oracle::new(self.stack, closed);
        oracle.check()?;
        match oracle.read()? == found {
            true => Ok(()),
            false => Err("QEMU reads the closed images otherwise".to_owned()),
        }
    }
}
