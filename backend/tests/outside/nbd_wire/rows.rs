//! What is sent, and what must come of it.

use super::peer::SIZE;
use super::script::{
    FLAGS, abort, all, choose, choose_raw, extended, go, head, list_contexts, option, queries,
    set_contexts, sized_option, structured, wrong_magic,
};
use blockgraph::driver::nbd::wire::OptionKind as Kind;
use blockgraph::driver::nbd::wire::{
    CommandFlags, Form, OPTION_REPLY_HEAD_BYTES, OptionReplyHead, OptionReplyKind, StatusPayload,
};

/// Options, up to something that ends the connection.
pub(crate) struct Haggle {
    pub(crate) name: &'static str,
    pub(crate) flags: u32,
    pub(crate) options: fn() -> Vec<u8>,
    pub(crate) ends: Ends,
}

/// What the answers to options come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ends {
    /// Nothing is said; the connection is closed.
    Closed,
    /// The option before the goodbye is refused so.
    Refused(OptionReplyKind),
    /// The option before the goodbye is granted.
    Granted,
    /// The same, and QEMU's bytes are others: it leaves what follows the queries unread, or finds another block size.
    RefusedAlone(OptionReplyKind),
    /// Granted, likewise.
    GrantedAlone,
}

/// Are the bytes QEMU's?
pub(crate) fn same_as_qemu(row: &Haggle) -> bool {
    !matches!(row.ends, Ends::RefusedAlone(_) | Ends::GrantedAlone)
}

const INVALID: Ends = Ends::Refused(OptionReplyKind::Invalid);
const UNKNOWN: Ends = Ends::Refused(OptionReplyKind::Unknown);
const UNSUPPORTED: Ends = Ends::Refused(OptionReplyKind::Unsupported);

macro_rules! row {
    ($name:literal, $options:expr, $ends:expr) => {
        Haggle {
            name: $name,
            flags: FLAGS,
            options: || all(&[$options, abort()]),
            ends: $ends,
        }
    };
    ($name:literal, flags $flags:expr, $options:expr, $ends:expr) => {
        Haggle {
            name: $name,
            flags: $flags,
            options: || $options,
            ends: $ends,
        }
    };
}

fn after(first: Vec<u8>, second: Vec<u8>) -> Vec<u8> {
    [first, second].concat()
}

fn meta(kind: Kind, payload: &[u8]) -> Vec<u8> {
    after(structured(), option(kind, payload))
}

fn cut(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.pop();
    bytes
}

fn longer(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.push(0);
    bytes
}

fn many_queries(name: &str) -> Vec<u8> {
    let mut bytes = queries(name, &[]);
    let end = bytes.len() - 4;
    bytes[end..].copy_from_slice(&u32::MAX.to_be_bytes());
    bytes
}

