//! A disk as it was, as a new raw image.
//!
//! The rule: nothing is restored from files that are not what they were when they were made.

use super::catalogue::{Backup, Catalogue};
use super::command::Restore;
use super::digest;
use super::disks::{Disks, Task};
use super::error::BackupError;
use super::existing;
use super::plan::{Rule, Source};
use super::progress::{self, Progress};
use serde_json::json;
use std::fs::{self, File};
use std::path::Path;

pub(super) fn restore(
    restore: &Restore,
    progress: &mut Progress<'_>,
) -> Result<String, BackupError> {
    let catalogue = existing(&restore.dir)?;
    let index = match restore.point {
        None => catalogue.backups.len() - 1,
        Some(number) => {
            let mut backups = catalogue.backups.iter();
            let at = backups.position(|backup| backup.number == number);
            at.ok_or(BackupError::NoPoint(number))?
        }
    };
    let chain = catalogue.chain(index);
    check(&catalogue, chain, progress)?;
    let top = &catalogue.backups[index];
    let made = File::create_new(&restore.to).and_then(|file| file.set_len(top.size_bytes));
    made.map_err(BackupError::file(&restore.to, "cannot be made"))?;
    let written = write(&catalogue, top, &restore.to, progress);
    progress.end();
    if written.is_err() {
        // Half a disk is none; what goes wrong here is said already.
        let _ = fs::remove_file(&restore.to);
    }
    written?;
    Ok(format!(
        "restored backup {} ({}) to {}\n",
        top.number,
        progress::utc(top.time_s),
        restore.to.display()
    ))
}

fn check(
    catalogue: &Catalogue,
    chain: &[Backup],
    progress: &mut Progress<'_>,
) -> Result<(), BackupError> {
    let paths = chain.iter().map(|backup| catalogue.path(&backup.file));
    let total = paths
        .map(|path| fs::metadata(path).map_or(0, |meta| meta.len()))
        .sum();
    progress.begin("checking", total);
    for backup in chain {
        let path = catalogue.path(&backup.file);
        let sha256 = digest::of_file(&path, &mut |bytes| progress.advance(bytes))?;
        if sha256 != backup.sha256 {
            return Err(BackupError::Damaged(path));
        }
    }
    Ok(())
}

fn write(
    catalogue: &Catalogue,
    top: &Backup,
    to: &Path,
    progress: &mut Progress<'_>,
) -> Result<(), BackupError> {
    let mut disks = Disks::new()?;
    let from = disks.open(json!({
        "driver": "qcow2", "node-name": "backup", "read-only": true,
        "file": {"driver": "file", "filename": catalogue.path(&top.file)},
    }))?;
    let target = disks.open(json!({"driver": "file", "node-name": "target", "filename": to}))?;
    let source = Source {
        data: from,
        what: from,
        rule: Rule::NotZero,
        size_bytes: top.size_bytes,
    };
    let total = disks.count(source, &mut |bytes| progress.advance(bytes))?;
    progress.begin("restoring", total);
    disks.each_part(Task::Copy, source, target, &mut |bytes| {
        progress.advance(bytes)
    })?;
    disks.flush(target)?;
    disks.close("target")
}
