//! Random requests, by seed.

use super::plan::Plan;
use super::start::SECTORS;
use blockgraph::{Kind, Unmap};
use ring::Durability;
use ring::sim::Rng;
use tests::cells::{Overlap, Stamp, stamp};

/// Numbers of requests begin above those of what the images were made with.
pub const TOKEN_MIN: u64 = 1000;

/// One request.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub kind: Kind,
    pub at: u64,
    pub sectors: u64,
    pub lane: usize,
    /// A write of nothing but zeroes.
    pub zeroes: bool,
    /// Look what a crash would leave before it goes out.
    pub crash: bool,
}

impl Step {
    /// What it makes of a sector.
    pub fn content(&self, token: u64, sector: u64) -> Stamp {
        match self.kind {
            Kind::Write(_) if !self.zeroes => stamp(token, sector),
            _ => 0,
        }
    }
}

/// The requests of a run.
pub fn stream(plan: &Plan) -> Vec<Step> {
    let mut rng = Rng::new(plan.seed ^ 0x57ea);
    (0..plan.steps).map(|_| step(plan, &mut rng)).collect()
}

fn step(plan: &Plan, rng: &mut Rng) -> Step {
    let durability = match rng.below(6) {
        0 => Durability::Through,
        _ => Durability::Cached,
    };
    let unmap = match rng.coin() {
        true => Unmap::Allow,
        false => Unmap::Keep,
    };
    let kind = match rng.below(20) {
        0..6 => Kind::Read,
        6..13 => Kind::Write(durability),
        13 | 14 => Kind::WriteZeroes(unmap, durability),
        15..17 if plan.discards => Kind::Discard,
        15..17 => Kind::Write(durability),
        _ => Kind::Flush,
    };
    let longest = [1, 4, 16, 80][rng.below(4) as usize];
    let mut sectors = 1 + rng.below(longest);
    let hot = plan.overlap == Overlap::Writes && rng.coin();
    let end = if hot { 96 } else { SECTORS };
    let mut at = rng.below(end - sectors + 1);
    // Whole clusters often enough that they are freed and taken anew.
    if rng.below(3) == 0 {
        let unit = [8, 32][rng.below(2) as usize];
        at -= at % unit;
        sectors = sectors.next_multiple_of(unit).min(SECTORS - at);
    }
    if kind == Kind::Flush {
        (at, sectors) = (0, 0);
    }
    Step {
        kind,
        at,
        sectors,
        lane: rng.below(plan.lanes as u64) as usize,
        zeroes: rng.below(8) == 0,
        crash: rng.below(10) == 0,
    }
}