pub(crate) const OPTION_ROWS: &[Haggle] = &[
    row!("goodbye", Vec::new(), Ends::Granted),
    row!(
        "goodbye with a payload",
        option(Kind::Abort, b"abc"),
        Ends::Granted
    ),
    row!("flags of nobody", flags 4, abort(), Ends::Closed),
    row!("all flags", flags u32::MAX, abort(), Ends::Closed),
    row!("list, not fixed", flags 2, option(Kind::List, &[]), Ends::Closed),
    row!("go, not fixed", flags 0, go("e"), Ends::Closed),
    row!("unknown export name", flags FLAGS, option(Kind::ExportName, b"nope"), Ends::Closed),
    row!("empty export name", flags FLAGS, option(Kind::ExportName, b""), Ends::Closed),
    row!("long export name", flags FLAGS, option(Kind::ExportName, &[b'a'; 4096]), Ends::Closed),
    row!("too long export name", flags FLAGS, option(Kind::ExportName, &[b'a'; 4097]), Ends::Closed),
    row!("export name of 4 GiB", flags FLAGS, sized_option(Kind::ExportName, u32::MAX, &[]), Ends::Closed),
    row!("bad magic", flags FLAGS, b"IHAVEOPX\0\0\0\x03\0\0\0\0".to_vec(), Ends::Closed),
    row!("a request for an option", flags FLAGS, wrong_magic(), Ends::Closed),
    row!("option of 4 GiB", flags FLAGS, sized_option(Kind::Go, u32::MAX, &[]), Ends::Closed),
    row!("unknown option of 4 GiB", flags FLAGS, sized_option(Kind::Other(99), u32::MAX, &[]), Ends::Closed),
    row!("list of 32 MiB and one byte", flags FLAGS, sized_option(Kind::List, (32 << 20) + 1, &[]), Ends::Closed),
    row!("list", option(Kind::List, &[]), Ends::Granted),
    row!("list with a payload", option(Kind::List, b"x"), INVALID),
    row!("option 0", option(Kind::Other(0), &[]), UNSUPPORTED),
    row!(
        "option 99",
        option(Kind::Other(99), b"payload"),
        UNSUPPORTED
    ),
    row!(
        "option 2^32-1",
        option(Kind::Other(u32::MAX), &[]),
        UNSUPPORTED
    ),
    row!("withdrawn option", option(Kind::Other(4), &[]), UNSUPPORTED),
    row!(
        "unknown option of 1 MiB",
        option(Kind::Other(99), &vec![7; 1 << 20]),
        UNSUPPORTED
    ),
    row!(
        "starttls without",
        option(Kind::StartTls, &[]),
        Ends::Refused(OptionReplyKind::Policy)
    ),
    row!(
        "starttls with a payload",
        option(Kind::StartTls, b"x"),
        INVALID
    ),
    row!("structured replies", structured(), Ends::Granted),
    row!(
        "structured replies twice",
        after(structured(), structured()),
        INVALID
    ),
    row!(
        "structured replies with a payload",
        option(Kind::StructuredReply, b"x"),
        INVALID
    ),
    row!("extended headers", extended(), Ends::Granted),
    row!(
        "extended headers twice",
        after(extended(), extended()),
        INVALID
    ),
    row!(
        "extended headers with a payload",
        option(Kind::ExtendedHeaders, b"x"),
        INVALID
    ),
    row!(
        "structured after extended",
        after(extended(), structured()),
        Ends::Refused(OptionReplyKind::ExtendedHeadersRequired)
    ),
    row!(
        "extended after structured",
        after(structured(), extended()),
        Ends::Granted
    ),
    row!("info", option(Kind::Info, &choose("e", &[])), Ends::Granted),
    row!(
        "info about everything",
        option(Kind::Info, &choose("e", &[0, 1, 2, 3, 4, 9999])),
        Ends::Granted
    ),
    row!(
        "info, structured",
        after(structured(), option(Kind::Info, &choose("e", &[1]))),
        Ends::Granted
    ),
    row!(
        "info, extended",
        after(extended(), option(Kind::Info, &choose("e", &[3]))),
        Ends::Granted
    ),
    row!(
        "info, extended, with contexts",
        all(&[
            extended(),
            set_contexts("e", &["base:allocation"]),
            option(Kind::Info, &choose("e", &[3]))
        ]),
        Ends::Granted
    ),
    row!(
        "info about the other's contexts",
        all(&[
            extended(),
            set_contexts("ro", &["base:allocation"]),
            option(Kind::Info, &choose("e", &[3]))
        ]),
        Ends::Granted
    ),
    row!(
        "info about a read-only export",
        option(Kind::Info, &choose("ro", &[1, 3])),
        Ends::Granted
    ),
    row!(
        "info about nothing",
        option(Kind::Info, &choose("nope", &[])),
        UNKNOWN
    ),
    row!(
        "info about the default",
        option(Kind::Info, &choose("", &[])),
        UNKNOWN
    ),
    row!(
        "info about blocks",
        option(Kind::Info, &choose("direct", &[3])),
        Ends::GrantedAlone
    ),
    row!(
        "info without blocks",
        option(Kind::Info, &choose("direct", &[])),
        Ends::RefusedAlone(OptionReplyKind::BlockSizeRequired)
    ),
    row!("go nowhere", go("nope"), UNKNOWN),
    row!(
        "a name of 79 bytes",
        option(Kind::Go, &choose_raw(&[b'n'; 79])),
        UNKNOWN
    ),
    row!(
        "a name of 80 bytes",
        option(Kind::Go, &choose_raw(&[b'n'; 80])),
        UNKNOWN
    ),
    row!(
        "a name of 4096 bytes",
        option(Kind::Go, &choose_raw(&[b'n'; 4096])),
        UNKNOWN
    ),
    row!(
        "a name of 4097 bytes",
        option(Kind::Go, &choose_raw(&[b'n'; 4097])),
        INVALID
    ),
    row!(
        "a name that is no UTF-8",
        option(Kind::Go, &choose_raw(b"e\xff")),
        UNKNOWN
    ),
    row!(
        "a name with a NUL",
        option(Kind::Go, &choose_raw(b"e\0")),
        INVALID
    ),
    row!("go without a payload", option(Kind::Go, &[]), INVALID),
    row!("go with three bytes", option(Kind::Go, b"abc"), INVALID),
    row!(
        "go with a name beyond the payload",
        option(Kind::Go, b"\0\0\0\x64e\0\0"),
        INVALID
    ),
    row!(
        "go with fewer infos than said",
        option(Kind::Go, b"\0\0\0\x01e\0\x05\0\x01"),
        INVALID
    ),
    row!(
        "go with a byte too many",
        option(Kind::Go, &longer(choose("e", &[]))),
        INVALID
    ),
    row!(
        "list contexts in simple form",
        list_contexts("e", &["base:allocation"]),
        Ends::Granted
    ),
    row!(
        "list all contexts",
        meta(Kind::ListMetaContext, &queries("e", &[])),
        Ends::Granted
    ),
    row!(
        "list all contexts of the other",
        meta(Kind::ListMetaContext, &queries("ro", &[])),
        Ends::Granted
    ),
    row!(
        "list namespaces",
        meta(Kind::ListMetaContext, &queries("e", &["base:", "qemu:"])),
        Ends::Granted
    ),
    row!(
        "list a context twice",
        meta(
            Kind::ListMetaContext,
            &queries(
                "e",
                &[
                    "qemu:allocation-depth",
                    "base:allocation",
                    "base:allocation"
                ]
            )
        ),
        Ends::Granted
    ),
    row!(
        "list what nobody has",
        meta(
            Kind::ListMetaContext,
            &queries(
                "e",
                &[
                    "",
                    "x",
                    "x:",
                    "base",
                    "base:x",
                    "base:allocation2",
                    "qemu:dirty-bitmap:",
                    "qemu:dirty-bitmap:b",
                    "qemu:x"
                ]
            )
        ),
        Ends::Granted
    ),
    row!(
        "list contexts of nothing",
        meta(Kind::ListMetaContext, &queries("nope", &[])),
        UNKNOWN
    ),
    row!(
        "list contexts, cut",
        meta(Kind::ListMetaContext, &cut(queries("e", &["base:"]))),
        INVALID
    ),
    row!(
        "list contexts, no payload",
        meta(Kind::ListMetaContext, &[]),
        INVALID
    ),
    row!(
        "list contexts, a byte too many",
        meta(Kind::ListMetaContext, &longer(queries("e", &["base:"]))),
        Ends::RefusedAlone(OptionReplyKind::Invalid)
    ),
    row!(
        "set contexts in simple form",
        set_contexts("e", &["base:allocation"]),
        INVALID
    ),
    row!(
        "set contexts",
        meta(
            Kind::SetMetaContext,
            &queries("e", &["qemu:allocation-depth", "base:allocation"])
        ),
        Ends::Granted
    ),
    row!(
        "set no context",
        meta(Kind::SetMetaContext, &queries("e", &[])),
        Ends::Granted
    ),
    row!(
        "set namespaces",
        meta(Kind::SetMetaContext, &queries("e", &["base:", "qemu:"])),
        Ends::Granted
    ),
    row!(
        "set what the export hides",
        meta(
            Kind::SetMetaContext,
            &queries("ro", &["qemu:allocation-depth"])
        ),
        Ends::Granted
    ),
    row!(
        "set contexts with long queries",
        meta(
            Kind::SetMetaContext,
            &queries("e", &[&"q".repeat(5000), "base:allocation"])
        ),
        Ends::Granted
    ),
    row!(
        "set 2^32-1 contexts",
        meta(Kind::SetMetaContext, &many_queries("e")),
        INVALID
    ),
    row!(
        "set contexts, cut",
        meta(
            Kind::SetMetaContext,
            &cut(queries("e", &["base:allocation"]))
        ),
        INVALID
    ),
    row!(
        "set contexts of nothing",
        meta(Kind::SetMetaContext, &queries("", &["base:"])),
        UNKNOWN
    ),
];

