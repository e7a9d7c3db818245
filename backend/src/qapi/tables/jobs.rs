//! Jobs (qapi/job.json).

use super::node_commands::NEW_IMAGE_MODE;
use super::nodes::ON_CBW_ERROR;
use crate::qapi::{
    BOOL, Case, Enum, INT, Object, STR, Type, UINT32, enumeration, object, opt, req, union,
};

/// `JobInfo`
pub static JOB_INFO: Object = object(
    "JobInfo",
    &[
        req("id", STR),
        req("type", Type::Enum(&JOB_TYPE)),
        req("status", Type::Enum(&JOB_STATUS)),
        req("current-progress", INT),
        req("total-progress", INT),
        opt("error", STR),
    ],
);

/// `JobType`
pub static JOB_TYPE: Enum = enumeration(
    "JobType",
    &[
        "commit",
        "stream",
        "mirror",
        "backup",
        "create",
        "amend",
        "snapshot-load",
        "snapshot-save",
        "snapshot-delete",
    ],
);

/// `JobStatus`
pub static JOB_STATUS: Enum = enumeration(
    "JobStatus",
    &[
        "undefined",
        "created",
        "running",
        "paused",
        "ready",
        "standby",
        "waiting",
        "pending",
        "aborting",
        "concluded",
        "null",
    ],
);

/// Arguments of `job-pause`.
pub static JOB_PAUSE_ARG: Object = object("q_obj_job-pause-arg", &[req("id", STR)]);

/// Arguments of `job-resume`.
pub static JOB_RESUME_ARG: Object = object("q_obj_job-resume-arg", &[req("id", STR)]);

/// Arguments of `job-cancel`.
pub static JOB_CANCEL_ARG: Object = object("q_obj_job-cancel-arg", &[req("id", STR)]);

/// Arguments of `job-complete`.
pub static JOB_COMPLETE_ARG: Object = object("q_obj_job-complete-arg", &[req("id", STR)]);

/// Arguments of `job-finalize`.
pub static JOB_FINALIZE_ARG: Object = object("q_obj_job-finalize-arg", &[req("id", STR)]);

/// Arguments of `job-dismiss`.
pub static JOB_DISMISS_ARG: Object = object("q_obj_job-dismiss-arg", &[req("id", STR)]);

/// What comes with `JOB_STATUS_CHANGE`.
pub static JOB_STATUS_CHANGE_ARG: Object = object(
    "q_obj_JOB_STATUS_CHANGE-arg",
    &[req("id", STR), req("status", Type::Enum(&JOB_STATUS))],
);

/// `BlockJobInfo`
pub static BLOCK_JOB_INFO: Object = union(
    "BlockJobInfo",
    &[
        req("type", Type::Enum(&JOB_TYPE)),
        req("device", STR),
        req("len", INT),
        req("offset", INT),
        req("busy", BOOL),
        req("paused", BOOL),
        req("speed", INT),
        req("io-status", Type::Enum(&BLOCK_DEVICE_IO_STATUS)),
        req("ready", BOOL),
        req("status", Type::Enum(&JOB_STATUS)),
        req("auto-finalize", BOOL),
        req("auto-dismiss", BOOL),
        opt("error", STR),
    ],
    "type",
    &[Case {
        word: "mirror",
        object: &BLOCK_JOB_INFO_MIRROR,
    }],
);

/// `BlockJobInfoMirror`
pub static BLOCK_JOB_INFO_MIRROR: Object =
    object("BlockJobInfoMirror", &[req("actively-synced", BOOL)]);

/// `BlockDeviceIoStatus`
pub static BLOCK_DEVICE_IO_STATUS: Enum =
    enumeration("BlockDeviceIoStatus", &["ok", "failed", "nospace"]);

/// `BlockdevOnError`
pub static BLOCKDEV_ON_ERROR: Enum = enumeration(
    "BlockdevOnError",
    &["report", "ignore", "enospc", "stop", "auto"],
);

/// Arguments of `block-job-set-speed`.
pub static BLOCK_JOB_SET_SPEED_ARG: Object = object(
    "q_obj_block-job-set-speed-arg",
    &[req("device", STR), req("speed", INT)],
);

/// Arguments of `block-job-cancel`.
pub static BLOCK_JOB_CANCEL_ARG: Object = object(
    "q_obj_block-job-cancel-arg",
    &[req("device", STR), opt("force", BOOL)],
);

