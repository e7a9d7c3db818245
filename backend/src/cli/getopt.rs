//! Arguments split into options, as getopt_long splits them: `--name value`, `--name=value`, unambiguous beginnings of QSD's names, `-T value`.
//!
//! The options that QSD does not have are spelled out in full, so that they cannot make a beginning ambiguous that was not.

use std::ffi::{OsStr, OsString};

use super::error::Refusal;

/// Which option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    Blockdev,
    Chardev,
    Daemonize,
    Export,
    Help,
    Monitor,
    NbdServer,
    Object,
    Pidfile,
    Trace,
    Version,
    BlkFile,
    Fd,
    Format,
    PrintCapabilities,
    ReadOnly,
    SocketPath,
    /// A word that is no option.
    Bare,
}

/// One option with its value.
#[derive(Debug)]
pub(super) struct Word {
    pub(super) name: Name,
    /// Empty where the option takes none.
    pub(super) value: OsString,
    /// As the user wrote it, for messages.
    pub(super) origin: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Takes {
    Value,
    Nothing,
}

#[derive(Debug)]
struct Spec {
    long: &'static str,
    name: Name,
    takes: Takes,
}

const fn spec(long: &'static str, name: Name, takes: Takes) -> Spec {
    Spec { long, name, takes }
}

/// In QSD's order, which is how an ambiguous name lists them.
const QSD: &[Spec] = &[
    spec("blockdev", Name::Blockdev, Takes::Value),
    spec("chardev", Name::Chardev, Takes::Value),
    spec("daemonize", Name::Daemonize, Takes::Nothing),
    spec("export", Name::Export, Takes::Value),
    spec("help", Name::Help, Takes::Nothing),
    spec("monitor", Name::Monitor, Takes::Value),
    spec("nbd-server", Name::NbdServer, Takes::Value),
    spec("object", Name::Object, Takes::Value),
    spec("pidfile", Name::Pidfile, Takes::Value),
    spec("trace", Name::Trace, Takes::Value),
    spec("version", Name::Version, Takes::Nothing),
];

/// The backend program conventions of docs/interop/vhost-user.rst, and `--format`.
const OURS: &[Spec] = &[
    spec("blk-file", Name::BlkFile, Takes::Value),
    spec("fd", Name::Fd, Takes::Value),
    spec("format", Name::Format, Takes::Value),
    spec(
        "print-capabilities",
        Name::PrintCapabilities,
        Takes::Nothing,
    ),
    spec("read-only", Name::ReadOnly, Takes::Nothing),
    spec("socket-path", Name::SocketPath, Takes::Value),
];

/// Every argument, in order; what is wrong with one does not hide those after it.
pub(super) fn split(args: impl IntoIterator<Item = OsString>) -> Vec<Result<Word, Refusal>> {
    let mut parser = lexopt::Parser::from_args(args);
    parser.set_short_equals(false);
    let mut words = Vec::new();
    while let Some(word) = next(&mut parser) {
        words.push(word);
    }
    words
}

/// An argument without its value yet.
enum Head {
    Short(char),
    Long(String),
    Bare(OsString),
}

fn next(parser: &mut lexopt::Parser) -> Option<Result<Word, Refusal>> {
    let head = match parser.next() {
        Ok(None) => return None,
        Ok(Some(lexopt::Arg::Short(short))) => Head::Short(short),
        Ok(Some(lexopt::Arg::Long(long))) => Head::Long(long.to_owned()),
        Ok(Some(lexopt::Arg::Value(value))) => Head::Bare(value),
        // Values are always taken below, so nothing is left over for the parser to complain about.
        Err(error) => return Some(Err(Refusal::new(error.to_string()))),
    };
    Some(match head {
        Head::Short(short) => short_option(parser, short),
        Head::Long(long) => long_option(parser, &long),
        Head::Bare(value) => Ok(Word {
            name: Name::Bare,
            origin: display(&value),
            value,
        }),
    })
}

fn short_option(parser: &mut lexopt::Parser, short: char) -> Result<Word, Refusal> {
    let flag = |name| {
        Ok(Word {
            name,
            value: OsString::new(),
            origin: format!("-{short}"),
        })
    };
    match short {
        'h' => flag(Name::Help),
        'V' => flag(Name::Version),
        'T' => {
            let attached = parser.optional_value();
            let gap = if attached.is_some() { "" } else { " " };
            let value = match attached {
                Some(value) => value,
                None => parser
                    .value()
                    .map_err(|_| Refusal::new("option requires an argument -- 'T'"))?,
            };
            Ok(Word {
                name: Name::Trace,
                origin: format!("-T{gap}{}", display(&value)),
                value,
            })
        }
        _ => Err(Refusal::new(format!("invalid option -- '{short}'"))),
    }
}

fn long_option(parser: &mut lexopt::Parser, long: &str) -> Result<Word, Refusal> {
    let attached = parser.optional_value();
    let written = match &attached {
        Some(value) => format!("--{long}={}", display(value)),
        None => format!("--{long}"),
    };
    let spec = find(long, &written)?;
    let full = spec.long;
    match (spec.takes, attached) {
        (Takes::Nothing, Some(_)) => Err(Refusal::new(format!(
            "option '--{full}' doesn't allow an argument"
        ))),
        (Takes::Nothing, None) => Ok(Word {
            name: spec.name,
            value: OsString::new(),
            origin: written,
        }),
        (Takes::Value, Some(value)) => Ok(Word {
            name: spec.name,
            value,
            origin: written,
        }),
        (Takes::Value, None) => {
            let value = parser
                .value()
                .map_err(|_| Refusal::new(format!("option '--{full}' requires an argument")))?;
            Ok(Word {
                name: spec.name,
                origin: format!("{written} {}", display(&value)),
                value,
            })
        }
    }
}

fn find(long: &str, written: &str) -> Result<&'static Spec, Refusal> {
    if let Some(spec) = QSD.iter().chain(OURS).find(|spec| spec.long == long) {
        return Ok(spec);
    }
    let candidates: Vec<&Spec> = QSD
        .iter()
        .filter(|spec| spec.long.starts_with(long))
        .collect();
    match candidates.as_slice() {
        [] => Err(Refusal::new(format!("unrecognized option '{written}'"))),
        [spec] => Ok(spec),
        several => {
            let names: String = several
                .iter()
                .map(|spec| format!(" '--{}'", spec.long))
                .collect();
            Err(Refusal::new(format!(
                "option '{written}' is ambiguous; possibilities:{names}"
            )))
        }
    }
}

fn display(value: &OsStr) -> String {
    value.to_string_lossy().into_owned()
}
