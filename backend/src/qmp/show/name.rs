//! Names of nodes as text: a plain one as it is, options as `json:{...}`.
//!
//! The rule: the text is QEMU's, to the byte, where options are those QEMU has: clients compare names. QEMU lists options in
//! the order of a hash table, so the order here is a table too, taken from what `qemu-storage-daemon` 10.0.2 prints.

use blockgraph::graph::name::{Name, Setting, Settings};
use std::fmt::Write;

/// Options in the order in which QEMU lists them. Only among options that a driver has together does it mean anything.
const ORDER: [&str; 42] = [
    "inject-error.0.state",
    "read-zeroes",
    "offset",
    "opt-write-zero",
    "inject-error.0.immediately",
    "set-state.0.event",
    "inject-error.0.once",
    "max-write-zero",
    "image",
    "max-transfer",
    "throttle-group",
    "backing",
    "data-file",
    "server.path",
    "server.port",
    "server.host",
    "driver",
    "inject-error.0.iotype",
    "set-state.0.new_state",
    "inject-error.0.event",
    "inject-error.0.errno",
    "opt-discard",
    "set-state.0.state",
    "inject-error.0.sector",
    "max-discard",
    "align",
    "export",
    "server.type",
    "config",
    "size",
    "file",
    "filename",
    "tls-creds",
    "tls-hostname",
    "latency-ns",
    "server.str",
    "inject-error.1.event",
    "inject-error.1.iotype",
    "inject-error.1.errno",
    "set-state.1.event",
    "set-state.1.state",
    "set-state.1.new_state",
];

/// The name as text.
pub(crate) fn text(name: &Name) -> String {
    match name {
        Name::Plain(name) => name.clone(),
        Name::Options(options) => {
            let mut text = String::from("json:");
            write_options(&mut text, options);
            text
        }
    }
}

fn rank(name: &str) -> usize {
    let place = ORDER.iter().position(|known| *known == name);
    place.unwrap_or(ORDER.len())
}

/// As deep as the graph is, which has a limit.
fn write_options(text: &mut String, options: &Settings) {
    let mut sorted: Vec<&(String, Setting)> = options.iter().collect();
    sorted.sort_by_key(|(name, _)| (rank(name), name.as_str()));
    text.push('{');
    for (at, (name, value)) in sorted.into_iter().enumerate() {
        if at > 0 {
            text.push_str(", ");
        }
        write_string(text, name);
        text.push_str(": ");
        write_value(text, value);
    }
    text.push('}');
}

fn write_value(text: &mut String, value: &Setting) {
    match value {
        Setting::Null => text.push_str("null"),
        Setting::Switch(on) => text.push_str(if *on { "true" } else { "false" }),
        Setting::Number(number) => text.push_str(&number.to_string()),
        Setting::Text(value) => write_string(text, value),
        Setting::Options(options) => write_options(text, options),
    }
}

/// Everything but ASCII is escaped, as QEMU does.
fn write_string(text: &mut String, value: &str) {
    text.push('"');
    for c in value.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            ' '..='~' => text.push(c),
            other => write_units(text, other),
        }
    }
    text.push('"');
}

fn write_units(text: &mut String, c: char) {
    for unit in c.encode_utf16(&mut [0; 2]) {
        // Writing to a string does not fail.
        let _ = write!(text, "\\u{unit:04X}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(name: &str, value: &str) -> (String, Setting) {
        (name.to_owned(), Setting::Text(value.to_owned()))
    }

    #[test]
    fn options_are_listed_in_qemus_order_and_spelling() {
        let file = vec![
            word("driver", "file"),
            word("filename", "a\"\u{e9}\u{1f600}\n"),
        ];
        let options = vec![
            word("driver", "raw"),
            ("size".to_owned(), Setting::Number(8192)),
            ("file".to_owned(), Setting::Options(file)),
            ("backing".to_owned(), Setting::Null),
            ("offset".to_owned(), Setting::Number(4096)),
            ("unheard-of".to_owned(), Setting::Switch(true)),
        ];
        let expected = r#"json:{"offset": 4096, "backing": null, "driver": "raw", "size": 8192, "file": {"driver": "file", "filename": "a\"\u00E9\uD83D\uDE00\n"}, "unheard-of": true}"#;
        assert_eq!(text(&Name::Options(options)), expected);
    }
}
