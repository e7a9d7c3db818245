//! Character devices (qapi/char.json).

use crate::qapi::{BOOL, Enum, INT, Object, STR, Type, enumeration, object, opt, req};

/// `ChardevInfo`
pub static CHARDEV_INFO: Object = object(
    "ChardevInfo",
    &[
        req("label", STR),
        req("filename", STR),
        req("frontend-open", BOOL),
    ],
);

/// Arguments of `ringbuf-read`.
pub static RINGBUF_READ_ARG: Object = object(
    "q_obj_ringbuf-read-arg",
    &[
        req("device", STR),
        req("size", INT),
        opt("format", Type::Enum(&DATA_FORMAT)),
    ],
);

/// `DataFormat`
pub static DATA_FORMAT: Enum = enumeration("DataFormat", &["utf8", "base64"]);

/// Arguments of `ringbuf-write`.
pub static RINGBUF_WRITE_ARG: Object = object(
    "q_obj_ringbuf-write-arg",
    &[
        req("device", STR),
        req("data", STR),
        opt("format", Type::Enum(&DATA_FORMAT)),
    ],
);
