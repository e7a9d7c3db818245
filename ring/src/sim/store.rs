//! The bytes of simulated files, what of them is durable, and what a crash would leave.
//!
//! The rule: until a sync that began after a write had completed has itself completed, each sector the write touched may
//! survive a crash as it was when last durable or as any later write left it, independently of its neighbours. That is
//! what a disk with a volatile cache may do, and a page cache too.

use super::rng::Rng;
use std::collections::BTreeMap;

/// What tears: the smallest unit a disk writes whole.
pub const SECTOR_BYTES: usize = 512;

type Sector = Box<[u8; SECTOR_BYTES]>;

/// A change of a file.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Bytes(Vec<u8>),
    Zeroes(u64),
    /// It ends at the place of the change.
    Size,
}

impl Change {
    fn len(&self) -> u64 {
        match self {
            Change::Bytes(bytes) => bytes.len() as u64,
            Change::Zeroes(len) => *len,
            Change::Size => 0,
        }
    }

    fn copy(&self, from: usize, to: &mut [u8]) {
        match self {
            Change::Bytes(bytes) => to.copy_from_slice(&bytes[from..from + to.len()]),
            Change::Zeroes(_) | Change::Size => to.fill(0),
        }
    }
}

/// What a change did to a sector or to the file as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Written,
    /// The file was made to end before it; whatever comes later is in other space of the disk.
    CutOff,
}

/// A sector as some change left it.
#[derive(Clone, Debug)]
struct Version {
    change: u64,
    how: How,
    bytes: Sector,
}

/// A change that is not known to be durable.
#[derive(Clone, Debug)]
struct Volatile {
    /// When its maker was told, on the disk's own count of events.
    told: Option<u64>,
    end: u64,
    how: How,
}

/// The file's size since some change.
#[derive(Clone, Copy, Debug)]
struct Resized {
    change: u64,
    size: usize,
}

/// One file.
#[derive(Clone, Debug)]
pub(super) struct Store {
    live: Vec<u8>,
    durable: Vec<u8>,
    volatile: BTreeMap<u64, Volatile>,
    versions: BTreeMap<usize, Vec<Version>>,
    /// Changes of size that are not durable, in order.
    sizes: Vec<Resized>,
}

impl Store {
    pub(super) fn new(bytes: Vec<u8>) -> Store {
        Store {
            durable: bytes.clone(),
            live: bytes,
            volatile: BTreeMap::new(),
            versions: BTreeMap::new(),
            sizes: Vec::new(),
        }
    }

    pub(super) fn live(&self) -> &[u8] {
        &self.live
    }

    /// Makes a change, known from here on as `name` (names rise). A write past the end makes the file longer.
    pub(super) fn apply(&mut self, name: u64, at: u64, change: &Change) {
        match change {
            Change::Size => self.resize(name, at as usize),
            _ => self.apply_where(name, at, change, &mut || true),
        }
    }

    /// As [`Store::apply`], of sectors chosen by chance: what a failed write may leave.
    pub(super) fn apply_some(&mut self, name: u64, at: u64, change: &Change, rng: &mut Rng) {
        self.apply_where(name, at, change, &mut || rng.coin());
    }

    fn resize(&mut self, name: u64, size: usize) {
        let before = self.live.len();
        self.live.resize(size, 0);
        for sector in sectors(size as u64, before as u64) {
            self.note(sector, name, How::CutOff);
        }
        self.sizes.push(Resized { change: name, size });
        self.remember(name, size as u64, How::CutOff);
    }

    fn apply_where(
        &mut self,
        name: u64,
        at: u64,
        change: &Change,
        lands: &mut dyn FnMut() -> bool,
    ) {
        let (before, end) = (self.live.len(), at + change.len());
        for sector in sectors(at, end) {
            if !lands() {
                continue;
            }
            let from = at.max((sector * SECTOR_BYTES) as u64);
            let to = end.min(((sector + 1) * SECTOR_BYTES) as u64);
            if self.live.len() < to as usize {
                self.live.resize(to as usize, 0);
            }
            change.copy(
                (from - at) as usize,
                &mut self.live[from as usize..to as usize],
            );
            self.note(sector, name, How::Written);
        }
        let (change, size) = (name, self.live.len());
        if size != before {
            self.sizes.push(Resized { change, size });
        }
        self.remember(name, end, How::Written);
    }

    /// Notes what a change left in a sector.
    fn note(&mut self, sector: usize, change: u64, how: How) {
        let bytes = sector_of(&self.live, sector);
        let list = self.versions.entry(sector).or_default();
        list.push(Version { change, how, bytes });
    }

    fn remember(&mut self, name: u64, end: u64, how: How) {
        let told = None;
        self.volatile.insert(name, Volatile { told, end, how });
    }

