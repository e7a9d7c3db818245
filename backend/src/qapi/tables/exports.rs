//! Exports and the NBD server (qapi/block-export.json).

use super::sockets::{
    EXPORT_SOCKET_ADDRESS, FD_SOCKET_ADDRESS, INET_SOCKET_ADDRESS, SOCKET_ADDRESS,
    SOCKET_ADDRESS_TYPE, UNIX_SOCKET_ADDRESS,
};
use crate::qapi::{
    Alternate, BOOL, Case, Enum, Object, SIZE, STR, Type, UINT16, UINT32, alternate, enumeration,
    object, opt, req, union,
};

/// `BlockExportOptions`
pub static BLOCK_EXPORT_OPTIONS: Object = union(
    "BlockExportOptions",
    &[
        req("type", Type::Enum(&BLOCK_EXPORT_TYPE)),
        req("id", STR),
        opt("fixed-iothread", BOOL),
        opt("iothread", STR),
        req("node-name", STR),
        opt("writable", BOOL),
        opt("writethrough", BOOL),
        opt("allow-inactive", BOOL),
    ],
    "type",
    &[
        Case {
            word: "nbd",
            object: &BLOCK_EXPORT_OPTIONS_NBD,
        },
        Case {
            word: "vhost-user-blk",
            object: &BLOCK_EXPORT_OPTIONS_VHOST_USER_BLK,
        },
    ],
);

/// `BlockExportType`
pub static BLOCK_EXPORT_TYPE: Enum = enumeration("BlockExportType", &["nbd", "vhost-user-blk"]);

/// `BlockExportOptionsNbd`
pub static BLOCK_EXPORT_OPTIONS_NBD: Object = object(
    "BlockExportOptionsNbd",
    &[
        opt("name", STR),
        opt("description", STR),
        opt(
            "bitmaps",
            Type::Array(&Type::Alternate(&BLOCK_DIRTY_BITMAP_OR_STR)),
        ),
        opt("allocation-depth", BOOL),
    ],
);

/// `BlockDirtyBitmapOrStr`
pub static BLOCK_DIRTY_BITMAP_OR_STR: Alternate = alternate(
    "BlockDirtyBitmapOrStr",
    &[STR, Type::Object(&BLOCK_DIRTY_BITMAP)],
);

/// `BlockDirtyBitmap`
pub static BLOCK_DIRTY_BITMAP: Object =
    object("BlockDirtyBitmap", &[req("node", STR), req("name", STR)]);

/// `BlockExportOptionsVhostUserBlk`
pub static BLOCK_EXPORT_OPTIONS_VHOST_USER_BLK: Object = object(
    "BlockExportOptionsVhostUserBlk",
    &[
        req("addr", Type::Object(&EXPORT_SOCKET_ADDRESS)),
        opt("logical-block-size", SIZE),
        opt("num-queues", UINT16),
        // Ours: the answer to GET_ID.
        opt("serial", STR),
        // Ours: is a front end a reason not to delete it?
        opt("require-safe-del", BOOL),
    ],
);

/// Arguments of `block-export-del`.
pub static BLOCK_EXPORT_DEL_ARG: Object = object(
    "q_obj_block-export-del-arg",
    &[
        req("id", STR),
        opt("mode", Type::Enum(&BLOCK_EXPORT_REMOVE_MODE)),
    ],
);

/// `BlockExportRemoveMode`
pub static BLOCK_EXPORT_REMOVE_MODE: Enum = enumeration("BlockExportRemoveMode", &["safe", "hard"]);

/// `BlockExportInfo`
pub static BLOCK_EXPORT_INFO: Object = object(
    "BlockExportInfo",
    &[
        req("id", STR),
        req("type", Type::Enum(&BLOCK_EXPORT_TYPE)),
        req("node-name", STR),
        req("shutting-down", BOOL),
    ],
);

/// `NbdServerOptions`: `--nbd-server`.
pub static NBD_SERVER_OPTIONS: Object = object(
    "NbdServerOptions",
    &[
        opt("handshake-max-seconds", UINT32),
        opt("tls-creds", STR),
        opt("max-connections", UINT32),
        req("addr", Type::Object(&SOCKET_ADDRESS)),
        // Ours: how long replies may be left unread.
        opt("x-send-timeout", UINT32),
    ],
);

/// `NbdServerOptionsLegacy`: the same for `nbd-server-start`.
pub static NBD_SERVER_OPTIONS_LEGACY: Object = object(
    "NbdServerOptionsLegacy",
    &[
        opt("handshake-max-seconds", UINT32),
        opt("tls-creds", STR),
        opt("max-connections", UINT32),
        req("addr", Type::Object(&SOCKET_ADDRESS_LEGACY)),
        opt("x-send-timeout", UINT32),
    ],
);

/// `SocketAddressLegacy`
pub static SOCKET_ADDRESS_LEGACY: Object = union(
    "SocketAddressLegacy",
    &[req("type", Type::Enum(&SOCKET_ADDRESS_TYPE))],
    "type",
    &[
        Case {
            word: "inet",
            object: &INET_SOCKET_ADDRESS_WRAPPER,
        },
        Case {
            word: "unix",
            object: &UNIX_SOCKET_ADDRESS_WRAPPER,
        },
        Case {
            word: "fd",
            object: &FD_SOCKET_ADDRESS_WRAPPER,
        },
    ],
);

/// `InetSocketAddressWrapper`
pub static INET_SOCKET_ADDRESS_WRAPPER: Object = object(
    "InetSocketAddressWrapper",
    &[req("data", Type::Object(&INET_SOCKET_ADDRESS))],
);

/// `UnixSocketAddressWrapper`
pub static UNIX_SOCKET_ADDRESS_WRAPPER: Object = object(
    "UnixSocketAddressWrapper",
    &[req("data", Type::Object(&UNIX_SOCKET_ADDRESS))],
);

/// `FdSocketAddressWrapper`
pub static FD_SOCKET_ADDRESS_WRAPPER: Object = object(
    "FdSocketAddressWrapper",
    &[req("data", Type::Object(&FD_SOCKET_ADDRESS))],
);

/// What comes with `BLOCK_EXPORT_DELETED`.
pub static BLOCK_EXPORT_DELETED_ARG: Object =
    object("q_obj_BLOCK_EXPORT_DELETED-arg", &[req("id", STR)]);
