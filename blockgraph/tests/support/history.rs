//! What sectors may read as, from when changes of them began and ended.
//!
//! The rule: a change may show from its beginning on; what was there before it cannot any more once it has ended. Of two
//! that overlap in time either may be the last.

use super::sectors::Version;

/// A moment of a run: it passes with every beginning and every end.
pub type Moment = u64;

/// Not yet.
pub const NEVER: Moment = Moment::MAX;

/// Has it happened, once it has ended?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sure {
    Yes,
    /// Or not, or in part: a discard, or something that failed.
    Perhaps,
}

/// A change of a sector.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// Whose.
    pub token: u64,
    pub version: Version,
    pub sure: Sure,
    pub begun: Moment,
    pub ended: Moment,
    /// Durable with its end, though nothing was flushed.
    pub through: bool,
}

/// All that was ever made of a sector.
#[derive(Clone, Debug)]
pub struct Sector(pub Vec<Change>);

impl Sector {
    /// One that reads as zeroes.
    pub fn zero() -> Sector {
        Sector::of(0)
    }

    /// One that reads as `version` from the beginning.
    pub fn of(version: Version) -> Sector {
        Sector(vec![Change {
            token: 0,
            version,
            sure: Sure::Yes,
            begun: 0,
            ended: 0,
            through: true,
        }])
    }

    /// Was the change certainly replaced by something that had ended before `moment`?
    fn replaced(&self, change: &Change, moment: Moment) -> bool {
        let later = |by: &&Change| by.sure == Sure::Yes && by.begun > change.ended;
        let mut later = self.0.iter().filter(later);
        later.any(|by| by.ended < moment)
    }

    /// What a read may find that began at `from` and ends at `to`.
    pub fn may_be(&self, from: Moment, to: Moment) -> Vec<Version> {
        let shown = self.0.iter().filter(|change| change.begun < to);
        let left = shown.filter(|change| !self.replaced(change, from));
        left.map(|change| change.version).collect()
    }

    /// What a crash may leave when all that had ended before `flushed` is durable.
    pub fn may_be_left(&self, flushed: Moment) -> Vec<Version> {
        let durable = |by: &Change| by.ended < flushed || (by.through && by.ended < NEVER);
        let replaced = |change: &&Change| {
            let later = |by: &&Change| by.sure == Sure::Yes && by.begun > change.ended;
            self.0.iter().filter(later).any(durable)
        };
        let left = self.0.iter().filter(|change| !replaced(change));
        left.map(|change| change.version).collect()
    }

    /// The moments from `from` to `to` at which it may have read as `version`.
    fn moments(&self, version: Version, from: Moment, to: Moment) -> Vec<bool> {
        let mut moments = vec![false; (to - from + 1) as usize];
        for change in self.0.iter().filter(|change| change.version == version) {
            let later = |by: &&Change| by.sure == Sure::Yes && by.begun > change.ended;
            let until = self.0.iter().filter(later).map(|by| by.ended).min();
            let until = until.unwrap_or(NEVER).min(to);
            for moment in (change.begun + 1).max(from)..=until {
                moments[(moment - from) as usize] = true;
            }
        }
        moments
    }
}

/// A snapshot that was begun at `from` and done by `to` is the disk of one moment in between. Answers what is wrong.
pub fn is_of_one_moment(
    sectors: &[Sector],
    found: &[Version],
    (from, to): (Moment, Moment),
) -> Result<(), String> {
    let mut fits = vec![0; (to - from + 1) as usize];
    for (sector, version) in sectors.iter().zip(found) {
        let moments = sector.moments(*version, from, to);
        let both = fits.iter_mut().zip(moments);
        both.for_each(|(n, fit)| *n += usize::from(fit));
    }
    if fits.contains(&found.len()) {
        return Ok(());
    }
    let (best, all) = (fits.iter().max(), found.len());
    Err(format!(
        "of no moment in {from}..={to}: at best {best:?} of {all} sectors"
    ))
}

/// Of each write either all is there, but for what was replaced later, or nothing; of writes that do not overlap in time.
pub fn has_no_part(sectors: &[Sector], found: &[Version]) -> Result<(), String> {
    let mut there = std::collections::BTreeMap::new();
    for (n, (sector, version)) in sectors.iter().zip(found).enumerate() {
        let writes = sector
            .0
            .iter()
            .enumerate()
            .filter(|(_, c)| c.version > 0 && c.sure == Sure::Yes);
        let at = sector.0.iter().rposition(|c| c.version == *version);
        for (place, write) in writes.filter(|(place, _)| Some(*place) >= at) {
            // Later in the list than what is there: it is not there.
            let is_there = Some(place) == at;
            let before = there.insert(write.token, is_there);
            if before.is_some_and(|before| before != is_there) {
                return Err(format!(
                    "a part of write {} is there: sector {n}",
                    write.version
                ));
            }
        }
    }
    Ok(())
}
