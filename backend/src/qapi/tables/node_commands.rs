//! What is done with block nodes, and what they tell (qapi/block-core.json).

use super::nodes::BLOCKDEV_OPTIONS;
use crate::qapi::{BOOL, Enum, INT, Object, STR, Type, enumeration, object, opt, req};

/// Arguments of `blockdev-del`.
pub static BLOCKDEV_DEL_ARG: Object = object("q_obj_blockdev-del-arg", &[req("node-name", STR)]);

/// Arguments of `blockdev-reopen`.
pub static BLOCKDEV_REOPEN_ARG: Object = object(
    "q_obj_blockdev-reopen-arg",
    &[req(
        "options",
        Type::Array(&Type::Object(&BLOCKDEV_OPTIONS)),
    )],
);

/// Arguments of `blockdev-set-active`.
pub static BLOCKDEV_SET_ACTIVE_ARG: Object = object(
    "q_obj_blockdev-set-active-arg",
    &[opt("node-name", STR), req("active", BOOL)],
);

/// Arguments of `block_resize`.
pub static BLOCK_RESIZE_ARG: Object = object(
    "q_obj_block_resize-arg",
    &[opt("device", STR), opt("node-name", STR), req("size", INT)],
);

/// Arguments of `change-backing-file`.
pub static CHANGE_BACKING_FILE_ARG: Object = object(
    "q_obj_change-backing-file-arg",
    &[
        req("device", STR),
        req("image-node-name", STR),
        req("backing-file", STR),
    ],
);

/// Arguments of `block-set-write-threshold`.
pub static BLOCK_SET_WRITE_THRESHOLD_ARG: Object = object(
    "q_obj_block-set-write-threshold-arg",
    &[req("node-name", STR), req("write-threshold", INT)],
);

/// `BlockdevSnapshot`
pub static BLOCKDEV_SNAPSHOT: Object =
    object("BlockdevSnapshot", &[req("node", STR), req("overlay", STR)]);

/// `BlockdevSnapshotSync`
pub static BLOCKDEV_SNAPSHOT_SYNC: Object = object(
    "BlockdevSnapshotSync",
    &[
        opt("device", STR),
        opt("node-name", STR),
        req("snapshot-file", STR),
        opt("snapshot-node-name", STR),
        opt("format", STR),
        opt("mode", Type::Enum(&NEW_IMAGE_MODE)),
    ],
);

/// `BlockdevSnapshotInternal`
pub static BLOCKDEV_SNAPSHOT_INTERNAL: Object = object(
    "BlockdevSnapshotInternal",
    &[req("device", STR), req("name", STR)],
);

/// Arguments of `blockdev-snapshot-delete-internal-sync`.
pub static BLOCKDEV_SNAPSHOT_DELETE_INTERNAL_SYNC_ARG: Object = object(
    "q_obj_blockdev-snapshot-delete-internal-sync-arg",
    &[req("device", STR), opt("id", STR), opt("name", STR)],
);

/// `NewImageMode`
pub static NEW_IMAGE_MODE: Enum = enumeration("NewImageMode", &["existing", "absolute-paths"]);

/// What comes with `BLOCK_IMAGE_CORRUPTED`.
pub static BLOCK_IMAGE_CORRUPTED_ARG: Object = object(
    "q_obj_BLOCK_IMAGE_CORRUPTED-arg",
    &[
        req("device", STR),
        opt("node-name", STR),
        req("msg", STR),
        opt("offset", INT),
        opt("size", INT),
        req("fatal", BOOL),
    ],
);

/// What comes with `BLOCK_IO_ERROR`.
pub static BLOCK_IO_ERROR_ARG: Object = object(
    "q_obj_BLOCK_IO_ERROR-arg",
    &[
        req("qom-path", STR),
        req("device", STR),
        opt("node-name", STR),
        req("operation", Type::Enum(&IO_OPERATION_TYPE)),
        req("action", Type::Enum(&BLOCK_ERROR_ACTION)),
        opt("nospace", BOOL),
        req("reason", STR),
    ],
);

/// `IoOperationType`
pub static IO_OPERATION_TYPE: Enum = enumeration("IoOperationType", &["read", "write"]);

/// `BlockErrorAction`
pub static BLOCK_ERROR_ACTION: Enum =
    enumeration("BlockErrorAction", &["ignore", "report", "stop"]);

/// What comes with `BLOCK_WRITE_THRESHOLD`.
pub static BLOCK_WRITE_THRESHOLD_ARG: Object = object(
    "q_obj_BLOCK_WRITE_THRESHOLD-arg",
    &[
        req("node-name", STR),
        req("amount-exceeded", INT),
        req("write-threshold", INT),
    ],
);
