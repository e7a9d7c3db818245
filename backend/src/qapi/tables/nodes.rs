//! Block nodes: what they are made with, and what is done with them (qapi/block-core.json).

use super::exports::BLOCK_DIRTY_BITMAP;
use super::sockets::SERVER_SOCKET_ADDRESS;
use crate::qapi::{
    Alternate, BOOL, Case, Enum, INT, INT32, NULL, Object, SIZE, STR, Type, UINT32, UINT64,
    alternate, enumeration, object, opt, req, union,
};

/// `BlockdevOptions`
pub static BLOCKDEV_OPTIONS: Object = union(
    "BlockdevOptions",
    &[
        req("driver", Type::Enum(&BLOCKDEV_DRIVER)),
        opt("node-name", STR),
        opt("discard", Type::Enum(&BLOCKDEV_DISCARD_OPTIONS)),
        opt("cache", Type::Object(&BLOCKDEV_CACHE_OPTIONS)),
        opt("active", BOOL),
        opt("read-only", BOOL),
        opt("auto-read-only", BOOL),
        opt("force-share", BOOL),
        opt("detect-zeroes", Type::Enum(&BLOCKDEV_DETECT_ZEROES_OPTIONS)),
    ],
    "driver",
    &[
        Case {
            word: "blkdebug",
            object: &BLOCKDEV_OPTIONS_BLKDEBUG,
        },
        Case {
            word: "compress",
            object: &BLOCKDEV_OPTIONS_GENERIC_FORMAT,
        },
        Case {
            word: "copy-before-write",
            object: &BLOCKDEV_OPTIONS_CBW,
        },
        Case {
            word: "copy-on-read",
            object: &BLOCKDEV_OPTIONS_COR,
        },
        Case {
            word: "file",
            object: &BLOCKDEV_OPTIONS_FILE,
        },
        Case {
            word: "host_device",
            object: &BLOCKDEV_OPTIONS_FILE,
        },
        Case {
            word: "nbd",
            object: &BLOCKDEV_OPTIONS_NBD,
        },
        Case {
            word: "null-aio",
            object: &BLOCKDEV_OPTIONS_NULL,
        },
        Case {
            word: "null-co",
            object: &BLOCKDEV_OPTIONS_NULL,
        },
        Case {
            word: "preallocate",
            object: &BLOCKDEV_OPTIONS_PREALLOCATE,
        },
        Case {
            word: "qcow2",
            object: &BLOCKDEV_OPTIONS_QCOW2,
        },
        Case {
            word: "raw",
            object: &BLOCKDEV_OPTIONS_RAW,
        },
        Case {
            word: "snapshot-access",
            object: &BLOCKDEV_OPTIONS_GENERIC_FORMAT,
        },
        Case {
            word: "throttle",
            object: &BLOCKDEV_OPTIONS_THROTTLE,
        },
        Case {
            word: "x-delay",
            object: &BLOCKDEV_OPTIONS_DELAY,
        },
    ],
);

/// `BlockdevDriver`
pub static BLOCKDEV_DRIVER: Enum = enumeration(
    "BlockdevDriver",
    &[
        "blkdebug",
        "compress",
        "copy-before-write",
        "copy-on-read",
        "file",
        "host_device",
        "nbd",
        "null-aio",
        "null-co",
        "preallocate",
        "qcow2",
        "raw",
        "snapshot-access",
        "throttle",
        "x-delay",
    ],
);

/// `BlockdevDiscardOptions`
pub static BLOCKDEV_DISCARD_OPTIONS: Enum =
    enumeration("BlockdevDiscardOptions", &["ignore", "unmap"]);

/// `BlockdevCacheOptions`
pub static BLOCKDEV_CACHE_OPTIONS: Object = object(
    "BlockdevCacheOptions",
    &[opt("direct", BOOL), opt("no-flush", BOOL)],
);

/// `BlockdevDetectZeroesOptions`
pub static BLOCKDEV_DETECT_ZEROES_OPTIONS: Enum =
    enumeration("BlockdevDetectZeroesOptions", &["off", "on", "unmap"]);

/// `BlockdevOptionsBlkdebug`
pub static BLOCKDEV_OPTIONS_BLKDEBUG: Object = object(
    "BlockdevOptionsBlkdebug",
    &[
        req("image", Type::Alternate(&BLOCKDEV_REF)),
        opt("config", STR),
        opt("align", INT),
        opt("max-transfer", INT32),
        opt("opt-write-zero", INT32),
        opt("max-write-zero", INT32),
        opt("opt-discard", INT32),
        opt("max-discard", INT32),
        opt(
            "inject-error",
            Type::Array(&Type::Object(&BLKDEBUG_INJECT_ERROR_OPTIONS)),
        ),
        opt(
            "set-state",
            Type::Array(&Type::Object(&BLKDEBUG_SET_STATE_OPTIONS)),
        ),
        opt(
            "take-child-perms",
            Type::Array(&Type::Enum(&BLOCK_PERMISSION)),
        ),
        opt(
            "unshare-child-perms",
            Type::Array(&Type::Enum(&BLOCK_PERMISSION)),
        ),
    ],
);