    /// The maker of `name` was told at `now`; `through`: and it was promised to be durable.
    pub(super) fn told(&mut self, name: u64, now: u64, through: bool) {
        if let Some(volatile) = self.volatile.get_mut(&name) {
            volatile.told = Some(now);
        }
        if through {
            self.settle(|change| change == name);
        }
    }

    /// A sync that began at `began` has completed.
    pub(super) fn synced(&mut self, began: u64) {
        let volatile = &self.volatile;
        let safe: Vec<u64> = volatile
            .iter()
            .filter(|(_, v)| v.told.is_some_and(|told| told < began))
            .map(|(&name, _)| name)
            .collect();
        self.settle(|change| safe.binary_search(&change).is_ok());
    }

    /// Makes changes durable, and with them what lies beneath them in the same sectors.
    fn settle(&mut self, safe: impl Fn(u64) -> bool) {
        let sized = self.settle_sizes(&safe);
        // A file system's journal keeps order: with a size all earlier ones are durable.
        let safe =
            |change: u64, how: How| safe(change) || (how == How::CutOff && Some(change) <= sized);
        for (&sector, list) in &mut self.versions {
            if let Some(last) = list.iter().rposition(|v| safe(v.change, v.how)) {
                put_sector(&mut self.durable, sector, &list[last].bytes);
                list.drain(..=last);
            }
        }
        self.versions.retain(|_, list| !list.is_empty());
        self.volatile.retain(|&name, v| !safe(name, v.how));
    }

    /// Makes sizes durable: those that are safe, and as many as it takes for safe bytes to be within the file. Answers the
    /// newest change of size that is durable now.
    fn settle_sizes(&mut self, safe: impl Fn(u64) -> bool) -> Option<u64> {
        let ends = self.volatile.iter().filter(|(name, _)| safe(**name));
        let end = ends.map(|(_, v)| v.end).max().unwrap_or(0) as usize;
        let end = end.min(self.live.len());
        let last = self.sizes.iter().rposition(|resized| safe(resized.change));
        let mut count = last.map_or(0, |last| last + 1);
        let size_after = |count: usize| match count.checked_sub(1) {
            Some(last) => self.sizes[last].size,
            None => self.durable.len(),
        };
        while count < self.sizes.len() && size_after(count) < end {
            count += 1;
        }
        let mut newest = None;
        for resized in self.sizes.drain(..count) {
            self.durable.resize(resized.size, 0);
            newest = Some(resized.change);
        }
        newest
    }

    /// What a crash leaves: each volatile change lands whole, in part or not at all; of the changes of size the first few.
    pub(super) fn crash(&self, rng: &mut Rng) -> Vec<u8> {
        let names = self.volatile.keys();
        let fates: BTreeMap<u64, u32> = names.map(|&name| (name, fate(rng))).collect();
        let mut image = self.durable.clone();
        let mut sized = None;
        for resized in &self.sizes[..rng.below(self.sizes.len() as u64 + 1) as usize] {
            image.resize(resized.size, 0);
            sized = Some(resized.change);
        }
        for (&sector, list) in &self.versions {
            let stays = |v: &Version| v.how == How::CutOff && Some(v.change) > sized;
            let until = list.iter().position(stays).unwrap_or(list.len());
            let mut landed = list[..until].iter().rev();
            let lands = |version: &&Version| match version.how {
                How::CutOff => true,
                How::Written => rng.chance(fates.get(&version.change).copied().unwrap_or(0)),
            };
            if let Some(version) = landed.find(lands) {
                put_sector(&mut image, sector, &version.bytes);
            }
        }
        image
    }
}

/// How likely each sector of a change is to land, in a thousand.
fn fate(rng: &mut Rng) -> u32 {
    match rng.below(3) {
        0 => 0,
        1 => 1000,
        _ => 100 + rng.below(800) as u32,
    }
}

fn sectors(at: u64, end: u64) -> std::ops::Range<usize> {
    let first = at as usize / SECTOR_BYTES;
    first..(end as usize).div_ceil(SECTOR_BYTES).max(first)
}

fn sector_of(bytes: &[u8], sector: usize) -> Sector {
    let mut out = Box::new([0; SECTOR_BYTES]);
    let from = (sector * SECTOR_BYTES).min(bytes.len());
    let to = (from + SECTOR_BYTES).min(bytes.len());
    out[..to - from].copy_from_slice(&bytes[from..to]);
    out
}

