//! Commands that change the graph while it is in use.

use super::transaction::internal_snapshot;
use super::{Command, NOTHING, command, done};
use crate::cli::{self, Object, Refusal};
use crate::daemon::{Completion, NewImage, SnapshotSync};
use crate::qapi::Type;
use crate::qapi::tables::node_commands::{
    BLOCK_RESIZE_ARG, BLOCK_SET_WRITE_THRESHOLD_ARG, BLOCKDEV_REOPEN_ARG, BLOCKDEV_SET_ACTIVE_ARG,
    BLOCKDEV_SNAPSHOT, BLOCKDEV_SNAPSHOT_DELETE_INTERNAL_SYNC_ARG, BLOCKDEV_SNAPSHOT_INTERNAL,
    BLOCKDEV_SNAPSHOT_SYNC, CHANGE_BACKING_FILE_ARG,
};
use crate::qapi::tables::queries::SNAPSHOT_INFO;
use crate::qmp::show;
use crate::qmp::{Context, QmpError};
use blockgraph::graph::Activity;
use serde_json::Value;

pub(super) static COMMANDS: &[Command] = &[
    command("blockdev-reopen", &BLOCKDEV_REOPEN_ARG, NOTHING, reopen),
    Command {
        features: &["allow-write-only-overlay"],
        ..command("blockdev-snapshot", &BLOCKDEV_SNAPSHOT, NOTHING, snapshot)
    },
    command(
        "blockdev-snapshot-sync",
        &BLOCKDEV_SNAPSHOT_SYNC,
        NOTHING,
        snapshot_sync,
    ),
    command("block_resize", &BLOCK_RESIZE_ARG, NOTHING, resize),
    command(
        "change-backing-file",
        &CHANGE_BACKING_FILE_ARG,
        NOTHING,
        change_backing_file,
    ),
    command(
        "blockdev-snapshot-internal-sync",
        &BLOCKDEV_SNAPSHOT_INTERNAL,
        NOTHING,
        snapshot_internal,
    ),
    command(
        "blockdev-snapshot-delete-internal-sync",
        &BLOCKDEV_SNAPSHOT_DELETE_INTERNAL_SYNC_ARG,
        Type::Object(&SNAPSHOT_INFO),
        delete_internal,
    ),
    command(
        "blockdev-set-active",
        &BLOCKDEV_SET_ACTIVE_ARG,
        NOTHING,
        set_active,
    ),
    command(
        "block-set-write-threshold",
        &BLOCK_SET_WRITE_THRESHOLD_ARG,
        NOTHING,
        set_write_threshold,
    ),
];

fn reopen(context: &mut Context<'_>, mut arguments: Object) -> Result<Value, QmpError> {
    let nodes = arguments.each("options", |node| cli::reopened_blockdev(node.split()))?;
    context.daemon.reopen_nodes(nodes.unwrap_or_default())?;
    done()
}

fn snapshot(context: &mut Context<'_>, mut arguments: Object) -> Result<Value, QmpError> {
    let node = arguments.required_string("node")?;
    let overlay = arguments.required_string("overlay")?;
    context.daemon.snapshot(&node, &overlay)?;
    done()
}

fn snapshot_sync(context: &mut Context<'_>, mut arguments: Object) -> Result<Value, QmpError> {
    let wanted = snapshot_sync_wanted(&mut arguments)?;
    context.daemon.snapshot_sync(wanted)?;
    done()
}

fn snapshot_internal(context: &mut Context<'_>, mut arguments: Object) -> Result<Value, QmpError> {
    let action = internal_snapshot(&mut arguments)?;
    context
        .daemon
        .transaction(vec![action], Completion::Individual)?;
    done()
}

fn delete_internal(context: &mut Context<'_>, mut arguments: Object) -> Result<Value, QmpError> {
    let device = arguments.required_string("device")?;
    let (id, name) = (arguments.string("id")?, arguments.string("name")?);
    let deleted = context
        .daemon
        .delete_internal(&device, id.as_deref(), name.as_deref())?;
    Ok(show::snapshot(&deleted))
}

/// What `blockdev-snapshot-sync` is asked for.
pub(super) fn snapshot_sync_wanted(arguments: &mut Object) -> Result<SnapshotSync, Refusal> {
    Ok(SnapshotSync {
        device: arguments.string("device")?,
        node_name: arguments.string("node-name")?,
        file: arguments.required_string("snapshot-file")?,
        overlay: arguments.string("snapshot-node-name")?,
        format: arguments.string("format")?,
        mode: match arguments.string("mode")?.as_deref() {
            Some("existing") => NewImage::Existing,
            _ => NewImage::AbsolutePaths,
        },
    })
}

fn resize(context: &mut Context<'_>, mut arguments: Object) -> Result<Value, QmpError> {
    let device = arguments.string("device")?;
    let node = arguments.string("node-name")?;
    let size = arguments.int64("size")?.unwrap_or(0);
    context
        .daemon
        .resize_node(device.as_deref(), node.as_deref(), size)?;
    done()
}

fn change_backing_file(
    context: &mut Context<'_>,
    mut arguments: Object,
) -> Result<Value, QmpError> {
    let device = arguments.required_string("device")?;
    let image = arguments.required_string("image-node-name")?;
    let file = arguments.required_string("backing-file")?;
    context.daemon.change_backing_file(&device, &image, &file)?;
    done()
}

fn set_active(context: &mut Context<'_>, mut arguments: Object) -> Result<Value, QmpError> {
    let node = arguments.string("node-name")?;
    let activity = match arguments.boolean("active")? {
        Some(false) => Activity::Inactive,
        _ => Activity::Active,
    };
    context.daemon.set_active(node.as_deref(), activity)?;
    done()
}

fn set_write_threshold(
    context: &mut Context<'_>,
    mut arguments: Object,
) -> Result<Value, QmpError> {
    let node = arguments.required_string("node-name")?;
    let at = arguments.uint64("write-threshold")?.unwrap_or(0);
    let set = context.daemon.set_write_threshold(&node, at);
    set?;
    done()
}