/// `BlockdevRef`
pub static BLOCKDEV_REF: Alternate =
    alternate("BlockdevRef", &[Type::Object(&BLOCKDEV_OPTIONS), STR]);

/// `BlkdebugInjectErrorOptions`
pub static BLKDEBUG_INJECT_ERROR_OPTIONS: Object = object(
    "BlkdebugInjectErrorOptions",
    &[
        req("event", Type::Enum(&BLKDEBUG_EVENT)),
        opt("state", INT),
        opt("iotype", Type::Enum(&BLKDEBUG_IO_TYPE)),
        opt("errno", INT),
        opt("sector", INT),
        opt("once", BOOL),
        opt("immediately", BOOL),
    ],
);

/// `BlkdebugEvent`
pub static BLKDEBUG_EVENT: Enum = enumeration(
    "BlkdebugEvent",
    &[
        "l1_update",
        "l1_grow_alloc_table",
        "l1_grow_write_table",
        "l1_grow_activate_table",
        "l2_load",
        "l2_update",
        "l2_update_compressed",
        "l2_alloc_cow_read",
        "l2_alloc_write",
        "read_aio",
        "read_backing_aio",
        "read_compressed",
        "write_aio",
        "write_compressed",
        "vmstate_load",
        "vmstate_save",
        "cow_read",
        "cow_write",
        "reftable_load",
        "reftable_grow",
        "reftable_update",
        "refblock_load",
        "refblock_update",
        "refblock_update_part",
        "refblock_alloc",
        "refblock_alloc_hookup",
        "refblock_alloc_write",
        "refblock_alloc_write_blocks",
        "refblock_alloc_write_table",
        "refblock_alloc_switch_table",
        "cluster_alloc",
        "cluster_alloc_bytes",
        "cluster_free",
        "flush_to_os",
        "flush_to_disk",
        "pwritev_rmw_head",
        "pwritev_rmw_after_head",
        "pwritev_rmw_tail",
        "pwritev_rmw_after_tail",
        "pwritev",
        "pwritev_zero",
        "pwritev_done",
        "empty_image_prepare",
        "l1_shrink_write_table",
        "l1_shrink_free_l2_clusters",
        "cor_write",
        "cluster_alloc_space",
        "none",
    ],
);

/// `BlkdebugIOType`
pub static BLKDEBUG_IO_TYPE: Enum = enumeration(
    "BlkdebugIOType",
    &[
        "read",
        "write",
        "write-zeroes",
        "discard",
        "flush",
        "block-status",
    ],
);

/// `BlkdebugSetStateOptions`
pub static BLKDEBUG_SET_STATE_OPTIONS: Object = object(
    "BlkdebugSetStateOptions",
    &[
        req("event", Type::Enum(&BLKDEBUG_EVENT)),
        opt("state", INT),
        req("new_state", INT),
    ],
);

/// `BlockPermission`
pub static BLOCK_PERMISSION: Enum = enumeration(
    "BlockPermission",
    &["consistent-read", "write", "write-unchanged", "resize"],
);

/// `BlockdevOptionsGenericFormat`
pub static BLOCKDEV_OPTIONS_GENERIC_FORMAT: Object = object(
    "BlockdevOptionsGenericFormat",
    &[req("file", Type::Alternate(&BLOCKDEV_REF))],
);

/// `BlockdevOptionsCbw`
pub static BLOCKDEV_OPTIONS_CBW: Object = object(
    "BlockdevOptionsCbw",
    &[
        req("file", Type::Alternate(&BLOCKDEV_REF)),
        req("target", Type::Alternate(&BLOCKDEV_REF)),
        opt("bitmap", Type::Object(&BLOCK_DIRTY_BITMAP)),
        opt("on-cbw-error", Type::Enum(&ON_CBW_ERROR)),
        opt("cbw-timeout", UINT32),
        opt("min-cluster-size", SIZE),
    ],
);

/// `OnCbwError`
pub static ON_CBW_ERROR: Enum = enumeration("OnCbwError", &["break-guest-write", "break-snapshot"]);

/// `BlockdevOptionsCor`
pub static BLOCKDEV_OPTIONS_COR: Object = object(
    "BlockdevOptionsCor",
    &[
        req("file", Type::Alternate(&BLOCKDEV_REF)),
        opt("bottom", STR),
    ],
);

/// `BlockdevOptionsFile`
pub static BLOCKDEV_OPTIONS_FILE: Object = object(
    "BlockdevOptionsFile",
    &[
        req("filename", STR),
        opt("locking", Type::Enum(&ON_OFF_AUTO)),
        opt("aio", Type::Enum(&BLOCKDEV_AIO_OPTIONS)),
    ],
);

/// `OnOffAuto`
pub static ON_OFF_AUTO: Enum = enumeration("OnOffAuto", &["auto", "on", "off"]);

/// `BlockdevAioOptions`
pub static BLOCKDEV_AIO_OPTIONS: Enum =
    enumeration("BlockdevAioOptions", &["threads", "native", "io_uring"]);

