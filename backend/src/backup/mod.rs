//! `virtioblkd backup`: incremental backups of a running daemon's node, and back.
//!
//! The rule: a backup is complete, durable and listed, or it is as if nobody had tried: the bitmap that records changes
//! goes back to what it was, and nothing of ours stays in the daemon.
//!
//! It takes what qemu-storage-daemon has (transactions, bitmaps, `blockdev-backup`, snapshot-access, NBD), so it backs that
//! up as well.

mod catalogue;
mod command;
mod digest;
mod disks;
mod error;
mod lock;
mod make;
mod plan;
mod progress;
mod remote;
mod restore;

pub use command::{BackupCommand, HELP, UsageError, parse};
pub use error::BackupError;
pub use progress::Progress;

use crate::units;
use catalogue::Catalogue;
use std::fmt::Write;
use std::path::Path;

/// The name of the snapshot's export.
const EXPORT: &str = "snapshot";

/// Does what was asked for; what there is to tell at its end. Errors: nothing has changed then.
pub fn run(command: &BackupCommand, progress: &mut Progress<'_>) -> Result<String, BackupError> {
    match command {
        BackupCommand::Make(make) => make::make(make, progress),
        BackupCommand::Restore(restore) => restore::restore(restore, progress),
        BackupCommand::List(dir) => list(dir),
    }
}

fn existing(dir: &Path) -> Result<Catalogue, BackupError> {
    let catalogue = Catalogue::load(dir)?;
    catalogue
        .filter(|catalogue| !catalogue.backups.is_empty())
        .ok_or_else(|| BackupError::Empty(dir.to_owned()))
}

fn list(dir: &Path) -> Result<String, BackupError> {
    let catalogue = existing(dir)?;
    let mut text = format!("node {}\n", catalogue.node);
    for backup in &catalogue.backups {
        let _ = writeln!(
            text,
            "{:>5}  {}  {:11}  {:>10}  {}",
            backup.number,
            progress::utc(backup.time_s),
            backup.kind.name(),
            units::bytes(backup.copied_bytes as f64),
            backup.file
        );
    }
    Ok(text)
}
