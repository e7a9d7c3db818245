//! Arguments in both older forms, more or less as users write them.

use super::getopt;
use super::qemu_opts::{Kind, Opts};
use super::{keyval, step};
use crate::fuzz::{Chance, run};
use serde_json::{Map, Value};

const KEYS: &[&str] = &[
    "driver",
    "node-name",
    "file",
    "file.driver",
    "file.filename",
    "filename",
    "id",
    "type",
    "addr.type",
    "addr.path",
    "cache.direct",
    "read-only",
    "size",
    "a",
    "a.b",
    "a.0",
    "a.1",
    "a.0.b",
    "server.0.host",
    "chardev",
    "pretty",
    "backend",
    "path",
    "server",
    "wait",
    "reconnect-ms",
    "host",
    "port",
    "fd",
    "__com.x_y",
    "",
    ".",
    "a..b",
    "0",
    "help",
    "?",
    "x-y_z",
];
const VALUES: &[&str] = &[
    "null-co",
    "file",
    "raw",
    "qcow2",
    "socket",
    "stdio",
    "on",
    "off",
    "0",
    "-1",
    "1k",
    "1.5G",
    "0x10",
    "08",
    "é",
    "",
    "a",
    "vhost-user-blk",
    "nbd",
    "unix",
    "inet",
    "/nonexistent/x",
    "99999999999999999999",
    ",,",
    "a,,b",
    "=",
    "null",
    "1M",
];

fn an_argument(chance: &mut Chance) -> String {
    let mut text = String::new();
    for _ in 0..chance.below(8) {
        match chance.below(8) {
            0 => text.push_str(chance.one_of(KEYS)),
            1 => text.push_str(chance.one_of(VALUES)),
            _ => {
                text.push_str(chance.one_of(KEYS));
                text.push('=');
                text.push_str(chance.one_of(VALUES));
            }
        }
        text.push(',');
    }
    if chance.below(4) > 0 {
        text.pop();
    }
    if chance.below(6) == 0 {
        let at = chance.below(text.len());
        if text.is_char_boundary(at) {
            text.insert(at, chance.one_of(&[',', '=', '.', '\0', 'é', '0']));
        }
    }
    text
}

/// Every leaf with its dotted key.
fn spell(members: &Map<String, Value>, prefix: &str, out: &mut Vec<String>) {
    for (name, value) in members {
        let key = format!("{prefix}{name}");
        match value {
            Value::Object(below) => spell(below, &format!("{key}."), out),
            Value::String(text) => out.push(format!("{key}={}", text.replace(',', ",,"))),
            other => panic!("not a leaf: {other}"),
        }
    }
}

#[test]
fn no_keyval_argument_panics_and_what_is_accepted_comes_back() {
    run(2 << 40, |chance| {
        let text = an_argument(chance);
        if let Ok(keyval) = keyval::parse(&text, Some("driver"))
            && !keyval.help
        {
            let mut parameters = Vec::new();
            spell(&keyval.members, "", &mut parameters);
            assert!(parameters.len() <= text.len());
            let again = keyval::parse(&parameters.join(","), None).expect("what was accepted");
            assert_eq!(again.members, keyval.members, "{text:?}");
            let _ = keyval::listify(keyval.members);
        }
        let options = [
            "--blockdev",
            "--export",
            "--object",
            "--nbd-server",
            "--monitor",
        ];
        for word in getopt::split([chance.one_of(&options).into(), text.clone().into()]) {
            let _ = word.map(step);
        }
    });
}

#[test]
fn no_chardev_argument_panics_and_what_is_accepted_comes_back() {
    const KINDS: &[(&str, Kind)] = &[
        ("backend", Kind::Str),
        ("path", Kind::Str),
        ("server", Kind::Bool),
        ("size", Kind::Size),
        ("reconnect-ms", Kind::Number),
    ];
    run(3 << 40, |chance| {
        let text = an_argument(chance);
        let (opts, parsed) = Opts::parse(&text, "backend", KINDS);
        if parsed.is_ok() && !opts.help {
            let (again, parsed) = Opts::parse(&opts.spelled(), "backend", KINDS);
            assert_eq!(parsed, Ok(()), "{text:?}");
            assert_eq!(again.spelled(), opts.spelled(), "{text:?}");
            assert_eq!(again.id, opts.id, "{text:?}");
        }
        for word in getopt::split(["--chardev".into(), text.into()]) {
            let _ = word.map(step);
        }
    });
}
