//! The filter that injects errors (qapi/block-core.json).

use super::nodes::{BLOCK_PERMISSION, BLOCKDEV_REF};
use crate::qapi::{BOOL, Enum, INT, INT32, Object, STR, Type, enumeration, object, opt, req};

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