/// The last reply but the goodbye's is what the row says.
pub(crate) fn check_options(row: &Haggle, got: &[u8]) {
    let name = row.name;
    let mut replies = Vec::new();
    let mut rest = got;
    while !rest.is_empty() {
        let head = rest.first_chunk::<OPTION_REPLY_HEAD_BYTES>().expect(name);
        let head = OptionReplyHead::decode(head).expect(name);
        replies.push(head.kind);
        rest = &rest[OPTION_REPLY_HEAD_BYTES + head.len_bytes as usize..];
    }
    if row.ends == Ends::Closed {
        return assert!(replies.is_empty(), "{name}: {replies:?}");
    }
    assert_eq!(
        replies.pop(),
        Some(OptionReplyKind::Ack),
        "{name}: the goodbye"
    );
    let expected = match row.ends {
        Ends::Refused(kind) | Ends::RefusedAlone(kind) => kind,
        Ends::Granted | Ends::GrantedAlone | Ends::Closed => OptionReplyKind::Ack,
    };
    assert_eq!(
        replies.pop().unwrap_or(OptionReplyKind::Ack),
        expected,
        "{name}"
    );
}

/// A request, after options that lead to it.
pub(crate) struct Request {
    pub(crate) name: String,
    pub(crate) export: &'static str,
    pub(crate) options: Vec<u8>,
    pub(crate) bytes: Vec<u8>,
    pub(crate) expect: Expect,
}

