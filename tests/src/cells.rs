//! The model: for each sector of the disk, what a read may find there now and what a crash may leave.
//!
//! The rule: every sector that is written carries its own address and the number of its write, so that one block can never
//! pass for another.

use blockgraph::Kind;
use ring::sim::SECTOR_BYTES;

/// Bytes of a sector.
pub const SECTOR: u64 = SECTOR_BYTES as u64;

/// A sector's content: its eight bytes, over and over. 0 is a sector of zeroes.
pub type Stamp = u64;

/// A write some crash may still leave behind.
#[derive(Clone, Debug)]
struct Trace {
    stamp: Stamp,
    /// When its issuer was told that it was done; `None`: not yet, or that it failed.
    done: Option<u64>,
    /// Writes of a sector that overlapped in time are one group: nobody knows which landed last.
    group: u64,
}

#[derive(Clone, Debug)]
struct Cell {
    /// What a read may find; more than one after a failed write or a discard.
    live: Vec<Stamp>,
    /// What a crash may leave, oldest first.
    traces: Vec<Trace>,
    readers: u32,
    writers: u32,
    /// The group of the writers, or of the last ones.
    group: u64,
    /// What the group writes.
    stamps: Vec<Stamp>,
    /// One of the group has succeeded.
    sure: bool,
    /// What the layers below the top one have there: what a discard may uncover.
    below: Vec<Stamp>,
}

/// A disk of sectors.
#[derive(Clone, Debug)]
pub struct Cells {
    cells: Vec<Cell>,
    now: u64,
}

/// What the issuer of a request knows of its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It succeeded.
    Done,
    /// It may have done anything to its own sectors.
    Failed,
}

/// May writes overlap other writes?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlap {
    /// No.
    Never,
    /// One of them is found afterwards, in each sector for itself.
    Writes,
}

/// A content no other sector of no other write has.
pub fn stamp(token: u64, sector: u64) -> Stamp {
    (token + 1) << 24 | sector | 0x8000_0000_0000_0000
}

/// The bytes of a sector.
pub fn bytes_of(stamp: Stamp) -> [u8; SECTOR_BYTES] {
    let mut bytes = [0; SECTOR_BYTES];
    for word in bytes.chunks_mut(8) {
        word.copy_from_slice(&stamp.to_le_bytes());
    }
    bytes
}

/// The stamp of a sector; `None` if it is torn.
///
/// # Panics
/// Where `bytes` are not whole words.
pub fn stamp_of(bytes: &[u8]) -> Option<Stamp> {
    let mut words = bytes
        .chunks(8)
        .map(|word| Stamp::from_le_bytes(word.try_into().expect("eight bytes")));
    let first = words.next()?;
    words.all(|word| word == first).then_some(first)
}

impl Cells {
    /// A disk whose sectors carry their addresses.
    pub fn new(sectors: u64) -> Cells {
        let stamps: Vec<Stamp> = (0..sectors).map(|sector| stamp(0, sector)).collect();
        Cells::of(&stamps)
    }

    /// A disk of these sectors.
    pub fn of(stamps: &[Stamp]) -> Cells {
        let cell = |&stamp| {
            let trace = Trace {
                stamp,
                done: Some(0),
                group: 0,
            };
            Cell {
                live: vec![stamp],
                traces: vec![trace],
                readers: 0,
                writers: 0,
                group: 0,
                stamps: Vec::new(),
                sure: false,
                below: Vec::new(),
            }
        };
        Cells {
            cells: stamps.iter().map(cell).collect(),
            now: 1,
        }
    }

    /// What the disk begins as.
    pub fn image(&self) -> Vec<u8> {
        let stamps = self.cells.iter().map(|cell| cell.live[0]);
        stamps.flat_map(bytes_of).collect()
    }

    fn range(&mut self, at: u64, sectors: u64) -> &mut [Cell] {
        &mut self.cells[at as usize..(at + sectors) as usize]
    }

    /// True if a request would overlap another so that nobody could say what it finds.
    pub fn conflicts(&mut self, kind: Kind, at: u64, sectors: u64, overlap: Overlap) -> bool {
        let (reads, never) = (kind == Kind::Read, overlap == Overlap::Never);
        let range = self.range(at, sectors);
        range.iter().any(|c| match reads {
            true => c.writers > 0,
            false => c.readers > 0 || (never && c.writers > 0),
        })
    }

    /// A request goes out; `content` says what a write makes of each sector. The answer is the moment, for `ended`.
    pub fn issued(
        &mut self,
        kind: Kind,
        at: u64,
        sectors: u64,
        content: impl Fn(u64) -> Stamp,
    ) -> u64 {
        self.now += 1;
        for (sector, cell) in (at..).zip(self.range(at, sectors)) {
            match kind {
                Kind::Read => cell.readers += 1,
                Kind::Flush => {}
                _ => {
                    cell.enter(content(sector));
                }
            }
        }
        self.now
    }

