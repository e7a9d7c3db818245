//! The log of an image's map in the inflight region: what `kill -9` would lose of it is kept by the front end, as requests in
//! flight are.
//!
//! The rule: a process may be killed between any two stores. Changes are written before the word that counts them; what a
//! commit made durable is taken off by one word, too. The words are the front end's to change: what is read is checked by
//! whoever takes it up.

use blockgraph::graph::map_logs::{Change, MapLog};
use blockgraph::node::FileIdentity;
use ring::vring::SharedWords;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Changes there is room for: a guest that does not flush has a commit made for it at a quarter of them.
const CHANGES: u64 = 128 << 10;
const FILLING: u64 = CHANGES / 4;
const CHANGE_WORDS: u64 = 3;
const HEADER_WORDS: u64 = 16;

/// What a log takes, in bytes.
pub(super) const BYTES: u64 = (HEADER_WORDS + CHANGES * CHANGE_WORDS) * 8;

/// "vblkmap" and the version of the layout.
const MAGIC: u64 = u64::from_le_bytes(*b"vblkmap\x01");

// Words of the header.
const MAGIC_AT: usize = 0;
/// Which process has it, by a number nobody else has.
const OWNER_AT: usize = 1;
/// Which image it is of: three words.
const IMAGE_AT: usize = 2;
/// All before this change are durable.
const SETTLED_AT: usize = 5;
/// The next change's number.
const END_AT: usize = 6;
/// 1: changes after the last were left out, for want of room.
const LEFT_OUT_AT: usize = 7;
/// When the process was last seen with something in the log, in milliseconds since 1970.
const ALIVE_AT: usize = 8;

/// So often it says that it is alive, while there is something in the log.
const BEAT: Duration = Duration::from_secs(1);

/// A place for a log in a region that was set.
#[derive(Clone, Debug)]
pub struct MapRegion {
    words: Arc<SharedWords>,
}

/// What is in a region.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing of use.
    Nothing,
    /// Changes of that image.
    Changes {
        /// When that process was last seen.
        alive: SystemTime,
        /// In their order.
        changes: Vec<Change>,
        /// Were later ones left out?
        left_out: bool,
    },
    /// Changes of another image.
    AnothersChanges,
}

/// A log under way.
#[derive(Debug)]
struct RegionLog {
    words: Arc<SharedWords>,
    cursor: Mutex<Cursor>,
    /// There is something in it, or it is over.
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, Default)]
struct Cursor {
    settled: u64,
    /// As many as ever were added.
    seen: u64,
    left_out: bool,
    over: bool,
}

impl MapRegion {
    pub(super) fn new(words: SharedWords) -> MapRegion {
        let words = Arc::new(words);
        MapRegion { words }
    }

    /// What an earlier process, not `owner`, has left of `image`.
    pub fn find(&self, image: Option<FileIdentity>, owner: u64) -> Found {
        let word = |at| self.words.get(at);
        let (settled, end) = (word(SETTLED_AT), word(END_AT));
        let count = end.wrapping_sub(settled);
        if word(MAGIC_AT) != MAGIC || word(OWNER_AT) == owner || count == 0 || count > CHANGES {
            return Found::Nothing;
        }
        let of = [word(IMAGE_AT), word(IMAGE_AT + 1), word(IMAGE_AT + 2)];
        if image.map(image_words) != Some(of) {
            return Found::AnothersChanges;
        }
        let change = |number: u64| {
            let at = change_at(number);
            Change {
                cluster: word(at),
                words: [word(at + 1), word(at + 2)],
            }
        };
        Found::Changes {
            alive: UNIX_EPOCH
                + Duration::from_millis(word(ALIVE_AT).min(u64::from(u32::MAX) * 1000)),
            changes: (0..count)
                .map(|n| change(settled.wrapping_add(n)))
                .collect(),
            left_out: word(LEFT_OUT_AT) != 0,
        }
    }