/// Writes a sector as far as the file reaches.
fn put_sector(bytes: &mut [u8], sector: usize, from: &[u8; SECTOR_BYTES]) {
    let at = (sector * SECTOR_BYTES).min(bytes.len());
    let end = (at + SECTOR_BYTES).min(bytes.len());
    bytes[at..end].copy_from_slice(&from[..end - at]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(byte: u8, len: usize) -> Change {
        Change::Bytes(vec![byte; len])
    }

    fn crashes(store: &Store, at: usize) -> std::collections::BTreeSet<u8> {
        (0..400)
            .map(|seed| store.crash(&mut Rng::new(seed))[at])
            .collect()
    }

    #[test]
    fn an_unsynced_sector_is_old_or_as_any_write_left_it() {
        let mut store = Store::new(vec![1; 2048]);
        store.apply(1, 0, &write(2, 1024));
        store.apply(2, 512, &write(3, 1024));
        assert_eq!(crashes(&store, 0), [1, 2].into());
        assert_eq!(crashes(&store, 600), [1, 2, 3].into());
        assert_eq!(crashes(&store, 1100), [1, 3].into());
        assert_eq!(crashes(&store, 2000), [1].into());
    }

    #[test]
    fn a_write_tears_between_sectors_and_never_within_one() {
        let mut store = Store::new(vec![1; 2048]);
        store.apply(1, 0, &write(2, 2048));
        let images = (0..400).map(|seed| store.crash(&mut Rng::new(seed)));
        let images: Vec<_> = images.collect();
        assert!(images.iter().any(|i| i[0] != i[512]), "some tear");
        let whole = |sector: &[u8]| sector.iter().all(|&byte| byte == sector[0]);
        assert!(images.iter().all(|i| i.chunks(SECTOR_BYTES).all(whole)));
    }

    #[test]
    fn a_sync_covers_what_was_told_before_it_began_and_nothing_else() {
        let mut store = Store::new(vec![1; 1536]);
        store.apply(1, 0, &write(2, 512));
        store.told(1, 10, false);
        store.apply(2, 512, &write(3, 512));
        store.told(2, 20, false);
        store.apply(3, 1024, &write(4, 512));
        store.synced(15);
        assert_eq!(crashes(&store, 0), [2].into());
        assert_eq!(crashes(&store, 512), [1, 3].into());
        assert_eq!(crashes(&store, 1024), [1, 4].into());
    }

    #[test]
    fn what_a_durable_write_replaced_never_comes_back() {
        let mut store = Store::new(vec![1; 512]);
        store.apply(1, 0, &write(2, 512));
        store.apply(2, 0, &write(3, 512));
        store.told(2, 5, true);
        assert_eq!(crashes(&store, 0), [3].into());
        store.apply(3, 0, &Change::Zeroes(512));
        assert_eq!(crashes(&store, 0), [0, 3].into());
    }

    fn sizes(store: &Store) -> std::collections::BTreeSet<usize> {
        (0..400)
            .map(|seed| store.crash(&mut Rng::new(seed)).len())
            .collect()
    }

    #[test]
    fn a_cut_lands_whole_with_the_zeroes_it_leaves_or_not_at_all() {
        let mut store = Store::new(vec![1; 2048]);
        store.apply(1, 512, &Change::Size);
        store.apply(2, 2048, &Change::Size);
        store.apply(3, 1024, &write(3, 512));
        assert_eq!(store.live()[512..1024], [0; 512]);
        assert_eq!(sizes(&store), [512, 2048].into());
        for seed in 0..400 {
            let image = store.crash(&mut Rng::new(seed));
            match image.get(1536) {
                None => assert_eq!(image, [1; 512]),
                Some(0) => assert!(image[600] == 0 && matches!(image[1024], 0 | 3)),
                Some(_) => assert!(image[512..].iter().all(|&byte| byte == 1)),
            }
        }
        store.told(1, 5, false);
        store.told(2, 6, false);
        store.synced(10);
        assert_eq!(sizes(&store), [2048].into());
        assert_eq!(crashes(&store, 600), [0].into());
        assert_eq!(crashes(&store, 1024), [0, 3].into());
    }

    #[test]
    fn growth_is_durable_with_the_next_sync_or_with_what_was_written_through_into_it() {
        let mut store = Store::new(vec![1; 512]);
        store.apply(1, 2048, &Change::Size);
        store.told(1, 5, false);
        assert_eq!(sizes(&store), [512, 2048].into());
        store.apply(2, 1024, &write(2, 512));
        store.told(2, 6, true);
        assert_eq!(sizes(&store), [2048].into());
        store.apply(3, 512, &Change::Size);
        store.synced(7);
        assert_eq!(sizes(&store), [512, 2048].into(), "nobody was told of it");
        store.told(3, 8, false);
        store.synced(9);
        assert_eq!(sizes(&store), [512].into());
    }
}
