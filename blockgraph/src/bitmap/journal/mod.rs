//! A file beside a disk that keeps its persistent bitmaps through a crash: what was written is dirty then, and little else.
//!
//! The rule: before a write begins, the journal says durably that its region may have been written; what bitmaps say is stored
//! from time to time, and regions count until a store has what was written in them. So whatever is lost, what was stored
//! together with the regions that count is no less than what is dirty. `format.rs` has the bytes, `regions.rs` what comes before a write,
//! `store.rs` what comes after, `find.rs` what is made of a journal that is found.
//!
//! Time is cut into epochs, each with a map of regions of its own. A new one begins when the last has lasted for a while; the one before
//! counts until everything that began in it has ended and a store has all of that. Then only the new map counts, and
//! what was written long ago is as dirty as the bitmaps say and no more.
//!
//! What a journal cannot see is another program that writes the disk while no daemon has it. Where that shows in the file's own time
//! of change it is not believed; see [`Doubt`].

mod content;
mod find;
mod format;
mod open;
mod regions;
mod store;

pub use find::Doubt;
pub(crate) use find::Found;
pub use open::JournalError;
pub(crate) use open::{JournalFile, Use, open};
pub(crate) use regions::Covering;

use crate::hold::Holds;
use crate::units::Span;
use format::{Content, Home, MAP_WORDS, REGIONS_MAX, Subject};
use ring::File;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long an epoch lasts once something was written in it.
const EPOCH: Duration = Duration::from_secs(30);
/// A journal whose last word is older than this says another before the disk is changed.
const WORD: Duration = Duration::from_secs(15);
/// No region is smaller than this, nor larger where there would be fewer than [`REGIONS_GOAL`].
const REGION_BITS_MIN: u32 = 16;
/// Of small disks there are so many regions.
const REGIONS_GOAL: u64 = 1024;
/// And no region is larger than this unless the map would not do.
const REGION_BITS_FINE: u32 = 20;

/// Which disk a journal is beside, and who keeps its bitmaps while it is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Beside {
    /// A disk whose bitmaps are in the journal alone; where in the file it begins.
    Raw(u64),
    /// An image that stores its bitmaps when it is closed.
    Image,
}

/// The journal of a node. Shared by all generations.
#[derive(Debug)]
pub struct Journal {
    file: Arc<File>,
    /// How long the file was when it was opened; `None` where nobody knows.
    len_bytes: Option<u64>,
    used: Use,
    path: PathBuf,
    home: Home,
    offset_bytes: u64,
    /// The file that the disk is in; `None` where nobody knows its name.
    disk: Option<PathBuf>,
    region_bits: u32,
    /// The regions of this epoch that are durably said to be written.
    covered: [AtomicU64; MAP_WORDS],
    /// Served writes under way that began in an even epoch, and in an odd one.
    served: [AtomicU64; 2],
    state: Mutex<State>,
    /// Whoever writes a map holds it.
    mapping: Holds,
    /// Whoever stores what bitmaps say.
    storing: Holds,
}

/// How far a journal is to be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nothing may be written to the disk yet, or any more.
    AtRest,
    /// It is kept up.
    Kept,
    /// It could not be kept up, and says so: the disk goes on without it.
    GivenUp,
}

#[derive(Debug)]
struct State {
    stage: Stage,
    epoch: u64,
    /// The first epoch that counts: this one, or the one before.
    from_epoch: u64,
    sequence: u64,
    /// What the newest header leads to.
    content: Content,
    /// What a header may lead to of which nobody knows whether it was written.
    content_in_doubt: Option<Content>,
    /// Regions that somebody waits for.
    wanted: Vec<RangeInclusive<u64>>,
    /// When the first region of this epoch was covered, or the last time that the map was written for its date alone.
    since: Option<Instant>,
    /// What has to pass before the epoch before is over.
    grace: Option<u64>,
    /// How many regions the epoch before has, while it counts.
    regions_before: u64,
    /// When a header or a map was written last.
    dated: Option<Instant>,
}