    /// An empty log of `image`, which is what the region has from now on. Errors: out of threads.
    pub fn begin(&self, image: FileIdentity, owner: u64) -> io::Result<Arc<dyn MapLog>> {
        let words = self.words.clone();
        words.set(MAGIC_AT, 0);
        words.set(OWNER_AT, owner);
        for (at, word) in (IMAGE_AT..).zip(image_words(image)) {
            words.set(at, word);
        }
        [SETTLED_AT, END_AT, LEFT_OUT_AT]
            .iter()
            .for_each(|at| words.set(*at, 0));
        words.set(MAGIC_AT, MAGIC);
        let log = Arc::new(RegionLog {
            words,
            cursor: Mutex::default(),
            changed: Condvar::new(),
        });
        let beating = log.clone();
        let thread = std::thread::Builder::new().name("map-log".to_owned());
        thread.spawn(move || beating.beat())?;
        Ok(log)
    }

    /// Nothing is in it from now on.
    pub fn clear(&self) {
        self.words.set(MAGIC_AT, 0);
    }
}

impl RegionLog {
    /// Says that the process is alive, while there is something in the log: whoever finds it compares that with the time at
    /// which somebody last wrote to the image. Sleeps otherwise.
    fn beat(&self) {
        let mut cursor = self.cursor();
        while !cursor.over {
            cursor = match cursor.seen == cursor.settled {
                true => {
                    let woken = self.changed.wait(cursor);
                    woken.unwrap_or_else(PoisonError::into_inner)
                }
                false => {
                    self.words.set(ALIVE_AT, now_ms());
                    let woken = self.changed.wait_timeout(cursor, BEAT);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    fn cursor(&self) -> MutexGuard<'_, Cursor> {
        self.cursor.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MapLog for RegionLog {
    fn append(&self, change: Change) {
        let mut cursor = self.cursor();
        if cursor.over {
            return;
        }
        let number = cursor.seen;
        cursor.seen += 1;
        if number == cursor.settled {
            self.words.set(ALIVE_AT, now_ms());
            self.changed.notify_one();
        }
        if number - cursor.settled >= CHANGES || cursor.left_out {
            cursor.left_out = true;
            self.words.set(LEFT_OUT_AT, 1);
            return;
        }
        let at = change_at(number);
        self.words.set(at, change.cluster);
        self.words.set(at + 1, change.words[0]);
        self.words.set(at + 2, change.words[1]);
        self.words.set(END_AT, cursor.seen);
    }

    fn position(&self) -> u64 {
        self.cursor().seen
    }

    fn settle(&self, position: u64) {
        let mut cursor = self.cursor();
        if cursor.over {
            return;
        }
        cursor.settled = position;
        if cursor.left_out && position < cursor.seen {
            // Those that are there still may be followed by some that are not.
            self.words
                .set(SETTLED_AT, position.min(self.words.get(END_AT)));
            return;
        }
        // A log that ends before it begins is empty.
        self.words.set(SETTLED_AT, position);
        if std::mem::replace(&mut cursor.left_out, false) {
            self.words.set(END_AT, position);
            self.words.set(LEFT_OUT_AT, 0);
        }
    }

    fn is_filling(&self) -> bool {
        let cursor = self.cursor();
        cursor.seen - cursor.settled >= FILLING
    }

    fn give_up(&self) {
        let mut cursor = self.cursor();
        *cursor = Cursor {
            over: true,
            ..Cursor::default()
        };
        self.words.set(MAGIC_AT, 0);
        self.changed.notify_one();
    }
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_millis() as u64)
}

fn change_at(number: u64) -> usize {
    (HEADER_WORDS + number % CHANGES * CHANGE_WORDS) as usize
}

fn image_words(image: FileIdentity) -> [u64; 3] {
    match image {
        FileIdentity::File { device, inode } => [1, device, inode],
        FileIdentity::Device(number) => [2, number, 0],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::vring::{GuestMap, Region};

    const IMAGE: FileIdentity = FileIdentity::File {
        device: 1,
        inode: 2,
    };

    fn region() -> MapRegion {
        let memory: Vec<u64> = vec![0; (BYTES / 8) as usize];
        let memory = memory.leak();
        let region = Region {
            gpa: 0,
            len_bytes: BYTES,
            host: memory.as_mut_ptr().cast(),
        };
        // SAFETY: leaked, so it is there for good, and nothing else refers to it from here on.
        let map = unsafe { GuestMap::new(vec![region], Box::new(())) };
        let map = Arc::new(map.expect("a map"));
        MapRegion::new(SharedWords::new(map, 0, (BYTES / 8) as u32).expect("room"))
    }

    fn change(n: u64) -> Change {
        Change {
            cluster: n,
            words: [n << 16, !n],
        }
    }

    /// The changes found, and whether some were left out.
    fn changes(region: &MapRegion) -> Option<(Vec<Change>, bool)> {
        match region.find(Some(IMAGE), 2) {
            Found::Changes {
                alive,
                changes,
                left_out,
            } => {
                let ago = SystemTime::now().duration_since(alive).expect("before");
                assert!(ago < Duration::from_secs(3600));
                Some((changes, left_out))
            }
            _ => None,
        }
    }

    fn some(numbers: std::ops::Range<u64>, left_out: bool) -> Option<(Vec<Change>, bool)> {
        Some((numbers.map(change).collect(), left_out))
    }

    #[test]
    fn what_is_not_settled_is_found_by_another_process_and_of_its_image_alone() {
        let region = region();
        assert_eq!(region.find(Some(IMAGE), 2), Found::Nothing);
        let log = region.begin(IMAGE, 1).expect("a thread");
        assert_eq!(region.find(Some(IMAGE), 2), Found::Nothing);
        (0..5).for_each(|n| log.append(change(n)));
        log.settle(2);
        assert_eq!(changes(&region), some(2..5, false));
        assert_eq!(region.find(Some(IMAGE), 1), Found::Nothing);
        let other = FileIdentity::Device(2);
        assert_eq!(region.find(Some(other), 2), Found::AnothersChanges);
        assert_eq!(region.find(None, 2), Found::AnothersChanges);
        log.settle(log.position());
        assert_eq!(region.find(None, 2), Found::Nothing);
        log.append(change(5));
        assert_eq!(changes(&region), some(5..6, false));
        log.give_up();
        assert_eq!(region.find(Some(IMAGE), 2), Found::Nothing);
        log.append(change(6));
        log.settle(log.position());
        assert_eq!(region.find(None, 2), Found::Nothing);
    }

    #[test]
    fn a_log_goes_round_and_says_what_it_left_out() {
        let region = region();
        let log = region.begin(IMAGE, 1).expect("a thread");
        (0..CHANGES).for_each(|n| log.append(change(n)));
        assert!(log.is_filling());
        log.settle(CHANGES - 3);
        assert!(!log.is_filling());
        let end = 2 * CHANGES - 3;
        (CHANGES..end).for_each(|n| log.append(change(n)));
        assert_eq!(changes(&region), some(CHANGES - 3..end, false));
        log.append(change(end));
        log.settle(end - 5);
        // There is room again, but one is missing.
        log.append(change(end + 1));
        assert_eq!(changes(&region), some(end - 5..end, true));
        log.settle(log.position());
        assert_eq!(region.find(Some(IMAGE), 2), Found::Nothing);
        log.append(change(7));
        assert_eq!(changes(&region), some(7..8, false));
    }

    #[test]
    fn whatever_the_front_end_has_made_of_it_is_read_in_bounds() {
        for (settled, end) in [(u64::MAX, 3), (3, 2), (0, CHANGES + 1), (0, u64::MAX)] {
            let region = region();
            let _log = region.begin(IMAGE, 1).expect("a thread");
            region.words.set(SETTLED_AT, settled);
            region.words.set(END_AT, end);
            let found = region.find(Some(IMAGE), 2);
            let count = end.wrapping_sub(settled);
            assert_eq!(found == Found::Nothing, count > CHANGES);
        }
    }
}