    /// A write, write-zeroes or discard is over.
    pub fn written(
        &mut self,
        kind: Kind,
        at: u64,
        sectors: u64,
        end: End,
        content: impl Fn(u64) -> Stamp,
    ) {
        self.now += 1;
        let now = self.now;
        let sure = end == End::Done && kind != Kind::Discard;
        let through = matches!(
            kind,
            Kind::Write(ring::Durability::Through)
                | Kind::WriteZeroes(_, ring::Durability::Through)
        );
        for (sector, cell) in (at..).zip(self.range(at, sectors)) {
            cell.leave(content(sector), sure.then_some(now));
            if sure && through {
                cell.settle(now + 1);
            }
        }
    }

    /// What a discard may uncover from now on, besides what it could before.
    pub fn lies_below(&mut self, stamps: &[Stamp]) {
        for (cell, &stamp) in self.cells.iter_mut().zip(stamps) {
            cell.below.push(stamp);
        }
    }

    /// The top becomes a layer below: a discard may uncover what it has.
    pub fn covered(&mut self) {
        for cell in &mut self.cells {
            cell.below.extend(&cell.live);
            cell.below.sort_unstable();
            cell.below.dedup();
        }
    }

    /// A discard is over: besides zeroes and what was there, what lies below may be there now, or after a crash.
    pub fn uncovered(&mut self, at: u64, sectors: u64) {
        for cell in self.range(at, sectors) {
            let group = cell.group;
            cell.live.extend(&cell.below);
            let traces = cell.below.iter().map(|&stamp| Trace {
                stamp,
                done: None,
                group,
            });
            cell.traces.extend(traces.collect::<Vec<_>>());
        }
    }

    /// A flush that went out at `began` succeeded.
    pub fn flushed(&mut self, began: u64) {
        self.cells.iter_mut().for_each(|cell| cell.settle(began));
    }

    /// A read is over; what it found, if it succeeded, is held against the model. Errors: which sector reads as what.
    pub fn read(&mut self, at: u64, sectors: u64, found: Option<&[u8]>) -> Result<(), String> {
        for (n, cell) in self.range(at, sectors).iter_mut().enumerate() {
            cell.readers -= 1;
            let Some(found) = found else {
                continue;
            };
            let bytes = &found[n * SECTOR_BYTES..][..SECTOR_BYTES];
            match stamp_of(bytes) {
                Some(stamp) if cell.live.contains(&stamp) => cell.live = vec![stamp],
                other => {
                    let (sector, live) = (at + n as u64, &cell.live);
                    return Err(format!("sector {sector} read as {other:x?}, not {live:x?}"));
                }
            }
        }
        Ok(())
    }

    /// Holds what a crash left against the model. Errors: which sector is what none of its writes made it.
    pub fn crashed(&self, image: &[u8]) -> Result<(), String> {
        for (sector, cell) in self.cells.iter().enumerate() {
            let found = stamp_of(&image[sector * SECTOR_BYTES..][..SECTOR_BYTES]);
            let known = cell.traces.iter().map(|trace| Some(trace.stamp));
            if !known.clone().any(|known| known == found) {
                let known: Vec<_> = known.collect();
                return Err(format!("sector {sector} is {found:x?}, not of {known:x?}"));
            }
        }
        Ok(())
    }
}

impl Cell {
    fn enter(&mut self, stamp: Stamp) {
        if self.writers == 0 {
            self.group += 1;
            self.stamps.clear();
            self.sure = false;
        }
        self.writers += 1;
        self.stamps.push(stamp);
        self.traces.push(Trace {
            stamp,
            done: None,
            group: self.group,
        });
    }

    fn leave(&mut self, stamp: Stamp, done: Option<u64>) {
        self.writers -= 1;
        self.sure |= done.is_some();
        let own = self.traces.iter_mut().rev().find(|t| t.stamp == stamp);
        own.expect("it entered").done = done;
        if self.writers > 0 {
            return;
        }
        if self.sure {
            self.live.clear();
        }
        self.live.append(&mut self.stamps);
    }

    /// What was done before `began` is durable: what it replaced is gone.
    fn settle(&mut self, began: u64) {
        let safe = |trace: &Trace| trace.done.is_some_and(|done| done < began);
        let Some(last) = self.traces.iter().rfind(|trace| safe(trace)) else {
            return;
        };
        let group = last.group;
        let first = self.traces.iter().position(|trace| trace.group == group);
        self.traces.drain(..first.unwrap_or(0));
    }
}
