//! Commands that start block jobs.

use super::{Command, NOTHING, command, done};
use crate::cli::{Object, Refusal};
use crate::daemon::{
    Action, BackingName, BackupWanted, BitmapMode, BlockJob, CommitWanted, Completion, CopyMode,
    Dismissal, Down, DriveWanted, Finalization, JobKind, Layer, MirrorWanted, NewImage, Perf,
    StreamWanted, Sync,
};
use crate::qapi::tables::jobs::{
    BLOCK_COMMIT_ARG, BLOCK_STREAM_ARG, BLOCKDEV_BACKUP, BLOCKDEV_MIRROR_ARG, DRIVE_BACKUP,
};
use crate::qmp::{Context, QmpError};
use blockgraph::filter::copy_before_write::{AfterCopy, OnCbwError};
use blockgraph::job::OnError;
use blockgraph::job::copy::Writing;
use serde_json::Value;

pub(super) static COMMANDS: &[Command] = &[
    command("block-stream", &BLOCK_STREAM_ARG, NOTHING, stream),
    command("block-commit", &BLOCK_COMMIT_ARG, NOTHING, commit),
    command("blockdev-backup", &BLOCKDEV_BACKUP, NOTHING, backup),
    Command {
        features: &["deprecated"],
        ..command("drive-backup", &DRIVE_BACKUP, NOTHING, drive_backup)
    },
    command("blockdev-mirror", &BLOCKDEV_MIRROR_ARG, NOTHING, mirror),
];

const SYNC: &[(&str, Sync)] = &[
    ("top", Sync::Top),
    ("full", Sync::Full),
    ("none", Sync::None),
    ("incremental", Sync::Incremental),
    ("bitmap", Sync::Bitmap),
];
const BITMAP_MODES: &[(&str, BitmapMode)] = &[
    ("on-success", BitmapMode::OnSuccess),
    ("never", BitmapMode::Never),
    ("always", BitmapMode::Always),
];
const ON_CBW_ERROR: &[(&str, OnCbwError)] = &[
    ("break-guest-write", OnCbwError::BreakGuestWrite),
    ("break-snapshot", OnCbwError::BreakSnapshot),
];

pub(super) const COPY_MODES: &[(&str, CopyMode)] = &[
    ("background", CopyMode::Background),
    ("write-blocking", CopyMode::WriteBlocking),
];

fn mirror(context: &mut Context<'_>, mut arguments: Object) -> Result<Value, QmpError> {
    let wanted = MirrorWanted {
        device: arguments.required_string("device")?,
        target: arguments.required_string("target")?,
        replaces: arguments.string("replaces")?,
        sync: arguments.word("sync", SYNC)?.unwrap_or(Sync::Full),
        granularity: arguments.uint32("granularity")?.unwrap_or(0),
        buffer_bytes: arguments.int64("buf-size")?.unwrap_or(0),
        on_source_error: on_error(&mut arguments, "on-source-error")?,
        on_target_error: on_error(&mut arguments, "on-target-error")?,
        filter: arguments.string("filter-node-name")?,
        mode: arguments.word("copy-mode", COPY_MODES)?.unwrap_or_default(),
        job: job(&mut arguments, JobKind::Mirror)?,
    };
    context.daemon.mirror(wanted)?;
    done()
}

fn backup(context: &mut Context<'_>, mut arguments: Object) -> Result<Value, QmpError> {
    let action = Action::Backup(Box::new(backup_wanted(&mut arguments)?));
    context
        .daemon
        .transaction(vec![action], Completion::Individual)?;
    done()
}

fn drive_backup(context: &mut Context<'_>, mut arguments: Object) -> Result<Value, QmpError> {
    let action = Action::DriveBackup(Box::new(drive_wanted(&mut arguments)?));
    context
        .daemon
        .transaction(vec![action], Completion::Individual)?;
    done()
}

/// What `drive-backup` is asked for.
pub(super) fn drive_wanted(arguments: &mut Object) -> Result<DriveWanted, Refusal> {
    Ok(DriveWanted {
        format: arguments.string("format")?,
        mode: match arguments.string("mode")?.as_deref() {
            Some("existing") => NewImage::Existing,
            _ => NewImage::AbsolutePaths,
        },
        backup: backup_wanted(arguments)?,
    })
}