/// `BlockdevOptionsNbd`
pub static BLOCKDEV_OPTIONS_NBD: Object = object(
    "BlockdevOptionsNbd",
    &[
        req("server", Type::Object(&SERVER_SOCKET_ADDRESS)),
        opt("export", STR),
        opt("tls-creds", STR),
        opt("tls-hostname", STR),
        opt("x-dirty-bitmap", STR).unstable(),
        opt("reconnect-delay", UINT32),
        opt("open-timeout", UINT32),
    ],
);

/// `BlockdevOptionsNull`
pub static BLOCKDEV_OPTIONS_NULL: Object = object(
    "BlockdevOptionsNull",
    &[
        opt("size", INT),
        opt("latency-ns", UINT64),
        opt("read-zeroes", BOOL),
    ],
);

/// `BlockdevOptionsPreallocate`
pub static BLOCKDEV_OPTIONS_PREALLOCATE: Object = object(
    "BlockdevOptionsPreallocate",
    &[
        req("file", Type::Alternate(&BLOCKDEV_REF)),
        opt("prealloc-align", INT),
        opt("prealloc-size", INT),
    ],
);

/// `BlockdevOptionsQcow2`
pub static BLOCKDEV_OPTIONS_QCOW2: Object = object(
    "BlockdevOptionsQcow2",
    &[
        req("file", Type::Alternate(&BLOCKDEV_REF)),
        opt("backing", Type::Alternate(&BLOCKDEV_REF_OR_NULL)),
        opt("lazy-refcounts", BOOL),
        opt("pass-discard-request", BOOL),
        opt("pass-discard-snapshot", BOOL),
        opt("pass-discard-other", BOOL),
        opt("discard-no-unref", BOOL),
        opt("overlap-check", Type::Alternate(&QCOW2_OVERLAP_CHECKS)),
        opt("cache-size", INT),
        opt("l2-cache-size", INT),
        opt("l2-cache-entry-size", INT),
        opt("refcount-cache-size", INT),
        opt("cache-clean-interval", INT),
        opt("data-file", Type::Alternate(&BLOCKDEV_REF)),
        // Ours: see the README.
        opt("x-snapshot", STR),
        opt("x-image-names", Type::Enum(&QCOW2_IMAGE_NAMES)),
        opt("x-probe-backing", BOOL),
        opt("x-bitmap-journal", STR),
    ],
);

/// `BlockdevRefOrNull`
pub static BLOCKDEV_REF_OR_NULL: Alternate = alternate(
    "BlockdevRefOrNull",
    &[Type::Object(&BLOCKDEV_OPTIONS), STR, NULL],
);

/// `Qcow2OverlapChecks`
pub static QCOW2_OVERLAP_CHECKS: Alternate = alternate(
    "Qcow2OverlapChecks",
    &[
        Type::Object(&QCOW2_OVERLAP_CHECK_FLAGS),
        Type::Enum(&QCOW2_OVERLAP_CHECK_MODE),
    ],
);

/// `Qcow2OverlapCheckFlags`
pub static QCOW2_OVERLAP_CHECK_FLAGS: Object = object(
    "Qcow2OverlapCheckFlags",
    &[
        opt("template", Type::Enum(&QCOW2_OVERLAP_CHECK_MODE)),
        opt("main-header", BOOL),
        opt("active-l1", BOOL),
        opt("active-l2", BOOL),
        opt("refcount-table", BOOL),
        opt("refcount-block", BOOL),
        opt("snapshot-table", BOOL),
        opt("inactive-l1", BOOL),
        opt("inactive-l2", BOOL),
        opt("bitmap-directory", BOOL),
    ],
);

/// `Qcow2OverlapCheckMode`
pub static QCOW2_OVERLAP_CHECK_MODE: Enum = enumeration(
    "Qcow2OverlapCheckMode",
    &["none", "constant", "cached", "all"],
);

/// `BlockdevOptionsRaw`
pub static BLOCKDEV_OPTIONS_RAW: Object = object(
    "BlockdevOptionsRaw",
    &[
        req("file", Type::Alternate(&BLOCKDEV_REF)),
        opt("offset", INT),
        opt("size", INT),
        // Ours: see the README.
        opt("x-bitmap-journal", STR),
    ],
);

/// `BlockdevOptionsThrottle`
pub static BLOCKDEV_OPTIONS_THROTTLE: Object = object(
    "BlockdevOptionsThrottle",
    &[
        req("throttle-group", STR),
        req("file", Type::Alternate(&BLOCKDEV_REF)),
    ],
);

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

/// Ours: what may be opened of what an image names.
pub static QCOW2_IMAGE_NAMES: Enum = enumeration("Qcow2ImageNames", &["paths", "any"]);

/// Ours: what the delay filter takes.
pub static BLOCKDEV_OPTIONS_DELAY: Object = object(
    "BlockdevOptionsDelay",
    &[
        req("file", Type::Alternate(&BLOCKDEV_REF)),
        opt("latency-ns", UINT64),
    ],
);