/// What must come of a request; a flush after it works unless the connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    /// It is done.
    Done,
    /// It is refused with NBD_EINVAL.
    Refused,
    /// It is refused with NBD_EINVAL and the connection closed.
    Fatal,
    /// The connection is closed without a word.
    Goodbye,
}

struct Rows {
    form: Form,
    rows: Vec<Request>,
}

impl Rows {
    fn options(&self, contexts: &[&str]) -> Vec<u8> {
        match self.form {
            Form::Simple => Vec::new(),
            Form::Structured => after(structured(), set_contexts("e", contexts)),
            Form::Extended => after(extended(), set_contexts("e", contexts)),
        }
    }

    fn bytes(&self, command: u16, flags: u16, at: u64, len: u64) -> Vec<u8> {
        let head = head(command, flags, at, len);
        match self.form {
            Form::Extended => head.encode_extended().to_vec(),
            _ => head.encode_compact().expect("short").to_vec(),
        }
    }

    fn add(&mut self, what: (u16, u16, u64, u64), expect: Expect) {
        let (command, flags, at, len) = what;
        let bytes = self.bytes(command, flags, at, len);
        self.push(format!("{what:?}"), "e", bytes, expect);
    }

    fn push(&mut self, name: String, export: &'static str, bytes: Vec<u8>, expect: Expect) {
        let options = self.options(&["base:allocation", "qemu:allocation-depth"]);
        self.rows.push(Request {
            name,
            export,
            options,
            bytes,
            expect,
        });
    }
}

const FUA: u16 = CommandFlags::FUA;
const NO_HOLE: u16 = CommandFlags::NO_HOLE;
const DF: u16 = CommandFlags::DF;
const ONE: u16 = CommandFlags::REQ_ONE;
const FAST: u16 = CommandFlags::FAST_ZERO;
const PAYLOAD: u16 = CommandFlags::PAYLOAD_LEN;
const LARGE: u64 = 33 << 20;
const MIDDLE: u64 = 65536;

