//! Transactions (qapi/transaction.json).

use super::EMPTY;
use super::bitmaps::{BLOCK_DIRTY_BITMAP_ADD, BLOCK_DIRTY_BITMAP_MERGE};
use super::exports::BLOCK_DIRTY_BITMAP;
use super::jobs::{BLOCKDEV_BACKUP, DRIVE_BACKUP};
use super::node_commands::{BLOCKDEV_SNAPSHOT, BLOCKDEV_SNAPSHOT_INTERNAL, BLOCKDEV_SNAPSHOT_SYNC};
use crate::qapi::{Case, Enum, Object, Type, enumeration, object, opt, req, union};

/// Arguments of `transaction`.
pub static TRANSACTION_ARG: Object = object(
    "q_obj_transaction-arg",
    &[
        req("actions", Type::Array(&Type::Object(&TRANSACTION_ACTION))),
        opt("properties", Type::Object(&TRANSACTION_PROPERTIES)),
    ],
);

/// `TransactionProperties`
pub static TRANSACTION_PROPERTIES: Object = object(
    "TransactionProperties",
    &[opt("completion-mode", Type::Enum(&ACTION_COMPLETION_MODE))],
);

/// `ActionCompletionMode`
pub static ACTION_COMPLETION_MODE: Enum =
    enumeration("ActionCompletionMode", &["individual", "grouped"]);

/// `TransactionActionKind`
pub static TRANSACTION_ACTION_KIND: Enum = enumeration(
    "TransactionActionKind",
    &[
        "abort",
        "block-dirty-bitmap-add",
        "block-dirty-bitmap-remove",
        "block-dirty-bitmap-clear",
        "block-dirty-bitmap-enable",
        "block-dirty-bitmap-disable",
        "block-dirty-bitmap-merge",
        "blockdev-backup",
        "blockdev-snapshot",
        "blockdev-snapshot-internal-sync",
        "blockdev-snapshot-sync",
        "drive-backup",
    ],
)
.deprecating(&["drive-backup"]);

/// `TransactionAction`
pub static TRANSACTION_ACTION: Object = union(
    "TransactionAction",
    &[req("type", Type::Enum(&TRANSACTION_ACTION_KIND))],
    "type",
    &[
        case("abort", &ABORT_WRAPPER),
        case("block-dirty-bitmap-add", &BITMAP_ADD_WRAPPER),
        case("block-dirty-bitmap-remove", &BITMAP_WRAPPER),
        case("block-dirty-bitmap-clear", &BITMAP_WRAPPER),
        case("block-dirty-bitmap-enable", &BITMAP_WRAPPER),
        case("block-dirty-bitmap-disable", &BITMAP_WRAPPER),
        case("block-dirty-bitmap-merge", &BITMAP_MERGE_WRAPPER),
        case("blockdev-backup", &BACKUP_WRAPPER),
        case("blockdev-snapshot", &SNAPSHOT_WRAPPER),
        case(
            "blockdev-snapshot-internal-sync",
            &SNAPSHOT_INTERNAL_WRAPPER,
        ),
        case("blockdev-snapshot-sync", &SNAPSHOT_SYNC_WRAPPER),
        case("drive-backup", &DRIVE_BACKUP_WRAPPER),
    ],
);

const fn case(word: &'static str, object: &'static Object) -> Case {
    Case { word, object }
}

/// `AbortWrapper`
pub static ABORT_WRAPPER: Object = object("AbortWrapper", &[req("data", Type::Object(&EMPTY))]);

/// `BlockDirtyBitmapAddWrapper`
pub static BITMAP_ADD_WRAPPER: Object = object(
    "BlockDirtyBitmapAddWrapper",
    &[req("data", Type::Object(&BLOCK_DIRTY_BITMAP_ADD))],
);

/// `BlockDirtyBitmapWrapper`
pub static BITMAP_WRAPPER: Object = object(
    "BlockDirtyBitmapWrapper",
    &[req("data", Type::Object(&BLOCK_DIRTY_BITMAP))],
);

/// `BlockDirtyBitmapMergeWrapper`
pub static BITMAP_MERGE_WRAPPER: Object = object(
    "BlockDirtyBitmapMergeWrapper",
    &[req("data", Type::Object(&BLOCK_DIRTY_BITMAP_MERGE))],
);

/// `BlockdevBackupWrapper`
pub static BACKUP_WRAPPER: Object = object(
    "BlockdevBackupWrapper",
    &[req("data", Type::Object(&BLOCKDEV_BACKUP))],
);

/// `BlockdevSnapshotWrapper`
pub static SNAPSHOT_WRAPPER: Object = object(
    "BlockdevSnapshotWrapper",
    &[req("data", Type::Object(&BLOCKDEV_SNAPSHOT))],
);

/// `BlockdevSnapshotSyncWrapper`
pub static SNAPSHOT_SYNC_WRAPPER: Object = object(
    "BlockdevSnapshotSyncWrapper",
    &[req("data", Type::Object(&BLOCKDEV_SNAPSHOT_SYNC))],
);

/// `BlockdevSnapshotInternalWrapper`
pub static SNAPSHOT_INTERNAL_WRAPPER: Object = object(
    "BlockdevSnapshotInternalWrapper",
    &[req("data", Type::Object(&BLOCKDEV_SNAPSHOT_INTERNAL))],
);

/// `DriveBackupWrapper`
pub static DRIVE_BACKUP_WRAPPER: Object = object(
    "DriveBackupWrapper",
    &[req("data", Type::Object(&DRIVE_BACKUP))],
);
