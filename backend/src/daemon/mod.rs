//! The daemon: executes what the command line asks for, then serves until it is told to stop.
//!
//! The rule: this is the control thread; it may wait for queue threads and sessions, and none of them ever waits for it.

mod active;
mod backing;
mod backup;
mod bitmaps;
mod chains;
mod chardevs;
mod commit;
mod control;
mod create;
mod edits;
mod engines;
mod executor;
mod exports;
mod inet;
mod internal_snapshot;
mod jobs;
mod mirror;
mod monitors;
mod nbd;
mod notices;
mod objects;
mod removal;
mod reopen;
mod reports;
mod resize;
mod shutdown;
mod snapshot;
mod sockets;
mod stream;
mod threshold;
mod transaction;

pub(crate) use backup::{BackupWanted, BitmapMode, DriveWanted, Perf, Sync};
pub(crate) use chains::{BackingName, Layer};
pub(crate) use commit::CommitWanted;
pub use control::{Ending, serve};
pub use executor::Daemon;
pub use exports::ExportShown;
pub(crate) use jobs::{BlockJob, Dismissal, Finalization};
pub use jobs::{BlockJobShown, JobHandle, JobKind, JobShown};
pub(crate) use mirror::{CopyMode, MirrorWanted};
pub use monitors::ChardevShown;
pub(crate) use objects::ObjectShown;
pub(crate) use removal::Removal;
pub(crate) use reports::ExportCounts;
pub(crate) use snapshot::{NewImage, SnapshotSync};
pub(crate) use stream::{Down, StreamWanted};
pub(crate) use transaction::{Action, Completion};
