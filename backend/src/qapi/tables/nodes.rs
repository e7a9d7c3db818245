//! Block nodes: what they are made with (qapi/block-core.json).

use super::blkdebug::BLOCKDEV_OPTIONS_BLKDEBUG;
use super::exports::BLOCK_DIRTY_BITMAP;
use super::sockets::SERVER_SOCKET_ADDRESS;
use crate::qapi::{
    Alternate, BOOL, Case, Enum, INT, NULL, Object, SIZE, STR, Type, UINT32, UINT64, alternate,
    enumeration, object, opt, req, union,
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

/// `BlockdevRef`
pub static BLOCKDEV_REF: Alternate =
    alternate("BlockdevRef", &[Type::Object(&BLOCKDEV_OPTIONS), STR]);

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
