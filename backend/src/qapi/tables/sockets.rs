//! Addresses (qapi/sockets.json).
//!
//! The rule: what listens, what connects and what an export has are told apart, so that each lists what works there.

use crate::qapi::{
    BOOL, Case, Enum, Object, STR, Type, UINT16, enumeration, object, opt, req, union,
};

/// `SocketAddress`, where clients knock.
pub static SOCKET_ADDRESS: Object = union(
    "SocketAddress",
    &[req("type", Type::Enum(&SOCKET_ADDRESS_TYPE))],
    "type",
    &[
        Case {
            word: "inet",
            object: &INET_SOCKET_ADDRESS,
        },
        Case {
            word: "unix",
            object: &UNIX_SOCKET_ADDRESS,
        },
        Case {
            word: "fd",
            object: &FD_SOCKET_ADDRESS,
        },
    ],
);

/// `SocketAddress`, where a server is.
pub static SERVER_SOCKET_ADDRESS: Object = union(
    "SocketAddress",
    &[req("type", Type::Enum(&SOCKET_ADDRESS_TYPE))],
    "type",
    &[
        Case {
            word: "inet",
            object: &SERVER_INET_SOCKET_ADDRESS,
        },
        Case {
            word: "unix",
            object: &UNIX_SOCKET_ADDRESS,
        },
        Case {
            word: "fd",
            object: &FD_SOCKET_ADDRESS,
        },
    ],
);

/// `SocketAddress`, where front ends come from.
pub static EXPORT_SOCKET_ADDRESS: Object = union(
    "SocketAddress",
    &[req("type", Type::Enum(&EXPORT_SOCKET_ADDRESS_TYPE))],
    "type",
    &[
        // Spelled in full to be refused in QEMU's words: no front end comes by way of TCP.
        Case {
            word: "inet",
            object: &INET_SOCKET_ADDRESS,
        },
        Case {
            word: "unix",
            object: &UNIX_SOCKET_ADDRESS,
        },
        Case {
            word: "fd",
            object: &FD_SOCKET_ADDRESS,
        },
        // Ours: a socket that somebody is connected to already.
        Case {
            word: "connected-fd",
            object: &FD_SOCKET_ADDRESS,
        },
    ],
);

/// `SocketAddressType`
pub static SOCKET_ADDRESS_TYPE: Enum = enumeration("SocketAddressType", &["inet", "unix", "fd"]);

/// `SocketAddressType`, and ours.
pub static EXPORT_SOCKET_ADDRESS_TYPE: Enum =
    enumeration("SocketAddressType", &["inet", "unix", "fd", "connected-fd"]);

/// `InetSocketAddress` of a server to connect to.
pub static SERVER_INET_SOCKET_ADDRESS: Object = object(
    "InetSocketAddress",
    &[
        req("host", STR),
        req("port", STR),
        opt("numeric", BOOL),
        opt("ipv4", BOOL),
        opt("ipv6", BOOL),
        opt("keep-alive", BOOL),
    ],
);

/// `InetSocketAddress`
pub static INET_SOCKET_ADDRESS: Object = object(
    "InetSocketAddress",
    &[
        req("host", STR),
        req("port", STR),
        opt("numeric", BOOL),
        opt("to", UINT16),
        opt("ipv4", BOOL),
        opt("ipv6", BOOL),
        opt("keep-alive", BOOL),
    ],
);

/// `UnixSocketAddress`
pub static UNIX_SOCKET_ADDRESS: Object = object("UnixSocketAddress", &[req("path", STR)]);

/// `FdSocketAddress`
pub static FD_SOCKET_ADDRESS: Object = object("FdSocketAddress", &[req("str", STR)]);