/// Arguments of `block-job-pause`.
pub static BLOCK_JOB_PAUSE_ARG: Object = object("q_obj_block-job-pause-arg", &[req("device", STR)]);

/// Arguments of `block-job-resume`.
pub static BLOCK_JOB_RESUME_ARG: Object =
    object("q_obj_block-job-resume-arg", &[req("device", STR)]);

/// Arguments of `block-job-complete`.
pub static BLOCK_JOB_COMPLETE_ARG: Object =
    object("q_obj_block-job-complete-arg", &[req("device", STR)]);

/// Arguments of `block-job-dismiss`.
pub static BLOCK_JOB_DISMISS_ARG: Object = object("q_obj_block-job-dismiss-arg", &[req("id", STR)]);

/// Arguments of `block-job-finalize`.
pub static BLOCK_JOB_FINALIZE_ARG: Object =
    object("q_obj_block-job-finalize-arg", &[req("id", STR)]);

/// `BlockJobChangeOptions`
pub static BLOCK_JOB_CHANGE_OPTIONS: Object = union(
    "BlockJobChangeOptions",
    &[req("id", STR), req("type", Type::Enum(&JOB_TYPE))],
    "type",
    &[Case {
        word: "mirror",
        object: &BLOCK_JOB_CHANGE_OPTIONS_MIRROR,
    }],
);

/// `BlockJobChangeOptionsMirror`
pub static BLOCK_JOB_CHANGE_OPTIONS_MIRROR: Object = object(
    "BlockJobChangeOptionsMirror",
    &[req("copy-mode", Type::Enum(&MIRROR_COPY_MODE))],
);

/// `MirrorCopyMode`
pub static MIRROR_COPY_MODE: Enum =
    enumeration("MirrorCopyMode", &["background", "write-blocking"]);

/// What comes with `BLOCK_JOB_COMPLETED`.
pub static BLOCK_JOB_COMPLETED_ARG: Object = object(
    "q_obj_BLOCK_JOB_COMPLETED-arg",
    &[
        req("type", Type::Enum(&JOB_TYPE)),
        req("device", STR),
        req("len", INT),
        req("offset", INT),
        req("speed", INT),
        opt("error", STR),
    ],
);

/// What comes with `BLOCK_JOB_CANCELLED`.
pub static BLOCK_JOB_CANCELLED_ARG: Object = object(
    "q_obj_BLOCK_JOB_CANCELLED-arg",
    &[
        req("type", Type::Enum(&JOB_TYPE)),
        req("device", STR),
        req("len", INT),
        req("offset", INT),
        req("speed", INT),
    ],
);

/// What comes with `BLOCK_JOB_READY`.
pub static BLOCK_JOB_READY_ARG: Object = object(
    "q_obj_BLOCK_JOB_READY-arg",
    &[
        req("type", Type::Enum(&JOB_TYPE)),
        req("device", STR),
        req("len", INT),
        req("offset", INT),
        req("speed", INT),
    ],
);

/// What comes with `BLOCK_JOB_ERROR`.
pub static BLOCK_JOB_ERROR_ARG: Object = object(
    "q_obj_BLOCK_JOB_ERROR-arg",
    &[
        req("device", STR),
        req("operation", Type::Enum(&IO_OPERATION_TYPE)),
        req("action", Type::Enum(&BLOCK_ERROR_ACTION)),
    ],
);

/// `IoOperationType`
pub static IO_OPERATION_TYPE: Enum = enumeration("IoOperationType", &["read", "write"]);

/// `BlockErrorAction`
pub static BLOCK_ERROR_ACTION: Enum =
    enumeration("BlockErrorAction", &["ignore", "report", "stop"]);

/// What comes with `BLOCK_JOB_PENDING`.
pub static BLOCK_JOB_PENDING_ARG: Object = object(
    "q_obj_BLOCK_JOB_PENDING-arg",
    &[req("type", Type::Enum(&JOB_TYPE)), req("id", STR)],
);

/// Arguments of `block-stream`.
pub static BLOCK_STREAM_ARG: Object = object(
    "q_obj_block-stream-arg",
    &[
        opt("job-id", STR),
        req("device", STR),
        opt("base", STR),
        opt("base-node", STR),
        opt("backing-file", STR),
        opt("backing-mask-protocol", BOOL),
        opt("bottom", STR),
        opt("speed", INT),
        opt("on-error", Type::Enum(&BLOCKDEV_ON_ERROR)),
        opt("filter-node-name", STR),
        opt("auto-finalize", BOOL),
        opt("auto-dismiss", BOOL),
    ],
);