/// Requests of that form.
pub(crate) fn requests(form: Form) -> Vec<Request> {
    let mut rows = Rows {
        form,
        rows: Vec::new(),
    };
    let chunks = match form {
        Form::Simple => Expect::Refused,
        _ => Expect::Done,
    };
    for (what, expect) in [
        ((0, 0, MIDDLE, 16), Expect::Done),
        ((0, 0, 0, 512), Expect::Done),
        ((0, 0, MIDDLE - 16, 32), Expect::Done),
        ((0, 0, MIDDLE - 4096, 3 * MIDDLE), Expect::Done),
        ((0, 0, 1, SIZE - 1), Expect::Done),
        ((0, DF, MIDDLE - 16, 32), chunks),
        ((0, FUA, 0, 512), Expect::Done),
        ((0, 0, 0, 0), Expect::Done),
        ((0, 0, SIZE, 0), Expect::Done),
        ((0, 0, SIZE, 1), Expect::Refused),
        ((0, 0, SIZE - 1, 2), Expect::Refused),
        ((0, 0, 1 << 63, 512), Expect::Refused),
        ((0, 0, u64::MAX - 15, 32), Expect::Refused),
        ((0, 0, 0, LARGE), Expect::Refused),
        ((0, 0x8000, 0, 512), Expect::Refused),
        ((0, ONE, 0, 512), Expect::Refused),
        ((2, 0, 0, 0), Expect::Goodbye),
        ((2, 0xffdf, 5, 5), Expect::Goodbye),
        ((3, 0, 0, 0), Expect::Done),
        ((3, FUA, 5, 5), Expect::Done),
        ((3, 0, SIZE, 1), Expect::Refused),
        ((3, NO_HOLE, 0, 0), Expect::Refused),
        ((4, 0, 3 * MIDDLE, MIDDLE), Expect::Done),
        ((4, FUA, 3 * MIDDLE, MIDDLE), Expect::Done),
        ((4, 0, 0, 0), Expect::Done),
        ((4, 0, SIZE - 1, 2), Expect::Refused),
        ((4, NO_HOLE, 0, 512), Expect::Refused),
        ((5, 0, 0, MIDDLE), Expect::Done),
        ((5, FUA, 0, 0), Expect::Done),
        ((5, 0, 0, LARGE), Expect::Refused),
        ((5, 0, SIZE, 1), Expect::Refused),
        ((6, 0, 3 * MIDDLE, 4096), Expect::Done),
        ((6, NO_HOLE, 4 * MIDDLE, 4096), Expect::Done),
        ((6, FAST, 3 * MIDDLE, 4096), Expect::Done),
        ((6, FAST | NO_HOLE | FUA, 4 * MIDDLE, 4096), Expect::Done),
        ((6, 0, 0, 0), Expect::Done),
        ((6, 0, SIZE, 1), Expect::Refused),
        ((6, DF, 0, 512), Expect::Refused),
        ((6, ONE, 0, 512), Expect::Refused),
        ((7, 0, 0, SIZE), chunks),
        ((7, ONE, MIDDLE, SIZE - MIDDLE), chunks),
        ((7, FUA, MIDDLE, 1), chunks),
        ((7, 0, 0, 0), Expect::Refused),
        ((7, 0, SIZE, 1), Expect::Refused),
        ((7, 0, 0, u32::MAX as u64), Expect::Refused),
        ((7, DF, 0, 512), Expect::Refused),
        ((8, 0, 0, 0), Expect::Refused),
        ((99, 0, 0, 512), Expect::Refused),
        ((u16::MAX, 0, 0, 0), Expect::Refused),
        ((99, NO_HOLE, 0, 0), Expect::Refused),
        ((99, 0, SIZE, 1), Expect::Refused),
    ] {
        rows.add(what, expect);
    }
    writes(&mut rows);
    others(&mut rows);
    match form {
        Form::Extended => payloads(&mut rows),
        _ => rows.push("magic".into(), "e", wrong_magic(), Expect::Fatal),
    }
    rows.rows
}

