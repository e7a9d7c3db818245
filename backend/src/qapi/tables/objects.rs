//! Objects (qapi/qom.json).

use crate::qapi::{
    ANY, BOOL, Case, Enum, INT, Object, STR, Type, enumeration, object, opt, req, union,
};

/// `ObjectOptions`
pub static OBJECT_OPTIONS: Object = union(
    "ObjectOptions",
    &[req("qom-type", Type::Enum(&OBJECT_TYPE)), req("id", STR)],
    "qom-type",
    &[
        Case {
            word: "iothread",
            object: &IOTHREAD_PROPERTIES,
        },
        Case {
            word: "throttle-group",
            object: &THROTTLE_GROUP_PROPERTIES,
        },
        Case {
            word: "tls-creds-x509",
            object: &TLS_CREDS_X509_PROPERTIES,
        },
    ],
);

/// `ObjectType`
pub static OBJECT_TYPE: Enum = enumeration(
    "ObjectType",
    &["iothread", "throttle-group", "tls-creds-x509"],
);

/// `IothreadProperties`
pub static IOTHREAD_PROPERTIES: Object = object(
    "IothreadProperties",
    &[
        opt("poll-max-ns", INT),
        opt("poll-grow", INT),
        opt("poll-shrink", INT),
    ],
);

/// `ThrottleGroupProperties`
pub static THROTTLE_GROUP_PROPERTIES: Object = object(
    "ThrottleGroupProperties",
    &[
        opt("limits", Type::Object(&THROTTLE_LIMITS)),
        opt("x-iops-total", INT).unstable(),
        opt("x-iops-total-max", INT).unstable(),
        opt("x-iops-total-max-length", INT).unstable(),
        opt("x-iops-read", INT).unstable(),
        opt("x-iops-read-max", INT).unstable(),
        opt("x-iops-read-max-length", INT).unstable(),
        opt("x-iops-write", INT).unstable(),
        opt("x-iops-write-max", INT).unstable(),
        opt("x-iops-write-max-length", INT).unstable(),
        opt("x-bps-total", INT).unstable(),
        opt("x-bps-total-max", INT).unstable(),
        opt("x-bps-total-max-length", INT).unstable(),
        opt("x-bps-read", INT).unstable(),
        opt("x-bps-read-max", INT).unstable(),
        opt("x-bps-read-max-length", INT).unstable(),
        opt("x-bps-write", INT).unstable(),
        opt("x-bps-write-max", INT).unstable(),
        opt("x-bps-write-max-length", INT).unstable(),
        opt("x-iops-size", INT).unstable(),
    ],
);

/// `ThrottleLimits`
pub static THROTTLE_LIMITS: Object = object(
    "ThrottleLimits",
    &[
        opt("iops-total", INT),
        opt("iops-total-max", INT),
        opt("iops-total-max-length", INT),
        opt("iops-read", INT),
        opt("iops-read-max", INT),
        opt("iops-read-max-length", INT),
        opt("iops-write", INT),
        opt("iops-write-max", INT),
        opt("iops-write-max-length", INT),
        opt("bps-total", INT),
        opt("bps-total-max", INT),
        opt("bps-total-max-length", INT),
        opt("bps-read", INT),
        opt("bps-read-max", INT),
        opt("bps-read-max-length", INT),
        opt("bps-write", INT),
        opt("bps-write-max", INT),
        opt("bps-write-max-length", INT),
        opt("iops-size", INT),
    ],
);

/// `TlsCredsX509Properties`
pub static TLS_CREDS_X509_PROPERTIES: Object = object(
    "TlsCredsX509Properties",
    &[
        opt("verify-peer", BOOL),
        opt("dir", STR),
        opt("endpoint", Type::Enum(&Q_CRYPTO_TLS_CREDS_ENDPOINT)),
        opt("sanity-check", BOOL),
    ],
);

/// `QCryptoTLSCredsEndpoint`
pub static Q_CRYPTO_TLS_CREDS_ENDPOINT: Enum =
    enumeration("QCryptoTLSCredsEndpoint", &["client", "server"]);

/// Arguments of `object-del`.
pub static OBJECT_DEL_ARG: Object = object("q_obj_object-del-arg", &[req("id", STR)]);

/// Arguments of `qom-set`.
pub static QOM_SET_ARG: Object = object(
    "q_obj_qom-set-arg",
    &[req("path", STR), req("property", STR), req("value", ANY)],
);

/// Arguments of `qom-get`.
pub static QOM_GET_ARG: Object = object(
    "q_obj_qom-get-arg",
    &[req("path", STR), req("property", STR)],
);

/// Arguments of `qom-list`.
pub static QOM_LIST_ARG: Object = object("q_obj_qom-list-arg", &[req("path", STR)]);

/// `ObjectPropertyInfo`
pub static OBJECT_PROPERTY_INFO: Object = object(
    "ObjectPropertyInfo",
    &[
        req("name", STR),
        req("type", STR),
        opt("description", STR),
        opt("default-value", ANY),
    ],
);

/// Arguments of `qom-list-types`.
pub static QOM_LIST_TYPES_ARG: Object = object(
    "q_obj_qom-list-types-arg",
    &[opt("implements", STR), opt("abstract", BOOL)],
);

/// `ObjectTypeInfo`
pub static OBJECT_TYPE_INFO: Object = object(
    "ObjectTypeInfo",
    &[req("name", STR), opt("abstract", BOOL), opt("parent", STR)],
);

/// Arguments of `qom-list-properties`.
pub static QOM_LIST_PROPERTIES_ARG: Object =
    object("q_obj_qom-list-properties-arg", &[req("typename", STR)]);
