//! Sets of descriptors that clients pass (qapi/misc.json).

use crate::qapi::{INT, Object, STR, Type, object, opt, req};

/// Arguments of `add-fd`.
pub static ADD_FD_ARG: Object = object(
    "q_obj_add-fd-arg",
    &[opt("fdset-id", INT), opt("opaque", STR)],
);

/// `AddfdInfo`
pub static ADDFD_INFO: Object = object("AddfdInfo", &[req("fdset-id", INT), req("fd", INT)]);

/// Arguments of `remove-fd`.
pub static REMOVE_FD_ARG: Object = object(
    "q_obj_remove-fd-arg",
    &[req("fdset-id", INT), opt("fd", INT)],
);

/// `FdsetFdInfo`
pub static FDSET_FD_INFO: Object = object("FdsetFdInfo", &[req("fd", INT), opt("opaque", STR)]);

/// `FdsetInfo`
pub static FDSET_INFO: Object = object(
    "FdsetInfo",
    &[
        req("fdset-id", INT),
        req("fds", Type::Array(&Type::Object(&FDSET_FD_INFO))),
    ],
);