/// `BlockdevBackup`; the last two are QEMU 10.1's.
pub static BLOCKDEV_BACKUP: Object = object(
    "BlockdevBackup",
    &[
        opt("job-id", STR),
        req("device", STR),
        req("sync", Type::Enum(&MIRROR_SYNC_MODE)),
        opt("speed", INT),
        opt("bitmap", STR),
        opt("bitmap-mode", Type::Enum(&BITMAP_SYNC_MODE)),
        opt("compress", BOOL),
        opt("on-source-error", Type::Enum(&BLOCKDEV_ON_ERROR)),
        opt("on-target-error", Type::Enum(&BLOCKDEV_ON_ERROR)),
        opt("auto-finalize", BOOL),
        opt("auto-dismiss", BOOL),
        opt("filter-node-name", STR),
        opt("discard-source", BOOL),
        opt("x-perf", Type::Object(&BACKUP_PERF)).unstable(),
        opt("on-cbw-error", Type::Enum(&ON_CBW_ERROR)),
        opt("cbw-timeout", UINT32),
        req("target", STR),
    ],
);

/// `DriveBackup`; without what is QEMU 10.1's.
pub static DRIVE_BACKUP: Object = object(
    "DriveBackup",
    &[
        opt("job-id", STR),
        req("device", STR),
        req("sync", Type::Enum(&MIRROR_SYNC_MODE)),
        opt("speed", INT),
        opt("bitmap", STR),
        opt("bitmap-mode", Type::Enum(&BITMAP_SYNC_MODE)),
        opt("compress", BOOL),
        opt("on-source-error", Type::Enum(&BLOCKDEV_ON_ERROR)),
        opt("on-target-error", Type::Enum(&BLOCKDEV_ON_ERROR)),
        opt("auto-finalize", BOOL),
        opt("auto-dismiss", BOOL),
        opt("filter-node-name", STR),
        opt("discard-source", BOOL),
        opt("x-perf", Type::Object(&BACKUP_PERF)).unstable(),
        req("target", STR),
        opt("format", STR),
        opt("mode", Type::Enum(&NEW_IMAGE_MODE)),
    ],
);

/// Arguments of `blockdev-mirror`.
pub static BLOCKDEV_MIRROR_ARG: Object = object(
    "q_obj_blockdev-mirror-arg",
    &[
        opt("job-id", STR),
        req("device", STR),
        req("target", STR),
        opt("replaces", STR),
        req("sync", Type::Enum(&MIRROR_SYNC_MODE)),
        opt("speed", INT),
        opt("granularity", UINT32),
        opt("buf-size", INT),
        opt("on-source-error", Type::Enum(&BLOCKDEV_ON_ERROR)),
        opt("on-target-error", Type::Enum(&BLOCKDEV_ON_ERROR)),
        opt("filter-node-name", STR),
        opt("copy-mode", Type::Enum(&MIRROR_COPY_MODE)),
        opt("auto-finalize", BOOL),
        opt("auto-dismiss", BOOL),
    ],
);

/// `MirrorSyncMode`
pub static MIRROR_SYNC_MODE: Enum = enumeration(
    "MirrorSyncMode",
    &["top", "full", "none", "incremental", "bitmap"],
);

/// `BitmapSyncMode`
pub static BITMAP_SYNC_MODE: Enum =
    enumeration("BitmapSyncMode", &["on-success", "never", "always"]);

/// `BackupPerf`
pub static BACKUP_PERF: Object = object(
    "BackupPerf",
    &[
        opt("use-copy-range", BOOL),
        opt("max-workers", INT),
        opt("max-chunk", INT),
        opt("min-cluster-size", INT),
    ],
);

/// Arguments of `block-commit`.
pub static BLOCK_COMMIT_ARG: Object = object(
    "q_obj_block-commit-arg",
    &[
        opt("job-id", STR),
        req("device", STR),
        opt("base-node", STR),
        opt("base", STR).deprecated(),
        opt("top-node", STR),
        opt("top", STR).deprecated(),
        opt("backing-file", STR),
        opt("backing-mask-protocol", BOOL),
        opt("speed", INT),
        opt("on-error", Type::Enum(&BLOCKDEV_ON_ERROR)),
        opt("filter-node-name", STR),
        opt("auto-finalize", BOOL),
        opt("auto-dismiss", BOOL),
    ],
);
