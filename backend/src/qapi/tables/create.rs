//! Making images (qapi/block-core.json).

use super::nodes::{BLOCKDEV_DRIVER, BLOCKDEV_REF};
use crate::qapi::{
    BOOL, Case, Enum, INT, Object, SIZE, STR, Type, enumeration, object, opt, req, union,
};

/// Arguments of `blockdev-create`.
pub static BLOCKDEV_CREATE_ARG: Object = object(
    "q_obj_blockdev-create-arg",
    &[
        req("job-id", STR),
        req("options", Type::Object(&BLOCKDEV_CREATE_OPTIONS)),
    ],
);

/// `BlockdevCreateOptions`
pub static BLOCKDEV_CREATE_OPTIONS: Object = union(
    "BlockdevCreateOptions",
    &[req("driver", Type::Enum(&BLOCKDEV_DRIVER))],
    "driver",
    &[
        Case {
            word: "file",
            object: &BLOCKDEV_CREATE_OPTIONS_FILE,
        },
        Case {
            word: "qcow2",
            object: &BLOCKDEV_CREATE_OPTIONS_QCOW2,
        },
    ],
);

/// `BlockdevCreateOptionsFile`
pub static BLOCKDEV_CREATE_OPTIONS_FILE: Object = object(
    "BlockdevCreateOptionsFile",
    &[
        req("filename", STR),
        req("size", SIZE),
        opt("preallocation", Type::Enum(&PREALLOC_MODE)),
        opt("nocow", BOOL),
        opt("extent-size-hint", SIZE),
    ],
);

/// `PreallocMode`
pub static PREALLOC_MODE: Enum =
    enumeration("PreallocMode", &["off", "metadata", "falloc", "full"]);

/// `BlockdevCreateOptionsQcow2`
pub static BLOCKDEV_CREATE_OPTIONS_QCOW2: Object = object(
    "BlockdevCreateOptionsQcow2",
    &[
        req("file", Type::Alternate(&BLOCKDEV_REF)),
        opt("data-file", Type::Alternate(&BLOCKDEV_REF)),
        opt("data-file-raw", BOOL),
        opt("extended-l2", BOOL),
        req("size", SIZE),
        opt("version", Type::Enum(&BLOCKDEV_QCOW2_VERSION)),
        opt("backing-file", STR),
        opt("backing-fmt", Type::Enum(&BLOCKDEV_DRIVER)),
        opt("cluster-size", SIZE),
        opt("preallocation", Type::Enum(&PREALLOC_MODE)),
        opt("lazy-refcounts", BOOL),
        opt("refcount-bits", INT),
        opt("compression-type", Type::Enum(&QCOW2_COMPRESSION_TYPE)),
    ],
);

/// `BlockdevQcow2Version`
pub static BLOCKDEV_QCOW2_VERSION: Enum = enumeration("BlockdevQcow2Version", &["v2", "v3"]);

/// `Qcow2CompressionType`
pub static QCOW2_COMPRESSION_TYPE: Enum = enumeration("Qcow2CompressionType", &["zlib", "zstd"]);
