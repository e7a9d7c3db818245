//! Dirty bitmaps: which parts of a node were written since somebody last asked.
//!
//! The rule: a bit is set after the data landed and before the writer is told (rule 4 of `map.rs`), by whatever thread that is,
//! without a lock or an allocation. A bitmap belongs to the node and goes where the node goes in the graph; when the node leaves
//! it, the bitmap is gone, unless its image keeps it.

mod admin;
mod bits;
mod dirty;
mod error;
mod find;
mod freeze;
mod hash;
mod journal;
mod memory;
mod report;
mod stored;
mod tracker;
mod undo;

pub use admin::{BitmapAdmin, NewBitmap, Source};
pub use dirty::{Busy, DirtyBitmap, Keeping, State};
pub use error::BitmapError;
pub use find::{BitmapName, Found, find, find_above};
pub use freeze::Frozen;
pub use journal::{Doubt, Journal, JournalError, JournalReport, Stage as JournalStage};
pub use memory::{BitmapMemory, MEMORY_BYTES_MAX};
pub use report::{BitmapReport, report};
pub use tracker::Tracker;
pub use undo::Saved;

pub(crate) use find::check_changeable;
pub(crate) use journal::{Beside, Found as FoundInJournal, JournalFile, Use, open as open_journal};
pub(crate) use tracker::MarkAtEnd;
