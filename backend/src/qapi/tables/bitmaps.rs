//! Dirty bitmaps (qapi/block-core.json).

use super::exports::BLOCK_DIRTY_BITMAP_OR_STR;
use crate::qapi::{BOOL, Object, STR, Type, UINT32, object, opt, req};

/// `BlockDirtyBitmapAdd`
pub static BLOCK_DIRTY_BITMAP_ADD: Object = object(
    "BlockDirtyBitmapAdd",
    &[
        req("node", STR),
        req("name", STR),
        opt("granularity", UINT32),
        opt("persistent", BOOL),
        opt("disabled", BOOL),
    ],
);

/// `BlockDirtyBitmapMerge`
pub static BLOCK_DIRTY_BITMAP_MERGE: Object = object(
    "BlockDirtyBitmapMerge",
    &[
        req("node", STR),
        req("target", STR),
        req(
            "bitmaps",
            Type::Array(&Type::Alternate(&BLOCK_DIRTY_BITMAP_OR_STR)),
        ),
    ],
);

/// `BlockDirtyBitmapSha256`
pub static BLOCK_DIRTY_BITMAP_SHA256: Object =
    object("BlockDirtyBitmapSha256", &[req("sha256", STR)]);
