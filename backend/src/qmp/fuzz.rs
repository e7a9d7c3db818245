//! Messages as clients send them, more or less, from the first byte to the check against the types.

use super::commands;
use super::session::{Next, Session};
use crate::cli::{self, Object, Spelling};
use crate::fuzz::{Chance, run};
use crate::json::{Layout, Nul, Reader, Rules, write};
use crate::qapi::{self, Type};
use serde_json::{Map, Value};

const RULES: Rules = Rules {
    depth_max: 1024,
    nul: Nul::Kept,
};

const SCALARS: &[&str] = &[
    "0",
    "-1",
    "1.5",
    "18446744073709551616",
    "9223372036854775807",
    "\"on\"",
    "\"a\"",
    "'b'",
    "\"\"",
    "null",
    "true",
    "false",
    "[]",
    "{}",
    "\"\\u0000\"",
    "\"\\ud83d\\ude00\"",
    "\"é\"",
    "1e3",
    "-0",
];

/// A value of that type, most of the time.
fn a_value(chance: &mut Chance, ty: Type, depth: usize, out: &mut String) {
    if chance.below(12) == 0 || depth > 6 {
        out.push_str(chance.one_of(SCALARS));
        return;
    }
    match ty {
        Type::Object(object) => an_object(chance, object, depth, out),
        Type::Alternate(alternate) => {
            let ty = chance.one_of(alternate.types);
            a_value(chance, ty, depth, out);
        }
        Type::Array(of) => {
            out.push('[');
            for at in 0..chance.below(4) {
                out.push_str(if at > 0 { "," } else { "" });
                a_value(chance, *of, depth + 1, out);
            }
            out.push(']');
        }
        Type::Enum(words) => {
            out.push('"');
            out.push_str(chance.one_of(words.values));
            out.push('"');
        }
        Type::Bool => out.push_str(chance.one_of(&["true", "false"])),
        Type::Str => {
            out.push_str(chance.one_of(&["\"a\"", "\"node0\"", "\"/nonexistent/x\"", "\"1\""]))
        }
        _ => out.push_str(chance.one_of(SCALARS)),
    }
}

fn an_object(chance: &mut Chance, object: &qapi::Object, depth: usize, out: &mut String) {
    out.push('{');
    let mut at = 0;
    let mut member = |name: &str, ty: Type, chance: &mut Chance, out: &mut String| {
        out.push_str(if at > 0 { "," } else { "" });
        at += 1;
        out.push_str(&format!("\"{name}\": "));
        a_value(chance, ty, depth + 1, out);
    };
    for m in object.members.iter() {
        if !m.optional || chance.below(3) == 0 {
            member(m.name, m.ty, chance, out);
        }
    }
    let cases = object
        .variants
        .as_ref()
        .map_or(&[][..], |variants| variants.cases);
    if !cases.is_empty() {
        let case = &cases[chance.below(cases.len())];
        for m in case.object.members.iter() {
            if !m.optional || chance.below(4) == 0 {
                member(m.name, m.ty, chance, out);
            }
        }
    }
    if chance.below(20) == 0 {
        member("bogus", Type::Any, chance, out);
    }
    out.push('}');
}

fn a_message(chance: &mut Chance) -> String {
    let all: Vec<_> = commands::all().collect();
    let command = all[chance.below(all.len())];
    let mut out = String::from("{");
    if chance.below(3) == 0 {
        out.push_str("\"id\": ");
        a_value(chance, Type::Any, 0, &mut out);
        out.push_str(", ");
    }
    let verb = chance.one_of(&["execute", "execute", "execute", "exec-oob"]);
    out.push_str(&format!(
        "\"{verb}\": \"{}\", \"arguments\": ",
        command.name
    ));
    an_object(chance, command.args, 0, &mut out);
    out.push('}');
    out
}

fn strike(chance: &mut Chance, bytes: &mut Vec<u8>) {
    let at = chance.below(bytes.len());
    let telling = b"{}[]\"'\\,:\n\0\xff\xc0\x80 0-.eut";
    match chance.below(5) {
        0 => bytes.truncate(at),
        1 => drop(bytes.splice(at..at, [chance.one_of(telling)])),
        2 => drop(bytes.remove(at)),
        3 => bytes[at] = chance.one_of(telling),
        _ => {
            let copy = bytes[at..].to_vec();
            bytes.extend(copy);
        }
    }
}

fn read(bytes: &[u8]) -> Vec<Result<Value, cli::Refusal>> {
    let mut reader = Reader::new(RULES);
    let mut messages = Vec::new();
    for byte in bytes {
        loop {
            let step = reader.step(*byte);
            messages.extend(step.message);
            if !step.again {
                break;
            }
        }
    }
    messages
}

/// What was understood is written so that it is understood the same. Names that share a bucket change places each time they
/// are read, so it is written three times.
fn comes_back(value: &Value) {
    let first = written(value);
    let again = |text: &[u8]| {
        let value = read(text).pop().expect("a message");
        written(&value.expect("what we write, we read"))
    };
    let third = again(&again(&first));
    // C spells the double -0 like the integer.
    if !first.windows(2).any(|two| two == b"-0") {
        assert_eq!(
            first.escape_ascii().to_string(),
            third.escape_ascii().to_string()
        );
    }
}

fn written(value: &Value) -> Vec<u8> {
    let mut text = Vec::new();
    write(value, Layout::Compact, &mut text);
    text.push(b'\n');
    text
}

fn check(name: &str, arguments: &Map<String, Value>) {
    let Some(command) = commands::find(name) else {
        return;
    };
    if let Ok(object) = Object::checked(arguments.clone(), command.args, Spelling::Json) {
        let _ = match name {
            "blockdev-add" => cli::blockdev(object).map(drop),
            "block-export-add" => cli::export(object).map(drop),
            "object-add" => cli::object(object).map(drop),
            _ => Ok(()),
        };
    }
}

#[test]
fn no_bytes_of_a_client_panic_and_what_is_understood_comes_back() {
    let mut accepted = 0u64;
    run(1 << 40, |chance| {
        let mut session = Session::new();
        let mut bytes = match chance.below(4) {
            0 => Vec::new(),
            _ => {
                b"{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":[\"oob\"]}}".to_vec()
            }
        };
        for _ in 0..=chance.below(3) {
            bytes.extend(a_message(chance).into_bytes());
        }
        for _ in 0..chance.below(3) {
            if !bytes.is_empty() {
                strike(chance, &mut bytes);
            }
        }
        for message in read(&bytes) {
            if let Ok(value) = &message {
                comes_back(value);
            }
            if let Next::Execute(todo) = session.receive(message)
                && let Ok((name, arguments)) = todo.call
            {
                accepted += 1;
                check(&name, &arguments);
            }
        }
    });
    assert!(accepted > 0 || std::env::var("QMP_FUZZ_SEED").is_ok());
}