/// What `blockdev-backup` is asked for.
pub(super) fn backup_wanted(arguments: &mut Object) -> Result<BackupWanted, Refusal> {
    let compress = arguments.boolean("compress")?;
    let discard = arguments.boolean("discard-source")?;
    Ok(BackupWanted {
        device: arguments.required_string("device")?,
        target: arguments.required_string("target")?,
        sync: arguments.word("sync", SYNC)?.unwrap_or(Sync::Full),
        bitmap: arguments.string("bitmap")?,
        bitmap_mode: arguments.word("bitmap-mode", BITMAP_MODES)?,
        writing: match compress {
            Some(true) => Writing::Compressed,
            _ => Writing::Plain,
        },
        after: match discard {
            Some(true) => AfterCopy::Discarded,
            _ => AfterCopy::Kept,
        },
        on_source_error: on_error(arguments, "on-source-error")?,
        on_target_error: on_error(arguments, "on-target-error")?,
        on_cbw_error: arguments
            .word("on-cbw-error", ON_CBW_ERROR)?
            .unwrap_or_default(),
        cbw_timeout_s: arguments.uint32("cbw-timeout")?.unwrap_or(0),
        filter: arguments.string("filter-node-name")?,
        perf: perf(arguments)?,
        job: job(arguments, JobKind::Backup)?,
    })
}

fn perf(arguments: &mut Object) -> Result<Perf, Refusal> {
    let usual = Perf::default();
    let Some(mut given) = arguments.object("x-perf")? else {
        return Ok(usual);
    };
    // A hint where the kernel could copy by itself; which no driver here asks it to, yet.
    let _ = given.boolean("use-copy-range")?;
    Ok(Perf {
        copies_max: given.int64("max-workers")?.unwrap_or(usual.copies_max),
        chunk_bytes: given.int64("max-chunk")?.unwrap_or(usual.chunk_bytes),
        min_cluster_bytes: given
            .int64("min-cluster-size")?
            .unwrap_or(usual.min_cluster_bytes),
    })
}

fn stream(context: &mut Context<'_>, mut arguments: Object) -> Result<Value, QmpError> {
    let wanted = StreamWanted {
        device: arguments.required_string("device")?,
        down: down(&mut arguments)?,
        backing: backing(&mut arguments)?,
        on_error: on_error(&mut arguments, "on-error")?,
        filter: arguments.string("filter-node-name")?,
        job: job(&mut arguments, JobKind::Stream)?,
    };
    context.daemon.stream(wanted)?;
    done()
}

fn commit(context: &mut Context<'_>, mut arguments: Object) -> Result<Value, QmpError> {
    let wanted = CommitWanted {
        device: arguments.required_string("device")?,
        base: layer(&mut arguments, "base-node", "base")?,
        top: layer(&mut arguments, "top-node", "top")?,
        backing: backing(&mut arguments)?,
        on_error: on_error(&mut arguments, "on-error")?,
        filter: arguments.string("filter-node-name")?,
        job: job(&mut arguments, JobKind::Commit)?,
    };
    context.daemon.commit(wanted)?;
    done()
}

/// A layer that may be named in two ways; both are known to the daemon, which says what is wrong with them in its turn.
fn layer(
    arguments: &mut Object,
    node: &'static str,
    file: &'static str,
) -> Result<(Option<Layer>, Option<Layer>), QmpError> {
    let by_node = arguments.string(node)?.map(Layer::Node);
    let by_file = arguments.string(file)?.map(Layer::File);
    Ok((by_node, by_file))
}

fn down(arguments: &mut Object) -> Result<Down, QmpError> {
    let base = arguments.string("base")?;
    let base_node = arguments.string("base-node")?;
    let bottom = arguments.string("bottom")?;
    let both = |one: &str, other: &str| {
        let why = format!("'{one}' and '{other}' cannot be specified at the same time");
        Err(QmpError::new(why))
    };
    match (base, base_node, bottom) {
        (Some(_), Some(_), _) => both("base", "base-node"),
        (Some(_), _, Some(_)) => both("base", "bottom"),
        (_, Some(_), Some(_)) => both("bottom", "base-node"),
        (Some(file), ..) => Ok(Down::AboveFile(file)),
        (_, Some(node), _) => Ok(Down::Above(node)),
        (.., Some(node)) => Ok(Down::To(node)),
        (None, None, None) => Ok(Down::All),
    }
}

fn backing(arguments: &mut Object) -> Result<BackingName, QmpError> {
    Ok(BackingName {
        file: arguments.string("backing-file")?,
        masks_protocol: arguments.boolean("backing-mask-protocol")? == Some(true),
    })
}

/// Errors are reported unless somebody says otherwise.
pub(super) fn on_error(arguments: &mut Object, member: &str) -> Result<OnError, Refusal> {
    let name = arguments.string(member)?;
    let known = name.as_deref().and_then(OnError::from_name);
    Ok(known.unwrap_or_default())
}

/// What every block job is asked for.
pub(super) fn job(arguments: &mut Object, kind: JobKind) -> Result<BlockJob, Refusal> {
    Ok(BlockJob {
        id: arguments.string("job-id")?,
        kind,
        speed_bytes: arguments.int64("speed")?.unwrap_or(0),
        finalization: match arguments.boolean("auto-finalize")? {
            Some(false) => Finalization::Manual,
            _ => Finalization::Auto,
        },
        dismissal: match arguments.boolean("auto-dismiss")? {
            Some(false) => Dismissal::Manual,
            _ => Dismissal::Auto,
        },
    })
}
