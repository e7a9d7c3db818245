//! What is about the monitor itself (qapi/control.json, qapi/introspect.json).

use crate::qapi::{BOOL, Enum, INT, Object, STR, Type, enumeration, object, opt, req};

/// `QMPCapability`
pub static QMP_CAPABILITY: Enum = enumeration("QMPCapability", &["oob"]);

/// Arguments of `qmp_capabilities`.
pub static QMP_CAPABILITIES_ARG: Object = object(
    "q_obj_qmp_capabilities-arg",
    &[opt("enable", Type::Array(&Type::Enum(&QMP_CAPABILITY)))],
);

/// `MonitorOptions`: `--monitor`.
pub static MONITOR_OPTIONS: Object = object(
    "MonitorOptions",
    &[
        opt("id", STR),
        opt("mode", Type::Enum(&MONITOR_MODE)),
        opt("pretty", BOOL),
        req("chardev", STR),
    ],
);

/// `MonitorMode`
pub static MONITOR_MODE: Enum = enumeration("MonitorMode", &["readline", "control"]);

/// `VersionTriple`
pub static VERSION_TRIPLE: Object = object(
    "VersionTriple",
    &[req("major", INT), req("minor", INT), req("micro", INT)],
);

/// `VersionInfo`
pub static VERSION_INFO: Object = object(
    "VersionInfo",
    &[
        req("qemu", Type::Object(&VERSION_TRIPLE)),
        req("package", STR),
    ],
);

/// `CommandInfo`
pub static COMMAND_INFO: Object = object("CommandInfo", &[req("name", STR)]);
