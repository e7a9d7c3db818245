//! `transaction`, and what its actions take.

use super::bitmaps::{bitmap_name, merge_sources, new_bitmap};
use super::graph::snapshot_sync_wanted;
use super::job_starts::{backup_wanted, drive_wanted};
use super::{Command, NOTHING, command, done};
use crate::cli::{Object, Refusal};
use crate::daemon::{Action, Completion};
use crate::qapi::tables::transaction::TRANSACTION_ARG;
use crate::qmp::{Context, QmpError};
use blockgraph::bitmap::BitmapName;
use serde_json::Value;

pub(super) static COMMANDS: &[Command] = &[command(
    "transaction",
    &TRANSACTION_ARG,
    NOTHING,
    transaction,
)];

fn transaction(context: &mut Context<'_>, mut arguments: Object) -> Result<Value, QmpError> {
    let actions = arguments.each("actions", |action| {
        let kind = action.required_string("type")?;
        let mut data = action.required_object("data")?;
        self::action(&kind, &mut data)
    })?;
    let mode = match arguments.object("properties")? {
        Some(mut properties) => properties.string("completion-mode")?,
        None => None,
    };
    let completion = match mode.as_deref() {
        Some("grouped") => Completion::Grouped,
        _ => Completion::Individual,
    };
    let actions = actions.unwrap_or_default();
    context.daemon.transaction(actions, completion)?;
    done()
}

fn action(kind: &str, data: &mut Object) -> Result<Action, Refusal> {
    Ok(match kind {
        "block-dirty-bitmap-add" => Action::AddBitmap {
            node: data.required_string("node")?,
            new: new_bitmap(data)?,
        },
        "block-dirty-bitmap-remove" => Action::RemoveBitmap(bitmap_name(data)?),
        "block-dirty-bitmap-clear" => Action::ClearBitmap(bitmap_name(data)?),
        "block-dirty-bitmap-enable" => Action::EnableBitmap(bitmap_name(data)?),
        "block-dirty-bitmap-disable" => Action::DisableBitmap(bitmap_name(data)?),
        "block-dirty-bitmap-merge" => Action::MergeBitmaps {
            target: BitmapName {
                node: data.required_string("node")?,
                name: data.required_string("target")?,
            },
            sources: merge_sources(data)?,
        },
        "blockdev-backup" => Action::Backup(Box::new(backup_wanted(data)?)),
        "drive-backup" => Action::DriveBackup(Box::new(drive_wanted(data)?)),
        "blockdev-snapshot-internal-sync" => internal_snapshot(data)?,
        "blockdev-snapshot" => Action::Snapshot {
            node: data.required_string("node")?,
            overlay: data.required_string("overlay")?,
        },
        "blockdev-snapshot-sync" => Action::SnapshotSync(snapshot_sync_wanted(data)?),
        // The table has no others.
        _ => Action::Abort,
    })
}

/// What `blockdev-snapshot-internal-sync` is asked for.
pub(super) fn internal_snapshot(data: &mut Object) -> Result<Action, Refusal> {
    Ok(Action::InternalSnapshot {
        device: data.required_string("device")?,
        name: data.required_string("name")?,
    })
}
