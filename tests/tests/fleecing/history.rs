//! Which write of each block a snapshot has, and whether one instant explains all of it.
//!
//! The rule: every write has bytes of its own. If one that began later than another ended is in a snapshot and the other is
//! not, there was no such instant.

use std::time::Instant;

pub(super) const BLOCK: u64 = 4096;

/// One write of a block; the first of each is that of the empty disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Write {
    pub(super) stamp: u64,
    pub(super) begun: Instant,
    pub(super) ended: Option<Instant>,
}

/// Whose bytes each block of a snapshot has; nobody's where it could not be read.
pub(super) type Seen = Vec<Option<u64>>;

/// The bytes of a write.
pub(super) fn bytes_of(stamp: u64) -> Vec<u8> {
    stamp.to_le_bytes().repeat(BLOCK as usize / 8)
}

/// Whose bytes these are.
pub(super) fn stamp_of(bytes: &[u8]) -> u64 {
    let stamp = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert!(bytes == bytes_of(stamp), "a block is of two writes");
    stamp
}

pub(super) fn stamps_of(disk: &[u8]) -> Seen {
    let blocks = disk.chunks(BLOCK as usize);
    blocks.map(|bytes| Some(stamp_of(bytes))).collect()
}

/// The writes of each block, in order: never two at once.
pub(super) struct History {
    blocks: Vec<Vec<Write>>,
    /// When writes were under way that failed, and so are in no block.
    pub(super) failed: Vec<(Instant, Instant)>,
}

impl History {
    pub(super) fn new(blocks: u64) -> History {
        let now = Instant::now();
        let empty = Write {
            stamp: 0,
            begun: now,
            ended: Some(now),
        };
        History {
            blocks: vec![vec![empty]; blocks as usize],
            failed: Vec::new(),
        }
    }

    pub(super) fn begin(&mut self, block: usize, stamp: u64) {
        self.blocks[block].push(Write {
            stamp,
            begun: Instant::now(),
            ended: None,
        });
    }

    pub(super) fn end(&mut self, block: usize) {
        let write = self.blocks[block].last_mut().unwrap();
        write.ended = Some(Instant::now());
    }

    /// The last write of the block came to nothing.
    pub(super) fn fail(&mut self, block: usize) {
        let write = self.blocks[block].pop().unwrap();
        self.failed.push((write.begun, Instant::now()));
    }

    /// What the block holds now.
    pub(super) fn last(&self, block: usize) -> u64 {
        self.blocks[block].last().unwrap().stamp
    }

    /// Errors: no instant between these two is that of all that was seen.
    pub(super) fn check(
        &self,
        seen: &Seen,
        within: Option<(Instant, Instant)>,
    ) -> Result<(), String> {
        let (mut latest_in, mut first_out): (Option<Instant>, Option<Instant>) = (None, None);
        for (block, stamp) in seen.iter().enumerate() {
            let Some(stamp) = stamp else { continue };
            let writes = &self.blocks[block];
            let nth = writes.iter().position(|write| write.stamp == *stamp);
            let nth = nth.ok_or(format!("nobody wrote {stamp:#x} to block {block}"))?;
            latest_in = latest_in.max(Some(writes[nth].begun));
            let next = writes.get(nth + 1).and_then(|write| write.ended);
            first_out = match (first_out, next) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            };
        }
        let Some(latest_in) = latest_in else {
            return Ok(());
        };
        if within.is_some_and(|(_, answered)| latest_in > answered) {
            return Err("it has a write that began after it was taken".to_owned());
        }
        let lacks = |(asked, _)| first_out.is_some_and(|out| out < asked);
        if within.is_some_and(lacks) {
            return Err("it lacks a write that had ended before it was taken".to_owned());
        }
        match first_out {
            Some(out) if latest_in > out => Err(format!(
                "it has a write that began {:?} after one had ended that it has not",
                latest_in - out
            )),
            _ => Ok(()),
        }
    }

    /// The disk is what was written last.
    pub(super) fn is_last(&self, disk: &[u8]) -> bool {
        let stamps = stamps_of(disk).into_iter().enumerate();
        stamps.fold(true, |is, (block, stamp)| {
            is && stamp == Some(self.last(block))
        })
    }
}

#[test]
fn a_snapshot_of_two_instants_is_found_out() {
    const BLOCKS: u64 = 4;
    let mut history = History::new(BLOCKS);
    let mut instants = vec![Instant::now()];
    // One after the other, to two blocks.
    for (block, stamp) in [(0, 1), (1, 2)] {
        history.begin(block, stamp);
        history.end(block);
        instants.push(Instant::now());
    }
    let with = |one, other| vec![Some(one), Some(other), Some(0), None];
    let between = |from: usize, to: usize| Some((instants[from], instants[to]));
    for fine in [with(0, 0), with(1, 0), with(1, 2)] {
        assert_eq!(history.check(&fine, None), Ok(()), "{fine:?}");
        assert_eq!(history.check(&fine, between(0, 2)), Ok(()), "{fine:?}");
    }
    assert!(history.check(&with(0, 2), None).is_err());
    // What could not be read proves nothing.
    assert_eq!(history.check(&vec![None; 4], between(2, 2)), Ok(()));
    // It is of an instant, and that of another one.
    assert_eq!(history.check(&with(1, 0), between(1, 1)), Ok(()));
    assert!(history.check(&with(1, 0), between(2, 2)).is_err());
    assert!(history.check(&with(1, 0), between(0, 0)).is_err());
    history.begin(2, 3);
    history.fail(2);
    assert_eq!((history.last(2), history.failed.len()), (0, 1));
    assert!(
        history
            .check(&vec![None, None, Some(3), None], None)
            .is_err()
    );
}