fn writes(rows: &mut Rows) {
    let wants = match rows.form {
        Form::Extended => PAYLOAD,
        _ => 0,
    };
    for ((flags, at, len), expect) in [
        ((0, 5 * MIDDLE, 16), Expect::Done),
        ((FUA, 5 * MIDDLE + 1, 777), Expect::Done),
        ((0, 0, 0), Expect::Done),
        ((0, SIZE - 8, 16), Expect::Refused),
        ((0, SIZE, 16), Expect::Refused),
        ((0, u64::MAX, 16), Expect::Refused),
        ((NO_HOLE, 0, 16), Expect::Refused),
        ((DF, 0, 0), Expect::Refused),
    ] {
        let mut bytes = rows.bytes(1, flags | wants, at, len);
        bytes.resize(bytes.len() + len as usize, b'w');
        let name = format!("write {flags} {at} {len}");
        rows.push(name, "e", bytes.clone(), expect);
        rows.push(
            format!("read-only {at} {len}"),
            "ro",
            bytes,
            Expect::Refused,
        );
    }
    let large = rows.bytes(1, wants, 0, (32 << 20) + 1);
    rows.push("write too large".into(), "e", large, Expect::Fatal);
    let mut odd = rows.bytes(1, wants ^ PAYLOAD, 5 * MIDDLE, 16);
    odd.extend([b'o'; 16]);
    let expect = match rows.form {
        Form::Extended => Expect::Done,
        _ => Expect::Refused,
    };
    rows.push("write with the other payload flag".into(), "e", odd, expect);
}

fn others(rows: &mut Rows) {
    for command in [4, 6] {
        let bytes = rows.bytes(command, 0, 0, 4096);
        rows.push(format!("read-only {command}"), "ro", bytes, Expect::Refused);
    }
    let status = rows.bytes(7, 0, 0, SIZE);
    rows.push(
        "status of an export without contexts".into(),
        "ro",
        status.clone(),
        Expect::Refused,
    );
    if rows.form == Form::Simple {
        return;
    }
    let one = rows.options(&["base:allocation"]);
    rows.rows.push(Request {
        name: "status of one context".into(),
        export: "e",
        options: one,
        bytes: status,
        expect: Expect::Done,
    });
}

fn payloads(rows: &mut Rows) {
    let mut add = |name: &str, contexts: Vec<u32>, expect| {
        let mut payload = Vec::new();
        StatusPayload {
            len: SIZE,
            contexts,
        }
        .encode(&mut payload);
        let mut bytes = rows.bytes(7, PAYLOAD, 0, payload.len() as u64);
        bytes.extend(payload);
        rows.push(format!("status payload, {name}"), "e", bytes, expect);
    };
    add("one", vec![0], Expect::Done);
    add("the other", vec![1], Expect::Done);
    add("both, turned round", vec![1, 0], Expect::Done);
    add("none", vec![], Expect::Refused);
    add("unknown", vec![5], Expect::Refused);
    add("twice", vec![0, 0], Expect::Refused);
    add("three", vec![0, 1, 2], Expect::Refused);
    for (name, len, expect) in [("short", 4, Expect::Refused), ("odd", 13, Expect::Refused)] {
        let mut bytes = rows.bytes(7, PAYLOAD, 0, len);
        bytes.resize(bytes.len() + len as usize, 0);
        rows.push(format!("status payload, {name}"), "e", bytes, expect);
    }
    for command in [0, 3, 4, 5, 6, 99] {
        let mut bytes = rows.bytes(command, PAYLOAD, 0, 8);
        bytes.extend(b"12345678");
        rows.push(
            format!("{command} with a payload"),
            "e",
            bytes,
            Expect::Refused,
        );
    }
    let large = rows.bytes(0, PAYLOAD, 0, LARGE);
    rows.push(
        "read with a large payload".into(),
        "e",
        large,
        Expect::Fatal,
    );
    let mut magic = head(0, 0, 0, 512).encode_extended().to_vec();
    magic[0] ^= 0xff;
    rows.push("magic".into(), "e", magic, Expect::Fatal);
}