/// What a query tells of a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalReport {
    /// Where it is.
    pub path: PathBuf,
    /// How far it is to be relied on.
    pub stage: Stage,
    /// How large its regions are, in bytes.
    pub region_bytes: u64,
    /// How many of them count: a crash would make them dirty. One that two epochs have counts twice.
    pub regions: u64,
}

impl Journal {
    /// As it is now.
    pub fn report(&self) -> JournalReport {
        let (stage, before) = {
            let state = self.state();
            (state.stage, state.regions_before)
        };
        JournalReport {
            path: self.path.clone(),
            stage,
            region_bytes: 1 << self.region_bits,
            regions: match stage {
                Stage::Kept => self.count() + before,
                Stage::AtRest | Stage::GivenUp => 0,
            },
        }
    }

    /// How many regions are covered.
    fn count(&self) -> u64 {
        let words = self.covered.iter().map(|word| word.load(Ordering::Relaxed));
        words.map(|word| u64::from(word.count_ones())).sum()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Can it be kept up, or only looked at?
    pub(crate) fn may_be_kept(&self) -> bool {
        self.used == Use::Keep
    }

    /// The file itself.
    pub(crate) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Do the bitmaps live here while the disk is closed?
    pub(crate) fn is_home(&self) -> bool {
        self.home == Home::Journal
    }

    /// Is `span` durably said to be written? Pure. If not, its write is served.
    #[inline]
    pub(crate) fn covers(&self, span: Span) -> bool {
        self.regions_of(span).all(|region| self.is_covered(region))
    }

    #[inline]
    fn is_covered(&self, region: u64) -> bool {
        let word = self.covered[(region / 64) as usize].load(Ordering::SeqCst);
        word >> (region % 64) & 1 == 1
    }

    /// `span` is not empty.
    #[inline]
    fn regions_of(&self, span: Span) -> RangeInclusive<u64> {
        let region = |at: u64| (at >> self.region_bits).min(REGIONS_MAX - 1);
        region(span.at)..=region(span.end() - 1)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The disk as it is now, and when it was changed last (0: nobody knows). Looks at the file system.
    fn subject(&self) -> (Subject, u64) {
        let about = self.disk.as_ref().and_then(|path| path.metadata().ok());
        let (inode, born_ns, changed_ns) = about.as_ref().map_or((0, 0, 0), look_at);
        let subject = Subject {
            home: self.home,
            inode,
            born_ns,
            offset_bytes: self.offset_bytes,
        };
        (subject, changed_ns)
    }
}

/// Its inode or number, when it was made and when it was changed last, as far as that means something.
fn look_at(about: &std::fs::Metadata) -> (u64, u64, u64) {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    if about.file_type().is_block_device() {
        return (about.rdev(), 0, 0);
    }
    let ns = |time: std::io::Result<SystemTime>| time.map_or(0, ns_of);
    (about.ino(), ns(about.created()), ns(about.modified()))
}

fn ns_of(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The time of day, as files have it.
fn date_ns() -> u64 {
    ns_of(SystemTime::now())
}

/// How large the regions of a disk are, as a power of two.
fn region_bits(size_bytes: u64) -> u32 {
    let bits_for = |regions: u64| {
        size_bytes
            .div_ceil(regions)
            .max(1)
            .next_power_of_two()
            .ilog2()
    };
    let fine = bits_for(REGIONS_GOAL).clamp(REGION_BITS_MIN, REGION_BITS_FINE);
    fine.max(bits_for(REGIONS_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_fine_as_long_as_one_map_holds_them() {
        let sizes = [0, 1, 64 << 20, 1 << 30, 30 << 30, 1 << 40, i64::MAX as u64];
        assert_eq!(sizes.map(region_bits), [16, 16, 16, 20, 20, 26, 49]);
        for size in sizes {
            assert!(size.div_ceil(1 << region_bits(size)) <= REGIONS_MAX);
        }
    }
}
